"""The queue in memory: the reference for every other transport, and the default of a single process."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pice.errors import Full, MessageTooLarge, TransportError
from pice.transport.base import Delivery, Subscription

_NO_HEADERS: Mapping[str, bytes] = {}


class MemoryTransport:
    """Topics as deques in one process. Nothing survives the process.

    Messages published before a topic has any group wait for the first; a group that joins later sees what is
    published from then on. Bounded by `max_messages` per topic, outstanding ones included.
    """

    def __init__(self, *, max_messages: int = 65_536, max_bytes: int = 1 << 20) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._topics: dict[str, _Topic] = {}
        self._subscriptions: set[MemorySubscription] = set()

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
        state = self._topic(topic)
        if state.num_messages >= self._max_messages:
            raise Full(f"{topic} holds its limit of {self._max_messages} messages", retry_after_s=1.0)
        state.append(payload, key, partition or 0, headers or _NO_HEADERS)

    async def subscribe(
        self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64
    ) -> Subscription:
        subscription = MemorySubscription(self, self._topic(topic).group(group), partition, prefetch)
        self._subscriptions.add(subscription)
        return subscription

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            await subscription.close()

    def num_messages(self, topic: str) -> int:
        """How many messages of a topic are not yet acknowledged."""
        return self._topic(topic).num_messages

    def _topic(self, name: str) -> "_Topic":
        return self._topics.setdefault(name, _Topic(name))

    def _forget(self, subscription: "MemorySubscription") -> None:
        self._subscriptions.discard(subscription)


class MemorySubscription:
    """A group member; see `pice.transport.base.Subscription`."""

    def __init__(self, transport: MemoryTransport, group: "_Group", partition: int | None, prefetch: int) -> None:
        self._transport = transport
        self._group = group
        self._partition = partition
        self._prefetch = prefetch
        self._outstanding: dict[int, Delivery] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        group.members.append(self)

    async def receive(self) -> Delivery:
        while True:
            if self._closed:
                raise TransportError(f"the subscription to {self._group.topic.name} is closed")
            if len(self._outstanding) < self._prefetch and (delivery := self._group.take(self._partition)):
                self._outstanding[delivery.position] = delivery
                return delivery
            await self._wait()

    async def ack(self, delivery: Delivery) -> None:
        if self._outstanding.pop(delivery.position, None) is not None:
            self._group.topic.num_messages -= 1
            self.wake()

    async def release(self, delivery: Delivery, *, delay_s: float = 0.0) -> None:
        if self._outstanding.pop(delivery.position, None) is None:
            return
        self.wake()
        if delay_s > 0:
            asyncio.get_running_loop().call_later(delay_s, self._group.put_back, delivery)
        else:
            self._group.put_back(delivery)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._group.members.remove(self)
        self._transport._forget(self)  # noqa: SLF001 - the two classes are one adapter
        for delivery in reversed(self._outstanding.values()):
            self._group.put_back(delivery)
        self._outstanding.clear()
        self.wake()
        self._group.wake_for_ready()

    def wake(self) -> bool:
        """Ends a wait for something to receive; False if there was none."""
        if self._waiter is None or self._waiter.done():
            return False
        self._waiter.set_result(None)
        return True

    def can_take(self, partition: int) -> bool:
        return self._partition in (None, partition) and len(self._outstanding) < self._prefetch

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self._group.wake_for_ready()
            raise
        finally:
            self._waiter = None


@dataclass(slots=True)
class _Topic:
    name: str
    num_messages: int = 0
    next_position: int = 0
    groups: dict[str, "_Group"] = field(default_factory=dict)
    unread: list[Delivery] = field(default_factory=list)

    def append(self, payload: bytes, key: str, partition: int, headers: Mapping[str, bytes]) -> None:
        delivery = Delivery(self.name, partition, self.next_position, payload, key, headers)
        self.next_position += 1
        self.num_messages += max(1, len(self.groups))
        if not self.groups:
            self.unread.append(delivery)
        for group in self.groups.values():
            group.put(delivery)

    def group(self, name: str) -> "_Group":
        if name not in self.groups:
            self.groups[name] = group = _Group(self)
            for delivery in self.unread:
                group.put(delivery)
            self.unread.clear()
        return self.groups[name]


class _Group:
    """What one group has still to read, by partition."""

    def __init__(self, topic: _Topic) -> None:
        self.topic = topic
        self.members: list[MemorySubscription] = []
        self._ready: dict[int, deque[Delivery]] = {}

    def put(self, delivery: Delivery) -> None:
        self._queue(delivery.partition).append(delivery)
        self._wake_one(delivery.partition)

    def put_back(self, delivery: Delivery) -> None:
        again = replace(delivery, num_deliveries=delivery.num_deliveries + 1)
        self._queue(delivery.partition).appendleft(again)
        self._wake_one(delivery.partition)

    def take(self, partition: int | None) -> Delivery | None:
        if partition is not None:
            queue = self._ready.get(partition)
            return queue.popleft() if queue else None
        return next((queue.popleft() for queue in self._ready.values() if queue), None)

    def wake_for_ready(self) -> None:
        """A member that was perhaps woken goes away without taking: what woke it must not be left lying."""
        for partition, queue in self._ready.items():
            if queue:
                self._wake_one(partition)

    def _queue(self, partition: int) -> deque[Delivery]:
        return self._ready.setdefault(partition, deque())

    def _wake_one(self, partition: int) -> None:
        for member in self.members:
            if member.can_take(partition) and member.wake():
                return
