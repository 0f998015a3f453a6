"""A reader of a Kafka topic: what it hands out, and how what is finished is committed."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pice.errors import ConfigError, PiceError, TransportError
from pice.kafka_client import (
    UNREADABLE,
    ConsumerRebalanceListener,
    KafkaClient,
    OffsetAndMetadata,
    TopicPartition,
    pass_over,
    stop_consumer,
)
from pice.transport.base import Delivery
from pice.transport.kafka_ledger import Ledger, commits
from pice.transport.kafka_positions import check_partition, read_ledgers

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_COMMIT_EVERY_S = 0.05
"""A commit costs Kafka more than a message. What ends its reader sooner than this may not be counted."""
_TAKE_S = 10.0
_LAST_COMMIT_S = 5.0


class KafkaSubscription:
    """See `pice.transport.base.Subscription`. Commits run one after another, each with all that is known by then."""

    def __init__(
        self,
        kafka: KafkaClient,
        topic: str,
        group: str,
        *,
        partition: int | None,
        prefetch: int,
        forget: Callable[["KafkaSubscription"], object],
    ) -> None:
        self._kafka = kafka
        self._name = topic
        self._topic = kafka.options.prefix + topic
        self._group = f"{self._topic}.{group}" + ("" if partition is None else f".{partition}")
        self._partition = partition
        self._prefetch = prefetch
        self._forget = forget
        self._ledgers: dict[int, Ledger] = {}
        self._outstanding: dict[tuple[int, int], Delivery] = {}
        self._held: set[tuple[int, int]] = set()
        self._parted: set[tuple[int, int]] = set()
        self._late: set[tuple[int, int]] = set()
        self._arrived: deque[Any] = deque()
        self._again: deque[Delivery] = deque()
        self._settled = False
        self._reads_singly = partition is None
        self._refused: PiceError | None = None
        self._changed = asyncio.Event()
        self._dirty = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._consumer: Any = None

    async def start(self) -> None:
        """Joins the group, or takes the partition.

        Raises:
            ConfigError: there is no such topic or partition, or Kafka refuses this user.
            TransportError: Kafka is away.
        """
        await check_partition(self._kafka, self._topic, self._partition or 0)
        self._consumer = await self._kafka.consumer(self._group)
        try:
            if self._partition is None:
                self._consumer.subscribe([self._topic], listener=_Listener(self))
            else:
                await self._take(self._partition)
        except BaseException:
            await stop_consumer(self._consumer)
            raise
        self._committer = asyncio.create_task(self._commit_changes())

    async def _take(self, partition: int) -> None:
        with self._kafka.mapped(f"group {self._group} cannot be read"):
            async with asyncio.timeout(_TAKE_S):
                await self.settle([partition])
        if self._refused:
            raise self._refused
        self._consumer.assign([TopicPartition(self._topic, partition)])
        self.begin()

    async def take_over(self, partitions: Sequence[int]) -> None:
        """Learns what the group has left of these partitions, which are all there are. Raises as `read_ledgers`."""
        self._ledgers |= await read_ledgers(self._kafka, self._topic, self._group, partitions)
        for place in self._late:
            self._finish(place)
        self._late.clear()
        self._parted = {place for place in self._parted if place[0] in self._ledgers}

    def begin(self) -> None:
        """Reads on from where the ledgers begin, and not from where the consumer by itself would: who had a partition
        before may still commit, and what is noted as begun must come to be finished."""
        if self._closing.is_set() or self._refused:
            return
        for partition, ledger in self._ledgers.items():
            self._consumer.seek(TopicPartition(self._topic, partition), ledger.next_offset)
        self._arrived.clear()
        self._settled = True
        self._changed.set()

    async def settle(self, partitions: Sequence[int]) -> None:
        """Takes over what the group has given, however often that must be tried: nothing is read before. Where it
        never can be, whoever receives is told."""
        while not self._closing.is_set():
            try:
                await self.take_over(partitions)
                break
            except ConfigError as error:
                self._refused = error
                self._changed.set()
                break
            except TransportError as error:
                log.warning("%s; tried again in %g s", error, _RETRY_S)
                await asyncio.sleep(_RETRY_S)

    async def give_up(self, partitions: Iterable[int]) -> None:
        """Commits what is finished of these partitions and forgets them; what is outstanding goes to others. Nothing
        is handed out until it is known what of the new ones is left: records may come before that."""
        self._settled = False
        await self._try_to_commit(within_s=_LAST_COMMIT_S)
        for partition in partitions:
            if ledger := self._ledgers.pop(partition, None):  # with what was finished since the commit was made
                self._late.update((partition, offset) for offset in ledger.finished())
        self._parted.update(key for key in self._outstanding if key[0] not in self._ledgers)
        self._arrived.clear()  # what is still ours comes again
        self._outstanding = {key: kept for key, kept in self._outstanding.items() if key[0] in self._ledgers}
        self._held = {key for key in self._held if key[0] in self._ledgers}
        self._again = deque(kept for kept in self._again if kept.partition in self._ledgers)

    async def receive(self) -> Delivery:
        while not self._closing.is_set():
            self._changed.clear()
            if self._refused:
                raise self._refused
            if len(self._outstanding) >= self._prefetch or (self._arrived and not self._settled):
                await self._changed.wait()
            elif self._again and self._settled:
                return self._hand_out(self._again.popleft())
            elif not self._arrived:
                await self._fetch()
            elif delivery := self._delivery(self._arrived.popleft()):
                return self._hand_out(delivery)
        raise TransportError(f"the subscription to {self._topic} is closed")

    async def ack(self, delivery: Delivery) -> None:
        place = delivery.partition, delivery.position
        if self._outstanding.pop(place, None) is not None:
            self._held.discard(place)
            self._finish(place)
        elif place in self._parted:
            self._finish_parted(place)

    def _finish(self, place: tuple[int, int]) -> None:
        """Nothing where another has the partition by now."""
        if ledger := self._ledgers.get(place[0]):
            ledger.finish(place[1])
        self._changed.set()
        self._dirty.set()

    def _finish_parted(self, place: tuple[int, int]) -> None:
        """What was done by the time its partition went away counts if the partition comes back: a group is often dealt
        anew with nobody else in it."""
        self._parted.discard(place)
        if place[0] in self._ledgers:
            self._finish(place)
        else:
            self._late.add(place)

    async def release(self, delivery: Delivery, *, delay_s: float = 0.0) -> None:
        self._parted.discard((delivery.partition, delivery.position))
        if self._outstanding.pop((delivery.partition, delivery.position), None) is None:
            return
        self._changed.set()
        if delay_s <= 0:
            self._put_back(delivery)
            return
        asyncio.get_running_loop().call_later(delay_s, self._put_back, delivery)

    async def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._changed.set()
        self._forget(self)
        if self._committer:
            self._dirty.set()
            await asyncio.wait({self._committer}, timeout=_LAST_COMMIT_S)
            self._committer.cancel()
        await stop_consumer(self._consumer)

    async def _fetch(self) -> None:
        """Takes what has come, as much as may be handed out; else waits for a record, or for something else to look at.
        A record that comes as the wait ends is kept."""
        if not self._reads_singly and await self._take_many():
            return
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
        if reading.cancelled():
            return
        if isinstance(error := reading.exception(), UNREADABLE):
            self._pass_over(error)
            return
        with self._kafka.mapped(f"{self._topic} cannot be read"):
            reading.result()

    async def _take_many(self) -> bool:
        """Whether there were any. The consumer does not hand out those that stand before one that cannot be read, so
        they are read again one by one, until it was passed over."""
        assert self._partition is not None
        place = TopicPartition(self._topic, self._partition)
        room = self._prefetch - len(self._outstanding)
        with self._kafka.mapped(f"{self._topic} cannot be read"):
            try:
                found = await self._consumer.getmany(place, timeout_ms=0, max_records=room)
            except UNREADABLE:
                self._reads_singly = True
                self._consumer.seek(place, await self._consumer.position(place))
                return False
        self._arrived.extend(found.get(place, ()))
        return bool(found)

    def _pass_over(self, error: BaseException) -> None:
        """What cannot be read cannot be put aside either, and must stop nothing (P6)."""
        partition, offset = pass_over(self._consumer)
        self._reads_singly = self._partition is None
        log.warning("%s %d/%d cannot be read and is passed over: %s", self._topic, partition, offset, error)
        if ledger := self._ledgers.get(partition):
            ledger.begin(offset)
            ledger.finish(offset)
            self._dirty.set()

    def _delivery(self, record: Any) -> Delivery | None:
        """None for a record that is finished or in hand already, or of a partition that has gone to another."""
        ledger = self._ledgers.get(record.partition)
        if ledger is None or (record.partition, record.offset) in self._held:
            return None
        if ledger.is_finished(record.offset):
            ledger.skip(record.offset)
            self._dirty.set()
            return None
        key = record.key.decode(errors="replace") if record.key else ""
        headers = {name: value or b"" for name, value in record.headers}
        return Delivery(self._name, record.partition, record.offset, record.value or b"", key, headers)

    def _hand_out(self, delivery: Delivery) -> Delivery:
        counted = replace(delivery, num_deliveries=self._ledgers[delivery.partition].begin(delivery.position))
        self._outstanding[delivery.partition, delivery.position] = counted
        self._parted.discard((delivery.partition, delivery.position))
        self._held.add((delivery.partition, delivery.position))
        self._dirty.set()
        return counted

    def _put_back(self, delivery: Delivery) -> None:
        place = delivery.partition, delivery.position
        if place in self._held and place not in self._outstanding:
            self._again.append(delivery)
            self._changed.set()

    async def _commit_changes(self) -> None:
        """Until it is closed, and then once more."""
        is_last = False
        while not is_last:
            await self._dirty.wait()
            self._dirty.clear()
            is_last = self._closing.is_set()
            if not await self._try_to_commit():
                asyncio.get_running_loop().call_later(_RETRY_S, self._dirty.set)
            with suppress(TimeoutError):
                async with asyncio.timeout(_COMMIT_EVERY_S):
                    await self._closing.wait()

    async def _try_to_commit(self, *, within_s: float | None = None) -> bool:
        """Whether it went well; if not, the log says why, and whoever reads on does again what is not committed."""
        offsets = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(position, metadata)
            for partition, (position, metadata) in commits(self._ledgers).items()
        }
        try:
            with self._kafka.mapped(f"group {self._group} could not commit what is finished"):
                if offsets:
                    async with asyncio.timeout(within_s):
                        await self._consumer.commit(offsets)
        except PiceError as error:
            log.warning("%s", error)
            return False
        return True


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Tells a subscription which partitions the group has given it."""

    def __init__(self, subscription: KafkaSubscription) -> None:
        self._subscription = subscription

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        await self._subscription.give_up([each.partition for each in revoked])

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        await self._subscription.settle([each.partition for each in assigned])
        self._subscription.begin()
