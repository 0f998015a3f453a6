"""What an edge node does with the segments of its site."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from pice.core import Candidate, Failure, ModelState, Placement, Plan, Segment, SiteState
from pice.errors import EngineError, EngineUnavailable, Full
from pice.message.codec import decode_as, encode
from pice.node.edge import EdgeNode
from pice.node.load import Load
from pice.plan.order import Order
from pice.store.base import Unwanted
from pice.store.memory import MemoryStore
from pice.transport.base import CANDIDATES, DEAD, Subscription
from pice.transport.memory import MemoryTransport
from tests.node.scripted import Script, ScriptedEngine
from tests.node.stage import SEGMENTS, Stage, a_request, a_segment, time_passes

TEXT = "The moon pulls at the water."
DOWN = EngineUnavailable("the model is being reloaded")


class Work:
    """Requests of one segment each, sent to paris, and the candidates that come of them."""

    def __init__(self, stage: Stage, candidates: Subscription) -> None:
        self.stage = stage
        self._candidates = candidates

    async def segment(
        self, name: str = "r", *, words: int = 10, timeout_s: float = 120.0, model: str = "small"
    ) -> Segment:
        """A segment as it is placed at paris, not yet sent."""
        store, request = self.stage.store, a_request(name, timeout_s=timeout_s)
        await store.open(request)
        record = await store.begin(name)
        assert record is not None
        await store.planned(name, 1, Plan("progressive", ""))
        segment = replace(a_segment(record, (), 0), kind="answer", words=words, site="paris", model=model)
        await store.place(segment, Placement("paris", model, store.now(), store.now()))
        return segment

    async def send(self, name: str = "r", **of_segment: Any) -> Segment:
        segment = await self.segment(name, **of_segment)
        await self.publish(encode(segment))
        return segment

    async def publish(self, payload: bytes) -> None:
        await self.stage.transport.publish(SEGMENTS, payload, partition=0)

    async def receive(self) -> Candidate:
        delivery = await self._candidates.receive()
        await self._candidates.ack(delivery)
        return decode_as(Candidate, delivery.payload)

    async def forget(self, name: str) -> None:
        """The request ends; nobody wants its segments."""
        assert await self.stage.store.close_request(name, None, Failure(name, "cancelled", "gone"))

    @property
    def num_unacked(self) -> int:
        return self.stage.transport.num_messages(SEGMENTS)

    @property
    def num_candidates(self) -> int:
        return self.stage.transport.num_messages(CANDIDATES)


@pytest.fixture
async def work(stage: Stage) -> Work:
    return Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))


def small(*scripts: Script, max_inflight: int = 8) -> ScriptedEngine:
    return ScriptedEngine("small", *(scripts or [Script(TEXT)]), max_inflight=max_inflight)


def slow(step_s: float = 1.0) -> Script:
    """Six words, one every `step_s`."""
    return Script(TEXT, step_s=step_s)


async def state(stage: Stage) -> SiteState:
    (only,) = await stage.store.sites()
    return only


async def test_candidate_says_what_was_written_and_how_long_it_took(stage: Stage, work: Work) -> None:
    engine = small(Script(TEXT, step_s=0.5, logprob=-0.25), max_inflight=1)
    stage.edge("paris", engine)
    await work.send("first")
    await work.send("second")
    first, second = await work.receive(), await work.receive()
    assert (first.request_id, first.attempt, first.index, first.site, first.model) == ("first", 1, 0, "paris", "small")
    assert (first.text, first.finish_reason, first.num_output_tokens, first.error) == (TEXT, "stop", 6, "")
    assert first.num_prompt_tokens == await engine.count_tokens(engine.prompts[0])
    assert (first.logprob_mean, first.logprob_min) == (-0.25, -0.25)
    assert (first.queue_s, first.service_s) == pytest.approx((0.0, 3.0))
    assert (second.queue_s, second.service_s) == pytest.approx((3.0, 3.0))


async def test_time_waited_inside_the_engine_is_queue_time(stage: Stage, work: Work) -> None:
    stage.edge("paris", small(Script(TEXT, step_s=0.5, queue_s=1.25)))
    await work.send()
    candidate = await work.receive()
    assert (candidate.queue_s, candidate.service_s) == pytest.approx((1.25, 1.75))


async def test_engine_is_told_the_deadline_on_the_loops_clock(stage: Stage, work: Work) -> None:
    engine = small()
    stage.edge("paris", engine)
    await work.send(timeout_s=50.0)
    await work.receive()
    assert engine.deadlines_s == pytest.approx([50.0])


async def test_candidate_of_an_engine_without_log_probabilities_has_none(stage: Stage, work: Work) -> None:
    stage.edge("paris", small())
    await work.send()
    candidate = await work.receive()
    assert (candidate.logprob_mean, candidate.logprob_min) == (None, None)


async def test_candidate_stopped_by_its_limit_says_so(stage: Stage, work: Work) -> None:
    stage.edge("paris", small(Script("word " * 100)))
    await work.send()
    candidate = await work.receive()
    assert (candidate.finish_reason, candidate.num_output_tokens) == ("length", 64)


async def test_text_is_shown_while_it_is_written(stage: Stage, work: Work) -> None:
    stage.edge("paris", small(slow(0.2)), text_interval_s=0.0)
    await work.send()
    await work.receive()
    await work.forget("r")
    events = await stage.events("r")
    shown = [event.text for event in events if event.kind == "segment_text"]
    assert (len(shown), "".join(shown)) == (6, TEXT)


class Watching(MemoryTransport):
    """Notes, when a candidate is published, how many segments are not yet acknowledged; may be full for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.unacked: list[int] = []
        self.refusals = 0

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        if topic == CANDIDATES:
            if self.refusals:
                self.refusals -= 1
                raise Full("no more candidates are taken", retry_after_s=1.0)
            self.unacked.append(self.num_messages(SEGMENTS))
        await super().publish(topic, payload, key=key, partition=partition, headers=headers)


@pytest.fixture
async def watched(stage: Stage) -> Work:
    stage.transport = Watching()
    return Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))


def watching(work: Work) -> Watching:
    assert isinstance(work.stage.transport, Watching)
    return work.stage.transport


@pytest.mark.parametrize("text", [TEXT, ""], ids=["text", "no text"])
async def test_candidate_is_published_before_its_segment_is_acknowledged(
    stage: Stage, watched: Work, text: str
) -> None:
    stage.edge("paris", small(Script(text)))
    await watched.send()
    assert (await watched.receive()).text == text
    await asyncio.sleep(0)
    assert (watching(watched).unacked, watched.num_unacked) == ([1], 0)


async def test_candidate_is_kept_while_their_queue_is_full(stage: Stage, watched: Work) -> None:
    watching(watched).refusals = 3
    stage.edge("paris", small())
    await watched.send()
    candidate = await watched.receive()
    assert (candidate.text, candidate.error) == (TEXT, "")
    await time_passes(1)
    assert watched.num_unacked == 0


async def test_news_of_a_failure_is_kept_while_the_queue_of_candidates_is_full(stage: Stage, watched: Work) -> None:
    watching(watched).refusals = 4
    stage.edge("paris", small(Script("", error=EngineError("out of memory"))))
    await watched.send()
    assert (await watched.receive()).error == "out of memory"
    await time_passes(1)
    assert watched.num_unacked == 0


@pytest.mark.parametrize("payload", [b"\xc1junk", encode(a_request())], ids=["junk", "another message"])
async def test_message_that_is_no_segment_is_put_aside_and_the_next_is_expanded(
    stage: Stage, work: Work, payload: bytes
) -> None:
    stage.edge("paris", small())
    await work.publish(payload)
    await work.send()
    assert (await work.receive()).text == TEXT
    assert (await stage.dead()).payload == payload
    assert work.num_unacked == 0


async def test_segment_for_another_site_is_put_aside_and_says_for_which(stage: Stage, work: Work) -> None:
    engine = small()
    stage.edge("paris", engine)
    await work.publish(encode(replace(await work.segment(), site="rome")))
    dead = await stage.dead()
    assert b"'rome'" in dead.headers["reason"]
    assert b"paris" in dead.headers["reason"]
    await time_passes(1)
    assert (engine.prompts, work.num_unacked, work.num_candidates) == ([], 0, 0)


async def test_segment_for_an_unknown_model_fails_at_once_and_names_the_known_ones(stage: Stage, work: Work) -> None:
    stage.edge("paris", small())
    await work.send(model="huge")
    candidate = await work.receive()
    assert (candidate.model, candidate.error) == ("huge", "site has no model 'huge', only small")
    await asyncio.sleep(0)
    assert work.num_unacked == 0


async def test_segment_that_is_no_longer_wanted_is_dropped_unexpanded(stage: Stage, work: Work) -> None:
    engine = small()
    await work.send()
    await work.forget("r")
    stage.edge("paris", engine)
    await time_passes(1)
    assert (engine.prompts, work.num_unacked, work.num_candidates) == ([], 0, 0)


class DeafStore(MemoryStore):
    """Loses all notices, and counts how often it is asked what is wanted."""

    times_asked = 0

    def _notify(self, unwanted: Unwanted) -> None:
        pass

    async def wanted(self, request_id: str, attempt: int, index: int) -> bool:
        self.times_asked += 1
        return await super().wanted(request_id, attempt, index)


async def test_segment_whose_time_is_up_while_it_waits_is_dropped_unexpanded(stage: Stage) -> None:
    stage.store = DeafStore()
    work = Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))
    engine = small(slow(), max_inflight=1)
    stage.edge("paris", engine, sweep_s=500.0)
    await work.send("long")
    await work.send("short", timeout_s=5.0)
    await time_passes(5)
    await work.forget("short")
    assert (await work.receive()).request_id == "long"
    await time_passes(1)
    assert (len(engine.prompts), work.num_unacked, work.num_candidates) == (1, 0, 0)


class HesitantStore(MemoryStore):
    """Says what is wanted of request "a" only once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_say = asyncio.Event()

    async def wanted(self, request_id: str, attempt: int, index: int) -> bool:
        if request_id == "a":
            await self.may_say.wait()
        return await super().wanted(request_id, attempt, index)


async def test_segment_that_the_store_says_nothing_of_stops_no_other(stage: Stage) -> None:
    stage.store = store = HesitantStore()
    work = Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))
    stage.edge("paris", small())
    for name in ("a", "b"):
        await work.send(name)
    assert (await work.receive()).request_id == "b"
    store.may_say.set()
    assert (await work.receive()).request_id == "a"


async def test_segment_that_the_store_says_nothing_of_goes_to_the_next_node(stage: Stage) -> None:
    stage.store = store = HesitantStore()
    work = Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))
    node = stage.edge("paris", small())
    await work.send("a")
    await time_passes(1)
    await node.stop()
    store.may_say.set()
    stage.edge("paris", small())
    assert (await work.receive()).request_id == "a"


async def test_segment_that_comes_as_the_node_is_stopped_is_drained_too(stage: Stage, work: Work) -> None:
    node = stage.edge("paris", small(slow(20.0)), drain_s=1.0)
    await work.send("first")
    await time_passes(0.5)
    last = await work.segment("last")
    began_s = stage.store.now()
    await work.publish(encode(last))
    await node.stop()
    assert stage.store.now() - began_s < 2.0


class Misread:
    """The store of a host that reads its clock wrong by `ahead_s`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.ahead_s = 0.0

    def now(self) -> float:
        return self._store.now() + self.ahead_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def misread(stage: Stage) -> Misread:
    """The store of nodes that are started here; its records are right."""
    misread = Misread(stage.store)
    stage.store = cast("MemoryStore", misread)
    return misread


@pytest.mark.parametrize("ahead_s", [1e7, -1e7], ids=["ahead", "back"])
async def test_clock_that_jumps_expires_and_cancels_nothing(
    stage: Stage, misread: Misread, work: Work, ahead_s: float
) -> None:
    engine = small(slow(), max_inflight=1)
    stage.edge("paris", engine)
    segments = [await work.segment(name) for name in ("running", "waiting", "to come")]
    for segment in segments[:2]:
        await work.publish(encode(segment))
    await time_passes(2.5)
    misread.ahead_s = ahead_s
    await work.publish(encode(segments[2]))
    assert [(await work.receive()).request_id for _ in range(3)] == ["running", "waiting", "to come"]
    assert (engine.num_finished, stage.transport.num_messages(DEAD)) == (3, 0)


async def test_segments_of_an_ended_request_are_dropped_though_the_notice_was_lost(stage: Stage) -> None:
    stage.store = DeafStore()
    work = Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))
    engine = small(slow(), max_inflight=1)
    stage.edge("paris", engine)
    for name in ("running", "waiting", "wanted"):
        await work.send(name)
    await time_passes(1.5)
    await work.forget("running")
    await work.forget("waiting")
    assert (await work.receive()).request_id == "wanted"
    await asyncio.sleep(0)
    assert (len(engine.prompts), engine.num_finished, work.num_unacked) == (2, 1, 0)


async def test_segment_in_hand_is_asked_after_until_it_is_finished(stage: Stage) -> None:
    stage.store = store = DeafStore()
    work = Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))
    stage.edge("paris", small(slow(0.4)), sweep_s=1.0)
    await work.send()
    await time_passes(20)
    assert store.times_asked == 1 + 2


async def test_engine_error_midway_is_news_at_once(stage: Stage, work: Work) -> None:
    stage.edge("paris", small(Script("The moon", error=EngineError("out of memory"))))
    await work.send()
    candidate = await work.receive()
    assert (candidate.text, candidate.error, candidate.index) == ("", "out of memory", 0)
    assert stage.store.now() == pytest.approx(0.02)
    await asyncio.sleep(0)
    assert work.num_unacked == 0


async def test_engine_that_is_unavailable_midway_is_tried_again(stage: Stage, work: Work) -> None:
    stage.edge("paris", small(Script("The moon", error=DOWN), Script("The sun", error=DOWN), Script(TEXT)))
    await work.send()
    candidate = await work.receive()
    assert (candidate.text, candidate.error) == (TEXT, "")
    assert stage.store.now() == pytest.approx(0.02 + 0.1 + 0.02 + 0.2 + 0.06)


async def test_engine_that_stays_unavailable_is_news_after_all_deliveries(stage: Stage, work: Work) -> None:
    engine = small(Script("The moon", error=DOWN))
    stage.edge("paris", engine, max_deliveries=3)
    await work.send()
    assert (await work.receive()).error == str(DOWN)
    assert len(engine.prompts) == 3


async def test_prompt_too_long_for_the_model_is_news_at_once(stage: Stage, work: Work) -> None:
    stage.edge("paris", ScriptedEngine("small", Script(TEXT), context_tokens=10))
    await work.send()
    assert "context of 10" in (await work.receive()).error


async def test_bug_in_an_engine_ends_the_node_and_its_segments_go_to_the_next(stage: Stage, work: Work) -> None:
    node = stage.edge("paris", small(Script("The moon", error=ZeroDivisionError()), max_inflight=1))
    for name in ("first", "second"):
        await work.send(name)
    with pytest.raises(ExceptionGroup) as raised:
        await node.task
    assert raised.group_contains(ZeroDivisionError)
    stage.running.remove(node)
    stage.edge("paris", small())
    assert {(await work.receive()).request_id for _ in range(2)} == {"first", "second"}


async def test_segment_that_ends_every_node_it_comes_to_is_news_in_the_end(stage: Stage, work: Work) -> None:
    engine = small(Script("The moon", error=ZeroDivisionError()))
    await work.send()
    for _ in range(3):
        node = stage.edge("paris", engine, max_deliveries=3)
        with pytest.raises(ExceptionGroup):
            await node.task
        stage.running.remove(node)
    stage.edge("paris", engine, max_deliveries=3)
    assert "3 times before" in (await work.receive()).error
    await asyncio.sleep(0)
    assert (len(engine.prompts), work.num_unacked) == (3, 0)


async def test_ended_request_stops_its_running_segment_and_the_next_one_starts(stage: Stage, work: Work) -> None:
    engine = small(slow(), max_inflight=1)
    stage.edge("paris", engine)
    for name in ("ended", "next"):
        await work.send(name)
    await time_passes(2.5)
    await work.forget("ended")
    assert (await work.receive()).request_id == "next"
    assert stage.store.now() == pytest.approx(2.5 + 6)
    await asyncio.sleep(0)
    assert (engine.num_finished, engine.num_running, work.num_unacked) == (1, 0, 0)


async def test_ended_request_takes_its_waiting_segments_out_of_the_window(stage: Stage, work: Work) -> None:
    engine = small(slow(), max_inflight=1)
    stage.edge("paris", engine, window=3)
    for name in ("running", "ended", "ended too", "beyond the window"):
        await work.send(name)
    await time_passes(1)
    assert (await announced(stage)).num_outstanding == 3
    await work.forget("ended")
    await work.forget("ended too")
    assert (await announced(stage)).num_outstanding == 2
    assert [(await work.receive()).request_id for _ in range(2)] == ["running", "beyond the window"]
    await asyncio.sleep(0)
    assert (len(engine.prompts), work.num_unacked) == (2, 0)


async def announced(stage: Stage) -> ModelState:
    """The state of the site's only model in its next heartbeat."""
    await time_passes(1.01)
    return (await state(stage)).models[0]


async def test_no_more_than_the_window_is_pulled(stage: Stage, work: Work) -> None:
    stage.edge("paris", small(slow(), max_inflight=1), window=2)
    for name in ("a", "b", "c"):
        await work.send(name)
    other = await stage.transport.subscribe(SEGMENTS, group="edge", partition=0)
    await time_passes(0.5)
    left = await other.receive()
    assert decode_as(Segment, left.payload).request_id == "c"


async def test_no_more_run_than_the_engine_takes(stage: Stage, work: Work) -> None:
    engine = small(slow(), max_inflight=2)
    stage.edge("paris", engine)
    for name in ("a", "b", "c"):
        await work.send(name)
    await time_passes(0.5)
    assert engine.num_running == 2


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param("fcfs", ["short late", "long", "short soon"], id="as they came"),
        pytest.param("longest", ["long", "short late", "short soon"], id="the longest first"),
        pytest.param("multilist", ["short soon", "short late", "long"], id="those of a length, the soonest first"),
    ],
)
async def test_waiting_segments_are_expanded_in_the_order_configured(
    stage: Stage, work: Work, order: Order, expected: list[str]
) -> None:
    stage.edge("paris", small(slow(0.1), max_inflight=1), order=order)
    await work.send("running")
    await work.send("short late", words=10, timeout_s=100)
    await work.send("long", words=100, timeout_s=1000)
    await work.send("short soon", words=10, timeout_s=50)
    assert [(await work.receive()).request_id for _ in range(4)] == ["running", *expected]


async def test_each_model_has_slots_of_its_own(stage: Stage, work: Work) -> None:
    stage.edge("paris", small(slow(), max_inflight=1), ScriptedEngine("tiny", Script("It is the moon.")))
    await work.send("a")
    await work.send("b")
    await work.send("c", model="tiny")
    candidate = await work.receive()
    assert (candidate.model, candidate.request_id, candidate.text) == ("tiny", "c", "It is the moon.")


async def test_drain_finishes_what_runs_and_gives_the_rest_back(stage: Stage, work: Work) -> None:
    engine = small(slow(), max_inflight=1)
    node = stage.edge("paris", engine)
    for name in ("running", "waiting"):
        await work.send(name)
    await time_passes(1)
    await node.stop()
    assert stage.store.now() == pytest.approx(6)
    assert (await work.receive()).request_id == "running"
    assert (len(engine.prompts), work.num_unacked) == (1, 1)
    stage.edge("paris", small())
    assert (await work.receive()).request_id == "waiting"


async def test_drained_node_leaves_no_load_behind(stage: Stage, work: Work) -> None:
    load = Load()
    node = stage.edge("paris", small(slow(), max_inflight=1), load=load, drain_s=1.0)
    for name in ("running", "waiting"):
        await work.send(name)
    await time_passes(1)
    assert load.num_outstanding == 2
    await node.stop()
    assert (load.num_outstanding, load.backlog_tokens) == (0, 0)


async def test_drained_node_can_be_run_again(stage: Stage, work: Work) -> None:
    node = stage.edge("paris", small())
    await time_passes(1)
    await node.stop()
    assert node.node is not None
    stopping = asyncio.Event()
    again = asyncio.ensure_future(node.node.run(stopping))
    await work.send()
    assert (await work.receive()).text == TEXT
    assert not (await state(stage)).draining
    stopping.set()
    await again


async def test_segment_cancelled_at_the_end_of_the_drain_is_redelivered(stage: Stage, work: Work) -> None:
    engine = small(slow())
    node = stage.edge("paris", engine, drain_s=2.0)
    await work.send()
    await time_passes(1)
    await node.stop()
    assert stage.store.now() == pytest.approx(3.0)
    assert (engine.num_running, work.num_unacked) == (0, 1)
    stage.edge("paris", small())
    assert (await work.receive()).text == TEXT


async def test_heartbeat_announces_the_load_while_it_lasts(stage: Stage, work: Work) -> None:
    stage.edge("paris", small(slow(), max_inflight=1), heartbeat_s=1.0)
    await work.send("a", words=10)
    await work.send("b", words=10)
    await time_passes(2.5)
    (model,) = (await state(stage)).models
    assert (model.model, model.num_outstanding, model.backlog_tokens) == ("small", 2, 28 - 1)
    await time_passes(20)
    (model,) = (await state(stage)).models
    assert (model.num_outstanding, model.backlog_tokens) == (0, 0)


async def test_site_is_forgotten_once_its_node_is_gone(stage: Stage) -> None:
    node = stage.edge("paris", small(), heartbeat_s=1.0, heartbeat_ttl_s=5.0)
    await time_passes(20)
    assert [site.site for site in await stage.store.sites()] == ["paris"]
    await node.kill()
    await time_passes(5.1)
    assert await stage.store.sites() == []


async def test_draining_site_says_so_at_once(stage: Stage) -> None:
    node = stage.edge("paris", small(), heartbeat_s=1.0)
    await time_passes(0.5)
    await node.stop()
    assert (await state(stage)).draining


async def test_site_that_is_drained_says_so_at_once_and_goes_on_with_what_it_has(stage: Stage, work: Work) -> None:
    node = stage.edge("paris", small(slow(), max_inflight=1), heartbeat_s=100.0)
    edge = node.node
    assert isinstance(edge, EdgeNode)
    await work.send("running")
    await time_passes(0.5)
    edge.set_draining(True)
    await asyncio.sleep(0.001)
    assert (await state(stage)).draining
    await work.send("still in the partition")
    assert [(await work.receive()).request_id for _ in range(2)] == ["running", "still in the partition"]
    edge.set_draining(False)
    await asyncio.sleep(0.001)
    assert not (await state(stage)).draining


async def test_drain_that_was_said_already_is_not_said_again(stage: Stage) -> None:
    stage.store = store = CountingStore()
    node = stage.edge("paris", small(), heartbeat_s=100.0).node
    assert isinstance(node, EdgeNode)
    await time_passes(0.5)
    for _ in range(5):
        node.set_draining(True)
        await time_passes(1)
    assert store.num_heartbeats == 2


class CountingStore(MemoryStore):
    """Counts heartbeats."""

    num_heartbeats = 0

    async def heartbeat(self, state: SiteState, *, ttl_s: float) -> None:
        self.num_heartbeats += 1
        await super().heartbeat(state, ttl_s=ttl_s)


async def test_heartbeat_names_the_lease_under_which_the_site_is_served(stage: Stage) -> None:
    stage.edge("paris", small(), token=7)
    await time_passes(0.5)
    assert (await state(stage)).token == 7
