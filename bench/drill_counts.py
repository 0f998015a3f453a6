"""What became of every request of a drill, and what that comes to: lost, answered twice, how much later."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.report import Aim, at_least, at_most
from pice.core import Answer, Failure
from pice.errors import Cancelled
from pice.metrics import percentile

QUIET = "no fault"
ALL = "all"
UNHEARD = "nothing ended the request"
"""How a client's own word begins that no service ended a request in time: `pice.node.client`."""

End = Literal["answered", "failed", "refused", "lost"]


@dataclass(slots=True)
class Heard:
    """What an asker was told of one request, over all its attempts to follow it. `num_cut_off` counts those that a
    broker's absence ended; an asker that `gave_up` waited for longer than any service may take."""

    num_events: int = 0
    outcomes: list[Answer | Failure] = field(default_factory=list)
    refusal: str = ""
    num_cut_off: int = 0
    gave_up: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What the store says of a request some time after it ended; `outcome` of a request that is still open, or is not
    known, is None. `num_finals` are the final events in its stream."""

    known: bool
    outcome: Answer | Failure | None
    num_finals: int


@dataclass(frozen=True, slots=True)
class Fate:
    """One request. Accepted is one whose record was opened; `num_ends` counts its final events, or different outcomes
    that were told, whichever is more: 1 is right."""

    request_id: str
    asked_s: float
    ended_s: float
    accepted: bool
    end: End
    cause: str = ""
    degraded: bool = False
    mode: str = ""
    num_ends: int = 1
    num_cut_off: int = 0

    @property
    def e2e_s(self) -> float:
        """From the time at which it was to be asked to the time at which its asker knew."""
        return self.ended_s - self.asked_s


@dataclass(frozen=True, slots=True)
class Window:
    """A fault, from its beginning until all that was asked before its end had ended. `ready_s` is how long after its
    end all services said that they are ready."""

    fault: str
    begin_s: float
    end_s: float
    ready_s: float


@dataclass(slots=True)
class Tally:
    """What the requests of one kind of window came to."""

    name: str
    num_asked: int = 0
    num_accepted: int = 0
    num_answered: int = 0
    num_degraded: int = 0
    num_lost: int = 0
    num_twice: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    e2e_s: list[float] = field(default_factory=list)

    def add(self, fate: Fate) -> None:
        self.num_asked += 1
        self.num_accepted += fate.accepted
        self.num_answered += fate.end == "answered"
        self.num_degraded += fate.degraded
        self.num_lost += fate.end == "lost"
        self.num_twice += fate.num_ends > 1
        if fate.end == "answered":
            self.e2e_s.append(fate.e2e_s)
        elif fate.end != "lost":
            (self.refused if fate.end == "refused" else self.failed)[fate.cause] += 1

    def percentile_s(self, percent: float) -> float | None:
        """Of the E2E of what was answered; None where nothing was."""
        return percentile(self.e2e_s, percent) if self.e2e_s else None


def fate_of(request_id: str, asked_s: float, ended_s: float, heard: Heard, found: Found) -> Fate:
    """What became of a request, by what its asker heard and what the store holds."""
    outcomes = _different([*heard.outcomes, *([found.outcome] if found.outcome else [])])
    accepted = found.known or heard.num_events > 0 or bool(heard.outcomes)
    end, cause = _end(outcomes, heard, accepted=accepted)
    answer = next((one for one in outcomes if isinstance(one, Answer)), None)
    return Fate(
        request_id,
        asked_s,
        ended_s,
        accepted,
        end,
        cause,
        degraded=bool(answer and answer.degraded),
        mode=answer.mode if answer else "",
        num_ends=max(len(outcomes), found.num_finals),
        num_cut_off=heard.num_cut_off,
    )


def _different(outcomes: Iterable[Answer | Failure]) -> list[Answer | Failure]:
    found: list[Answer | Failure] = []
    for outcome in outcomes:
        if outcome not in found:
            found.append(outcome)
    return found


def _end(outcomes: Sequence[Answer | Failure], heard: Heard, *, accepted: bool) -> tuple[End, str]:
    if not accepted:
        return "refused", heard.refusal or "not reached"
    if not outcomes:
        return "lost", "no outcome"
    first = outcomes[0]
    if isinstance(first, Answer):
        return "answered", ""
    if first.message.startswith(UNHEARD) or (heard.gave_up and first.code == Cancelled.code):
        return "lost", first.message
    return "failed", first.code


def tallies(fates: Iterable[Fate], windows: Sequence[Window]) -> list[Tally]:
    """Of quiet times, of each kind of fault in the order in which they came, and of all."""
    found = {name: Tally(name) for name in (QUIET, *(window.fault for window in windows), ALL)}
    for fate in fates:
        found[window_of(fate, windows)].add(fate)
        found[ALL].add(fate)
    return list(found.values())


def window_of(fate: Fate, windows: Iterable[Window]) -> str:
    """The first fault that fell into the life of a request."""
    met = (one.fault for one in windows if one.begin_s <= fate.ended_s and fate.asked_s <= one.end_s)
    return next(met, QUIET)


@dataclass(frozen=True, slots=True)
class JobFate:
    """A batch job's lines: those without a result, those with several, and how many failed, by cause."""

    num_lines: int
    missing: tuple[str, ...]
    doubled: tuple[str, ...]
    failed: dict[str, int]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What was there when all was over: lag by group, topic and partition; keys of requests in Redis after the last
    record had expired; dead letters by the junk that they are; services that ended without being killed."""

    lag: dict[str, int]
    keys: tuple[str, ...]
    num_waiting: int
    missing_dead: tuple[str, ...]
    doubled_dead: tuple[str, ...]
    foreign_dead: tuple[str, ...]
    ended: tuple[str, ...]


def dead_letters(
    keys: Iterable[str], expected: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Of the keys on `pice.dead`: which of the expected are missing, which are there more than once, and which nobody
    expected."""
    counts, wanted = Counter(keys), set(expected)
    missing = tuple(sorted(wanted - counts.keys()))
    doubled = tuple(sorted(key for key, count in counts.items() if count > 1))
    return missing, doubled, tuple(sorted(counts.keys() - wanted))


def aims(fates: Sequence[Fate], job: JobFate, left: Leftovers, num_wanted: int) -> list[Aim]:
    """What a drill must show."""
    return [
        at_most("requests lost", sum(fate.end == "lost" for fate in fates), 0),
        at_most("requests answered twice", sum(fate.num_ends > 1 for fate in fates), 0),
        at_least("requests accepted", sum(fate.accepted for fate in fates), num_wanted),
        at_most("lines of the job without a result", len(job.missing), 0),
        at_most("lines of the job with several", len(job.doubled), 0),
        at_most("messages that a group of Kafka has not finished", sum(left.lag.values()), 0),
        at_most("candidates left in Redis", left.num_waiting, 0),
        at_most("keys of requests in Redis after their expiry", len(left.keys), 0),
        at_most("junk messages that are not on pice.dead", len(left.missing_dead), 0),
        at_most("junk messages that are there twice", len(left.doubled_dead), 0),
        at_most("other messages on pice.dead", len(left.foreign_dead), 0),
        at_most("services that ended by themselves", len(left.ended), 0),
    ]
