"""What every store promises; adapters are parameters of the `store` fixture."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from pice.core import (
    Answer,
    Candidate,
    Curve,
    Event,
    Failure,
    Message,
    ModelState,
    Placement,
    Plan,
    Point,
    Request,
    Sampling,
    Segment,
    SiteState,
    Span,
)
from pice.errors import Full
from pice.store.base import Chosen, Counted, Store, Unwanted, chosen_event
from pice.store.memory import MemoryNotices, MemoryStore
from tests.brokers import redis_url
from tests.contract.own_cluster import redis_cluster_url
from tests.contract.redis_stores import redis_stores

MESSAGES = (Message("user", "Why?"),)
REQUEST = Request("r1", MESSAGES, timeout_s=30)


@pytest.fixture(params=["memory", "redis", "redis-cluster"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        memory = MemoryStore(max_open=2, due_lease_s=0.05)
        yield memory
        await memory.close()
        return
    url = redis_cluster_url() if request.param == "redis-cluster" else redis_url()
    async with redis_stores(url, max_open=2, due_lease_s=0.05) as make:
        yield await make()


def segment(index: int = 0, attempt: int = 1) -> Segment:
    return Segment("r1", attempt, index, "expand", MESSAGES, (), (Point(index, "a", 10),), 10, Sampling(), 99.0)


def placement(site: str = "paris") -> Placement:
    return Placement(site, "m", 0.0, 1.0)


def candidate(site: str = "paris", *, attempt: int = 1, index: int = 0) -> Candidate:
    return Candidate("r1", attempt, index, site, "m", "text")


def answer(attempt: int = 1) -> Answer:
    return Answer("r1", "text", "cloud", "stop", attempt, Plan("cloud", ""))


def span(index: int = 0, text: str = "text") -> Span:
    return Span(index, text, "paris", "m", 0.5)


async def opened(store: Store) -> None:
    assert await store.open(REQUEST)
    record = await store.begin("r1")
    assert record is not None
    assert record.attempt == 1


async def placed(store: Store, *sites: str) -> None:
    await opened(store)
    for site in sites:
        assert await store.place(segment(), placement(site))


async def test_request_is_opened_once(store: Store) -> None:
    assert await store.open(REQUEST)
    assert not await store.open(REQUEST)


async def test_too_many_open_requests_are_refused_until_one_ends(store: Store) -> None:
    for name in ("r1", "r2"):
        await store.open(Request(name, MESSAGES))
    with pytest.raises(Full) as refused:
        await store.open(Request("r3", MESSAGES))
    assert refused.value.retry_after_s > 0
    await store.close_request("r1", None, Failure("r1", "cancelled", ""))
    assert await store.open(Request("r3", MESSAGES))


async def test_later_attempt_fences_every_change_of_an_earlier_one(store: Store) -> None:
    await placed(store, "paris")
    again = await store.begin("r1")
    assert again is not None
    assert (again.attempt, again.segments) == (2, {})
    assert not await store.planned("r1", 1, Plan("cloud", ""))
    assert not await store.place(segment(1), placement())
    assert not await store.seal("r1", 1, (), 1, num_prompt_tokens=0, num_output_tokens=0, cut=False)
    assert (await store.add_candidate(candidate()))[0] is Counted.STALE
    assert await store.choose("r1", 1, span()) is Chosen.REFUSED
    assert not await store.wanted("r1", 1, 0)
    assert not await store.close_request("r1", 1, answer())
    assert await store.close_request("r1", 2, answer(2))


async def test_unknown_request_is_refused_everywhere(store: Store) -> None:
    assert await store.begin("r9") is None
    assert await store.record("r9") is None
    assert not await store.wanted("r9", 1, 0)
    assert not await store.close_request("r9", None, Failure("r9", "x", ""))
    assert [event async for event in store.follow("r9", until_s=0)] == []


async def test_candidate_counts_once_however_often_it_arrives(store: Store) -> None:
    await placed(store, "paris", "rome")
    counted = [(await store.add_candidate(candidate(site)))[0] for site in ("paris", "paris", "rome", "paris")]
    assert counted == [Counted.NEW, Counted.REPEATED, Counted.NEW, Counted.REPEATED]
    record = await store.record("r1")
    assert record is not None
    assert list(record.segments[0].candidates) == [("paris", "m"), ("rome", "m")]


async def test_candidate_from_a_site_the_segment_was_not_placed_at_is_foreign(store: Store) -> None:
    await placed(store, "paris")
    assert (await store.add_candidate(candidate("rome")))[0] is Counted.FOREIGN
    assert (await store.add_candidate(replace(candidate(), model="other")))[0] is Counted.FOREIGN
    assert (await store.add_candidate(candidate(index=7)))[0] is Counted.STALE


async def test_segment_is_placed_once_at_each_site_and_not_after_its_choice(store: Store) -> None:
    await placed(store, "paris")
    assert not await store.place(segment(), replace(placement("paris"), placed_s=0.5))
    await store.choose("r1", 1, span())
    assert not await store.place(segment(), placement("rome"))


async def test_placement_said_again_is_made_once(store: Store) -> None:
    await placed(store, "paris", "paris", "rome", "paris")
    assert (record := await store.record("r1")) is not None
    assert record.segments[0].placements == [placement("paris"), placement("rome")]
    await store.choose("r1", 1, span())
    assert not await store.place(segment(), placement("paris"))


async def test_placement_said_again_after_it_was_taken_back_is_made_anew(store: Store) -> None:
    await placed(store, "paris")
    await store.unplace(segment(), placement("paris"))
    await store.unplace(segment(), placement("paris"))
    assert await store.place(segment(), placement("paris"))
    assert (record := await store.record("r1")) is not None
    assert record.segments[0].placements == [placement("paris")]


async def test_placement_taken_back_can_be_made_again(store: Store) -> None:
    await placed(store, "paris")
    await store.unplace(segment(), placement("paris"))
    assert await store.place(segment(), placement("paris"))


async def test_taking_back_what_was_never_placed_changes_nothing(store: Store) -> None:
    await placed(store, "paris")
    await store.unplace(replace(segment(), index=9), placement("paris"))
    await store.unplace(segment(), placement("rome"))
    assert (record := await store.record("r1")) is not None
    assert [one.site for one in record.segments[0].placements] == ["paris"]


async def test_first_choice_stands(store: Store) -> None:
    await placed(store, "paris")
    assert await store.choose("r1", 1, span(text="first")) is Chosen.MADE
    assert await store.choose("r1", 1, span(text="second")) is Chosen.REFUSED
    record = await store.record("r1")
    assert record is not None
    assert record.segments[0].choice == span(text="first")
    assert not await store.wanted("r1", 1, 0)


async def test_choice_said_again_is_the_same_and_is_told_once(store: Store) -> None:
    notices = store.notices()
    await placed(store, "paris", "rome")
    assert await store.choose("r1", 1, span()) is Chosen.MADE
    assert await store.choose("r1", 1, span()) is Chosen.MADE
    assert await store.choose("r1", 1, replace(span(), chosen_s=1.0)) is Chosen.REFUSED
    await store.close_request("r1", 1, answer())
    async with asyncio.timeout(5):
        assert [await notices.receive() for _ in range(2)] == [Unwanted("r1", 1, 0), Unwanted("r1", 1)]
    await notices.close()


async def test_candidate_that_counts_comes_with_the_record_and_no_other(store: Store) -> None:
    await placed(store, "paris")
    for _ in range(2):
        _, record = await store.add_candidate(candidate())
        assert record is not None
        assert record == await store.record("r1")
        assert record.segments[0].candidates == {("paris", "m"): candidate()}
    assert (await store.add_candidate(candidate("rome")))[1] is None
    assert (await store.add_candidate(candidate(index=7)))[1] is None


@pytest.mark.parametrize("sites", [("paris",), ("paris", "rome")])
async def test_candidate_comes_with_all_that_concerns_its_segment_and_a_repeated_one_with_the_rest(
    store: Store, sites: tuple[str, ...]
) -> None:
    await placed(store, *sites)
    await store.place(segment(1), placement("rome"))
    points = (Point(0, "a", 10), Point(1, "a", 10))
    await store.planned("r1", 1, Plan("progressive", ""))
    await store.seal("r1", 1, points, 2, num_prompt_tokens=3, num_output_tokens=4, cut=True)
    _, record = await store.add_candidate(candidate())
    whole = await store.record("r1")
    assert record is not None
    assert whole is not None
    assert record == replace(whole, segments=record.segments)
    assert record.segments[0] == whole.segments[0]
    assert await store.add_candidate(candidate()) == (Counted.REPEATED, whole)


async def test_choice_is_an_event_and_one_said_again_is_not(store: Store) -> None:
    await placed(store, "paris")
    for text in ("first", "second", "first"):
        await store.choose("r1", 1, span(text=text))
    await store.close_request("r1", 1, answer())
    events = [event async for event in store.follow("r1", until_s=store.now() + 5)]
    assert events[0] == chosen_event("r1", 1, span(text="first"))
    assert [event.kind for event in events] == ["segment_chosen", "answered"]


async def test_last_choice_of_a_finished_sketch_says_so_however_often_it_is_said(store: Store) -> None:
    await opened(store)
    for index in range(3):
        await store.place(segment(index), placement())
    assert await store.choose("r1", 1, span(0)) is Chosen.MADE
    await store.seal("r1", 1, (), 3, num_prompt_tokens=0, num_output_tokens=0, cut=False)
    assert await store.choose("r1", 1, span(1)) is Chosen.MADE
    assert await store.choose("r1", 1, span(0)) is Chosen.MADE
    for _ in range(2):
        assert await store.choose("r1", 1, span(2)) is Chosen.LAST


async def test_sketch_sealed_again_stays_as_it_was(store: Store) -> None:
    await opened(store)
    points = (Point(0, "a", 5),)
    assert await store.seal("r1", 1, points, 1, num_prompt_tokens=3, num_output_tokens=4, cut=True)
    before = await store.record("r1")
    assert before is not None
    sealed_s = before.sealed_s
    assert await store.seal("r1", 1, (), 0, num_prompt_tokens=0, num_output_tokens=0, cut=False)
    assert (record := await store.record("r1")) is not None
    assert (record.sketch, record.num_segments, record.sketch_cut) == (points, 1, True)
    assert record.sealed_s == sealed_s > 0


async def test_what_else_is_said_again_does_no_more_than_once(store: Store) -> None:
    await placed(store, "paris")
    for _ in range(2):
        assert await store.planned("r1", 1, Plan("cloud", ""))
    assert [await store.close_request("r1", 1, answer()) for _ in range(2)] == [True, False]
    assert await _texts(store) == ["answered"]
    assert await store.open(Request("r2", MESSAGES))
    assert await store.open(Request("r3", MESSAGES))


async def test_request_ends_once_and_keeps_its_outcome(store: Store) -> None:
    await opened(store)
    assert await store.close_request("r1", 1, answer())
    assert not await store.close_request("r1", None, Failure("r1", "cancelled", ""))
    assert await store.begin("r1") is None
    record = await store.record("r1")
    assert record is not None
    assert record.outcome == answer()


async def test_events_are_followed_from_the_first_to_the_final_one(store: Store) -> None:
    await opened(store)
    await store.emit(Event("r1", "sketch_text", 0.0, 1, text="a"))
    following = asyncio.ensure_future(_texts(store))
    await asyncio.sleep(0)
    await store.emit(Event("r1", "sketch_text", 0.0, 1, text="b"))
    await store.emit(Event("r1", "sketch_text", 0.0, 0, text="of an earlier attempt"))
    await store.close_request("r1", 1, answer())
    await store.emit(Event("r1", "sketch_text", 0.0, 1, text="too late"))
    async with asyncio.timeout(5):
        assert await following == ["a", "b", "answered"]
    assert await _texts(store) == ["a", "b", "answered"]


async def _texts(store: Store) -> list[str]:
    async with aclosing(store.follow("r1", until_s=store.now() + 60)) as events:
        return [event.text or event.kind async for event in events]


async def test_following_ends_without_a_final_event_when_its_time_is_up(store: Store) -> None:
    await opened(store)
    await store.emit(Event("r1", "sketch_text", 0.0, 1, text="a"))
    async with asyncio.timeout(5), aclosing(store.follow("r1", until_s=store.now() + 0.02)) as events:
        assert [event.text async for event in events] == ["a"]


async def test_following_ends_when_the_store_is_closed(store: Store) -> None:
    await opened(store)
    following = asyncio.ensure_future(_texts(store))
    await asyncio.sleep(0)
    await store.emit(Event("r1", "sketch_text", 0.0, 1, text="a"))
    await store.close()
    async with asyncio.timeout(5):
        assert await following == ["a"]


async def test_due_request_is_taken_once_and_again_after_its_lease(store: Store) -> None:
    await opened(store)
    await store.set_due("r1", store.now())
    async with asyncio.timeout(5):
        assert await store.take_due() == ["r1"]
        taken_s = store.now()
        assert await store.take_due() == ["r1"]
    assert store.now() - taken_s >= 0.04


async def test_sealing_makes_a_request_due(store: Store) -> None:
    await opened(store)
    waiting = asyncio.ensure_future(store.take_due())
    await asyncio.sleep(0)
    points = (Point(0, "a", 5),)
    assert await store.seal("r1", 1, points, 1, num_prompt_tokens=3, num_output_tokens=4, cut=True)
    async with asyncio.timeout(5):
        assert await waiting == ["r1"]
    record = await store.record("r1")
    assert record is not None
    assert (record.sketch, record.num_segments, record.sketch_output_tokens) == (points, 1, 4)
    assert record.sketch_cut


async def test_sealed_request_is_not_begun_again(store: Store) -> None:
    await placed(store, "paris")
    await store.seal("r1", 1, (), 1, num_prompt_tokens=0, num_output_tokens=0, cut=False)
    assert await store.begin("r1") is None
    assert await store.wanted("r1", 1, 0)


async def test_request_is_due_at_its_deadline_without_being_asked(store: Store) -> None:
    await store.open(Request("r1", MESSAGES, timeout_s=0.02))
    async with asyncio.timeout(5):
        assert await store.take_due() == ["r1"]


async def test_notices_tell_of_ended_requests_fenced_attempts_and_settled_segments(store: Store) -> None:
    notices = store.notices()
    await placed(store, "paris", "rome")
    await store.choose("r1", 1, span())
    await store.begin("r1")
    await store.close_request("r1", 2, answer(2))
    async with asyncio.timeout(5):
        news = [await notices.receive() for _ in range(3)]
    assert news == [Unwanted("r1", 1, 0), Unwanted("r1", 1), Unwanted("r1", 2)]
    await notices.close()


def state(site: str, partition: int = 0, *, token: int = 0) -> SiteState:
    model = ModelState("m", 4096, 4, Curve((1,), (0.1,)))
    return SiteState(site, "main", partition, (model,), 0.0, token=token)


async def test_site_is_forgotten_when_its_heartbeat_stops(store: Store) -> None:
    await store.heartbeat(state("rome"), ttl_s=30)
    await store.heartbeat(state("paris"), ttl_s=30)
    await store.heartbeat(state("gone"), ttl_s=0)
    assert [site.site for site in await store.sites()] == ["paris", "rome"]


async def test_heartbeat_of_one_who_lost_the_lease_is_dropped(store: Store) -> None:
    for partition, token in ((1, 7), (2, 8), (3, 7), (4, 1)):
        await store.heartbeat(state("paris", partition, token=token), ttl_s=30)
    await store.heartbeat(state("rome", token=1), ttl_s=30)
    assert await store.sites() == [state("paris", 2, token=8), state("rome", token=1)]


async def test_heartbeat_of_the_same_or_of_no_lease_is_taken(store: Store) -> None:
    for partition, token in ((1, 0), (2, 3), (3, 3)):
        await store.heartbeat(state("paris", partition, token=token), ttl_s=30)
        assert await store.sites() == [state("paris", partition, token=token)]
    await store.heartbeat(state("paris", 4), ttl_s=30)
    await store.heartbeat(state("paris", 5, token=2), ttl_s=30)
    assert await store.sites() == [state("paris", 4)]


async def test_heartbeat_of_one_who_lost_the_lease_does_not_bring_a_silent_site_back(store: Store) -> None:
    await store.heartbeat(state("paris", token=8), ttl_s=0)
    await store.heartbeat(state("paris", token=7), ttl_s=30)
    assert await store.sites() == []


async def test_memory_keeps_as_many_closed_requests_as_may_be_open() -> None:
    store = MemoryStore(max_open=3)
    for number in range(10):
        await store.open(Request(f"r{number}", MESSAGES))
        await store.close_request(f"r{number}", None, Failure(f"r{number}", "cancelled", ""))
    await store.open(Request("open", MESSAGES))
    kept = [name for number in range(10) if await store.record(name := f"r{number}")]
    assert kept == ["r7", "r8", "r9"]


async def test_memory_of_due_times_does_not_grow_with_their_changes() -> None:
    store = MemoryStore()
    await store.open(REQUEST)
    await store.open(Request("r2", MESSAGES, timeout_s=0.02))
    for number in range(5000):
        await store.set_due("r1", store.now() + 20 - number / 1000)
    assert len(store._due) <= 64 + 4 * 2 + 1
    await store.set_due("r1", store.now())
    taken = list[str]()
    async with asyncio.timeout(5):
        while len(taken) < 2:
            taken += await store.take_due()
    assert sorted(taken) == ["r1", "r2"]


async def test_memory_of_notices_is_of_the_latest_1024() -> None:
    notices = MemoryNotices(set())
    for number in range(1500):
        notices.put(Unwanted(f"r{number}", 1))
    async with asyncio.timeout(5):
        seen = [(await notices.receive()).request_id for _ in range(1024)]
    assert (seen[0], seen[-1]) == ("r476", "r1499")
    waiting = asyncio.ensure_future(notices.receive())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
