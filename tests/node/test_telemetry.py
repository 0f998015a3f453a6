"""What nodes tell of their work: each thing once, and nothing that did not happen."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pice.core import CLOUD_SITE, Answer, Candidate, Curve, Failure, Placement, Plan, Segment, Span
from pice.errors import EngineError, EngineUnavailable
from pice.message.codec import decode_as, encode
from pice.node.telemetry import Telemetry
from pice.store.base import Counted
from pice.store.memory import MemoryStore
from pice.transport.base import CANDIDATES, REQUESTS
from tests.node.scripted import Script, ScriptedEngine, outline
from tests.node.stage import SEGMENTS, Site, Stage, a_request, a_segment, time_passes

TEXT = "Water rises and falls twice a day, as everybody knows."
DOWN = EngineUnavailable("the server is down")


class Diary(Telemetry):
    """Writes everything down, by its name."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def planned(self, plan: Plan) -> None:
        self.told.append(("planned", plan.mode))

    def placed(self, placement: Placement) -> None:
        self.told.append(("placed", placement.site))

    def written(self, candidate: Candidate) -> None:
        self.told.append(("written", candidate.error or candidate.text))

    def counted(self, candidate: Candidate, counted: Counted) -> None:
        self.told.append(("counted", counted))

    def chosen(self, span: Span) -> None:
        self.told.append(("chosen", span.index))

    def closed(self, outcome: Answer | Failure) -> None:
        self.told.append(("closed", outcome.code if isinstance(outcome, Failure) else outcome.mode))

    def retried(self, topic: str) -> None:
        self.told.append(("retried", topic))

    def buried(self, topic: str) -> None:
        self.told.append(("buried", topic))

    def of(self, *names: str) -> list[Any]:
        return [what for name, what in self.told if name in names]


@pytest.fixture
def diary(stage: Stage) -> Diary:
    stage.telemetry = diary = Diary()
    return diary


async def sent_to_paris(stage: Stage, request_id: str = "r") -> Segment:
    """A segment that is placed at paris, on its way there."""
    await stage.store.open(a_request(request_id))
    record = await stage.store.begin(request_id)
    assert record is not None
    await stage.store.planned(request_id, 1, Plan("edge", ""))
    segment = replace(a_segment(record, (), 0), kind="answer", site="paris", model="small")
    await stage.store.place(segment, Placement("paris", "small", 0.0, 1.0))
    await stage.transport.publish(SEGMENTS, encode(segment), key=request_id, partition=0)
    return segment


async def test_progressive_request_is_told_from_its_plan_to_its_end(stage: Stage, diary: Diary) -> None:
    await stage.site(CLOUD_SITE, "big", curve=Curve((1,), (0.2,)))
    stage.edge("paris", ScriptedEngine("small", Script(TEXT)))
    stage.cloud(ScriptedEngine("big", Script(outline("one", "two"))))
    stage.collector(second_opinion_below=0.0)
    await stage.client.ask(a_request(mode="progressive"))
    await time_passes(1)
    assert Counter(diary.told) == {
        ("planned", "progressive"): 1,
        ("placed", "paris"): 2,
        ("written", TEXT): 2,
        ("counted", Counted.NEW): 2,
        ("chosen", 0): 1,
        ("chosen", 1): 1,
        ("closed", "progressive"): 1,
    }


async def test_direct_answer_is_told_by_the_cloud(stage: Stage, diary: Diary) -> None:
    stage.cloud(ScriptedEngine("big", Script("The moon.")))
    stage.collector()
    await stage.client.ask(a_request())
    await time_passes(200)
    assert diary.told == [("planned", "cloud"), ("closed", "cloud")]


async def test_answer_that_came_after_the_end_closed_nothing(stage: Stage, diary: Diary) -> None:
    stage.cloud(ScriptedEngine("big", Script("The moon.", step_s=1.0)), sweep_s=100.0)
    await stage.submit(a_request())
    await time_passes(0.5)
    stage.store._entries["r"].record.outcome = Failure("r", "cancelled", "gone")
    await time_passes(5)
    assert diary.told == [("planned", "cloud")]


async def test_request_that_cannot_be_answered_is_retried_then_put_aside_and_closed(stage: Stage, diary: Diary) -> None:
    engine = ScriptedEngine("big", Script(""))
    engine.down = DOWN
    stage.cloud(engine, max_deliveries=3)
    await stage.submit(a_request())
    await stage.failure()
    assert diary.of("retried", "buried", "closed") == [REQUESTS, REQUESTS, REQUESTS, "engine_unavailable"]
    assert [name for name, _ in diary.told if name != "planned"] == ["retried", "retried", "buried", "closed"]


class NewsFirst(MemoryStore):
    """Tells the news of a request's end before it answers whoever ended it, as a server may."""

    async def close_request(self, request_id: str, attempt: int | None, outcome: Answer | Failure) -> bool:
        closed = await super().close_request(request_id, attempt, outcome)
        await time_passes(0.1)
        return closed


@pytest.mark.parametrize(
    ("script", "told"),
    [(Script("The moon."), "cloud"), (Script("", error=EngineError("no memory")), "engine_error")],
    ids=["an answer", "a failure"],
)
async def test_end_of_a_request_is_told_though_the_news_of_it_was_faster(
    stage: Stage, diary: Diary, script: Script, told: str
) -> None:
    stage.store = NewsFirst()
    stage.cloud(ScriptedEngine("big", script))
    await stage.submit(a_request())
    await time_passes(2)
    assert diary.told == [("planned", "cloud"), ("closed", told)]
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_request_closed_at_its_deadline_is_told_by_its_collector(stage: Stage, diary: Diary) -> None:
    for _ in range(2):
        stage.collector()
    await stage.submit(a_request(timeout_s=7.0))
    await stage.failure()
    assert diary.told == [("closed", "deadline_exceeded")]


async def test_candidate_that_is_counted_twice_or_not_at_all_says_so(stage: Stage, diary: Diary) -> None:
    paris: Site = await stage.site("paris")
    stage.collector(second_opinion_below=0.0)
    first, second = await stage.sealed(("paris", "small"), num_segments=2)
    for segment in (first, first, second, second):
        await paris.send(segment, f"fact number {segment.index} about tides says that water rises.")
    await stage.send(Candidate("r", 1, 0, "mallory", "small", "I was never asked."))
    await time_passes(1)
    seen = [Counted.NEW, Counted.REPEATED, Counted.NEW, Counted.STALE, Counted.STALE]
    assert (diary.of("counted"), diary.of("chosen"), diary.of("closed")) == (seen, [0, 1], ["progressive"])


async def test_candidate_from_nowhere_is_told_as_foreign_and_put_aside(stage: Stage, diary: Diary) -> None:
    stage.collector()
    await stage.sealed(("paris", "small"))
    await stage.send(Candidate("r", 1, 0, "mallory", "small", "I was never asked."))
    await stage.dead()
    assert diary.told == [("counted", Counted.FOREIGN), ("buried", CANDIDATES)]


async def test_segment_that_comes_twice_is_written_once(stage: Stage, diary: Diary) -> None:
    candidates = await stage.transport.subscribe(CANDIDATES, group="test")
    stage.edge("paris", ScriptedEngine("small", Script(TEXT)))
    segment = await sent_to_paris(stage)
    await stage.transport.publish(SEGMENTS, encode(segment), partition=0)
    both = [decode_as(Candidate, (await candidates.receive()).payload) for _ in range(2)]
    assert [candidate.text for candidate in both] == [TEXT, TEXT]
    assert diary.told == [("written", TEXT)]


async def test_segment_that_fails_is_told_as_retried_and_then_as_written_in_vain(stage: Stage, diary: Diary) -> None:
    stage.edge("paris", ScriptedEngine("small", Script("", error=DOWN), Script("", error=EngineError("no memory"))))
    await sent_to_paris(stage)
    await time_passes(1)
    assert diary.told == [("retried", SEGMENTS), ("written", "no memory")]


@pytest.mark.parametrize("topic", [REQUESTS, SEGMENTS, CANDIDATES])
async def test_junk_is_told_where_it_was_put_aside(stage: Stage, diary: Diary, topic: str) -> None:
    stage.cloud(ScriptedEngine("big", Script("")))
    stage.edge("paris", ScriptedEngine("small", Script("")))
    stage.collector()
    await stage.transport.publish(topic, b"\xc1junk", partition=0)
    await stage.dead()
    assert diary.told == [("buried", topic)]


async def test_placement_that_could_not_be_published_is_not_told(stage: Stage, diary: Diary) -> None:
    await stage.site(CLOUD_SITE, "big", curve=Curve((1,), (0.2,)))
    await stage.site("paris")
    stage.transport._max_bytes = 600
    stage.cloud(ScriptedEngine("big", Script(outline("t" * 600)), Script("The moon.")))
    await stage.submit(a_request(mode="progressive"))
    assert (await stage.answer()).text == "The moon."
    assert diary.told == [("planned", "progressive"), ("closed", "cloud")]
