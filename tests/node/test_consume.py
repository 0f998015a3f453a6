"""Deliveries taken a bounded number at a time, put aside, and taken again."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from pice.errors import PiceError
from pice.node.consume import backoff_s, bury, check_deliveries, consume
from pice.transport.base import DEAD, Delivery, Subscription
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
    transport = MemoryTransport(max_bytes=100)
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


async def test_buried_message_is_kept_whole_with_where_it_came_from_and_why(consumer: Consumer) -> None:
    await bury(consumer.transport, Delivery(TOPIC, 3, 42, b"\x00", "key", {"trace": b"7"}), "it is poison")
    dead = await (await consumer.transport.subscribe(DEAD, group="g")).receive()
    assert (dead.payload, dead.key) == (b"\x00", "key")
    assert dead.headers == {
        "trace": b"7",
        "reason": b"it is poison",
        "topic": TOPIC.encode(),
        "partition": b"3",
        "position": b"42",
    }


@pytest.mark.parametrize(
    ("transport", "payload"),
    [(MemoryTransport(max_messages=0), b"a"), (MemoryTransport(max_bytes=1), b"ab")],
    ids=["no room", "too large"],
)
async def test_poison_that_cannot_be_kept_is_logged_and_let_go(
    transport: MemoryTransport, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await bury(transport, Delivery(TOPIC, 0, 1, payload), "it is poison")
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


@pytest.mark.parametrize(
    ("num_deliveries", "expected"), [(1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, 5.0), (5000, 5.0)]
)
def test_backoff_doubles_up_to_five_seconds(num_deliveries: int, expected: float) -> None:
    assert backoff_s(num_deliveries) == pytest.approx(expected)


def test_delivery_beyond_those_allowed_is_refused() -> None:
    check_deliveries(Delivery(TOPIC, 0, 0, b"", num_deliveries=3), 3)
    with pytest.raises(PiceError, match="3 times before"):
        check_deliveries(Delivery(TOPIC, 0, 0, b"", num_deliveries=4), 3)
