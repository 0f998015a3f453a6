"""Faults between nodes and their ports: death, pauses, and messages that repeat, come late or change places."""

import asyncio
import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from pice.errors import TransportError
from pice.transport.base import Delivery, Subscription
from pice.transport.memory import MemoryTransport

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares of messages that meet a fault, 0 to 1. A late one waits up to `late_s`, so others overtake it."""

    duplicate: float = 0.0
    late: float = 0.0
    late_s: float = 1.0
    lost_ack: float = 0.0


class Life:
    """One node's connection to the world.

    A node that dies does so in the midst of what it does, as by kill -9: `on_death` is called once, and every
    further call of its ports ends in CancelledError without any effect.
    """

    def __init__(self, on_death: Callable[[], None], *, reply_s: float = 0.0) -> None:
        """`reply_s` is how long after its effect a call is answered, but for `receive`:
        what was received stands here already."""
        self.dead = False
        self._calls_left = 0
        self._reply_s = reply_s
        self._refusing = False
        self._num_refused = 0
        self._on_death = on_death
        self._connected = asyncio.Event()
        self._connected.set()

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            self._connected.set()
            self._on_death()

    def die_after(self, num_calls: int) -> None:
        """Death comes at the port call with this number from now, so between any two of them."""
        self._calls_left = num_calls

    def cut(self) -> None:
        """Calls wait, until `mend`."""
        self._connected.clear()

    def refuse(self) -> None:
        """Calls raise `TransportError`, until `mend`. Every third has its effect all the same: its reply is lost."""
        self._refusing = True

    def mend(self) -> None:
        self._refusing = False
        self._connected.set()

    async def pass_through(self) -> None:
        self.check()
        await self._connected.wait()
        self.check()

    def ask(self) -> None:
        self._num_refused += self._refusing
        if self._refusing and self._num_refused % 3:
            raise TransportError("the broker is away")

    async def answer(self, *, at_once: bool) -> None:
        if self._reply_s and not at_once:
            await asyncio.sleep(self._reply_s)
        if self._refusing:
            raise TransportError("the broker went away")

    def check(self) -> None:
        if self._calls_left:
            self._calls_left -= 1
            if self._calls_left == 0:
                self.kill()
        if self.dead:
            raise asyncio.CancelledError("the node is dead")


def mortal(port: P, life: Life) -> P:
    """A port as one node sees it: gone once the node is dead, unreachable while it is cut off."""
    return cast("P", _Mortal(port, life))


class _Mortal:
    def __init__(self, port: object, life: Life) -> None:
        self._port = port
        self._life = life

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._port, name)
        if inspect.iscoroutinefunction(attribute):
            return self._waiting(attribute, name)
        return attribute

    def _waiting(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._life.pass_through()
            if name != "close":
                self._life.ask()
            result = await method(*args, **kwargs)
            if name != "close":
                await self._life.answer(at_once=name == "receive")
            return mortal(result, self._life) if isinstance(result, FaultySubscription) else result

        return call


class Witness(Protocol):
    """Sees what passes, at the moment it does, before it has any effect."""

    def published(self, topic: str, payload: bytes) -> None: ...

    def received(self, delivery: Delivery) -> None: ...

    def acknowledged(self, delivery: Delivery) -> None: ...


class FaultyTransport(MemoryTransport):
    """The in-memory transport with faults drawn from a seeded generator. `quiet` stops them."""

    def __init__(self, rng: random.Random, faults: Faults, *, witness: Witness | None = None) -> None:
        super().__init__()
        self.faults = faults
        self.witness = witness
        self._rng = rng

    def quiet(self) -> None:
        self.faults = Faults()

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        if self.witness is not None:
            self.witness.published(topic, payload)
        for _ in range(2 if self._rng.random() < self.faults.duplicate else 1):
            if self._rng.random() < self.faults.late:
                late_s = self._rng.uniform(0, self.faults.late_s)
                asyncio.get_running_loop().call_later(late_s, self._arrive, topic, payload, key, partition, headers)
            else:
                await super().publish(topic, payload, key=key, partition=partition, headers=headers)

    async def subscribe(
        self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64
    ) -> Subscription:
        inner = await super().subscribe(topic, group=group, partition=partition, prefetch=prefetch)
        return FaultySubscription(inner, self, self._rng)

    def _arrive(
        self, topic: str, payload: bytes, key: str, partition: int | None, headers: Mapping[str, bytes] | None
    ) -> None:
        self._topic(topic).append(payload, key, partition or 0, headers or {})


class FaultySubscription:
    """Some acknowledgements are lost: the message comes again when the subscriber has gone."""

    def __init__(self, inner: Subscription, transport: FaultyTransport, rng: random.Random) -> None:
        self._inner = inner
        self._transport = transport
        self._rng = rng

    async def receive(self) -> Delivery:
        delivery = await self._inner.receive()
        if self._transport.witness is not None:
            self._transport.witness.received(delivery)
        return delivery

    async def ack(self, delivery: Delivery) -> None:
        if self._transport.witness is not None:
            self._transport.witness.acknowledged(delivery)
        if self._rng.random() < self._transport.faults.lost_ack:
            await self._inner.release(delivery)
        else:
            await self._inner.ack(delivery)

    async def release(self, delivery: Delivery, *, delay_s: float = 0.0) -> None:
        await self._inner.release(delivery, delay_s=delay_s)

    async def close(self) -> None:
        await self._inner.close()
