"""Records, events and sites in memory: the reference for every other store, and the default of a single process."""

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from pice.core import (
    Answer,
    Candidate,
    Event,
    Failure,
    Placement,
    Plan,
    Point,
    Record,
    Request,
    Segment,
    SegmentRecord,
    SiteState,
    Span,
)
from pice.errors import Full
from pice.store.base import Chosen, Counted, Unwanted, chosen_event


@dataclass(slots=True)
class _Entry:
    record: Record
    due_s: float
    events: list[Event] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryStore:
    """One process's records; see `pice.store.base.Store`. Its clock is the running loop's.

    `max_open` bounds open requests, and how many closed ones are kept; `record_ttl_s` is how long a closed one can
    be read, `due_lease_s` how long a taken request stays with the collector that took it.
    """

    def __init__(self, *, max_open: int = 1024, record_ttl_s: float = 600.0, due_lease_s: float = 5.0) -> None:
        self._max_open = max_open
        self._ttl_s = record_ttl_s
        self._due_lease_s = due_lease_s
        self._entries: dict[str, _Entry] = {}
        self._num_open = 0
        self._closed: deque[tuple[float, str]] = deque()
        self._due: list[tuple[float, str]] = []
        self._due_changed = asyncio.Event()
        self._notices: set[MemoryNotices] = set()
        self._sites: dict[str, tuple[float, SiteState]] = {}
        self._tokens: dict[str, int] = {}
        self._is_closed = False

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def open(self, request: Request) -> bool:
        self._expire()
        if request.request_id in self._entries:
            return False
        if self._num_open >= self._max_open:
            raise Full(f"{self._max_open} requests are open, which is the limit", retry_after_s=1.0)
        now = self.now()
        record = Record(request, opened_s=now, deadline_s=now + request.timeout_s)
        self._entries[request.request_id] = entry = _Entry(record, due_s=record.deadline_s)
        self._num_open += 1
        self._push_due(entry)
        return True

    async def begin(self, request_id: str) -> Record | None:
        entry = self._open_entry(request_id)
        if entry is None or entry.record.num_segments is not None:
            return None
        old = entry.record
        entry.record = Record(
            old.request, old.opened_s, old.deadline_s, attempt=old.attempt + 1, begun_s=old.begun_s or self.now()
        )
        if old.attempt:
            self._notify(Unwanted(request_id, old.attempt))
        return entry.record

    async def planned(self, request_id: str, attempt: int, plan: Plan) -> bool:
        entry = self._open_entry(request_id, attempt)
        if entry is None:
            return False
        entry.record.plan = plan
        return True

    async def place(self, segment: Segment, placement: Placement) -> bool:
        entry = self._open_entry(segment.request_id, segment.attempt)
        if entry is None:
            return False
        known = entry.record.segments.setdefault(segment.index, SegmentRecord(segment))
        if known.choice:
            return False
        if any(p.site == placement.site and p.model == placement.model for p in known.placements):
            return placement in known.placements
        known.placements.append(placement)
        return True

    async def unplace(self, segment: Segment, placement: Placement) -> None:
        entry = self._open_entry(segment.request_id, segment.attempt)
        known = entry.record.segments.get(segment.index) if entry else None
        if known and placement in known.placements:
            known.placements.remove(placement)

    async def seal(
        self,
        request_id: str,
        attempt: int,
        sketch: Sequence[Point],
        num_segments: int,
        *,
        num_prompt_tokens: int,
        num_output_tokens: int,
        cut: bool,
    ) -> bool:
        entry = self._open_entry(request_id, attempt)
        if entry is None:
            return False
        record = entry.record
        if record.num_segments is not None:
            return True
        record.sketch, record.num_segments, record.sealed_s = tuple(sketch), num_segments, self.now()
        record.sketch_prompt_tokens, record.sketch_output_tokens = num_prompt_tokens, num_output_tokens
        record.sketch_cut = cut
        self._set_due(entry, self.now())
        return True

    async def add_candidate(self, candidate: Candidate) -> tuple[Counted, Record | None]:
        entry = self._open_entry(candidate.request_id, candidate.attempt)
        known = entry.record.segments.get(candidate.index) if entry else None
        if entry is None or known is None:
            return Counted.STALE, None
        key = (candidate.site, candidate.model)
        if all((placement.site, placement.model) != key for placement in known.placements):
            return Counted.FOREIGN, None
        if key in known.candidates:
            return Counted.REPEATED, _snapshot(entry.record)
        known.candidates[key] = candidate
        return Counted.NEW, _snapshot(entry.record, only=candidate.index if len(known.placements) == 1 else None)

    async def choose(self, request_id: str, attempt: int, span: Span) -> Chosen:
        entry = self._open_entry(request_id, attempt)
        known = entry.record.segments.get(span.index) if entry else None
        if entry is None or known is None or known.choice not in (None, span):
            return Chosen.REFUSED
        if known.choice is None:
            known.choice = span
            self._append(entry, chosen_event(request_id, attempt, span))
            if len(known.placements) > 1:
                self._notify(Unwanted(request_id, attempt, span.index))
        num_chosen = sum(each.choice is not None for each in entry.record.segments.values())
        return Chosen.LAST if num_chosen == entry.record.num_segments else Chosen.MADE

    async def close_request(self, request_id: str, attempt: int | None, outcome: Answer | Failure) -> bool:
        entry = self._open_entry(request_id, attempt)
        if entry is None:
            return False
        entry.record.outcome = outcome
        self._num_open -= 1
        self._closed.append((self.now(), request_id))
        self._append(entry, _final_event(outcome, self.now(), entry.record.attempt))
        self._notify(Unwanted(request_id, entry.record.attempt))
        return True

    async def record(self, request_id: str) -> Record | None:
        entry = self._entries.get(request_id)
        return _snapshot(entry.record) if entry else None

    async def wanted(self, request_id: str, attempt: int, index: int) -> bool:
        entry = self._open_entry(request_id, attempt)
        if entry is None:
            return False
        known = entry.record.segments.get(index)
        return known is None or known.choice is None

    async def set_due(self, request_id: str, at_s: float) -> None:
        if entry := self._open_entry(request_id):
            self._set_due(entry, at_s)

    async def take_due(self, *, limit: int = 64) -> list[str]:
        while not (taken := self._pop_due(limit)):
            self._due_changed.clear()
            wait_s = self._due[0][0] - self.now() if self._due else None
            try:
                async with asyncio.timeout(wait_s):
                    await self._due_changed.wait()
            except TimeoutError:
                continue
        return taken

    async def emit(self, event: Event) -> None:
        if entry := self._open_entry(event.request_id, event.attempt):
            self._append(entry, event)

    async def follow(self, request_id: str, *, until_s: float) -> AsyncGenerator[Event, None]:
        entry = self._entries.get(request_id)
        if entry is None:
            return
        seen, late = 0, _alarm(entry.news, until_s)
        try:
            while seen < len(entry.events) or (self.now() < until_s and not self._is_closed):
                if seen == len(entry.events):
                    entry.news.clear()
                    await entry.news.wait()
                while seen < len(entry.events):
                    yield entry.events[seen]
                    seen += 1
                    if entry.events[seen - 1].kind in ("answered", "failed"):
                        return
        finally:
            late.cancel()

    def notices(self) -> "MemoryNotices":
        notices = MemoryNotices(self._notices)
        self._notices.add(notices)
        return notices

    async def heartbeat(self, state: SiteState, *, ttl_s: float) -> None:
        latest = self._tokens.get(state.site, 0)
        if 0 < state.token < latest:
            return
        self._tokens[state.site] = max(state.token, latest)
        self._sites[state.site] = (self.now() + ttl_s, state)

    async def sites(self) -> list[SiteState]:
        now = self.now()
        return [state for _, (until_s, state) in sorted(self._sites.items()) if until_s > now]

    async def close(self) -> None:
        self._is_closed = True
        for entry in self._entries.values():
            entry.news.set()
        self._entries.clear()
        self._due.clear()

    def _open_entry(self, request_id: str, attempt: int | None = None) -> _Entry | None:
        entry = self._entries.get(request_id)
        if entry is None or entry.record.outcome is not None:
            return None
        return entry if attempt is None or attempt == entry.record.attempt else None

    def _append(self, entry: _Entry, event: Event) -> None:
        entry.events.append(event)
        entry.news.set()

    def _notify(self, unwanted: Unwanted) -> None:
        for notices in self._notices:
            notices.put(unwanted)

    def _set_due(self, entry: _Entry, at_s: float) -> None:
        at_s = min(at_s, entry.record.deadline_s)
        if at_s != entry.due_s:
            entry.due_s = at_s
            self._push_due(entry)

    def _push_due(self, entry: _Entry) -> None:
        if len(self._due) > 64 + 4 * self._num_open:
            self._due = [item for item in self._due if self._is_current(item)]
            heapq.heapify(self._due)
        heapq.heappush(self._due, (entry.due_s, entry.record.request.request_id))
        self._due_changed.set()

    def _is_current(self, item: tuple[float, str]) -> bool:
        entry = self._open_entry(item[1])
        return entry is not None and entry.due_s == item[0]

    def _pop_due(self, limit: int) -> list[str]:
        now, taken = self.now(), list[str]()
        while self._due and self._due[0][0] <= now and len(taken) < limit:
            item = heapq.heappop(self._due)
            if self._is_current(item):
                entry = self._entries[item[1]]
                entry.due_s = now + self._due_lease_s
                self._push_due(entry)
                taken.append(item[1])
        return taken

    def _expire(self) -> None:
        oldest_s = self.now() - self._ttl_s
        while self._closed and (self._closed[0][0] < oldest_s or len(self._closed) > self._max_open):
            self._entries.pop(self._closed.popleft()[1], None)


class MemoryNotices:
    """See `pice.store.base.Notices`. Keeps the latest 1,024."""

    def __init__(self, readers: "set[MemoryNotices]") -> None:
        self._readers = readers
        self._kept: deque[Unwanted] = deque(maxlen=1024)
        self._news = asyncio.Event()

    def put(self, unwanted: Unwanted) -> None:
        self._kept.append(unwanted)
        self._news.set()

    async def receive(self) -> Unwanted:
        while not self._kept:
            self._news.clear()
            await self._news.wait()
        return self._kept.popleft()

    async def close(self) -> None:
        self._readers.discard(self)


def _snapshot(record: Record, *, only: int | None = None) -> Record:
    """Of all segments or one. What else is in a record is frozen, or replaced as a whole."""
    segments = {
        index: SegmentRecord(known.segment, list(known.placements), dict(known.candidates), known.choice)
        for index, known in record.segments.items()
        if only in (None, index)
    }
    return replace(record, segments=segments)


def _alarm(news: asyncio.Event, at_s: float) -> asyncio.TimerHandle:
    """Wakes whoever waits for news at `at_s`, which is at most a day from now."""
    loop = asyncio.get_running_loop()
    return loop.call_at(min(at_s, loop.time() + 86_400), news.set)


def _final_event(outcome: Answer | Failure, now_s: float, attempt: int) -> Event:
    if isinstance(outcome, Answer):
        return Event(outcome.request_id, "answered", now_s, attempt, answer=outcome)
    return Event(outcome.request_id, "failed", now_s, attempt, failure=outcome)
