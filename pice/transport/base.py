"""The queue port: topics, partitions, groups and deliveries, as in Kafka and Redis Streams."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

REQUESTS = "pice.requests"
CANDIDATES = "pice.candidates"
DEAD = "pice.dead"
JOBS = "pice.jobs"


def segments_topic(pool: str) -> str:
    """The topic of a pool; a pool is a trust boundary, so it has a topic of its own."""
    return f"pice.segments.{pool}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message handed to one subscriber.

    `num_deliveries` counts from 1; more than 1 says that an earlier subscriber did not acknowledge it. `position`
    identifies the message within its topic and partition.
    """

    topic: str
    partition: int
    position: int
    payload: bytes
    key: str = ""
    headers: Mapping[str, bytes] = field(default_factory=dict)
    num_deliveries: int = 1


class Subscription(Protocol):
    """A member of a group, reading from the earliest message the group has not acknowledged.

    Deliveries repeat (after a crash, a release, a lost acknowledgement) and may come out of order; within one
    partition and one live subscriber, first deliveries come in the order of publishing. At most `prefetch`
    deliveries are outstanding; further ones wait in the topic.
    """

    async def receive(self) -> Delivery:
        """The next delivery; waits for one. Cancelling loses nothing.

        Raises:
            TransportError: the subscription is closed, or the broker is gone for good.
            ConfigError: the broker refuses us for good; says what to change.
        """
        ...

    async def ack(self, delivery: Delivery) -> None:
        """This delivery is finished. In any order; an adapter whose broker keeps a position commits the highest
        contiguous finished one. Acknowledging twice does nothing, also when it has gone to another meanwhile."""
        ...

    async def release(self, delivery: Delivery, *, delay_s: float = 0.0) -> None:
        """Not done: deliver it again, to any member of the group, after `delay_s`."""
        ...

    async def close(self) -> None:
        """Leaves the group; what is outstanding will be delivered to others. May be called twice."""
        ...


class Transport(Protocol):
    """At-least-once messages. Safe to call from any task of one event loop."""

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        """Returns once the message is stored. With a `key`, messages of one key share a partition.

        Raises:
            MessageTooLarge: not stored, and never will be.
            Full: the topic is at its bound; says when to come back.
            TransportError: perhaps stored; publish again, receivers drop repeats.
        """
        ...

    async def subscribe(
        self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64
    ) -> Subscription:
        """Joins `group` on all of `topic`, or with `partition` reads just that one by assignment, so that members
        coming and going elsewhere never move it.

        Raises:
            ConfigError: the topic or partition is missing, or the broker refuses us for good; says what to change.
        """
        ...

    async def close(self) -> None:
        """Closes every subscription made here. May be called twice."""
        ...
