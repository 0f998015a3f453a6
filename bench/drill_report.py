"""A drill's table, picture and verdict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.drill_counts import ALL, QUIET, Fate, JobFate, Leftovers, Tally, Window, aims, tallies, window_of
from bench.report import Aim, Report, Table, at_most

PER_S = 6.0
GRACE_S = 10.0
"""How long after its deadline a request is waited for."""


@dataclass(frozen=True, slots=True)
class Drilled:
    """What a drill came to. Times of fates and windows are seconds of one clock."""

    fates: Sequence[Fate]
    windows: Sequence[Window]
    job: JobFate
    left: Leftovers
    forged: Sequence[str]
    num_junk: int
    timeout_s: float


def all_aims(found: Drilled, num_wanted: int) -> list[Aim]:
    return [
        *aims(found.fates, found.job, found.left, num_wanted),
        at_most("answers with forged text", len(found.forged), 0),
    ]


def make_report(found: Drilled, num_wanted: int) -> Report:
    load = {"requests_per_s": PER_S, "requests_wanted": num_wanted, "timeout_s": found.timeout_s, "grace_s": GRACE_S}
    detail = {
        "faults": [document(tally) for tally in tallies(found.fates, found.windows)],
        "windows": [asdict(window) for window in found.windows],
        "job": asdict(found.job),
        "leftovers": asdict(found.left),
        "num_junk": found.num_junk,
    }
    runs = [asdict(fate) | {"fault": window_of(fate, found.windows)} for fate in found.fates]
    return Report("drill", load, runs, all_aims(found, num_wanted), table(found), detail)


def table(found: Drilled) -> Table:
    notes = (
        f"{PER_S:g} requests/s, whatever becomes of them; each must be over {found.timeout_s:g} s after it was asked.",
        "A request counts to the first fault that fell into its life, from when it was due until its end was known.",
        "failed: ended by name of its cause, in time; lost: accepted, and not ended within 10 s after its deadline.",
        "twice: more than one final event, or two different outcomes. ready: every service says so at /readyz.",
        f"Beside them a batch job of {found.job.num_lines} lines, of which {sum(found.job.failed.values())} failed.",
        f"junk: {found.num_junk} messages, {len(found.left.missing_dead)} of them missing on pice.dead.",
    )
    windows = found.windows
    return Table("Nothing lost: one fault after another", COLUMNS, rows(tallies(found.fates, windows), windows), notes)


COLUMNS = (
    "fault",
    "asked",
    "accepted",
    "answered",
    "degraded",
    "refused",
    "failed, by cause",
    "lost",
    "twice",
    "E2E p50 s",
    "p99",
    "extra p50 s",
    "p99",
    "ready after s",
)


def rows(found: Sequence[Tally], windows: Sequence[Window]) -> list[list[str]]:
    """A row for each tally; extra is beside the quiet times. Of a fault that came more than once the longest time until
    all were ready."""
    quiet = next(tally for tally in found if tally.name == QUIET)
    return [_row(tally, quiet, [one.ready_s for one in windows if one.fault == tally.name]) for tally in found]


def _row(tally: Tally, quiet: Tally, ready_s: Sequence[float]) -> list[str]:
    own, base = ([one.percentile_s(percent) for percent in (50, 99)] for one in (tally, quiet))
    extra = [
        _minus(one, other) if tally.name not in (QUIET, ALL) else None for one, other in zip(own, base, strict=True)
    ]
    counts = (tally.num_asked, tally.num_accepted, tally.num_answered, tally.num_degraded)
    return [
        tally.name,
        *map(str, counts),
        _causes(tally.refused),
        _causes(tally.failed),
        str(tally.num_lost),
        str(tally.num_twice),
        *map(_seconds, own),
        *map(_seconds, extra),
        _seconds(max(ready_s, default=None)),
    ]


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _causes(counts: Counter[str]) -> str:
    return ", ".join(f"{num} {cause}" for cause, num in counts.most_common()) or "0"


def document(tally: Tally) -> dict[str, Any]:
    """For the file, without the single times, which stand with the requests."""
    return {
        "fault": tally.name,
        "asked": tally.num_asked,
        "accepted": tally.num_accepted,
        "answered": tally.num_answered,
        "degraded": tally.num_degraded,
        "refused": dict(tally.refused),
        "failed": dict(tally.failed),
        "lost": tally.num_lost,
        "twice": tally.num_twice,
        "e2e_p50_s": tally.percentile_s(50),
        "e2e_p99_s": tally.percentile_s(99),
    }


def draw(figure: Any, found: Drilled) -> None:
    """E2E of each request by when it was asked, faults shaded."""
    axes, began_s = figure.subplots(), min(fate.asked_s for fate in found.fates)
    figure.set_size_inches(12, 6)
    for colour, label, chosen in (
        ("tab:blue", "answered", [fate for fate in found.fates if fate.end == "answered" and not fate.degraded]),
        ("tab:orange", "degraded", [fate for fate in found.fates if fate.degraded]),
        ("tab:red", "failed, refused or lost", [fate for fate in found.fates if fate.end != "answered"]),
    ):
        at_s, took_s = [fate.asked_s - began_s for fate in chosen], [fate.e2e_s for fate in chosen]
        axes.plot(at_s, took_s, ".", color=colour, label=label, markersize=3)
    for window in found.windows:
        axes.axvspan(window.begin_s - began_s, window.end_s - began_s, color="tab:grey", alpha=0.2)
        axes.text(
            window.begin_s - began_s, 1.0, window.fault, rotation=90, va="top", transform=axes.get_xaxis_transform()
        )
    axes.set_xlabel("asked at, s")
    axes.set_ylabel("E2E, s")
    axes.set_yscale("log")
    axes.legend()
