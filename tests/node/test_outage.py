"""Queue or store are away for a while: nodes wait, or end with what was in hand given back, and lose nothing."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from pice.core import CLOUD_SITE, Curve
from pice.errors import ConfigError, DecodeError, EngineUnavailable, TransportError
from pice.node.consume import bare_transport_errors
from pice.node.load import Load
from pice.store.base import Unwanted
from pice.store.memory import MemoryStore
from pice.transport.base import CANDIDATES, REQUESTS, Subscription
from pice.transport.memory import MemoryTransport
from tests.node.scripted import Script, ScriptedEngine, outline
from tests.node.stage import SEGMENTS, Running, Site, Stage, a_request, time_passes
from tests.node.test_edge import Work

TEXT = "Water rises and falls twice a day, as everybody knows."
GOOD = "fact number 0 about tides says that water rises twice a day"


class Away:
    """A port of which the methods in `names` raise `TransportError`, its subscriptions' too."""

    def __init__(self, port: Any, names: set[str]) -> None:
        self._port = port
        self.names = names
        self.num_refused = 0

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            return self._refuse
        return getattr(self._port, name)

    async def subscribe(self, *args: Any, **kwargs: Any) -> Any:
        if "subscribe" in self.names:
            await self._refuse()
        return _AwaySubscription(await self._port.subscribe(*args, **kwargs), self)

    async def _refuse(self, *_: Any, **__: Any) -> None:
        self.num_refused += 1
        raise TransportError("it is away")


class _AwaySubscription:
    def __init__(self, inner: Subscription, away: Away) -> None:
        self._inner = inner
        self._away = away

    def __getattr__(self, name: str) -> Any:
        return self._away._refuse if name in self._away.names else getattr(self._inner, name)

    async def receive(self) -> Any:
        """Fails also where it was waiting already."""
        delivery = await self._inner.receive()
        if "receive" in self._away.names:
            await self._away._refuse()
        return delivery


def started(stage: Stage, start: Callable[[], Running], *names: str) -> tuple[Running, Away]:
    """A node whose ports lack what is named. The test's own do not."""
    transport, store, away = stage.transport, stage.store, Away(stage.transport, set(names))
    at_store = Away(stage.store, away.names)
    stage.transport, stage.store = cast("MemoryTransport", away), cast("MemoryStore", at_store)
    try:
        return start(), away
    finally:
        stage.transport, stage.store = transport, store


def cloud(stage: Stage, *scripts: Script, **policy: Any) -> Callable[[], Running]:
    return lambda: stage.cloud(ScriptedEngine("big", *(scripts or [Script("The moon.")])), **policy)


def edge(stage: Stage, *scripts: Script, **policy: Any) -> Callable[[], Running]:
    return lambda: stage.edge("paris", ScriptedEngine("small", *(scripts or [Script(TEXT)])), **policy)


@pytest.fixture
async def work(stage: Stage) -> Work:
    return Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))


@pytest.fixture
async def paris(stage: Stage) -> Site:
    return await stage.site("paris")


@pytest.mark.parametrize("name", ["sites", "begin", "planned", "emit", "close_request", "ack"])
async def test_direct_answer_comes_when_what_was_away_is_back(stage: Stage, name: str) -> None:
    _, away = started(stage, cloud(stage), name)
    await stage.submit(a_request())
    await time_passes(0.9)
    away.names.clear()
    assert (await stage.answer()).text == "The moon."
    await time_passes(10)
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_heartbeats_that_cannot_be_read_hold_no_request_up(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    started(stage, cloud(stage), "sites")
    await stage.submit(a_request())
    assert (await stage.answer()).attempt == 1
    assert caplog.messages == ["the sites' heartbeats cannot be read: it is away"]


@pytest.mark.parametrize("name", ["place", "publish", "seal", "emit"])
async def test_sketch_is_expanded_when_what_was_away_is_back(stage: Stage, work: Work, name: str) -> None:
    await stage.site(CLOUD_SITE, "big", curve=Curve((1,), (0.2,)))
    paris = await stage.site("paris")
    _, away = started(stage, cloud(stage, Script(outline("one"))), name)
    await stage.submit(a_request(mode="progressive"))
    await time_passes(0.9)
    away.names.clear()
    segment = await paris.receive()
    await time_passes(10)
    record = await stage.record()
    assert (record.num_segments, stage.transport.num_messages(REQUESTS)) == (1, 0)
    assert segment.attempt <= record.attempt


async def test_outage_is_no_failed_delivery_however_long(stage: Stage) -> None:
    _, away = started(stage, cloud(stage, max_deliveries=2), "begin")
    await stage.submit(a_request())
    await time_passes(20)
    away.names.clear()
    answer = await stage.answer()
    assert (answer.text, answer.attempt) == ("The moon.", 1)


@pytest.mark.parametrize("name", ["wanted", "emit", "heartbeat", "publish", "ack"])
async def test_segment_is_expanded_when_what_was_away_is_back(stage: Stage, work: Work, name: str) -> None:
    _, away = started(stage, edge(stage, Script(TEXT, step_s=0.05)))
    await asyncio.sleep(0)
    away.names.add(name)
    await work.send()
    await time_passes(0.9)
    away.names.clear()
    assert (await work.receive()).text == TEXT
    await time_passes(10)
    assert work.num_unacked == 0


async def test_one_segment_that_the_store_chokes_on_does_not_stop_the_others_for_ever(stage: Stage, work: Work) -> None:
    class Choking(MemoryStore):
        async def wanted(self, request_id: str, attempt: int, index: int) -> bool:
            if request_id == "poison":
                raise TransportError("a key of the wrong type")
            return await super().wanted(request_id, attempt, index)

    stage.store = Choking()
    stage.edge("paris", ScriptedEngine("small", Script(TEXT)))
    await work.send("poison")
    await work.send("good")
    assert (await work.receive()).request_id == "good"


@pytest.mark.parametrize("name", ["add_candidate", "record", "choose", "close_request", "sites", "ack", "take_due"])
async def test_answer_is_put_together_when_what_was_away_is_back(stage: Stage, paris: Site, name: str) -> None:
    _, away = started(stage, stage.collector, name)
    (segment,) = await stage.sealed(("paris", "small"))
    await paris.send(segment, GOOD)
    await time_passes(4)
    away.names.clear()
    assert (await stage.answer()).text == GOOD
    await time_passes(10)
    assert stage.transport.num_messages(CANDIDATES) == 0


@pytest.mark.parametrize("name", ["take_due", "record", "set_due"])
async def test_overdue_segment_is_hedged_when_what_was_away_is_back(stage: Stage, paris: Site, name: str) -> None:
    rome = await stage.site("rome", "tiny")
    _, away = started(stage, stage.collector, name)
    await stage.sealed(("paris", "small"))
    await time_passes(6)
    away.names.clear()
    assert (await rome.receive()).request_id == "r"


class BadNews:
    """Three times no news can be read; then there is some."""

    def __init__(self, error: Exception, news: Unwanted) -> None:
        self._error = error
        self._news = news
        self._num_read = 0

    async def receive(self) -> Unwanted:
        self._num_read += 1
        if self._num_read <= 3:
            raise self._error
        if self._num_read > 4:
            await asyncio.Event().wait()
        return self._news

    async def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("error", [TransportError("it is away"), DecodeError("no news of ours")])
async def test_news_that_cannot_be_read_is_missed_and_the_next_is_heard(
    stage: Stage, work: Work, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(stage.store, "notices", lambda: BadNews(error, Unwanted("r", 1)))
    engine = ScriptedEngine("small", Script("word " * 60, step_s=1.0))
    stage.edge("paris", engine, sweep_s=500.0)
    await work.send()
    await time_passes(2)
    assert engine.num_running == 1
    await time_passes(10)
    assert (engine.num_running, work.num_unacked) == (0, 0)


async def test_site_that_cannot_say_that_it_lives_works_on_and_is_back_with_its_next_heartbeat(
    stage: Stage, work: Work
) -> None:
    _, away = started(stage, edge(stage))
    await time_passes(1)
    away.names.add("heartbeat")
    await time_passes(10)
    assert await stage.store.sites() == []
    await work.send()
    assert (await work.receive()).text == TEXT
    away.names.clear()
    await time_passes(1.1)
    assert [site.site for site in await stage.store.sites()] == ["paris"]


async def test_site_that_cannot_say_that_it_leaves_finishes_its_work_all_the_same(stage: Stage, work: Work) -> None:
    node, away = started(stage, edge(stage, Script(TEXT, step_s=0.5)))
    await work.send()
    await time_passes(1)
    away.names.add("heartbeat")
    await node.stop()
    assert ((await work.receive()).text, work.num_unacked) == (TEXT, 0)


@pytest.mark.parametrize("name", ["take_due", "sites"])
async def test_refusal_is_not_waited_out(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def refuse(**_: Any) -> None:
        raise ConfigError("Redis refuses us: check user, password and ACL")

    node = stage.collector()
    stage.running.remove(node)
    monkeypatch.setattr(stage.store, name, refuse)
    await stage.submit(a_request(timeout_s=3.0))
    with pytest.raises(ExceptionGroup) as raised:
        await node.task
    assert raised.group_contains(ConfigError)


NODES = ["cloud", "edge", "collector"]


def start_of(stage: Stage, kind: str) -> Callable[[], Running]:
    slow = Script("The moon pulls at the water.", step_s=1.0)
    return {"cloud": cloud(stage, slow), "edge": edge(stage, slow), "collector": stage.collector}[kind]


@pytest.mark.parametrize("kind", NODES)
async def test_node_that_cannot_subscribe_ends_with_the_cause(stage: Stage, kind: str) -> None:
    node, _ = started(stage, start_of(stage, kind), "subscribe")
    stage.running.remove(node)
    with pytest.raises(TransportError, match="away"):
        await node.task
    assert stage.store._notices == set()


@pytest.mark.parametrize("kind", NODES)
async def test_node_that_cannot_receive_any_more_ends_with_the_cause_and_leaves_nothing_behind(
    stage: Stage, kind: str
) -> None:
    node, away = started(stage, start_of(stage, kind))
    stage.running.remove(node)
    await time_passes(1)
    away.names.add("receive")
    topic = {"cloud": REQUESTS, "edge": SEGMENTS, "collector": CANDIDATES}[kind]
    await stage.transport.publish(topic, b"\xc1junk", partition=0)
    with pytest.raises(TransportError, match="away"):
        await node.task
    assert (stage.store._notices, stage.transport._subscriptions) == (set(), set())
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert stage.transport.num_messages(topic) == 1


async def test_request_in_the_hands_of_a_cloud_node_that_lost_the_queue_is_answered_by_its_next_run(
    stage: Stage,
) -> None:
    load, engine = Load(), ScriptedEngine("big", Script("The moon.", step_s=1.0))
    node, away = started(stage, lambda: stage.cloud(engine, load=load))
    await stage.submit(a_request())
    await time_passes(0.5)
    await break_off(stage, node, away, REQUESTS)
    assert (engine.num_running, load.num_outstanding, load.backlog_tokens) == (0, 0, 0)
    again(stage, node)
    answer = await stage.answer()
    assert (answer.text, answer.attempt) == ("The moon.", 2)


async def test_segments_in_the_hands_of_a_site_that_lost_the_queue_are_expanded_by_its_next_run(
    stage: Stage, work: Work
) -> None:
    load, engine = Load(), ScriptedEngine("small", Script(TEXT, step_s=1.0), max_inflight=1)
    node, away = started(stage, lambda: stage.edge("paris", engine, load=load))
    for name in ("running", "waiting"):
        await work.send(name)
    await time_passes(0.5)
    await break_off(stage, node, away, SEGMENTS)
    assert (engine.num_running, load.num_outstanding, load.backlog_tokens) == (0, 0, 0)
    again(stage, node)
    assert {(await work.receive()).request_id for _ in range(2)} == {"running", "waiting"}
    assert [site.draining for site in await stage.store.sites()] == [False]


async def test_candidates_are_counted_by_the_next_run_of_a_collector_that_lost_the_queue(
    stage: Stage, paris: Site
) -> None:
    node, away = started(stage, stage.collector, "add_candidate")
    (segment,) = await stage.sealed(("paris", "small"))
    await paris.send(segment, GOOD)
    await time_passes(0.5)
    await break_off(stage, node, away, CANDIDATES)
    again(stage, node)
    assert (await stage.answer()).text == GOOD


@pytest.mark.parametrize("kind", ["cloud", "edge"])
async def test_delivery_that_was_perhaps_given_back_is_not_worked_on_any_more(
    stage: Stage, work: Work, kind: str
) -> None:
    """Another may have it by now, and it must not be acknowledged for that one."""
    engine = ScriptedEngine("big" if kind == "cloud" else "small", Script(TEXT))
    engine.down = EngineUnavailable("the model is being reloaded")
    start = {"cloud": lambda: stage.cloud(engine), "edge": lambda: stage.edge("paris", engine)}[kind]
    node, away = started(stage, start, "release")
    stage.running.remove(node)
    await (stage.submit(a_request()) if kind == "cloud" else work.send())
    with pytest.raises(TransportError, match="away"):
        await node.task
    away.names.clear()
    engine.down = None
    again(stage, node)
    text = (await stage.answer()).text if kind == "cloud" else (await work.receive()).text
    assert text == TEXT


async def break_off(stage: Stage, node: Running, away: Away, topic: str) -> None:
    """The node loses its queue at the next message, which is junk; then the queue is back."""
    stage.running.remove(node)
    away.names.add("receive")
    await stage.transport.publish(topic, b"\xc1junk", partition=0)
    with pytest.raises(TransportError, match="away"):
        await node.task
    away.names.clear()


def again(stage: Stage, node: Running) -> None:
    """Runs a node once more, as the service around it does."""
    assert node.node is not None
    stopping = asyncio.Event()
    stage.running.append(Running(stopping, asyncio.ensure_future(node.node.run(stopping))))


def raised_by(*errors: Exception) -> Exception:
    with pytest.raises(Exception) as raised, bare_transport_errors():  # noqa: PT011 - any may come
        raise ExceptionGroup("outer", [ExceptionGroup("inner", list(errors))])
    return raised.value


def test_transport_errors_come_out_of_groups_as_one_of_them() -> None:
    first, second = TransportError("first"), TransportError("second")
    assert raised_by(first, second) is first


def test_other_errors_come_out_with_all_that_went_wrong() -> None:
    error = raised_by(TransportError("away"), ZeroDivisionError())
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(ZeroDivisionError) is not None
