"""What comes next for a request, from what its record holds and what time it is."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pytest

from pice.answer.normalise import ModelStats
from pice.answer.steps import Choose, Close, EnsemblePolicy, Place, Step, next_steps
from pice.core import (
    CLOUD_SITE,
    Answer,
    Candidate,
    Failure,
    Message,
    Placement,
    Plan,
    Point,
    PromptKind,
    Record,
    Request,
    Sampling,
    Segment,
    SegmentRecord,
    Span,
)
from pice.plan.base import Target, Where

QUESTION = "Why is the sky blue?"
POINT = Point(0, "air scatters blue light most", 12)
GOOD = "Because air scatters blue light far more than it scatters red."
POOR = "Well, that depends on many things which nobody can tell you."
POORER = "Ask somebody else."
REFUSAL = "I'm sorry, but I can't help with that."
LOOP = "blue " * 40

TIMEOUT_S, HARD_S, LAST_CALL_S = 100.0, 50.0, 99.0
SOFT_S = 4.0
"""Twice the two seconds that `placed` predicts."""
POLICY = EnsemblePolicy(max_candidates=2, second_opinion_below=0.5)
EDGES = (Target("paris", "small"), Target("rome", "tiny"), Target("oslo", "small"))
CLOUD = Target(CLOUD_SITE, "big")


@dataclass(slots=True)
class Places:
    """The first free target of those there are; remembers what it was asked for."""

    edges: tuple[Target, ...] = EDGES
    cloud: Target | None = CLOUD
    asked: list[tuple[Where, str]] = field(default_factory=list)

    def __call__(
        self, segment: Segment, exclude: Collection[Target], models: Collection[str], where: Where, reason: str
    ) -> Placement | None:
        self.asked.append((where, reason))
        edges = [t for t in self.edges if where != "cloud" and t not in exclude and t.model not in models]
        cloud = [t for t in (self.cloud,) if t and where != "edge" and t not in exclude]
        found = next(iter([*edges, *cloud]), None)
        return Placement(found.site, found.model, 0.0, 0.0, reason) if found else None


NOWHERE = Places(edges=(), cloud=None)


def placed(site: str = "paris", model: str = "small", at_s: float = 0.0) -> Placement:
    return Placement(site, model, at_s, at_s + SOFT_S / 2)


def candidate(text: str = GOOD, site: str = "paris", model: str = "small", *, error: str = "") -> Candidate:
    return Candidate("r", 1, 0, site, model, text, num_output_tokens=10, error=error)


def a_record(
    placements: Collection[Placement] = (placed(),),
    candidates: Collection[Candidate] = (),
    *,
    kind: PromptKind = "expand",
    sealed: bool = True,
    num_wanted: int = 1,
) -> Record:
    """A request with one segment."""
    points = (POINT,) if kind == "expand" else ()
    request = Request("r", (Message("user", QUESTION),), timeout_s=TIMEOUT_S)
    segment = Segment("r", 1, 0, kind, request.messages, points, points, 12, Sampling(), TIMEOUT_S)
    known = SegmentRecord(segment, list(placements), {(it.site, it.model): it for it in candidates})
    plan = Plan("progressive" if points else "edge", "", candidates=num_wanted)
    return Record(
        request, 0.0, TIMEOUT_S, 1, 0.0, plan, points, num_segments=1 if sealed else None, segments={0: known}
    )


def steps(record: Record, now_s: float, places: Places | None = None) -> tuple[list[Step], float]:
    return next_steps(record, now_s, POLICY, ModelStats(), places or Places())


def only_step(record: Record, now_s: float = 1.0, places: Places | None = None) -> Step:
    (step,) = steps(record, now_s, places)[0]
    return step


def chosen(record: Record, now_s: float = 1.0, places: Places | None = None) -> Span:
    step = only_step(record, now_s, places)
    assert isinstance(step, Choose)
    return step.span


def place_of(record: Record, now_s: float = 1.0, places: Places | None = None) -> tuple[str, str, str]:
    step = only_step(record, now_s, places)
    assert isinstance(step, Place)
    return step.placement.site, step.placement.model, step.placement.reason


def wake_s(record: Record, now_s: float, places: Places | None = None) -> float:
    """When to look again at a record of which nothing can be done now."""
    found, at_s = steps(record, now_s, places)
    assert found == []
    return at_s


@pytest.mark.parametrize(
    ("placements", "now_s", "until_s"),
    [
        pytest.param([placed()], 1.0, SOFT_S, id="the soft deadline of its place"),
        pytest.param([placed(), placed("rome", "tiny", 10)], 11.0, 14.0, id="that of the latest place"),
        pytest.param([Placement("paris", "small", 0, 0.1)], 1.0, POLICY.hedge_min_s, id="at least the least wait"),
        pytest.param([Placement("paris", "small", 0, 60)], 1.0, HARD_S, id="at most the hard deadline"),
        pytest.param([placed(), placed(CLOUD_SITE, "big")], 20.0, LAST_CALL_S, id="the last call, once at the cloud"),
    ],
)
def test_segment_without_candidates_is_looked_at_again_at(
    placements: list[Placement], now_s: float, until_s: float
) -> None:
    assert wake_s(a_record(placements), now_s) == until_s


@pytest.mark.parametrize(
    ("record", "now_s", "place"),
    [
        pytest.param(a_record(), SOFT_S, ("rome", "tiny", "hedge"), id="late"),
        pytest.param(a_record(), HARD_S, (CLOUD_SITE, "big", "hedge"), id="very late"),
        pytest.param(
            a_record([placed(), placed("rome", "tiny"), placed("oslo")]),
            SOFT_S,
            (CLOUD_SITE, "big", "hedge"),
            id="late everywhere else",
        ),
        pytest.param(
            a_record(candidates=[candidate("", error="broken")]),
            1.0,
            ("rome", "tiny", "failed elsewhere"),
            id="failed at its only place",
        ),
        pytest.param(
            a_record(candidates=[candidate(LOOP)]), 1.0, ("rome", "tiny", "failed elsewhere"), id="no text to show"
        ),
    ],
)
def test_segment_is_placed_again_when(record: Record, now_s: float, place: tuple[str, str, str]) -> None:
    assert place_of(record, now_s) == place


def test_segment_with_one_failure_and_one_place_pending_waits_for_that_place() -> None:
    record = a_record([placed(), placed("rome", "tiny", 1.0)], [candidate(LOOP)])
    assert wake_s(record, 2.0) == 1.0 + SOFT_S


def test_late_segment_waits_on_where_no_other_place_is_left() -> None:
    assert wake_s(a_record(), SOFT_S, NOWHERE) == LAST_CALL_S


def test_good_candidate_is_chosen_with_all_that_led_to_it() -> None:
    record = a_record(candidates=[candidate()])
    span = chosen(record, 3.0)
    assert (span.index, span.text, span.site, span.model, span.degraded) == (0, GOOD, "paris", "small", False)
    assert (span.points, span.placements, span.chosen_s) == ((POINT,), (placed(),), 3.0)
    assert [one.candidate for one in span.candidates] == [candidate()]


def test_first_good_candidate_wins_while_another_place_is_pending() -> None:
    assert chosen(a_record([placed(), placed("rome", "tiny")], [candidate(GOOD, "rome", "tiny")])).site == "rome"


def test_poor_candidate_brings_a_second_opinion_from_another_model_at_the_edge() -> None:
    places = Places(edges=(Target("oslo", "small"), Target("rome", "tiny")))
    assert place_of(a_record(candidates=[candidate(POOR)]), 1.0, places) == ("rome", "tiny", "second opinion")
    assert places.asked == [("edge", "second opinion")]


def test_second_opinion_is_waited_for_until_it_is_late() -> None:
    record = a_record([placed(), placed("rome", "tiny", 1.0)], [candidate(POOR)])
    assert wake_s(record, 2.0) == 1.0 + SOFT_S
    assert chosen(record, 1.0 + SOFT_S).text == POOR


@pytest.mark.parametrize(
    ("placements", "places"),
    [
        pytest.param([placed()], Places(edges=EDGES[:1]), id="no other model is there"),
        pytest.param(
            [placed(), placed("rome", "tiny")], Places((Target("oslo", "new"),)), id="as many were asked as may be"
        ),
    ],
)
def test_poor_candidate_is_chosen_where(placements: list[Placement], places: Places) -> None:
    texts = zip(placements, (POOR, POORER), strict=False)
    candidates = [candidate(text, it.site, it.model) for it, text in texts]
    assert chosen(a_record(placements, candidates), 1.0, places).text == POOR


def test_better_of_two_opinions_is_chosen() -> None:
    record = a_record([placed(), placed("rome", "tiny")], [candidate(POOR), candidate(GOOD, "rome", "tiny")])
    span = chosen(record)
    assert (span.site, [one.candidate.site for one in span.candidates]) == ("rome", ["rome", "paris"])


def test_plan_that_wants_two_candidates_is_not_content_with_one() -> None:
    both = [placed(), placed("rome", "tiny")]
    assert wake_s(a_record(both, [candidate()], num_wanted=2), 1.0) == SOFT_S
    assert place_of(a_record(candidates=[candidate()], num_wanted=2)) == ("rome", "tiny", "candidate")
    assert chosen(a_record(both, [candidate(), candidate(GOOD, "rome", "tiny")], num_wanted=2)).text == GOOD


FAILED = candidate("", error="broken")
CUT = replace(candidate("Because air scatters the blue part of sunlight far more than its"), finish_reason="length")


def test_part_that_nobody_could_write_is_the_sketch_itself_and_degraded() -> None:
    span = chosen(a_record(candidates=[FAILED]), 1.0, NOWHERE)
    assert (span.text, span.site, span.degraded) == (POINT.text, CLOUD_SITE, True)
    assert [one.candidate for one in span.candidates] == [FAILED]


def test_part_that_is_nowhere_at_the_last_call_is_the_sketch_itself() -> None:
    assert chosen(a_record(), LAST_CALL_S).text == POINT.text


@pytest.mark.parametrize("text", [REFUSAL, LOOP], ids=["refusal", "loop"])
def test_failing_text_of_a_part_does_not_stand(text: str) -> None:
    span = chosen(a_record(candidates=[candidate(text)]), 1.0, NOWHERE)
    assert (span.text, span.degraded) == (POINT.text, True)


def test_part_that_was_only_cut_stands_and_says_so() -> None:
    span = chosen(a_record(candidates=[CUT]), 1.0, NOWHERE)
    assert (span.text, span.finish_reason, span.degraded) == (CUT.text, "length", False)


def test_good_candidate_is_taken_at_the_last_call_however_many_are_pending() -> None:
    record = a_record([placed(), placed("rome", "tiny")], [candidate(POOR)])
    assert chosen(record, LAST_CALL_S).text == POOR


@pytest.mark.parametrize(
    ("text", "degraded"),
    [
        pytest.param(REFUSAL, False, id="refusal"),
        pytest.param(LOOP, True, id="loop"),
        pytest.param(QUESTION, True, id="echo"),
    ],
)
def test_whole_answer_that_fails_everywhere_stands_and_is_degraded_unless_it_is_a_refusal(
    text: str, degraded: bool
) -> None:
    span = chosen(a_record(candidates=[candidate(text)], kind="answer"), 1.0, NOWHERE)
    assert (span.text, span.degraded, span.site) == (text, degraded, "paris")


def test_whole_answer_that_is_refused_is_asked_for_elsewhere_first() -> None:
    assert place_of(a_record(candidates=[candidate(REFUSAL)], kind="answer")) == ("rome", "tiny", "failed elsewhere")


def test_whole_answer_stopped_by_its_own_limit_is_good_and_says_that_it_was_cut() -> None:
    places = Places()
    span = chosen(a_record(candidates=[CUT], kind="answer"), 1.0, places)
    assert (span.text, span.finish_reason, span.degraded, places.asked) == (CUT.text, "length", False, [])


def test_whole_answer_that_nobody_could_write_fails_the_request_and_names_the_causes() -> None:
    step = only_step(a_record(candidates=[FAILED], kind="answer"), 1.0, NOWHERE)
    assert isinstance(step, Close)
    assert isinstance(step.outcome, Failure)
    assert (step.outcome.code, step.outcome.retriable) == ("edge_unavailable", True)
    assert "paris/small: broken" in step.outcome.message


def test_request_is_closed_with_its_answer_once_every_segment_is_chosen() -> None:
    record = a_record(candidates=[candidate()])
    record.segments[0].choice = chosen(record)
    step = only_step(record)
    assert isinstance(step, Close)
    assert isinstance(step.outcome, Answer)
    assert (step.outcome.text, step.outcome.attempt, step.outcome.mode) == (GOOD, 1, "progressive")


def test_request_whose_sketch_goes_on_is_not_closed_though_every_segment_is_chosen() -> None:
    record = a_record(candidates=[candidate()], sealed=False)
    record.segments[0].choice = chosen(record)
    assert wake_s(record, 1.0) == LAST_CALL_S


def test_request_is_not_closed_before_the_last_of_its_segments_is_known() -> None:
    record = replace(a_record(candidates=[candidate()]), num_segments=2)
    record.segments[0].choice = chosen(record)
    assert wake_s(record, 1.0) == LAST_CALL_S


def test_segment_is_not_given_up_at_the_last_call_while_the_sketch_goes_on() -> None:
    assert wake_s(a_record(sealed=False), LAST_CALL_S) == TIMEOUT_S


@pytest.mark.parametrize(
    ("attempt", "cause"), [(0, "before any cloud node took it up"), (1, "before its sketch was finished")]
)
def test_request_without_a_whole_sketch_fails_at_its_deadline(attempt: int, cause: str) -> None:
    step = only_step(replace(a_record(sealed=False), attempt=attempt), TIMEOUT_S)
    assert isinstance(step, Close)
    assert isinstance(step.outcome, Failure)
    assert (step.outcome.code, step.outcome.retriable) == ("deadline_exceeded", True)
    assert cause in step.outcome.message


def test_request_that_has_ended_needs_nothing() -> None:
    record = replace(a_record(candidates=[candidate()]), outcome=Failure("r", "cancelled", "gone"))
    assert wake_s(record, 1.0) == TIMEOUT_S


def test_every_open_segment_is_looked_at_and_the_soonest_time_is_given() -> None:
    record = a_record([placed()])
    late = replace(record.segments[0].segment, index=1)
    record.segments[1] = SegmentRecord(late, [placed("rome", "tiny", 1.0)])
    assert wake_s(record, 1.0) == SOFT_S
    assert len(steps(record, 1.0 + SOFT_S)[0]) == 2


def test_news_of_one_segment_moves_no_other() -> None:
    record = a_record(candidates=[candidate()])
    late = replace(record.segments[0].segment, index=1)
    record.segments[1] = SegmentRecord(late, [placed("rome", "tiny")])
    found, _ = next_steps(record, SOFT_S, POLICY, ModelStats(), Places(), only=0)
    assert [type(step) for step in found] == [Choose]
    assert next_steps(record, 1.0, POLICY, ModelStats(), Places(), only=1) == ([], SOFT_S)
    assert next_steps(record, 1.0, POLICY, ModelStats(), Places(), only=7) == ([], LAST_CALL_S)


def test_last_call_of_a_short_request_leaves_it_most_of_its_time() -> None:
    record = a_record([placed(CLOUD_SITE, "big")])
    record = replace(record, request=replace(record.request, timeout_s=2.0), deadline_s=2.0)
    assert wake_s(record, 1.5) == pytest.approx(1.8)
