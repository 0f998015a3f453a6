"""Segments that leave while the sketch is being written, against waiting for the whole sketch: same seeds, virtual
time."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any, Literal

import typer

from bench.complete import require_complete
from bench.fleet import CLOUD_ENGINE, RTT_S, SITE_ENGINE, SITE_INFLIGHT, WORDS_PER_POINT, Fleet, curve, running
from bench.report import Aim, Measured, PathOption, QuickOption, Report, Table, at_least, at_most, over, publish
from pice.core import Answer, Message, Request, Sampling
from pice.metrics import percentile
from pice.simulation.clock import run_virtual
from pice.simulation.cluster import seeded

Load = Literal["unloaded", "loaded"]
LOADED_SHARE = 0.6
TIMES = ("e2e_s", "ttft_s", "first_segment_s")


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting in which both releases are compared. "loaded" is Poisson arrivals at 60 % of what the sites could
    write, "unloaded" one request after another. With `single` every point is a segment, so only the release differs;
    else the two merge points differently too: as they come, or evenly over the whole sketch."""

    num_points: int
    num_sites: int
    load: Load
    single: bool = False

    def fleet(self, *, eager: bool, seed: int) -> Fleet:
        return Fleet(self.num_sites, self.num_points, self.single, eager, seed)


@dataclass(frozen=True, slots=True)
class Run:
    """One seed's requests under one release; times of each request, in the order asked."""

    cell: Cell
    seed: int
    eager: bool
    num_segments: int
    num_candidates: int
    e2e_s: tuple[float, ...]
    ttft_s: tuple[float, ...]
    first_segment_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """One eager request, in seconds since it was asked: when its first segment was published, when each point was
    written to its end."""

    seed: int
    first_published_s: float
    points_written_s: tuple[float, ...]

    def is_early(self) -> bool:
        return self.first_published_s < self.points_written_s[2]


def command(quick: QuickOption = False, path: PathOption = None) -> None:
    """Eager release of segments against whole-sketch-first, on the same seeds, in virtual time."""
    cells = cells_of((5, 10, 20), (8,) if quick else (4, 8, 16))
    num_seeds, num_requests = (3, 8) if quick else (5, 20)
    runs = [
        play(cell, seed, eager=eager, num_requests=num_requests)
        for cell, seed, eager in product(cells, range(num_seeds), (False, True))
    ]
    traces = [trace(Cell(20, 8, "unloaded"), seed) for seed in range(num_seeds)]
    publish(make_report(runs, traces), path, lambda figure: draw(figure, runs))


def cells_of(points: Sequence[int], sites: Sequence[int]) -> list[Cell]:
    """All settings."""
    loads: tuple[Load, ...] = ("unloaded", "loaded")
    return [Cell(*setting) for setting in product(points, sites, loads, (False, True))]


def play(cell: Cell, seed: int, *, eager: bool, num_requests: int) -> Run:
    """Runs one seed's requests to their end on a virtual clock.

    Raises:
        Incomplete: an answer is not whole.
    """
    answers = run_virtual(_answers(cell, seed, eager=eager, num_requests=num_requests))
    require_complete(answers, cell.num_points, num_requests)
    spans = [span for answer in answers for span in answer.spans]
    num_candidates = sum(len(span.candidates) for span in spans)
    times = (tuple(getattr(answer.times, name) for answer in answers) for name in TIMES)
    return Run(cell, seed, eager, len(spans), num_candidates, *times)


def trace(cell: Cell, seed: int) -> Trace:
    """One request of this seed, released eagerly, watched."""

    async def main() -> Trace:
        async with running(cell.fleet(eager=True, seed=seed)) as (cluster, links, cloud):
            asked_s = asyncio.get_running_loop().time()
            await cluster.client.ask(_request(seed, 0))
            written_s = tuple(at_s - asked_s for at_s in cloud.lines_s[1:])
            return Trace(seed, links.segments_s[0] - asked_s, written_s)

    return run_virtual(main())


async def _answers(cell: Cell, seed: int, *, eager: bool, num_requests: int) -> list[Answer]:
    fleet, draw = cell.fleet(eager=eager, seed=seed), seeded(seed, "arrivals")
    async with running(fleet) as (cluster, _, _), asyncio.TaskGroup() as tasks:
        asked = []
        for number in range(num_requests):
            asked.append(tasks.create_task(cluster.client.ask(_request(seed, number))))
            if cell.load == "unloaded":
                await asked[-1]
            else:
                await asyncio.sleep(draw.expovariate(LOADED_SHARE * fleet.capacity_per_s()))
        return [await task for task in asked]


def _request(seed: int, number: int) -> Request:
    question = f"What should someone who moves into house {number} of street {seed} know about its garden?"
    sampling = Sampling(max_tokens=16_384, seed=number)
    return Request(f"r{number}", (Message("user", question),), sampling, timeout_s=900.0, mode="progressive")


@dataclass(frozen=True, slots=True)
class Compared:
    """Both releases in one cell, over its seeds: seconds by release, and eager / whole of the same seed."""

    whole: Measured
    eager: Measured
    ratio: Measured


def compare(runs: Sequence[Run], cell: Cell, name: str, percent: float) -> Compared:
    """A percentile of one of `TIMES`."""
    found = {(run.seed, run.eager): percentile(getattr(run, name), percent) for run in runs if run.cell == cell}
    seeds = sorted({seed for seed, _ in found})
    return Compared(
        over(found[seed, False] for seed in seeds),
        over(found[seed, True] for seed in seeds),
        over(found[seed, True] / found[seed, False] for seed in seeds),
    )


def cells_in(runs: Sequence[Run]) -> list[Cell]:
    return list(dict.fromkeys(run.cell for run in runs))


def aims(runs: Sequence[Run], traces: Sequence[Trace]) -> list[Aim]:
    """Waiting must not be better in any setting, by the median over its seeds."""
    worst = {
        f"{percent:.0f}th percentile of {name}": max(
            compare(runs, cell, name, percent).ratio.median for cell in cells_in(runs)
        )
        for percent, name in ((50, "e2e_s"), (95, "e2e_s"), (50, "ttft_s"))
    }
    early = sum(one.is_early() for one in traces) / len(traces)
    return [
        *(at_most(f"eager / whole, worst setting, {name}", value, 1.0) for name, value in worst.items()),
        at_least("share of traced requests with a segment published before the third point is written", early, 1.0),
    ]


def make_report(runs: Sequence[Run], traces: Sequence[Trace]) -> Report:
    load = {
        "cloud": {"engine": CLOUD_ENGINE, "curve": asdict(curve(CLOUD_ENGINE))},
        "site": {"engine": SITE_ENGINE, "curve": asdict(curve(SITE_ENGINE)), "max_inflight": SITE_INFLIGHT},
        "rtt_s": RTT_S,
        "words_per_point": WORDS_PER_POINT,
        "loaded_share": LOADED_SHARE,
    }
    detail = {"traces": [asdict(one) for one in traces]}
    return Report("eager", load, [asdict(run) for run in runs], aims(runs, traces), table(runs, traces), detail)


def table(runs: Sequence[Run], traces: Sequence[Trace]) -> Table:
    columns = (
        "points x sites, load, segments",
        "E2E p50 s, whole",
        "eager",
        "ratio p50",
        "ratio p95",
        "TTFT p50 s, whole",
        "eager",
        "1st segment p50 s, whole",
        "eager",
    )
    rows = [_row(runs, cell) for cell in cells_in(runs)]
    one = traces[0]
    written = ", ".join(f"{at_s:.2f}" for at_s in one.points_written_s[:3])
    notes = (
        f"Virtual time; {len(runs[0].e2e_s)} requests for each of {len({run.seed for run in runs})} seeds.",
        "Medians over seeds, ratios also lowest-highest. single: a segment for each point; merged: the default.",
        f"loaded: arrivals at {LOADED_SHARE:.0%} of what the sites can write; unloaded: one after another.",
        f"Traced, {len(one.points_written_s)} points: first segment published at {one.first_published_s:.2f} s;",
        f"points written at {written} and, the last, {one.points_written_s[-1]:.2f} s.",
    )
    return Table("Eager release / whole sketch first", columns, rows, notes)


def _row(runs: Sequence[Run], cell: Cell) -> list[str]:
    e2e, p95 = compare(runs, cell, "e2e_s", 50), compare(runs, cell, "e2e_s", 95)
    ttft, first = compare(runs, cell, "ttft_s", 50), compare(runs, cell, "first_segment_s", 50)
    return [
        named(cell),
        f"{e2e.whole.median:.2f}",
        f"{e2e.eager.median:.2f}",
        e2e.ratio.text(2),
        p95.ratio.text(2),
        f"{ttft.whole.median:.2f}",
        f"{ttft.eager.median:.2f}",
        f"{first.whole.median:.2f}",
        f"{first.eager.median:.2f}",
    ]


def named(cell: Cell) -> str:
    return f"{cell.num_points} x {cell.num_sites}, {cell.load}, {'single' if cell.single else 'merged'}"


def draw(figure: Any, runs: Sequence[Run]) -> None:
    """Distribution of E2E under both releases, a panel per sketch length and load, at the middle size of fleet."""
    sizes = sorted({run.cell.num_sites for run in runs})
    shown = [cell for cell in cells_in(runs) if cell.num_sites == sizes[len(sizes) // 2] and not cell.single]
    panels: Mapping[Load, list[Cell]] = {
        load: [cell for cell in shown if cell.load == load] for load in ("unloaded", "loaded")
    }
    axes = figure.subplots(2, len(panels["loaded"]), squeeze=False, sharey=True)
    figure.set_size_inches(4 * len(panels["loaded"]), 6)
    for row, cells in zip(axes, panels.values(), strict=True):
        for panel, cell in zip(row, cells, strict=True):
            _draw_cell(panel, [run for run in runs if run.cell == cell])
            panel.set_title(named(cell))
    axes[0][0].legend()
    for panel in axes[-1]:
        panel.set_xlabel("E2E, s (dashed: medians)")
    for row in axes:
        row[0].set_ylabel("share of requests")


def _draw_cell(panel: Any, runs: Sequence[Run]) -> None:
    for eager, colour in ((False, "tab:grey"), (True, "tab:blue")):
        values = sorted(value for run in runs if run.eager is eager for value in run.e2e_s)
        shares = [(rank + 1) / len(values) for rank in range(len(values))]
        panel.step(values, shares, where="post", color=colour, label="eager" if eager else "whole sketch first")
        panel.axvline(median(values), color=colour, linestyle="--", linewidth=1)


if __name__ == "__main__":
    typer.run(command)
