"""News of unwanted work ends just the work it is about."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from pice.core import Failure
from pice.errors import TransportError
from pice.node.inflight import InFlight, Work
from pice.store.base import Unwanted
from pice.store.memory import MemoryStore
from pice.transport.base import Subscription
from pice.transport.memory import MemoryTransport
from tests.node.stage import a_request, time_passes

TOPIC = "pice.test"


@dataclass(slots=True)
class Hands:
    """Deliveries in hand, and a note of what was dropped."""

    transport: MemoryTransport
    subscription: Subscription
    inflight: InFlight
    store: MemoryStore = field(default_factory=MemoryStore)
    dropped: list[str] = field(default_factory=list)

    async def take(self, name: str, request_id: str = "r", attempt: int = 1, index: int = 0) -> Work:
        await self.transport.publish(TOPIC, name.encode())
        delivery = await self.subscription.receive()
        work = Work(request_id, attempt, index, delivery, lambda: self.dropped.append(name))
        self.inflight.add(work)
        return work

    @property
    def num_unacked(self) -> int:
        return self.transport.num_messages(TOPIC)


@pytest.fixture
async def hands() -> AsyncIterator[Hands]:
    transport = MemoryTransport()
    subscription = await transport.subscribe(TOPIC, group="g")
    yield Hands(transport, subscription, InFlight(subscription))
    await transport.close()


@pytest.mark.parametrize(
    ("news", "dropped"),
    [
        pytest.param(Unwanted("r", 2), ["old", "new", "other segment"], id="a whole request"),
        pytest.param(Unwanted("r", 1), ["old"], id="an earlier attempt"),
        pytest.param(Unwanted("r", 2, 1), ["other segment"], id="a segment"),
        pytest.param(Unwanted("s", 2), ["other request"], id="another request"),
        pytest.param(Unwanted("nobody", 9), [], id="nothing in hand"),
    ],
)
async def test_news_drops_and_acknowledges_what_it_is_about(hands: Hands, news: Unwanted, dropped: list[str]) -> None:
    await hands.take("old", attempt=1)
    await hands.take("new", attempt=2)
    await hands.take("other segment", attempt=2, index=1)
    await hands.take("other request", "s")
    watch = asyncio.ensure_future(hands.inflight.watch(hands.store))
    await asyncio.sleep(0)
    hands.store._notify(news)
    await time_passes(1)
    watch.cancel()
    assert (hands.dropped, hands.num_unacked) == (dropped, 4 - len(dropped))


async def test_finished_work_is_not_dropped(hands: Hands) -> None:
    for work in [await hands.take("one"), await hands.take("two")]:
        hands.inflight.remove(work)
        hands.inflight.remove(work)
    watch = asyncio.ensure_future(hands.inflight.watch(hands.store))
    await asyncio.sleep(0)
    hands.store._notify(Unwanted("r", 1))
    await time_passes(1)
    watch.cancel()
    assert (hands.dropped, hands.num_unacked) == ([], 2)


async def test_watching_ends_with_its_reader(hands: Hands) -> None:
    watch = asyncio.ensure_future(hands.inflight.watch(hands.store))
    await asyncio.sleep(0)
    watch.cancel()
    await asyncio.wait([watch])
    assert hands.store._notices == set()


async def test_sweep_drops_what_is_no_longer_wanted_though_no_news_came(hands: Hands) -> None:
    for name in ("ended", "open"):
        await hands.store.open(a_request(name))
        await hands.store.begin(name)
        await hands.take(name, name)
    await hands.store.close_request("ended", None, Failure("ended", "cancelled", "gone"))
    sweep = asyncio.ensure_future(hands.inflight.sweep(hands.store, every_s=2.0))
    await time_passes(1.9)
    assert hands.dropped == []
    await time_passes(5)
    sweep.cancel()
    assert (hands.dropped, hands.num_unacked) == (["ended"], 1)


class Undecided(MemoryStore):
    """Cannot tell what is wanted, the first two times it is asked."""

    times_asked = 0

    async def wanted(self, request_id: str, attempt: int, index: int) -> bool:
        self.times_asked += 1
        if self.times_asked <= 2:
            raise TransportError("the store is away")
        return await super().wanted(request_id, attempt, index)


async def test_what_the_store_cannot_tell_is_kept_and_asked_again(hands: Hands) -> None:
    for name in ("one", "two"):
        await hands.take(name, name)
    sweep = asyncio.ensure_future(hands.inflight.sweep(Undecided(), every_s=2.0))
    await time_passes(5)
    assert (hands.dropped, hands.num_unacked) == ([], 2)
    await time_passes(2)
    sweep.cancel()
    assert (hands.dropped, hands.num_unacked) == (["one", "two"], 0)


async def test_watch_that_is_cancelled_before_it_begins_leaves_no_reader(hands: Hands) -> None:
    watch = asyncio.ensure_future(hands.inflight.watch(hands.store))
    watch.cancel()
    await asyncio.wait([watch])
    assert hands.store._notices == set()


class Slow(MemoryStore):
    """Takes a second to say that nothing is wanted."""

    async def wanted(self, request_id: str, attempt: int, index: int) -> bool:
        await time_passes(1)
        return False


async def test_work_given_back_while_the_store_is_asked_is_not_acknowledged_for_who_has_it_now(hands: Hands) -> None:
    work = await hands.take("one")
    sweep = asyncio.ensure_future(hands.inflight.sweep(Slow(), every_s=2.0))
    await time_passes(2.5)
    hands.inflight.remove(work)
    await hands.subscription.release(work.delivery)
    await hands.subscription.receive()
    await time_passes(1)
    sweep.cancel()
    assert (hands.dropped, hands.num_unacked) == ([], 1)


async def test_work_that_is_added_twice_is_there_once(hands: Hands) -> None:
    work = await hands.take("one")
    hands.inflight.add(work)
    assert [hands.inflight.remove(work) for _ in range(2)] == [True, False]
