"""What a collector makes of candidates, of their absence, and of its own death."""

import asyncio

import pytest

from pice.core import CLOUD_SITE, Answer, Candidate, Curve, Event, Failure, Placement, Span
from pice.store.base import Chosen, Unwanted
from pice.store.memory import MemoryStore
from pice.transport.base import CANDIDATES
from tests.node.stage import Site, Stage, a_request, time_passes

GOOD = "fact number 0 about tides says that water rises twice a day"
ALSO_GOOD = "fact number 0 about tides says that seas fall two times a day"
POOR = "nobody can tell anything about that for certain, so why ask at all"
NEAR, FAR = Curve((1,), (0.01,)), Curve((1,), (0.05,))
PARIS, ROME = ("paris", "small"), ("rome", "tiny")


@pytest.fixture
async def paris(stage: Stage) -> Site:
    return await stage.site("paris", "small", curve=NEAR)


@pytest.fixture
async def rome(stage: Stage) -> Site:
    return await stage.site("rome", "tiny", curve=FAR)


@pytest.fixture
async def cloud(stage: Stage) -> Site:
    return await stage.site(CLOUD_SITE, "big")


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


async def test_answer_is_closed_when_its_last_segment_is_chosen(stage: Stage, paris: Site) -> None:
    stage.collector()
    segments = await stage.sealed(PARIS, num_segments=2)
    for segment in reversed(segments):
        await time_passes(0.5)
        await paris.send(segment, f"fact number {segment.index} about tides says that water rises.")
    events = await stage.events("r")
    assert kinds(events) == ["segment_chosen", "segment_chosen", "answered"]
    assert [event.index for event in events[:2]] == [1, 0]
    answer = await stage.answer()
    assert answer.text == "\n\n".join(f"fact number {i} about tides says that water rises." for i in range(2))
    assert (answer.degraded, answer.times.first_segment_s, answer.times.ttft_s) == ((), 0.5, 1.0)
    assert stage.transport.num_messages(CANDIDATES) == 0


async def test_late_segment_is_hedged_and_the_loser_is_told_to_stop(stage: Stage, paris: Site, rome: Site) -> None:
    stage.collector(hedge_factor=3.0, hedge_min_s=1.0)
    notices = stage.store.notices()
    (segment,) = await stage.sealed(PARIS)
    hedged = await rome.receive()
    assert stage.store.now() == pytest.approx(3.0)
    assert (hedged.site, hedged.model) == ROME
    await rome.send(hedged, GOOD)
    answer = await stage.answer()
    assert (answer.spans[0].site, answer.spans[0].text) == ("rome", GOOD)
    assert [(it.site, it.reason) for it in answer.spans[0].placements] == [("paris", "first"), ("rome", "hedge")]
    assert await notices.receive() == Unwanted("r", 1, segment.index)


async def test_first_good_candidate_wins_though_the_hedge_was_sent(stage: Stage, paris: Site, rome: Site) -> None:
    stage.collector(hedge_min_s=1.0)
    (segment,) = await stage.sealed(PARIS)
    await rome.receive()
    await paris.send(segment, GOOD)
    assert (await stage.answer()).spans[0].site == "paris"


async def test_late_candidate_of_a_loser_changes_nothing(stage: Stage, paris: Site, rome: Site) -> None:
    stage.collector(hedge_min_s=1.0)
    (segment,) = await stage.sealed(PARIS, ROME)
    await rome.send(segment, GOOD)
    before = await stage.answer()
    await paris.send(segment, ALSO_GOOD)
    await time_passes(1)
    assert await stage.answer() == before
    assert stage.transport.num_messages(CANDIDATES) == 0


async def test_segment_at_the_hard_deadline_goes_to_the_cloud(
    stage: Stage, paris: Site, rome: Site, cloud: Site
) -> None:
    stage.collector(hedge_factor=100.0, hard_share=0.5)
    await stage.sealed(PARIS, timeout_s=60.0)
    at_cloud = await cloud.receive()
    assert stage.store.now() == pytest.approx(30.0)
    await cloud.send(at_cloud, GOOD)
    answer = await stage.answer()
    assert [it.site for it in answer.spans[0].placements] == ["paris", CLOUD_SITE]
    assert (answer.spans[0].site, answer.degraded) == (CLOUD_SITE, ())
    assert answer.usage.num_cloud_output_tokens == len(GOOD.split())


async def test_failed_segment_goes_elsewhere_at_once(stage: Stage, paris: Site, rome: Site) -> None:
    stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await paris.send(segment, "", error="out of memory")
    again = await rome.receive()
    assert stage.store.now() == 0.0
    await rome.send(again, GOOD)
    span = (await stage.answer()).spans[0]
    assert (span.text, span.placements[1].reason) == (GOOD, "failed elsewhere")


async def test_segment_that_fails_everywhere_is_the_sketch_and_the_answer_names_it(
    stage: Stage, paris: Site, cloud: Site
) -> None:
    stage.collector()
    whole, broken = await stage.sealed(PARIS, num_segments=2)
    await paris.send(whole, GOOD)
    await paris.send(broken, "", error="out of memory")
    await cloud.send(await cloud.receive(), "", error="out of memory too")
    answer = await stage.answer()
    assert (answer.degraded, answer.spans[1].text) == ((1,), "fact number 1 about tides")
    assert [scored.candidate.error for scored in answer.spans[1].candidates] == ["out of memory too", "out of memory"]


async def test_segment_nobody_expanded_is_the_sketch_before_the_deadline(stage: Stage, paris: Site) -> None:
    stage.collector(reserve_s=2.0)
    await stage.sealed(PARIS, timeout_s=30.0)
    answer = await stage.answer()
    assert stage.store.now() == pytest.approx(28.0)
    assert (answer.degraded, answer.text) == ((0,), "fact number 0 about tides")


async def test_second_opinion_is_asked_of_another_model_when_the_first_is_poor(
    stage: Stage, paris: Site, rome: Site
) -> None:
    await stage.site("lyon", "small", curve=NEAR)
    stage.collector(second_opinion_below=0.5)
    (segment,) = await stage.sealed(PARIS)
    await paris.send(segment, POOR)
    second = await rome.receive()
    await rome.send(second, GOOD)
    span = (await stage.answer()).spans[0]
    assert (span.text, span.site) == (GOOD, "rome")
    assert [(it.site, it.reason) for it in span.placements] == [("paris", "first"), ("rome", "second opinion")]
    assert [scored.candidate.site for scored in span.candidates] == ["rome", "paris"]


async def test_no_second_opinion_is_asked_for_when_the_first_is_good(stage: Stage, paris: Site, rome: Site) -> None:
    stage.collector(second_opinion_below=0.5)
    (segment,) = await stage.sealed(PARIS)
    await paris.send(segment, GOOD)
    assert [it.site for it in (await stage.answer()).spans[0].placements] == ["paris"]


async def test_poor_candidate_stands_when_the_second_opinion_does_not_come(
    stage: Stage, paris: Site, rome: Site
) -> None:
    stage.collector(second_opinion_below=0.5, hedge_min_s=4.0)
    (segment,) = await stage.sealed(PARIS)
    await paris.send(segment, POOR)
    answer = await stage.answer()
    assert stage.store.now() == pytest.approx(4.0)
    assert (answer.text, answer.degraded) == (POOR, ())


async def test_segment_that_fails_at_its_slow_place_is_hedged_when_its_fast_one_is_late(
    stage: Stage, paris: Site, rome: Site, cloud: Site
) -> None:
    stage.collector(hedge_min_s=4.0)
    (segment,) = await stage.sealed(PARIS)
    await stage.store.place(segment, Placement(*ROME, 0.0, 10.0))
    await time_passes(1)
    await rome.send(segment, "", error="out of memory")
    await cloud.receive()
    assert stage.store.now() == pytest.approx(4.0)


async def test_repeated_candidate_is_counted_once(stage: Stage, paris: Site) -> None:
    stage.collector()
    first, second = await stage.sealed(PARIS, num_segments=2)
    for _ in range(3):
        await paris.send(first, GOOD)
    await paris.send(second, GOOD)
    answer = await stage.answer()
    assert [len(span.candidates) for span in answer.spans] == [1, 1]
    assert answer.usage.num_edge_output_tokens == 2 * len(GOOD.split())


@pytest.mark.parametrize(
    ("site", "model"), [("mallory", "small"), ("paris", "forged")], ids=["another site", "another model"]
)
async def test_candidate_from_where_its_segment_was_never_placed_is_put_aside(
    stage: Stage, paris: Site, site: str, model: str
) -> None:
    stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await stage.send(Candidate("r", 1, 0, site, model, "I was never asked."))
    dead = await stage.dead()
    assert site in dead.headers["reason"].decode()
    await paris.send(segment, GOOD)
    answer = await stage.answer()
    assert [scored.candidate.model for scored in answer.spans[0].candidates] == ["small"]
    assert stage.transport.num_messages(CANDIDATES) == 0


async def test_candidate_of_a_fenced_attempt_is_dropped(stage: Stage, paris: Site) -> None:
    stage.collector()
    (old,) = await stage.sealed(PARIS)
    stage.store._entries["r"].record.num_segments = None
    (new,) = await stage.sealed(PARIS)
    await paris.send(old, POOR)
    await paris.send(new, GOOD)
    answer = await stage.answer()
    assert (answer.attempt, answer.text, len(answer.spans[0].candidates)) == (2, GOOD, 1)


@pytest.mark.parametrize("payload", [b"", b"\xc1junk"], ids=["nothing", "junk"])
async def test_message_that_is_no_candidate_is_put_aside(stage: Stage, paris: Site, payload: bytes) -> None:
    stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await stage.transport.publish(CANDIDATES, payload)
    await paris.send(segment, GOOD)
    assert (await stage.answer()).text == GOOD
    assert (await stage.dead()).payload == payload
    assert stage.transport.num_messages(CANDIDATES) == 0


class StuckStore(MemoryStore):
    """Does not come back from the first choice of a span, which is not made."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def choose(self, request_id: str, attempt: int, span: Span) -> Chosen:
        if not self.reached.is_set():
            self.reached.set()
            await asyncio.Event().wait()
        return await super().choose(request_id, attempt, span)


async def test_death_between_counting_and_choosing_is_made_good_by_redelivery(stage: Stage) -> None:
    stage.store = store = StuckStore()
    paris = await stage.site("paris", "small")
    dying = stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await asyncio.sleep(0)
    await paris.send(segment, GOOD)
    await store.reached.wait()
    assert (await stage.record()).segments[0].candidates
    assert stage.transport.num_messages(CANDIDATES) == 1
    await dying.kill()
    stage.collector()
    answer = await stage.answer()
    assert (answer.text, len(answer.spans[0].candidates)) == (GOOD, 1)
    assert stage.store.now() == 0.0


async def test_request_of_a_collector_that_died_is_hedged_by_another(stage: Stage, paris: Site, rome: Site) -> None:
    dying = stage.collector(hedge_min_s=2.0)
    await stage.sealed(PARIS)
    await time_passes(1)
    await dying.kill()
    stage.collector(hedge_min_s=2.0)
    await rome.receive()
    assert stage.store.now() == pytest.approx(2.0)


async def test_request_nobody_took_up_fails_at_its_deadline(stage: Stage) -> None:
    stage.collector()
    await stage.submit(a_request(timeout_s=7.0))
    failure = await stage.failure()
    assert (failure.code, failure.retriable, stage.store.now()) == ("deadline_exceeded", True, 7.0)
    assert "before any cloud node took it up" in failure.message


async def test_request_whose_sketch_never_ends_fails_at_its_deadline(stage: Stage) -> None:
    stage.collector()
    await stage.submit(a_request(timeout_s=7.0))
    await stage.store.begin("r")
    failure = await stage.failure()
    assert (failure.code, stage.store.now()) == ("deadline_exceeded", 7.0)
    assert "before its sketch was finished" in failure.message


async def test_two_collectors_end_a_request_once(stage: Stage, paris: Site) -> None:
    for _ in range(2):
        stage.collector()
    segments = await stage.sealed(PARIS, num_segments=8)
    for segment in segments:
        for _ in range(2):
            await paris.send(segment, f"fact number {segment.index} about tides says that water rises.")
    events = await stage.events("r")
    assert (kinds(events).count("segment_chosen"), kinds(events).count("answered")) == (8, 1)
    assert stage.transport.num_messages(CANDIDATES) == 0


async def test_placement_that_cannot_be_published_is_tried_again(stage: Stage, paris: Site, rome: Site) -> None:
    stage.collector(hedge_min_s=2.0)
    stage.transport._max_messages = 0
    await stage.sealed(PARIS)
    await time_passes(3.2)
    assert [it.site for it in (await stage.record()).segments[0].placements] == ["paris"]
    stage.transport._max_messages = 10
    await rome.receive()
    assert stage.store.now() == pytest.approx(3.5)


async def test_queue_that_takes_nothing_keeps_a_collector_from_no_deadline(
    stage: Stage, paris: Site, rome: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.get_running_loop().create_future()

    stage.collector(hedge_min_s=2.0)
    await stage.sealed(PARIS)
    monkeypatch.setattr(stage.transport, "publish", never)
    await stage.store.open(a_request("other", timeout_s=2.5))
    await time_passes(2.6)
    other = await stage.record("other")
    assert isinstance(other.outcome, Failure)
    await time_passes((await stage.record()).deadline_s)
    answer = (await stage.record()).outcome
    assert isinstance(answer, Answer)
    assert answer.degraded == (0,)


async def test_drained_collector_counts_no_more(stage: Stage, paris: Site) -> None:
    node = stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await time_passes(1)
    await node.stop()
    await paris.send(segment, GOOD)
    await time_passes(1)
    assert not (await stage.record()).segments[0].candidates
    assert stage.transport.num_messages(CANDIDATES) == 1
