"""Watches a simulated cluster from outside and says which of the promises P1-P11 it broke."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from pice.core import CLOUD_SITE, Answer, Candidate, Failure, Placement, Record, Request, Segment
from pice.errors import DecodeError
from pice.message.codec import decode, decode_as
from pice.store.base import Counted, Unwanted
from pice.store.memory import MemoryStore
from pice.transport.base import CANDIDATES, DEAD, REQUESTS, Delivery

FORGED = "forged"
IMPOSTURE = "The moon pulls at the water, and so it rises twice a day, as one site says in the name of another."
NEWS_S, SWEEP_S = 0.2, 1.2
"""In which time the end of a request is known at every site that is not cut off: by the news of it, or where that was
lost by the next sweep."""

Identity = tuple[str, int, int, str, str]


def identity(candidate: Candidate) -> Identity:
    return (candidate.request_id, candidate.attempt, candidate.index, candidate.site, candidate.model)


class WatchedStore(MemoryStore):
    """The in-memory store, keeping a note of what was counted and of every end of a request. It loses a share of
    the notices, as any store may."""

    def __init__(self, *, max_open: int, rng: random.Random, lost_notices: float) -> None:
        super().__init__(max_open=max_open)
        self._rng = rng
        self._lost_notices = lost_notices
        self.counted: Counter[Identity] = Counter()
        self.foreign: list[Identity] = []
        self.ends: Counter[str] = Counter()
        self.ended_s: dict[str, float] = {}
        self.most_open = 0
        self.num_impostures = 0

    async def open(self, request: Request) -> bool:
        opened = await super().open(request)
        self.most_open = max(self.most_open, self._num_open)
        return opened

    async def add_candidate(self, candidate: Candidate) -> tuple[Counted, Record | None]:
        self.num_impostures += candidate.text == IMPOSTURE
        counted, record = await super().add_candidate(candidate)
        if counted is Counted.NEW:
            self.counted[identity(candidate)] += 1
        if counted is Counted.FOREIGN:
            self.foreign.append(identity(candidate))
        return counted, record

    async def close_request(self, request_id: str, attempt: int | None, outcome: Answer | Failure) -> bool:
        ended = await super().close_request(request_id, attempt, outcome)
        self.ends[request_id] += ended
        self.ended_s.setdefault(request_id, self.now())
        return ended

    def _notify(self, unwanted: Unwanted) -> None:
        if self._rng.random() >= self._lost_notices:
            super()._notify(unwanted)

    def live(self, request_id: str, attempt: int | None = None) -> Record | None:
        """The record, if work of this attempt still serves anyone."""
        entry = self._open_entry(request_id, attempt)
        return entry.record if entry else None

    def awaited(self) -> list[tuple[Segment, Placement]]:
        """Segments that are not settled, by where they were placed."""
        live = [entry.record for entry in self._entries.values() if entry.record.outcome is None]
        waiting = [known for record in live for known in record.segments.values() if known.choice is None]
        return [(known.segment, placement) for known in waiting for placement in known.placements]


@dataclass(slots=True)
class Auditor:
    """Checks what passes at the moment it does (P2, P6), and that nobody writes what has not been wanted for more
    than `idle_s` (P11)."""

    store: WatchedStore
    idle_s: float
    sent: set[Identity] = field(default_factory=set)
    in_hand: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    buried: Counter[bytes] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def published(self, topic: str, payload: bytes) -> None:
        if topic == CANDIDATES:
            self._candidate_published(payload)
        if topic == DEAD:
            self.buried[payload] += 1

    def _candidate_published(self, payload: bytes) -> None:
        try:
            candidate = decode_as(Candidate, payload)
        except DecodeError:
            return
        if candidate.text == IMPOSTURE:
            return
        self.sent.add(identity(candidate))
        ended_s = self.store.ended_s.get(candidate.request_id, self.store.now())
        idle = self.store.now() - ended_s < self.idle_s or candidate.model == FORGED
        self._expect(idle, f"P11: {identity(candidate)} was written {self.store.now() - ended_s:.1f} s after the end")

    def received(self, delivery: Delivery) -> None:
        if delivery.topic == REQUESTS and (request := _request(delivery)):
            self.in_hand[request.request_id].add(delivery.position)

    def acknowledged(self, delivery: Delivery) -> None:
        try:
            message = decode(delivery.payload)
        except DecodeError:
            self._expect(self.buried[delivery.payload] > 0, f"P6: junk on {delivery.topic} was not put aside")
            return
        if delivery.topic == REQUESTS and isinstance(message, Request):
            self._request_acked(message, delivery)
        elif delivery.topic == CANDIDATES and isinstance(message, Candidate):
            self._candidate_acked(message, delivery.payload)
        elif isinstance(message, Segment):
            self._segment_acked(message)
        else:
            self._expect(
                self.buried[delivery.payload] > 0, f"P6: a stray message on {delivery.topic} was not put aside"
            )

    def _request_acked(self, request: Request, delivery: Delivery) -> None:
        """A fenced attempt may let go, since the later one holds a copy of the request itself."""
        copies = self.in_hand[request.request_id]
        copies.discard(delivery.position)
        record = self.store.live(request.request_id)
        settled = record is None or record.num_segments is not None or copies
        self._expect(bool(settled), f"P2: request {request.request_id} was acknowledged before it was settled")

    def _segment_acked(self, segment: Segment) -> None:
        record = self.store.live(segment.request_id, segment.attempt)
        known = record.segments.get(segment.index) if record else None
        wanted = record is not None and (known is None or known.choice is None)
        key = (segment.request_id, segment.attempt, segment.index, segment.site, segment.model)
        late = segment.deadline_s <= self.store.now()
        done = not wanted or late or key in self.sent
        self._expect(done, f"P2: segment {key} was acknowledged before its candidate was published")

    def _candidate_acked(self, candidate: Candidate, payload: bytes) -> None:
        record = self.store.live(candidate.request_id, candidate.attempt)
        known = record.segments.get(candidate.index) if record else None
        counted = identity(candidate) in self.store.counted
        foreign = identity(candidate) in self.store.foreign
        forged = candidate.model == FORGED or candidate.text == IMPOSTURE
        refused = forged and self.buried[payload] > 0
        done = known is None or known.choice is not None or counted or foreign or refused
        self._expect(done, f"P2: candidate {identity(candidate)} was acknowledged before it was counted")

    def _expect(self, kept: bool, what: str) -> None:
        if not kept:
            self.broken.append(what)


def _request(delivery: Delivery) -> Request | None:
    try:
        return decode_as(Request, delivery.payload)
    except DecodeError:
        return None


def broken_by_answer(answer: Answer) -> Iterator[str]:
    """What an answer itself shows to be wrong."""
    name = answer.request_id
    indexes = [span.index for span in answer.spans]
    if indexes != list(range(len(indexes))):
        yield f"P3: the answer to {name} has spans {indexes}"
    if answer.mode == "progressive":
        covered = [point for span in answer.spans for point in span.points]
        if covered != list(answer.sketch) and answer.finish_reason != "length":
            yield f"P5: the answer to {name} leaves out points and says {answer.finish_reason!r}"
    for span in answer.spans:
        identities = [identity(scored.candidate) for scored in span.candidates]
        if len(set(identities)) != len(identities):
            yield f"P3: span {span.index} of {name} counts a candidate twice"
        if any(attempt != answer.attempt for _, attempt, *_ in identities):
            yield f"P4: span {span.index} of {name} holds a candidate of another attempt"
        placed = {placement.site for placement in span.placements}
        if any(site not in placed for *_, site, _ in identities):
            yield f"P10: span {span.index} of {name} holds a candidate from a site it was never placed at"
        if span.finish_reason == "length" and answer.finish_reason != "length":
            yield f"P5: span {span.index} of {name} was cut and the answer does not say so"
        if span.degraded != (span.index in answer.degraded):
            yield f"P8: the answer to {name} does not name its degraded span {span.index}"
        if span.degraded and CLOUD_SITE not in placed:
            yield f"P8: span {span.index} of {name} was given up before the cloud was asked for it"
        if not span.degraded and span.placements and span.site not in placed | {CLOUD_SITE}:
            yield f"P10: span {span.index} of {name} is credited to {span.site!r}"
