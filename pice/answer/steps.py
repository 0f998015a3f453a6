"""What to do next for a request: choose, place again, close, or wait until when.

A pure decision over the record, so a collector that repeats it after a crash, or two that take it at once, do no
harm: the store lets each step happen once.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from pice.answer.assemble import assemble, sketch_words
from pice.answer.normalise import ModelStats
from pice.answer.score import Weights, score
from pice.core import (
    CLOUD_SITE,
    Answer,
    Candidate,
    Failure,
    Placement,
    Record,
    Scored,
    Segment,
    SegmentRecord,
    Span,
)
from pice.errors import NoSite
from pice.plan.base import Target, Where


@dataclass(frozen=True, slots=True)
class EnsemblePolicy:
    """When to ask for another opinion, when to stop waiting.

    A segment is hedged when it takes `hedge_factor` times its predicted time, at least `hedge_min_s`. A second
    opinion is asked for when the best confidence is under `second_opinion_below`, up to `max_candidates` placements
    that bring one. After `hard_share` of the request's time only the cloud is asked; `reserve_s` before the
    deadline what is there is made an answer.
    """

    weights: Weights = field(default_factory=Weights)
    max_candidates: int = 2
    second_opinion_below: float = 0.35
    hedge_factor: float = 2.0
    hedge_min_s: float = 2.0
    hard_share: float = 0.5
    reserve_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Choose:
    span: Span


@dataclass(frozen=True, slots=True)
class Place:
    segment: Segment
    placement: Placement


@dataclass(frozen=True, slots=True)
class Close:
    outcome: Answer | Failure


Step = Choose | Place | Close
Placer = Callable[[Segment, Collection[Target], Collection[str], Where, str], Placement | None]
"""Finds a place for a segment outside some targets and models, giving a reason; None when there is none."""


def next_steps(
    record: Record,
    now_s: float,
    policy: EnsemblePolicy,
    stats: ModelStats,
    place: Placer,
    *,
    only: int | None = None,
) -> tuple[list[Step], float]:
    """The steps that can be taken now, and when to look again. After a `Choose` or `Place` ask again at once.

    With `only` just that segment is looked at, for news that can change no other; the time then is that segment's.
    """
    if record.outcome is not None:
        return [], record.deadline_s
    last_call_s = record.deadline_s - min(policy.reserve_s, 0.1 * record.request.timeout_s)
    if record.num_segments is None and now_s >= record.deadline_s:
        return [Close(_too_late(record))], record.deadline_s
    steps, wake_s = list[Step](), last_call_s if now_s < last_call_s else record.deadline_s
    for known in _looked_at(record, only):
        if known.choice is None:
            settled = _SegmentView(known, record, now_s, last_call_s, policy, stats, place).step()
            if isinstance(settled, float):
                wake_s = min(wake_s, settled)
            else:
                steps.append(settled)
    if not steps and _all_chosen(record):
        steps.append(Close(assemble(record, now_s=now_s)))
    return steps, wake_s


def _looked_at(record: Record, only: int | None) -> Iterable[SegmentRecord]:
    if only is None:
        return record.segments.values()
    return (record.segments[only],) if only in record.segments else ()


@dataclass(slots=True)
class _SegmentView:
    """One open segment: `step` gives what to do with it now, or when to look at it again."""

    known: SegmentRecord
    record: Record
    now_s: float
    last_call_s: float
    policy: EnsemblePolicy
    stats: ModelStats
    place: Placer

    def step(self) -> Step | float:
        scored = score(self.known.segment, list(self.known.candidates.values()), self.stats, self.policy.weights)
        usable = [one for one in scored if set(one.failures) <= {"cut"}]
        if self.now_s >= self.last_call_s:
            return self._settle(scored) if self.record.num_segments is not None else self.record.deadline_s
        return self._with_candidates(usable, scored) if usable else self._without(scored)

    def _with_candidates(self, usable: list[Scored], scored: list[Scored]) -> Step | float:
        """Chooses the best, or asks for more first. One that was only cut off has little confidence, and is worth a
        second opinion at the edge but not the cloud's time."""
        enough = len(usable) >= self._num_wanted()
        if enough and usable[0].confidence >= self.policy.second_opinion_below:
            return Choose(self._span(usable[0], scored))
        if self._pending():
            wake_s = self._overdue_s()
            return wake_s if self.now_s < wake_s else Choose(self._span(usable[0], scored))
        if len(self.known.placements) < max(self._num_wanted(), self.policy.max_candidates):
            models = {placement.model for placement in self.known.placements}
            reason = "second opinion" if enough else "candidate"
            if placement := self.place(self.known.segment, self._used(), models, "edge", reason):
                return Place(self.known.segment, placement)
        return Choose(self._span(usable[0], scored))

    def _without(self, scored: list[Scored]) -> Step | float:
        pending = self._pending()
        if any(placement.site == CLOUD_SITE for placement in pending):
            return self.last_call_s
        hard_s = self.record.opened_s + self.policy.hard_share * self.record.request.timeout_s
        wake_s = min(self._overdue_s(), max(hard_s, self.now_s)) if pending else self.now_s
        if self.now_s < wake_s:
            return wake_s
        where: Where = "cloud" if self.now_s >= hard_s else "anywhere"
        reason = "hedge" if pending else "failed elsewhere"
        if placement := self.place(self.known.segment, self._used(), (), where, reason):
            return Place(self.known.segment, placement)
        return self.last_call_s if pending else self._settle(scored)

    def _settle(self, scored: list[Scored]) -> Step:
        """The best there is: a good candidate or one that was only cut; else the sketch's own words. Of a whole answer
        a refusal stands too, as it may be meant; else whatever text there is, marked as degraded."""
        is_answer = self.known.segment.kind == "answer"
        borne = {"refusal"} if is_answer else {"cut"}
        best = next((one for one in scored if set(one.failures) <= borne), None)
        if best is not None:
            return Choose(self._span(best, scored))
        if not is_answer:
            return Choose(self._sketch_words(scored))
        some = next((one for one in scored if one.candidate.text.strip()), None)
        if some is None:
            return Close(_no_candidate(self.record, list(self.known.candidates.values())))
        return Choose(self._span(some, scored, degraded=True))

    def _span(self, best: Scored, scored: list[Scored], *, degraded: bool = False) -> Span:
        candidate = best.candidate
        return Span(
            candidate.index,
            candidate.text,
            candidate.site,
            candidate.model,
            best.confidence,
            finish_reason="length" if "cut" in best.failures else candidate.finish_reason,
            degraded=degraded,
            points=self.known.segment.points,
            placements=tuple(self.known.placements),
            candidates=tuple(scored),
            chosen_s=self.now_s,
        )

    def _sketch_words(self, scored: list[Scored]) -> Span:
        return replace(
            sketch_words(self.known.segment),
            placements=tuple(self.known.placements),
            candidates=tuple(scored),
            chosen_s=self.now_s,
        )

    def _num_wanted(self) -> int:
        return self.record.plan.candidates if self.record.plan else 1

    def _pending(self) -> list[Placement]:
        answered = self.known.candidates
        return [p for p in self.known.placements if (p.site, p.model) not in answered]

    def _overdue_s(self) -> float:
        """When the latest pending placement has taken too long (the soft deadline)."""
        return max((self._soft_deadline_s(placement) for placement in self._pending()), default=self.now_s)

    def _soft_deadline_s(self, placement: Placement) -> float:
        predicted_s = placement.expected_s - placement.placed_s
        return placement.placed_s + max(self.policy.hedge_min_s, self.policy.hedge_factor * predicted_s)

    def _used(self) -> set[Target]:
        return {Target(placement.site, placement.model) for placement in self.known.placements}


def _all_chosen(record: Record) -> bool:
    chosen = sum(known.choice is not None for known in record.segments.values())
    return record.num_segments is not None and chosen == record.num_segments


def _too_late(record: Record) -> Failure:
    where = "before its sketch was finished" if record.attempt else "before any cloud node took it up"
    message = f"the deadline of {record.request.timeout_s:g} s passed {where}"
    return Failure(record.request.request_id, "deadline_exceeded", message, retriable=True)


def _no_candidate(record: Record, candidates: list[Candidate]) -> Failure:
    causes = "; ".join(_causes(candidates)) or "no site answered in time"
    return Failure(record.request.request_id, NoSite.code, f"no site could answer: {causes}", retriable=True)


def _causes(candidates: list[Candidate]) -> Iterator[str]:
    return (f"{c.site}/{c.model}: {c.error}" for c in candidates if c.error)
