"""The queue on Apache Kafka: an idempotent producer, consumers that commit what is finished.

A message without key or partition goes to partition 0. With a partition a subscription reads it by assignment, in a
group of its own, so no rebalance ever moves it. Without, it is a member of an ordinary group, which hands out
partitions, not messages. Kafka bounds a topic by its retention; how much may be open at once is the store's to say, so
nothing here raises `Full`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import ConsumerStoppedError, KafkaError, MessageSizeTooLargeError

from pice.errors import MessageTooLarge, TransportError
from pice.transport.base import Delivery, Subscription
from pice.transport.kafka_ledger import Ledger, commits, read_ledger

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_OVERHEAD = 4096
"""Bytes allowed for a record's frame, key and headers beyond its payload."""


class KafkaTransport:
    """See `pice.transport.base.Transport`. `start` before use; topics are there already, with their partitions.

    `options` are those that every client of aiokafka takes: `bootstrap_servers`, and for TLS and SASL
    `security_protocol`, `ssl_context`, `sasl_mechanism`, `sasl_plain_username`, `sasl_plain_password`. `prefix` stands
    before the names of topics and groups, so that several PICEs can share brokers.
    """

    def __init__(self, options: Mapping[str, Any], *, prefix: str = "", max_bytes: int = 1 << 20) -> None:
        self._options = dict(options)
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._subscriptions: set[KafkaSubscription] = set()
        self._producer: Any = None

    async def start(self) -> None:
        """Connects.

        Raises:
            TransportError: no broker answers.
        """
        producer = AIOKafkaProducer(
            **self._options, enable_idempotence=True, acks="all", max_request_size=self._max_bytes + _OVERHEAD
        )
        async with _mapped("Kafka cannot be reached"):
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
        self._producer = producer

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        if len(payload) > self._max_bytes:
            raise MessageTooLarge(f"{topic} takes messages of up to {self._max_bytes} bytes, got {len(payload)}")
        async with _mapped(f"{topic} could not take a message"):
            await self._producer.send_and_wait(
                self._prefix + topic,
                payload,
                key=key.encode() if key else None,
                partition=0 if partition is None and not key else partition,
                headers=list((headers or {}).items()),
            )

    async def subscribe(
        self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64
    ) -> Subscription:
        own = f"{self._prefix}{group}" + ("" if partition is None else f".{partition}")
        subscription = KafkaSubscription(self._options, self._prefix, topic, own, prefetch, self._max_bytes + _OVERHEAD)
        async with _mapped(f"{topic} cannot be read"):
            await subscription.start(partition)
        self._subscriptions.add(subscription)
        return subscription

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            await subscription.close()
        self._subscriptions.clear()
        if self._producer is not None:
            await self._producer.stop()


class KafkaSubscription:
    """See `pice.transport.base.Subscription`. Commits run one after another, each with all that is known by then."""

    def __init__(
        self, options: Mapping[str, Any], prefix: str, topic: str, group: str, prefetch: int, max_bytes: int
    ) -> None:
        self._options = options
        self._name = topic
        self._topic = prefix + topic
        self._group = group
        self._prefetch = prefetch
        self._ledgers: dict[int, Ledger] = {}
        self._outstanding: dict[tuple[int, int], Delivery] = {}
        self._arrived: deque[Any] = deque()
        self._again: deque[Delivery] = deque()
        self._settled = False
        self._refused: TransportError | None = None
        self._changed = asyncio.Event()
        self._dirty = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None
        self._closed = False
        self._max_bytes = max_bytes
        self._consumer: Any = None

    async def start(self, partition: int | None) -> None:
        """Joins the group, or takes the partition.

        Raises:
            TransportError: there is no such topic, or no such partition.
        """
        await self._check(partition)
        self._consumer = AIOKafkaConsumer(
            **self._options,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=self._max_bytes,
        )
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        if partition is None:
            self._consumer.subscribe([self._topic], listener=_Listener(self))
        else:
            await self.settle([partition])
            self._consumer.assign([TopicPartition(self._topic, partition)])
        self._committer = asyncio.create_task(self._commit_changes())

    async def _check(self, partition: int | None) -> None:
        async with self._admin() as admin:
            (described,) = await admin.describe_topics([self._topic])
        known = [each["partition"] for each in described["partitions"]]
        if not known or (partition is not None and partition not in known):
            what = "the topic" if not known else f"its partition {partition}"
            raise TransportError(f"{self._topic}: {what} does not exist: make it with Kafka's tools, and try again")

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(**self._options)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    async def take_over(self, partitions: Iterable[int]) -> None:
        """Reads what the group has left of these partitions, which are all there are."""
        async with self._admin() as admin:
            known = await admin.list_consumer_group_offsets(self._group)
        for partition in partitions:
            left = known.get(TopicPartition(self._topic, partition))
            self._ledgers[partition] = read_ledger(left.offset, left.metadata) if left else Ledger(0)
        self._settled = True
        self._changed.set()

    async def settle(self, partitions: Sequence[int]) -> None:
        """Takes over what the group has given, however often that must be tried: nothing is read before. Where it
        never can be, whoever receives is told."""
        while not self._closed:
            try:
                await self.take_over(partitions)
                break
            except KafkaError as error:
                if not error.retriable:
                    self._refused = TransportError(f"{self._topic}: group {self._group} cannot be read: {error}")
                    self._changed.set()
                    break
                log.warning("%s: group %s: %s; tried again in %g s", self._topic, self._group, error, _RETRY_S)
                await asyncio.sleep(_RETRY_S)

    async def give_up(self, partitions: Iterable[int]) -> None:
        """Commits what is finished of these partitions and forgets them; what is outstanding goes to others. Nothing
        is handed out until it is known what of the new ones is left: records may come before that."""
        self._settled = False
        await self._try_to_commit("others do again what is not committed")
        for partition in partitions:
            self._ledgers.pop(partition, None)
        self._outstanding = {key: kept for key, kept in self._outstanding.items() if key[0] in self._ledgers}
        self._again = deque(kept for kept in self._again if kept.partition in self._ledgers)

    async def receive(self) -> Delivery:
        while not self._closed:
            self._changed.clear()
            if self._refused:
                raise self._refused
            if len(self._outstanding) >= self._prefetch or not self._settled:
                await self._changed.wait()
            elif self._again:
                return self._hand_out(self._again.popleft())
            elif not self._arrived:
                await self._fetch()
            elif delivery := self._delivery(self._arrived.popleft()):
                return self._hand_out(delivery)
        raise TransportError(f"the subscription to {self._topic} is closed")

    async def ack(self, delivery: Delivery) -> None:
        if self._outstanding.pop((delivery.partition, delivery.position), None) is None:
            return
        self._ledgers[delivery.partition].finish(delivery.position)
        self._changed.set()
        self._dirty.set()

    async def release(self, delivery: Delivery, *, delay_s: float = 0.0) -> None:
        if self._outstanding.pop((delivery.partition, delivery.position), None) is None:
            return
        self._changed.set()
        if delay_s <= 0:
            self._put_back(delivery)
            return
        asyncio.get_running_loop().call_later(delay_s, self._put_back, delivery)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        if self._committer:
            self._committer.cancel()
            await asyncio.gather(self._committer, return_exceptions=True)
        await self._try_to_commit("others do again what is not committed")
        await self._consumer.stop()

    async def _fetch(self) -> None:
        """Waits for a record, or for something else to look at. A record that comes as the wait ends is kept."""
        reading = asyncio.ensure_future(self._consumer.getone())
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            changed.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled() and reading.exception() is None:
                self._arrived.append(reading.result())
        if reading.done() and not reading.cancelled():
            async with _mapped(f"{self._topic} cannot be read"):
                reading.result()

    def _delivery(self, record: Any) -> Delivery | None:
        """None for a record that is finished, or of a partition that has gone to another."""
        ledger = self._ledgers.get(record.partition)
        if ledger is None or ledger.is_finished(record.offset):
            return None
        key = record.key.decode(errors="replace") if record.key else ""
        return Delivery(self._name, record.partition, record.offset, record.value or b"", key, dict(record.headers))

    def _hand_out(self, delivery: Delivery) -> Delivery:
        counted = replace(delivery, num_deliveries=self._ledgers[delivery.partition].begin(delivery.position))
        self._outstanding[delivery.partition, delivery.position] = counted
        self._dirty.set()
        return counted

    def _put_back(self, delivery: Delivery) -> None:
        if delivery.partition in self._ledgers:
            self._again.append(delivery)
            self._changed.set()

    async def _commit_changes(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not await self._try_to_commit("tried again soon"):
                asyncio.get_running_loop().call_later(_RETRY_S, self._dirty.set)

    async def _try_to_commit(self, otherwise: str) -> bool:
        """Whether it went well; if not, the log says why, and what becomes of it."""
        try:
            await self._commit()
        except TransportError as error:
            log.warning("%s: group %s: %s; %s", self._topic, self._group, error, otherwise)
            return False
        return True

    async def _commit(self) -> None:
        offsets = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(position, metadata)
            for partition, (position, metadata) in commits(self._ledgers).items()
        }
        if offsets:
            async with _mapped("what is finished could not be committed"):
                await self._consumer.commit(offsets)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Tells a subscription which partitions the group has given it."""

    def __init__(self, subscription: KafkaSubscription) -> None:
        self._subscription = subscription

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        await self._subscription.give_up([each.partition for each in revoked])

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        await self._subscription.settle([each.partition for each in assigned])


@asynccontextmanager
async def _mapped(what: str) -> AsyncIterator[None]:
    """Kafka's errors as ours, with what was tried."""
    try:
        yield
    except MessageSizeTooLargeError as error:
        raise MessageTooLarge(f"{what}: the broker's limit is lower than ours: {error}") from error
    except (KafkaError, ConsumerStoppedError) as error:
        raise TransportError(f"{what}: {error}") from error
