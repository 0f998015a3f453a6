"""What a decision costs the planner: of a request, and of where a segment goes, by the number of sites.

Sites are as busy as a seed says. A heartbeat that every site sends is taken once for each request and not counted with
it, since nodes look at the sites at most four times a second; it stands beside.
"""

import cProfile
import pstats
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from bench.report import Aim, Measured, PathOption, QuickOption, Report, RoundsOption, Table, at_most, over, publish
from pice.core import CLOUD_SITE, Curve, Message, ModelState, Point, Request, Sampling, Segment, SiteState
from pice.plan.planner import EarliestFinish, PlanPolicy

SIZES = (1, 10, 100, 1000)
HEADLINE = 100
NUM_CALLS = 200
CURVE = Curve((1, 2, 4, 8), (0.013, 0.015, 0.018, 0.025), 0.001, 0.01)
MESSAGES = (Message("user", "What should I know before adopting a cat? " * 8),)
NUM_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of one call, the mean of `NUM_CALLS`, in one round."""

    num_sites: int
    round: int
    decide_s: float
    place_s: float
    see_s: float


def command(quick: QuickOption = False, path: PathOption = None, rounds: RoundsOption = None) -> None:
    """Seconds that a decision takes, of a request and of a segment, at 1 to 1,000 sites."""
    num_rounds = rounds or (3 if quick else 5)
    runs = [run(num_sites, number) for number in range(num_rounds) for num_sites in SIZES]
    publish(make_report(runs, num_rounds), path, partial(draw, runs=runs))


def run(num_sites: int, number: int) -> Run:
    """One round at one size."""
    planner, sites = EarliestFinish(PlanPolicy()), states(num_sites, random.Random(number))
    request, segment = Request("r", MESSAGES), a_segment()
    see_s = _mean_s(lambda: planner.see(sites), max(1, NUM_CALLS * 10 // num_sites))
    decide_s = _mean_s(lambda: planner.decide(request, 100), NUM_CALLS)
    place_s = _mean_s(lambda: planner.place(segment, 0.0), NUM_CALLS)
    return Run(num_sites, number, decide_s, place_s, see_s)


def states(num_sites: int, rng: random.Random) -> list[SiteState]:
    """A busy cloud and its sites, as they say they are."""
    names = [CLOUD_SITE, *(f"site-{number:04}" for number in range(num_sites))]
    return [
        SiteState(name, "main", at, (ModelState("m", 4096, 8, CURVE, busy, 80 * busy),), 0.0, 0.03)
        for at, name in enumerate(names)
        for busy in [rng.randint(0, 16)]
    ]


def a_segment() -> Segment:
    points = tuple(Point(index, "what a cat eats, and how often it does", 55) for index in range(4))
    return Segment("r", 1, 0, "expand", MESSAGES, points, points[-1:], 55, Sampling(), 100.0)


def _mean_s(call: Callable[[], object], num_calls: int) -> float:
    call()
    began_s = time.perf_counter()
    for _ in range(num_calls):
        call()
    return (time.perf_counter() - began_s) / num_calls


def profile(num_sites: int = HEADLINE) -> list[str]:
    """Where the time of decisions goes: the functions that take most of it themselves."""
    planner, segment, request = EarliestFinish(PlanPolicy()), a_segment(), Request("r", MESSAGES)
    planner.see(states(num_sites, random.Random(0)))
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(NUM_CALLS):
        planner.decide(request, 100)
        planner.place(segment, 0.0)
    profiler.disable()
    stats = pstats.Stats(profiler)
    total = sum(own_s for _, _, own_s, _, _ in stats.stats.values()) or 1.0  # type: ignore[attr-defined]
    ranked = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:NUM_SHOWN]  # type: ignore[attr-defined]
    return [f"{name} {own_s / total:.0%}" for (_, _, name), (_, _, own_s, _, _) in ranked]


def make_report(runs: Sequence[Run], num_rounds: int) -> Report:
    rows = [[f"{size}", *(_shown(_of(runs, size, name)) for name in _NAMES)] for size in SIZES]
    notes = (
        f"Medians (lowest-highest) of {num_rounds} rounds of {NUM_CALLS} calls, in microseconds.",
        f"At {HEADLINE} sites the time goes to: {', '.join(profile())}.",
    )
    table = Table("What a decision costs", ("sites", "a request", "a segment", "all heartbeats"), rows, notes)
    return Report(
        "planning", {"sites": SIZES, "calls": NUM_CALLS}, [asdict(it) for it in runs], list(aims(runs)), table
    )


_NAMES = ("decide_s", "place_s", "see_s")


def aims(runs: Sequence[Run]) -> Iterator[Aim]:
    for name, what, most_s in (("decide_s", "a request", 1e-3), ("place_s", "a segment", 1e-4)):
        yield at_most(f"{HEADLINE} sites: seconds of {what}", _of(runs, HEADLINE, name).median, most_s)


def _of(runs: Sequence[Run], num_sites: int, name: str) -> Measured:
    return over(getattr(it, name) for it in runs if it.num_sites == num_sites)


def _shown(measured: Measured) -> str:
    return Measured(measured.median * 1e6, measured.low * 1e6, measured.high * 1e6, measured.num).text(0)


def draw(figure: Any, runs: Sequence[Run]) -> None:
    """Times by the number of sites."""
    panel = figure.subplots()
    for name, label in zip(_NAMES, ("a request", "a segment", "all heartbeats"), strict=True):
        panel.plot(SIZES, [_of(runs, size, name).median * 1e6 for size in SIZES], "o-", label=label)
    panel.set(xscale="log", yscale="log", xlabel="sites", ylabel="microseconds")
    panel.legend()
