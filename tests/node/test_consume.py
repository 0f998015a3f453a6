"""Deliveries taken a bounded number at a time, and tried again."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from pice.errors import PiceError, TransportError
from pice.node.consume import backoff_s, check_deliveries, consume, insist
from pice.node.telemetry import SILENT
from pice.transport.base import Delivery, Subscription
from pice.transport.memory import MemoryTransport
from tests.node.stage import time_passes

TOPIC = "pice.test"


@dataclass(slots=True)
class Consumer:
    """Runs `consume` on a topic; each handler takes `work_s` and then acknowledges."""

    transport: MemoryTransport
    subscription: Subscription
    work_s: float = 1.0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    num_running: int = 0
    handled: list[bytes] = field(default_factory=list)

    async def handle(self, delivery: Delivery) -> None:
        self.num_running += 1
        try:
            await time_passes(self.work_s)
            self.handled.append(delivery.payload)
            await self.subscription.ack(delivery)
        finally:
            self.num_running -= 1

    def start(self, *, limit: int = 2, drain_s: float = 10.0) -> asyncio.Task[None]:
        return asyncio.ensure_future(
            consume(self.subscription, self.handle, limit=limit, stopping=self.stopping, drain_s=drain_s)
        )

    async def publish(self, *payloads: bytes) -> None:
        for payload in payloads:
            await self.transport.publish(TOPIC, payload)


@pytest.fixture
async def consumer() -> AsyncIterator[Consumer]:
    transport = MemoryTransport()
    yield Consumer(transport, await transport.subscribe(TOPIC, group="g"))
    await transport.close()


async def test_no_more_than_the_limit_are_handled_at_once(consumer: Consumer) -> None:
    task = consumer.start(limit=2)
    await consumer.publish(b"a", b"b", b"c")
    await time_passes(0.5)
    assert consumer.num_running == 2
    await time_passes(1)
    assert (consumer.num_running, consumer.handled) == (1, [b"a", b"b"])
    consumer.stopping.set()
    await task


async def test_drain_waits_for_handlers_and_takes_no_more(consumer: Consumer) -> None:
    task = consumer.start(limit=1)
    await consumer.publish(b"a", b"b")
    await time_passes(0.5)
    consumer.stopping.set()
    await task
    assert (consumer.handled, consumer.transport.num_messages(TOPIC)) == ([b"a"], 1)


async def test_handlers_that_outlast_the_drain_are_cancelled_unacknowledged(consumer: Consumer) -> None:
    consumer.work_s = 100.0
    task = consumer.start(drain_s=2.0)
    await consumer.publish(b"a")
    await time_passes(1)
    consumer.stopping.set()
    await task
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)
    assert (consumer.num_running, consumer.handled, consumer.transport.num_messages(TOPIC)) == (0, [], 1)


async def test_stop_while_nothing_runs_is_at_once(consumer: Consumer) -> None:
    task = consumer.start()
    await time_passes(1)
    consumer.stopping.set()
    await task
    assert asyncio.get_running_loop().time() == 1.0


@pytest.mark.parametrize("cause", ["handler", "subscription"])
async def test_error_of_its_own_ends_everything(consumer: Consumer, cause: str) -> None:
    async def fail(delivery: Delivery) -> None:
        raise ZeroDivisionError

    running = consume(consumer.subscription, fail, limit=1, stopping=consumer.stopping, drain_s=1.0)
    await (consumer.publish(b"a") if cause == "handler" else consumer.subscription.close())
    with pytest.raises(ExceptionGroup):
        await running


class Attempts:
    """A handler that is let down `num_failures` times, and when it was called."""

    def __init__(self, subscription: Subscription, num_failures: int) -> None:
        self.called_s: list[float] = []
        self._subscription = subscription
        self._num_failures = num_failures

    async def __call__(self, delivery: Delivery) -> None:
        self.called_s.append(round(asyncio.get_running_loop().time(), 3))
        if len(self.called_s) <= self._num_failures:
            raise TransportError("the broker is away")
        await self._subscription.ack(delivery)


async def test_handler_that_is_let_down_is_called_again_after_longer_and_longer_rests(consumer: Consumer) -> None:
    await consumer.publish(b"a")
    handler = Attempts(consumer.subscription, 4)
    await insist(consumer.subscription, await consumer.subscription.receive(), handler, SILENT)
    assert (handler.called_s, consumer.transport.num_messages(TOPIC)) == ([0.0, 0.1, 0.3, 0.7, 1.5], 0)


async def test_delivery_that_is_let_down_again_and_again_rests_while_others_are_served(consumer: Consumer) -> None:
    await consumer.publish(b"a", b"b")
    handler = Attempts(consumer.subscription, 1000)
    await insist(consumer.subscription, await consumer.subscription.receive(), handler, SILENT)
    assert len(handler.called_s) == 10
    next_ones = [await consumer.subscription.receive() for _ in range(2)]
    assert [(it.payload, it.num_deliveries) for it in next_ones] == [(b"b", 1), (b"a", 2)]


async def test_other_error_of_a_handler_comes_out_at_once(consumer: Consumer) -> None:
    async def fail(delivery: Delivery) -> None:
        raise PiceError("no queue has to do with this")

    await consumer.publish(b"a")
    with pytest.raises(PiceError, match="no queue"):
        await insist(consumer.subscription, await consumer.subscription.receive(), fail, SILENT)
    assert asyncio.get_running_loop().time() == 0.0


@pytest.mark.parametrize(
    ("num_deliveries", "expected"), [(1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, 5.0), (5000, 5.0)]
)
def test_backoff_doubles_up_to_five_seconds(num_deliveries: int, expected: float) -> None:
    assert backoff_s(num_deliveries) == pytest.approx(expected)


def test_delivery_beyond_those_allowed_is_refused() -> None:
    check_deliveries(Delivery(TOPIC, 0, 0, b"", num_deliveries=3), 3)
    with pytest.raises(PiceError, match="3 times before"):
        check_deliveries(Delivery(TOPIC, 0, 0, b"", num_deliveries=4), 3)
