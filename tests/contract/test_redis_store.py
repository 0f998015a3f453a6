"""What only the store in Redis has: several processes, a memory that ends, a server that goes away."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from redis.asyncio import Connection

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
    Record,
    Request,
    Sampling,
    Segment,
    SiteState,
    Span,
)
from pice.errors import DecodeError, Full, TransportError
from pice.message.codec import encode
from pice.redis_client import RedisClient, Script
from pice.redis_servers import OneServer
from pice.store import redis_scripts as scripts
from pice.store.base import Chosen, Counted, Store, Unwanted
from pice.store.memory import MemoryStore
from pice.store.redis import RedisStore
from pice.store.redis_clock import RedisClock
from pice.store.redis_events import read_streams
from pice.store.redis_record import outcome_of, record_of
from pice.store.redis_unsure import Unsure
from tests.brokers import redis_url
from tests.contract.own_redis import OwnRedis
from tests.contract.redis_stores import keys_of, redis_stores

MESSAGES = (Message("user", "Why?"),)
REQUEST = Request("r1", MESSAGES, timeout_s=30)
FAILURE = Failure("r1", "cancelled", "by the user")


@pytest.fixture
async def stores() -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    async with redis_stores(redis_url(), max_open=2, due_lease_s=30) as make:
        yield await make(), await make()


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    redis_url()
    own = OwnRedis(tmp_path)
    await own.start()
    yield own
    await own.stop()


def segment(index: int = 0, attempt: int = 1) -> Segment:
    return Segment("r1", attempt, index, "expand", MESSAGES, (), (Point(index, "a", 10),), 10, Sampling(), 99.0)


def placement(site: str = "paris") -> Placement:
    return Placement(site, "m", 0.0, 1.0)


def candidate(site: str = "paris", *, attempt: int = 1, index: int = 0) -> Candidate:
    return Candidate("r1", attempt, index, site, "m", "text")


def answer(attempt: int = 1, text: str = "text") -> Answer:
    return Answer("r1", text, "cloud", "stop", attempt, Plan("cloud", ""))


def span(index: int = 0, text: str = "text") -> Span:
    return Span(index, text, "paris", "m", 0.5)


def state(site: str) -> SiteState:
    return SiteState(site, "main", 0, (ModelState("m", 4096, 4, Curve((1,), (0.1,))),), 7.5)


async def placed(store: Store) -> None:
    assert await store.open(REQUEST)
    assert await store.begin("r1")
    assert await store.place(segment(), placement("paris"))
    assert await store.place(segment(), placement("rome"))


async def kinds(store: Store) -> list[str]:
    async with aclosing(store.follow("r1", until_s=store.now() + 60)) as events:
        return [event.text or event.kind async for event in events]


async def prefix_keys(store: RedisStore) -> list[bytes]:
    return await keys_of(store._client, f"{store._keys.open.removesuffix(':open')}:*")


async def test_change_in_one_store_is_seen_in_another(stores: tuple[RedisStore, RedisStore]) -> None:
    one, other = stores
    notices = other.notices()
    await placed(one)
    assert not await other.open(REQUEST)
    assert await other.wanted("r1", 1, 0)
    assert (await other.add_candidate(candidate()))[0] is Counted.NEW
    assert await other.choose("r1", 1, span()) is Chosen.MADE
    record = await one.record("r1")
    assert record is not None
    assert record.segments[0].choice == span()
    assert not await one.wanted("r1", 1, 0)
    async with asyncio.timeout(5):
        assert await notices.receive() == Unwanted("r1", 1, 0)
    await notices.close()


async def test_news_is_read_once_for_all_who_listen(
    stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    num_read = 0

    async def counted(*args: Any) -> Any:
        nonlocal num_read
        num_read += 1
        return await read_streams(*args)

    monkeypatch.setattr("pice.store.redis_news.read_streams", counted)
    listeners = [other.notices() for _ in range(8)]
    waiting = [asyncio.ensure_future(listener.receive()) for listener in listeners]
    await placed(one)
    await one.close_request("r1", 1, answer())
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting) == [Unwanted("r1", 1)] * 8
    assert num_read < 8
    for listener in listeners:
        await listener.close()


async def test_listener_that_is_cancelled_or_leaves_takes_no_news_from_the_others(
    stores: tuple[RedisStore, RedisStore],
) -> None:
    one, other = stores
    leaving, staying = other.notices(), other.notices()
    reading = asyncio.ensure_future(leaving.receive())
    hearing = asyncio.ensure_future(staying.receive())
    await placed(one)
    reading.cancel()
    await leaving.close()
    await one.close_request("r1", 1, answer())
    async with asyncio.timeout(5):
        assert await hearing == Unwanted("r1", 1)
    await staying.close()


async def test_news_that_makes_no_sense_is_passed_over(
    stores: tuple[RedisStore, RedisStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = stores[0]
    notices = store.notices()
    await store._client.call("XADD", store._keys.shard("r1").news, "*", "id", "r1", "attempt", "many")
    await placed(store)
    await store.close_request("r1", 1, answer())
    async with asyncio.timeout(5):
        assert await notices.receive() == Unwanted("r1", 1)
    assert "news of unwanted work" in caplog.text
    await notices.close()


async def test_listener_that_has_left_hears_so(stores: tuple[RedisStore, RedisStore]) -> None:
    notices = stores[0].notices()
    hearing = asyncio.ensure_future(notices.receive())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await notices.close()
        with pytest.raises(TransportError, match="nobody listens"):
            await hearing
    with pytest.raises(TransportError, match="nobody listens"):
        await notices.receive()


async def test_events_of_one_store_are_followed_in_another(stores: tuple[RedisStore, RedisStore]) -> None:
    one, other = stores
    await one.open(REQUEST)
    await one.begin("r1")
    async with asyncio.timeout(5):
        async with asyncio.TaskGroup() as tasks:
            followers = [tasks.create_task(kinds(store)) for store in (one, other, other)]
            for text in "abc":
                await one.emit(Event("r1", "sketch_text", 0.0, 1, text=text))
            await one.close_request("r1", None, FAILURE)
    assert [follower.result() for follower in followers] == [["a", "b", "c", "failed"]] * 3


async def test_final_event_says_when_and_in_which_attempt(stores: tuple[RedisStore, RedisStore]) -> None:
    one, other = stores
    await one.open(REQUEST)
    await one.begin("r1")
    await one.begin("r1")
    before_s = one.now()
    await one.close_request("r1", None, FAILURE)
    async with aclosing(other.follow("r1", until_s=other.now())) as events:
        (final,) = [event async for event in events]
    assert final == Event("r1", "failed", final.at_s, 2, failure=FAILURE)
    assert before_s - 1 <= final.at_s <= other.now() + 1


async def test_site_seen_by_one_store_is_known_to_another(stores: tuple[RedisStore, RedisStore]) -> None:
    one, other = stores
    await one.heartbeat(state("paris"), ttl_s=30)
    await one.heartbeat(state("gone"), ttl_s=0)
    assert await other.sites() == [state("paris")]


async def test_heartbeat_that_is_none_or_of_another_site_is_told_once_and_silent(
    stores: tuple[RedisStore, RedisStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = stores[0]
    for site in ("junk", "liar", "paris", "timeless", "wrong"):
        await store.heartbeat(state(site), ttl_s=30)
    await store._client.call("SET", store._keys.state("wrong"), "no hash")
    await store._client.call("HSET", store._keys.state("junk"), "state", b"\xff")
    await store._client.call("HSET", store._keys.state("timeless"), "until", "x", "ttl", "y")
    await store._client.call("HSET", store._keys.state("liar"), "state", encode(state("rome")))
    for _ in range(2):
        assert await store.sites() == [state("paris")]
    told = sorted(record.getMessage() for record in caplog.records)
    assert [text.split(" is taken for silent")[0] for text in told] == ["site 'junk'", "site 'liar'", "site 'wrong'"]
    await store.heartbeat(state("liar"), ttl_s=30)
    assert await store.sites() == [state("liar"), state("paris")]


async def test_site_is_silent_when_redis_clock_was_set_back(stores: tuple[RedisStore, RedisStore]) -> None:
    store = stores[0]
    await store.heartbeat(state("paris"), ttl_s=5)
    await store._client.call("HSET", store._keys.state("paris"), "until", f"{store.now() + 3600:f}")
    assert await store.sites() == []
    await store.heartbeat(state("paris"), ttl_s=5)
    assert await store.sites() == [state("paris")]


async def test_site_that_is_gone_for_a_day_leaves_nothing(stores: tuple[RedisStore, RedisStore]) -> None:
    store = stores[0]
    await store.heartbeat(state("paris"), ttl_s=30)
    assert 86_300_000 < await store._client.call("PTTL", store._keys.state("paris")) <= 86_400_000
    await store._client.call("DEL", store._keys.state("paris"))  # as if the day were over
    assert await store.sites() == []
    assert await prefix_keys(store) == []


async def test_candidate_is_counted_once_by_collectors_at_the_same_time(stores: tuple[RedisStore, RedisStore]) -> None:
    await placed(stores[0])
    counted = await asyncio.gather(*(store.add_candidate(candidate()) for store in stores * 8))
    assert sorted(it.value for it, _ in counted) == ["new"] + ["repeated"] * 15


async def test_one_of_many_closers_wins_and_its_outcome_stands(stores: tuple[RedisStore, RedisStore]) -> None:
    await placed(stores[0])
    texts = [f"text {number}" for number in range(16)]
    closed = await asyncio.gather(
        *(store.close_request("r1", 1, answer(text=text)) for store, text in zip(stores * 8, texts, strict=True))
    )
    assert sum(closed) == 1
    record = await stores[1].record("r1")
    assert record is not None
    assert record.outcome == answer(text=texts[closed.index(True)])
    assert await kinds(stores[1]) == ["answered"]


async def test_attempt_begun_in_one_store_fences_that_of_another(stores: tuple[RedisStore, RedisStore]) -> None:
    one, other = stores
    await placed(one)
    attempts = await asyncio.gather(one.begin("r1"), other.begin("r1"))
    assert sorted(record.attempt for record in attempts if record) == [2, 3]
    assert not await one.place(segment(1), placement())
    assert (await one.add_candidate(candidate()))[0] is Counted.STALE
    assert not await one.close_request("r1", 2, answer(2))
    await one.emit(Event("r1", "sketch_text", 0.0, 2, text="fenced"))
    assert await other.close_request("r1", 3, answer(3))
    assert await kinds(one) == ["answered"]


async def test_open_requests_of_all_stores_count_together(stores: tuple[RedisStore, RedisStore]) -> None:
    one, other = stores
    await one.open(Request("r1", MESSAGES))
    await other.open(Request("r2", MESSAGES))
    assert not await other.open(Request("r1", MESSAGES))
    with pytest.raises(Full):
        await one.open(Request("r3", MESSAGES))
    assert await other.close_request("r1", None, FAILURE)
    assert not await other.open(Request("r1", MESSAGES))
    assert await other.open(Request("r3", MESSAGES))


async def test_request_whose_closer_died_before_it_counted_it_is_counted_by_the_next(
    stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores

    async def dies(request_id: str) -> None:
        raise TransportError("cut off")

    monkeypatch.setattr(one, "_give_back", dies)
    await one.open(Request("r1", MESSAGES))
    await one.open(Request("r2", MESSAGES))
    with pytest.raises(TransportError, match="cut off"):
        await one.close_request("r1", None, FAILURE)
    assert not await other.close_request("r1", None, FAILURE)
    assert await other.open(Request("r3", MESSAGES))


async def test_due_request_goes_to_one_collector(stores: tuple[RedisStore, RedisStore]) -> None:
    one, other = stores
    takers = [asyncio.ensure_future(store.take_due()) for store in stores]
    await one.open(Request("r1", MESSAGES, timeout_s=60))
    await one.set_due("r1", one.now())
    async with asyncio.timeout(5):
        done, waiting = await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
        assert [taker.result() for taker in done] == [["r1"]]
        await one.open(Request("r2", MESSAGES, timeout_s=60))
        await other.set_due("r2", one.now())
        assert [await taker for taker in waiting] == [["r2"]]


async def test_no_more_are_taken_than_asked_for_and_the_soonest_first() -> None:
    async with redis_stores(redis_url(), due_lease_s=30) as make:
        store = await make()
        names = [f"r{number}" for number in range(40)]
        for number, name in enumerate(names):
            await store.open(Request(name, MESSAGES, timeout_s=60))
            await store.set_due(name, store.now() - number)
        async with asyncio.timeout(5):
            taken = [await store.take_due(limit=15) for _ in range(3)]
    assert [len(part) for part in taken] == [15, 15, 10]
    assert sorted(name for part in taken for name in part) == sorted(names)
    assert "r39" in taken[0]


def said_by(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The names of the commands that its client sends together with others, as they come."""
    said, say = list[Any](), store._client._say

    def noted(words: Sequence[Any]) -> Any:
        said.append(words[0])
        return say(words)

    monkeypatch.setattr(store._client, "_say", noted)
    return said


async def test_waiting_for_what_is_due_asks_redis_seldom(
    stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, said = stores[0], said_by(stores[0], monkeypatch)
    await store.open(Request("r1", MESSAGES, timeout_s=0.8))
    async with asyncio.timeout(5):
        assert await store.take_due() == ["r1"]
    assert said.count("ZRANGE") <= 8 * len(store._keys.shards)


async def test_waiting_for_what_is_due_keeps_no_reply_from_others(
    stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, said = stores[0], said_by(stores[0], monkeypatch)
    await store.open(Request("r1", MESSAGES, timeout_s=0.8))
    async with asyncio.timeout(5):
        assert await store.take_due() == ["r1"]
    assert "ZRANGE" in said
    assert "BLPOP" not in said


async def test_request_taken_by_a_collector_that_died_is_due_again() -> None:
    async with redis_stores(redis_url(), due_lease_s=0.05) as make:
        one, other = await make(), await make()
        await one.open(REQUEST)
        await one.set_due("r1", one.now())
        async with asyncio.timeout(5):
            assert await one.take_due() == ["r1"]
            assert await other.take_due() == ["r1"]


async def test_keys_of_a_finished_and_of_an_abandoned_request_expire() -> None:
    async with redis_stores(redis_url(), record_ttl_s=0.05) as make:
        store = await make()
        await store.open(Request("abandoned", MESSAGES, timeout_s=0.05))
        await placed(store)
        await store.emit(Event("r1", "sketch_text", 0.0, 1, text="a"))
        assert len([key for key in await prefix_keys(store) if b":r1" in key]) == 3
        await store.close_request("r1", 1, answer())
        async with asyncio.timeout(10):
            while any(b":r1" in key or b":abandoned" in key for key in await prefix_keys(store)):
                pass
        assert await store.record("r1") is None
        assert await kinds(store) == []


async def test_every_key_of_a_request_ends_by_itself(stores: tuple[RedisStore, RedisStore]) -> None:
    store = stores[0]
    await placed(store)
    await store.begin("r1")
    await store.emit(Event("r1", "sketch_text", 0.0, 2, text="a"))
    await store.set_due("r1", store.now())
    keys = await prefix_keys(store)
    assert {key.rsplit(b":", 1)[1] for key in keys} == {b"open", b"due", b"wake", b"news", b"r1"}
    assert all([0 < await store._client.call("PTTL", key) <= 630_000 for key in keys])
    await store.close_request("r1", 2, answer(2))
    for name in ("r1", "unknown"):
        await store.set_due(name, store.now())
    assert not [key for key in await prefix_keys(store) if key.endswith((b":due", b":open"))]


async def test_follower_of_a_request_whose_record_goes_ends() -> None:
    async with redis_stores(redis_url(), record_ttl_s=0.05) as make:
        store = await make()
        await store.open(Request("r1", MESSAGES, timeout_s=0.05))
        async with asyncio.timeout(10):
            assert await kinds(store) == []


async def test_events_kept_are_bounded(stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pice.store.redis._MAX_EVENTS", 100)
    store = stores[0]
    await store.open(REQUEST)
    for number in range(400):
        await store.emit(Event("r1", "sketch_text", 0.0, 0, text=str(number)))
    await store.close_request("r1", None, FAILURE)
    seen = await kinds(store)
    assert len(seen) <= 250
    assert seen[-2:] == ["399", "failed"]


def moves(random: Random) -> list[tuple[Any, ...]]:
    """Calls of a store with what they are given, most of them at odds with one another."""
    attempt, index = random.choice((1, 1, 2)), random.randrange(2)
    site = random.choice(("paris", "rome"))
    sealed = {"num_prompt_tokens": 3, "num_output_tokens": 4, "cut": True}
    return [
        ("begin", ("r1",), {}),
        ("planned", ("r1", attempt, Plan("edge", f"{index}")), {}),
        *[("place", (segment(index, attempt), placement(site)), {})] * 4,
        ("unplace", (segment(index), replace(placement(site), reason=random.choice(("first", "hedge")))), {}),
        *[("add_candidate", (candidate(site, attempt=attempt, index=index),), {})] * 4,
        ("choose", ("r1", attempt, span(index)), {}),
        ("wanted", ("r1", attempt, index), {}),
        ("emit", (Event("r1", "sketch_text", 0.0, attempt, text=site),), {}),
        *([("seal", ("r1", attempt, (Point(0, "a", 5), Point(1, "b", 6)), 2), sealed)] if index else []),
    ]


def timeless(result: object) -> object:
    if isinstance(result, tuple):
        return tuple(timeless(each) for each in result)
    if not isinstance(result, Record):
        return result
    return replace(result, opened_s=0.0, deadline_s=0.0, sealed_s=float(bool(result.sealed_s)), begun_s=0.0)


@pytest.mark.parametrize("seed", range(5))
async def test_any_calls_do_as_in_the_store_in_memory(seed: int, stores: tuple[RedisStore, RedisStore]) -> None:
    random, memory = Random(seed), MemoryStore()
    for store in (memory, stores[0]):
        await store.open(REQUEST)
        assert await store.begin("r1")
        for index in (0, 1):
            assert await store.place(segment(index), placement("rome"))
    for _ in range(60):
        name, args, options = random.choice(moves(random))
        expected, got = [await getattr(store, name)(*args, **options) for store in (memory, random.choice(stores))]
        assert timeless(got) == timeless(expected), name
        assert timeless(await stores[1].record("r1")) == timeless(await memory.record("r1")), name
    for store in (memory, stores[0]):
        await store.close_request("r1", None, answer())
    assert timeless(await stores[1].record("r1")) == timeless(await memory.record("r1"))
    assert await kinds(stores[1]) == await kinds(memory)


async def filled(store: RedisStore) -> tuple[list[str], Full]:
    """The requests that were opened until Redis was full, and how it said so."""
    opened = list[str]()
    while len(opened) < 1000:
        try:
            await store.open(Request(f"r{len(opened)}", (Message("user", "?" * 100_000),)))
        except Full as refused:
            return opened, refused
        opened.append(f"r{len(opened)}")
    raise AssertionError("it is not full")


async def test_full_redis_refuses_lets_requests_end_and_recovers(own_redis: OwnRedis) -> None:
    async with redis_stores(own_redis.url, record_ttl_s=0.05) as make:
        store = await make()
        await store._client.call("CONFIG", "SET", "maxmemory", "4mb")
        opened, refused = await filled(store)
        assert refused.retry_after_s > 0
        assert await store._client.call("ZCARD", store._keys.open) == len(opened)
        await store._client.call("CONFIG", "SET", "maxmemory", "1mb")
        for refusing in (store.open(REQUEST), store.begin("r0"), store.emit(Event("r0", "sketch_text", 0.0, 0))):
            with pytest.raises(Full):
                await refusing
        await store.set_due("r0", store.now())
        assert await store.take_due() == ["r0"]
        for name in opened:
            assert await store.close_request(name, None, Failure(name, "cancelled", ""))
        await store._client.call("CONFIG", "SET", "maxmemory", "4mb")
        async with asyncio.timeout(10):
            while not await opens(store):
                pass


async def opens(store: RedisStore) -> bool:
    try:
        return await store.open(REQUEST)
    except Full:
        return False


async def test_redis_that_restarts_is_survived(own_redis: OwnRedis) -> None:
    async with redis_stores(own_redis.url) as make:
        store = await make()
        notices = store.notices()
        news = asyncio.ensure_future(notices.receive())
        assert await store.open(REQUEST)
        taking = asyncio.ensure_future(store.take_due())
        await own_redis.stop()
        with pytest.raises(TransportError, match=r"127\.0\.0\.1"):
            await taking
        for call in (store.open(REQUEST), store.record("r1"), store.sites(), store.wanted("r1", 1, 0)):
            with pytest.raises(TransportError, match=r"127\.0\.0\.1"):
                await call
        await own_redis.start()
        assert await store.record("r1") is None
        await placed(store)
        await store.set_due("r1", store.now())
        assert await store.close_request("r1", 1, answer())
        assert await kinds(store) == ["answered"]
        async with asyncio.timeout(10):
            assert await news == Unwanted("r1", 1)
        await notices.close()


@pytest.fixture
async def kept_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    redis_url()
    own = OwnRedis(tmp_path, keeps=True)
    await own.start()
    yield own
    await own.stop()


def text_event(text: str, attempt: int = 1) -> Event:
    return Event("r1", "sketch_text", 0.0, attempt, text=text)


async def test_follower_of_a_request_goes_on_where_it_was_when_redis_is_back(kept_redis: OwnRedis) -> None:
    async with redis_stores(kept_redis.url) as make:
        store = await make()
        await placed(store)
        await store.emit(text_event("a"))
        async with asyncio.timeout(20), aclosing(store.follow("r1", until_s=store.now() + 60)) as events:
            assert (await anext(events)).text == "a"
            following = asyncio.ensure_future(anext(events))
            await kept_redis.stop()
            with pytest.raises(TransportError):
                await store.emit(text_event("lost"))
            await kept_redis.start()
            for text in ("b", "c"):
                await store.emit(text_event(text))
            await store.close_request("r1", 1, answer())
            assert (await following).text == "b"
            assert [event.text or event.kind async for event in events] == ["c", "answered"]


async def test_follower_hears_the_end_of_a_request_though_redis_is_full(own_redis: OwnRedis) -> None:
    async with redis_stores(own_redis.url) as make:
        store = await make()
        await placed(store)
        following = asyncio.ensure_future(kinds(store))
        await store.emit(text_event("a"))
        await store._client.call("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(Full):
            await store.emit(text_event("b"))
        await store.close_request("r1", 1, answer())
        async with asyncio.timeout(10):
            assert await following == ["a", "answered"]


async def test_follower_whose_time_is_up_while_redis_is_away_is_told(own_redis: OwnRedis) -> None:
    async with redis_stores(own_redis.url) as make:
        store = await make()
        await placed(store)
        async with aclosing(store.follow("r1", until_s=store.now() + 0.2)) as events:
            await own_redis.stop()
            with pytest.raises(TransportError, match="does not answer"):
                async with asyncio.timeout(10):
                    await anext(events)
        await own_redis.start()


async def test_request_that_was_opened_without_an_answer_is_opened_again(
    stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    lose_replies(monkeypatch, one, scripts.OPEN)
    with pytest.raises(TransportError, match="reply was lost"):
        await one.open(REQUEST)
    assert not await other.open(REQUEST)
    assert await one.open(REQUEST)
    assert not await one.open(REQUEST)


async def test_request_that_was_opened_without_an_answer_and_begun_is_not_opened_again(
    stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    lose_replies(monkeypatch, one, scripts.OPEN)
    with pytest.raises(TransportError, match="reply was lost"):
        await one.open(REQUEST)
    await other.begin("r1")
    assert not await one.open(REQUEST)


async def test_event_that_was_emitted_without_an_answer_is_there_once(
    stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    await placed(one)
    lose_replies(monkeypatch, one, scripts.EMIT)
    with pytest.raises(TransportError, match="reply was lost"):
        await one.emit(text_event("a"))
    await other.emit(text_event("b"))
    for text in ("a", "a"):  # said again; and said once more, which is another event that says the same
        await one.emit(text_event(text))
    await one.close_request("r1", 1, answer())
    assert await kinds(other) == ["a", "b", "a", "answered"]


def lose_replies(monkeypatch: pytest.MonkeyPatch, store: RedisStore, script: Script) -> None:
    """The first call of the script is done, and its reply does not come."""
    whole, lost = store._client.run, list[Script]()

    async def run(called: Script, keys: Any, words: Any) -> Any:
        reply = await whole(called, keys, words)
        if called is script and not lost:
            lost.append(called)
            raise TransportError("the reply was lost")
        return reply

    monkeypatch.setattr(store._client, "run", run)


def say_in_vain(unsure: Unsure, payload: bytes) -> None:
    with suppress(TransportError), unsure.saying(payload) as is_repeat:
        assert not is_repeat
        raise TransportError("lost")


def test_no_more_than_4096_unanswered_changes_are_remembered() -> None:
    unsure = Unsure()
    for number in range(5000):
        say_in_vain(unsure, b"%d" % number)
    assert len(unsure._kept) == 4096
    with unsure.saying(b"4999") as is_repeat:
        assert is_repeat
    with unsure.saying(b"4999") as is_repeat:
        assert not is_repeat


async def test_what_is_no_event_is_passed_over(
    stores: tuple[RedisStore, RedisStore], caplog: pytest.LogCaptureFixture
) -> None:
    """A site may append to the events of any request: it must not end them, or who follows them."""
    store = stores[0]
    await placed(store)
    stream = store._keys.shard("r1").events("r1")
    forged = encode(Event("r1", "answered", 0.0, 1, answer=answer(text="forged")))
    for fields in (("event", b"\xff"), ("final", "1"), ("x", "y"), ("event", forged)):
        await store._client.call("XADD", stream, "*", *fields)
    await store.emit(text_event("a"))
    following = asyncio.ensure_future(kinds(store))
    await store.close_request("r1", 1, answer())
    await store._client.call("XADD", stream, "*", "event", encode(text_event("late")))
    async with asyncio.timeout(5):
        assert await following == ["a", "answered"]
        assert await kinds(store) == ["a", "answered"]
    assert sum("passed over" in record.message for record in caplog.records) >= 3


async def test_clock_that_could_not_be_read_is_read_again(own_redis: OwnRedis) -> None:
    async with redis_stores(own_redis.url) as make:
        ready = await make()
        store = RedisStore(ready._client)
        await own_redis.stop()
        with pytest.raises(TransportError):
            await store.start()
        await own_redis.start()
        await store.start()
        assert abs(store.now() - ready.now()) < 60


async def test_store_whose_client_is_closed_says_so(stores: tuple[RedisStore, RedisStore]) -> None:
    await stores[0]._client.close()
    for call in (stores[0].open(REQUEST), stores[0].take_due()):
        with pytest.raises(TransportError, match="is closed"):
            await call
    assert await stores[1].open(REQUEST)


class Shifted(RedisClient):
    """A Redis whose clock is ahead of ours."""

    ahead_s = 1000.5

    async def call(self, *words: object) -> Any:
        seconds, rest = divmod(asyncio.get_running_loop().time() + self.ahead_s, 1)
        return [b"%d" % seconds, b"%d" % (rest * 1e6)]


async def test_clock_follows_redis_and_does_not_go_back_by_a_little(caplog: pytest.LogCaptureFixture) -> None:
    client = Shifted(OneServer(Connection, {"host": "127.0.0.1", "port": 1}, 1))
    clock = RedisClock(client)
    await clock.refresh()
    first, offset_s = clock.now(), clock._offset_s
    assert abs(offset_s - 1000.5) < 0.1
    client.ahead_s = 1000.0
    await clock.refresh()
    assert clock._offset_s == offset_s  # it was read a moment ago
    clock._read_s -= 11
    await clock.refresh()
    assert abs(clock._offset_s - 1000) < 0.1
    assert clock.now() >= first
    assert caplog.text == ""
    await client.close()


@pytest.mark.parametrize(("ahead_s", "by"), [(900.5, "-100.0"), (2000.5, "+1000.0")], ids=["back", "ahead"])
async def test_clock_that_was_set_is_followed_and_told_once(
    ahead_s: float, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = Shifted(OneServer(Connection, {"host": "127.0.0.1", "port": 1}, 1))
    clock = RedisClock(client)
    await clock.refresh()
    first_s = clock.now()
    client.ahead_s = ahead_s
    for _ in range(2):
        clock._read_s -= 11
        await clock.refresh()
        assert (clock.now() < first_s) == (ahead_s < 1000)
        assert abs(clock._offset_s - ahead_s) < 0.1
    (told,) = caplog.records
    assert f"was set by {by} s" in told.getMessage()
    await client.close()


def test_what_is_no_record_is_undecodable() -> None:
    for fields in ({}, {b"request": b"junk"}, {b"request": b"\x80"}):
        with pytest.raises(DecodeError):
            record_of(fields)
    with pytest.raises(DecodeError, match="got a Segment"):
        outcome_of(encode(segment()))


async def test_request_whose_closer_is_cancelled_leaves_the_open_ones_all_the_same(
    stores: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = stores
    reached, gate, give_back = asyncio.Event(), asyncio.Event(), store._give_back

    async def late(request_id: str) -> None:
        reached.set()
        await gate.wait()
        await give_back(request_id)

    monkeypatch.setattr(store, "_give_back", late)
    for request_id in ("r1", "r2"):
        assert await store.open(replace(REQUEST, request_id=request_id))
    closing = asyncio.create_task(store.close_request("r1", None, FAILURE))
    async with asyncio.timeout(10):
        await reached.wait()
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        gate.set()
        await asyncio.gather(*store._closing)
    assert await store.open(replace(REQUEST, request_id="r3"))
