"""The same messages over the same brokers with nothing of PICE in between, as one would write it who wants it fast:
batches everywhere, offsets committed, entries acknowledged."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from bench.brokers_host import Brokers, Spent
from bench.brokers_ours import Recording, Sent

_GROUP = "bare"
_NUM_AT_ONCE = 128
_WAIT_MS = 100


class BareLoop:
    """Kafka partition -> stream of Redis, for each site; then one reader. At most `num_open` are on their way."""

    def __init__(self, brokers: Brokers, topic: str, recording: Recording, num_sites: int, num_open: int) -> None:
        self._brokers = brokers
        self._topic = topic
        self._stream = f"{topic}:candidates"
        self._recording = recording
        self._num_sites = num_sites
        self._num_open = num_open

    async def run(self, num: int, *, in_bursts: bool) -> tuple[Spent, Sequence[float]]:
        """Passes `num` messages on: what that took, and how long each was on its way. `in_bursts` sends `num_open` of
        them and waits for all before the next."""
        await self._make_topic()
        async with AsyncExitStack() as stack:
            producer = AIOKafkaProducer(
                bootstrap_servers=self._brokers.kafka_address, enable_idempotence=True, acks="all"
            )
            await producer.start()
            stack.push_async_callback(producer.stop)
            consumers = [await self._consumer(partition, stack) for partition in range(self._num_sites)]
            redis = Redis.from_url(self._brokers.redis_url, protocol=2)
            stack.push_async_callback(redis.aclose)
            await redis.xgroup_create(self._stream, _GROUP, id="0", mkstream=True)
            flow = Flow(num, self._num_open, in_bursts=in_bursts)
            async with asyncio.TaskGroup() as tasks:
                for consumer in consumers:
                    tasks.create_task(self._pass_on(consumer, redis, flow))
                tasks.create_task(self._collect(redis, flow))
                async with self._brokers.metered() as spent:
                    await self._produce(producer, flow)
                    await flow.ended.wait()
            return spent(), flow.took_s

    async def _make_topic(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._brokers.kafka_address)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(self._topic, self._num_sites, 1)])
        finally:
            await admin.close()

    async def _consumer(self, partition: int, stack: AsyncExitStack) -> Any:
        """In a group of its own, by assignment, as a site reads."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._brokers.kafka_address,
            group_id=f"{self._topic}.{partition}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        consumer.assign([TopicPartition(self._topic, partition)])
        return consumer

    async def _produce(self, producer: Any, flow: "Flow") -> None:
        """The producer batches what is sent without waiting for each."""
        segments, confirmed = self._recording.segments, []
        for number in range(flow.num):
            await flow.admit(number)
            sent = segments[number % len(segments)]
            future = await producer.send(
                self._topic,
                sent.payload,
                key=str(number).encode(),
                partition=number % self._num_sites,
                headers=list(sent.headers.items()),
            )
            confirmed.append(future)
        await asyncio.gather(*confirmed)

    async def _pass_on(self, consumer: Any, redis: Any, flow: "Flow") -> None:
        """Commits what is in Redis, once for each batch."""
        candidates = self._recording.candidates
        while not flow.ended.is_set():
            batches = await consumer.getmany(timeout_ms=_WAIT_MS, max_records=_NUM_AT_ONCE)
            records = [record for records in batches.values() for record in records]
            if not records:
                continue
            pipeline = redis.pipeline(transaction=False)
            for record in records:
                pipeline.xadd(self._stream, _fields(record.key, candidates[int(record.key) % len(candidates)]))
            await pipeline.execute()
            await consumer.commit()

    async def _collect(self, redis: Any, flow: "Flow") -> None:
        while not flow.ended.is_set():
            found = await redis.xreadgroup(_GROUP, "one", {self._stream: ">"}, count=_NUM_AT_ONCE, block=_WAIT_MS)
            entries = [entry for _, entries in found for entry in entries]
            if not entries:
                continue
            ids = [name for name, _ in entries]
            pipeline = redis.pipeline(transaction=False)
            pipeline.xack(self._stream, _GROUP, *ids)
            pipeline.xdel(self._stream, *ids)
            await pipeline.execute()
            flow.arrived([int(fields[b"key"]) for _, fields in entries])


def _fields(key: bytes, sent: Sent) -> dict[Any, Any]:
    return {"payload": sent.payload, "key": key, **{f"h:{name}": value for name, value in sent.headers.items()}}


class Flow:
    """Who may go, and who has arrived."""

    def __init__(self, num: int, num_open: int, *, in_bursts: bool) -> None:
        self.num = num
        self.took_s: list[float] = []
        self.ended = asyncio.Event()
        self._num_open = num_open
        self._in_bursts = in_bursts
        self._room = asyncio.Semaphore(num_open)
        self._sent_s: dict[int, float] = {}

    async def admit(self, number: int) -> None:
        await self._room.acquire()
        self._sent_s[number] = asyncio.get_running_loop().time()

    def arrived(self, numbers: Sequence[int]) -> None:
        """Raises KeyError for a message that came twice."""
        now_s = asyncio.get_running_loop().time()
        self.took_s += [now_s - self._sent_s.pop(number) for number in numbers]
        if len(self.took_s) == self.num:
            self.ended.set()
        for _ in range(self._num_free(len(numbers))):
            self._room.release()

    def _num_free(self, num_arrived: int) -> int:
        if not self._in_bursts:
            return num_arrived
        return 0 if len(self.took_s) % self._num_open else self._num_open
