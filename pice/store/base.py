"""The store port: the record of each request, its events, the sites, and the one clock all nodes share.

Every change is atomic and idempotent, so any node may repeat it after a crash. A record is `open` until it is
closed, once, by whoever comes first; its `attempt` counts the times a cloud node has begun it, and changes that name
an earlier attempt are refused (P4).

A call that raised `TransportError` may have been done all the same. Whoever makes it may say the very same again, until
it is answered, and then hears what the first call would have said, but for these: `begin` begins one more attempt,
`add_candidate` says REPEATED, `close_request` says False, and what `take_due` took is due again after its lease.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

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
    SiteState,
    Span,
)


class Counted(Enum):
    """What became of a candidate."""

    NEW = "new"
    REPEATED = "repeated"
    STALE = "stale"
    """Of an earlier attempt, or the request is closed or unknown."""
    FOREIGN = "foreign"
    """From a site, or a model there, that its segment was never placed at: refused (P10)."""


class Chosen(Enum):
    """What became of a choice."""

    MADE = "made"
    LAST = "last"
    """Made, and with it every segment of a finished sketch has its choice."""
    REFUSED = "refused"
    """Another one stands, or the request is closed or unknown, the attempt fenced."""


@dataclass(frozen=True, slots=True)
class Unwanted:
    """News that work is no longer wanted: attempts up to `attempt` of a request, or only its segment `index`."""

    request_id: str
    attempt: int
    index: int | None = None


class Notices(Protocol):
    """A reader of `Unwanted` news. Best effort: some may be lost, so `Store.wanted` has the last word."""

    async def receive(self) -> Unwanted: ...

    async def close(self) -> None: ...


class Store(Protocol):
    """Safe to call from any task of one event loop. Raises `TransportError` when its server is gone."""

    def now(self) -> float:
        """Seconds on the store's clock; goes back only where the clock of its server was set back."""
        ...

    async def open(self, request: Request) -> bool:
        """Makes the record, with its deadline; False if it was there already, unless this very call made it.

        Raises:
            Full: too many requests are open; says when to come back (P7).
        """
        ...

    async def begin(self, request_id: str) -> Record | None:
        """A cloud node takes the request up: a new attempt, fencing every earlier one, of which all is dropped.
        None when there is nothing to do: it is closed, unknown, or its sketch is sealed and needs no cloud node."""
        ...

    async def planned(self, request_id: str, attempt: int, plan: Plan) -> bool:
        """Keeps the plan; False when fenced or closed."""
        ...

    async def place(self, segment: Segment, placement: Placement) -> bool:
        """Notes, before it is published, that a segment goes to a site. False when fenced or closed, when the
        segment has its choice, or when another placement has it there already; True again for the very same one."""
        ...

    async def unplace(self, segment: Segment, placement: Placement) -> None:
        """Takes a placement back whose publishing failed."""
        ...

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
        """The sketch is finished, or was `cut` off: this many segments and no more. Makes the record due at once;
        False when fenced or closed. What an attempt said first stands, and to say it again changes nothing."""
        ...

    async def add_candidate(self, candidate: Candidate) -> tuple[Counted, Record | None]:
        """Counts a candidate once, however often it arrives; with the record as it then is, if it counts: without the
        other segments where it is new and its own was placed once."""
        ...

    async def choose(self, request_id: str, attempt: int, span: Span) -> Chosen:
        """Settles a segment and emits that as `chosen_event`, once; the first choice stands. One that is said again is
        answered as if it were the first."""
        ...

    async def close_request(self, request_id: str, attempt: int | None, outcome: Answer | Failure) -> bool:
        """Ends the request, once; False when it had ended, is unknown, or `attempt` is fenced (None ends any).
        Emits the final event and tells `notices` that nothing of it is wanted any more."""
        ...

    async def record(self, request_id: str) -> Record | None:
        """A snapshot, or None when unknown or expired."""
        ...

    async def wanted(self, request_id: str, attempt: int, index: int) -> bool:
        """Whether work on this segment still serves anyone."""
        ...

    async def set_due(self, request_id: str, at_s: float) -> None:
        """Asks that a collector looks at this request at `at_s`; the record's own deadline always stands too."""
        ...

    async def take_due(self, *, limit: int = 64) -> list[str]:
        """Waits until requests are due and takes them; each is due again after a lease unless `set_due` or
        `close_request` is called, so a collector that dies here loses nothing."""
        ...

    async def emit(self, event: Event) -> None:
        """Appends to the request's events; dropped when it is closed or the attempt is fenced. Only `close_request`
        makes the final one."""
        ...

    def follow(self, request_id: str, *, until_s: float) -> AsyncGenerator[Event, None]:
        """Events from the first kept one on. Ends after the final one, or without it where the record is unknown or
        `until_s` passes, or the store is closed, while there is none. May be read by several. Where its server is
        gone it waits for it, and raises `TransportError` only when `until_s` passes meanwhile."""
        ...

    def notices(self) -> Notices:
        """News of unwanted work from now on."""
        ...

    async def heartbeat(self, state: SiteState, *, ttl_s: float) -> None:
        """A site says that it lives. Forgotten after `ttl_s` without another. One whose `token` is not 0 and lower than
        the highest of this site is dropped: it is of a process that has lost the site's lease."""
        ...

    async def sites(self) -> list[SiteState]:
        """The sites whose heartbeat is alive, by name."""
        ...

    async def close(self) -> None: ...


def chosen_event(request_id: str, attempt: int, span: Span) -> Event:
    """What `Store.choose` emits."""
    return Event(
        request_id,
        "segment_chosen",
        span.chosen_s,
        attempt,
        span.index,
        text=span.text,
        site=span.site,
        model=span.model,
        confidence=span.confidence,
        points=span.points,
    )
