"""The testbed: six systems on published hardware figures and production arrivals, in virtual time.

The real planner, nodes, queue and store run under a virtual clock; only the models are emulated, at the pace of
published curves. The cloud is llama2-70b on eight H100-80GB, sites are a gaming GPU, a desktop and a board in turn
(`bench.testbed_data`). Questions are the 80 of Vicuna with the lengths of real answers, arrivals those of Azure's
conversation trace, scaled. What suits a sketch is decided by a person's labels (`labels`), or by length alone: every
answer that a sketch and an idle site finish sooner than an idle cloud (`length`). For each the fleet is the smallest
that gives nearly what the largest does.

Nothing here says how good the answers are. That a sketch has a fifth of its answer's length is assumed and swept, and
so is what a batch costs a small machine. A model that is asked for a shorter sketch than usual is taken to write one
that is shorter by as much.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Annotated, Any

import typer

from bench.report import PathOption, QuickOption, Report, Table, publish
from bench.testbed_aims import HEADLINE, aims
from bench.testbed_run import GATES, GOOD_E2E_S, GOOD_TTFT_S, Cell, Figures, Gate, Line, World, play_all
from bench.testbed_systems import ABLATIONS, SYSTEMS

LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
QUICK_LOADS = (0.2, 0.8)
SIZES = (2, 4, 8, 12, 16, 24, 32, 48, 64)
ENOUGH = 0.97
"""Of what the largest fleet gives."""
SMALL = (0, 2)
SWEEPS: Mapping[str, Sequence[float]] = {
    "sketch_ratio": (0.1, 0.15, 0.2, 0.3, 0.4, 0.6),
    "suited": (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
    "num_sites": SIZES,
    "speed": (0.5, 1.0, 2.0),
    "batching": (0.5, 1.0, 2.0),
    "rtt_s": (0.01, 0.03, 0.1),
    "bits_per_s": (5e6, 50e6, 100e6),
    "num_dying": (0, 1),
}
COLUMNS = (
    "gate",
    "system",
    "answers/s, saturated",
    "E2E p50",
    "p95",
    "TTFT p50",
    "p95",
    "goodput/s",
    "edge tok/tok",
    "edge use",
    "off by",
)

SeedsOption = Annotated[int | None, typer.Option("--seeds", min=1, help="Runs of each cell; else 3, with --quick 1.")]
PaperOption = Annotated[bool, typer.Option("--paper", help="The six systems alone: no ablations, no sweeps.")]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played: so many seeds, of so many requests at each of the loads (shares of what cloud-only sustains) and
    saturated. Sweeps have one seed."""

    num_seeds: int
    num_requests: int
    num_saturated: int
    loads: Sequence[float]
    sizes: Sequence[int]
    whole: bool


def command(
    quick: QuickOption = False, path: PathOption = None, paper: PaperOption = False, seeds: SeedsOption = None
) -> None:
    """Cloud-only, edge-only, routing, sketch-at-cloud, the paper's scheme and PICE, in virtual time."""
    plan = (
        Plan(seeds or 1, 160, 500, QUICK_LOADS, (8, 24), whole=False)
        if quick
        else Plan(seeds or 3, 320, 800, LOADS, SIZES, whole=not paper)
    )
    found = Testbed(plan).played()
    publish(found.report(), path, found.draw)


class Testbed:
    """Plays what the plan says. Rates and fleets are found first, since all the rest takes them from there."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._figures: dict[Cell, Figures] = {}

    def played(self) -> "Found":
        base = self._base_rate()
        worlds = {gate: World(self._fleet(gate)) for gate in GATES}
        lines = [line for gate in GATES for line in self._lines(gate, worlds[gate])]
        self._play([cell for line in lines for cell in self._cells(line, base)])
        return Found(self._plan, base, worlds, lines, dict(self._figures))

    def _lines(self, gate: Gate, world: World) -> Iterator[Line]:
        every, some = self._plan.loads, (HEADLINE,)
        yield from (Line(system, gate, world, every) for system in SYSTEMS)
        yield from (Line("pice", gate, World(size), every, label=f"pice, {size} sites") for size in SMALL)
        if self._plan.whole:
            yield from (Line("pice", gate, world, some, without=name, label=f"pice, no {name}") for name in ABLATIONS)
            for name, values in SWEEPS.items():
                for value in values:
                    other = replace(world, **{name: value})
                    yield Line("pice", gate, other, some, label=f"pice, {name} {value:g}", once=True)

    def _base_rate(self) -> float:
        """Requests per second that cloud-only sustains."""
        line = Line("cloud-only", "labels", World(0), ())
        return median(figures.answers_per_s for figures in self._play(list(self._cells(line, 1.0))))

    def _fleet(self, gate: Gate) -> int:
        """The smallest that gives nearly as much as the largest."""
        lines = [Line("pice", gate, World(size), (), once=True) for size in self._plan.sizes]
        found = self._play([cell for line in lines for cell in self._cells(line, 1.0)])
        most = max(figures.answers_per_s for figures in found)
        return min(it.cell.world.num_sites for it in found if it.answers_per_s >= ENOUGH * most)

    def _cells(self, line: Line, base: float) -> Iterator[Cell]:
        plan = self._plan
        for seed in range(1 if line.once else plan.num_seeds):
            yield line.cell(None, seed, plan.num_saturated)
            yield from (line.cell(load * base, seed, plan.num_requests) for load in line.loads)

    def _play(self, cells: Sequence[Cell]) -> list[Figures]:
        new = [cell for cell in dict.fromkeys(cells) if cell not in self._figures]
        for figures in play_all(new, lambda line: typer.echo(line, err=True)):
            self._figures[figures.cell] = figures
        return [self._figures[cell] for cell in cells]


@dataclass(frozen=True, slots=True)
class Found:
    """All figures, and what they are measured by: what cloud-only sustains, and the fleet of each gate."""

    plan: Plan
    base: float
    worlds: Mapping[Gate, World]
    lines: Sequence[Line]
    figures: Mapping[Cell, Figures]

    def of(self, line: Line, load: float | None, name: str) -> float:
        """The median over the seeds; saturated where there is no load."""
        rate = None if load is None else load * self.base
        found = [it for cell, it in self.figures.items() if cell.is_of(line) and cell.rate == rate]
        return median(getattr(it, name) for it in found)

    def report(self) -> Report:
        rows = [self._row(line) for line in self.lines]
        return Report(
            name="testbed",
            load={
                "requests": self.plan.num_requests,
                "saturated": self.plan.num_saturated,
                "seeds": self.plan.num_seeds,
                "cloud_only_per_s": self.base,
                "fleets": {gate: world.num_sites for gate, world in self.worlds.items()},
                "good": {"ttft_s": GOOD_TTFT_S, "e2e_s": GOOD_E2E_S},
            },
            runs=[asdict(figures) for figures in self.figures.values()],
            aims=list(aims(self.lines, self.of, self.plan.loads)),
            table=Table("Six systems in virtual time", COLUMNS, rows, self._notes()),
        )

    def _row(self, line: Line) -> list[str]:
        saturated = self.of(line, None, "answers_per_s")
        times = [self.of(line, HEADLINE, name) for name in ("e2e_p50_s", "e2e_p95_s", "ttft_p50_s", "ttft_p95_s")]
        good, edge, use, off = (
            self.of(line, HEADLINE, name) for name in ("good_per_s", "edge_tokens", "edge_use", "prediction_error")
        )
        return [
            f"{line.gate} ({line.world.num_sites} sites)",
            line.label or line.system,
            f"{saturated:.2f} ({saturated / self.base:.2f}x)",
            *(f"{seconds:.2f}" for seconds in times),
            f"{good:.2f}",
            f"{edge:.2f}",
            f"{use:.0%}",
            f"{off:.0%}",
        ]

    def _notes(self) -> list[str]:
        return [
            f"Cloud-only sustains {self.base:.2f} answers/s; all but the first figure: at {HEADLINE:.0%} of it.",
            f"Medians of {self.plan.num_seeds} seeds. Goodput: TTFT <= {GOOD_TTFT_S:g} s and E2E <= {GOOD_E2E_S:g} s.",
            "Edge tokens: decoded at sites for each token of an answer, losers and what was cancelled included.",
            "Off by: the median of how far an E2E time was from the one predicted, against itself.",
        ]

    def draw(self, figure: Any) -> None:
        """A column for each gate: median E2E and goodput against the load, and what two of the sweeps gain."""
        figure.set_size_inches(12, 12)
        axes = figure.subplots(3, len(GATES), squeeze=False)
        for column, gate in enumerate(GATES):
            systems = [line for line in self.lines if line.gate == gate and not line.label]
            for row, (name, label) in enumerate((("e2e_p50_s", "median E2E, s"), ("good_per_s", "goodput, 1/s"))):
                for line in systems:
                    values = [self.of(line, load, name) for load in self.plan.loads]
                    axes[row][column].plot(self.plan.loads, values, marker="o", label=line.system)
                axes[row][column].set(ylabel=label, xlabel="load / what cloud-only sustains")
            axes[0][column].set_title(f"{gate}, {self.worlds[gate].num_sites} sites")
            axes[0][column].set_yscale("log")
            axes[0][column].legend(fontsize=7)
            self._draw_gains(axes[2][column], gate)

    def _draw_gains(self, panel: Any, gate: Gate) -> None:
        for name in ("sketch_ratio", "suited"):
            swept = [line for line in self.lines if line.gate == gate and line.label.startswith(f"pice, {name} ")]
            gains = [self.of(line, None, "answers_per_s") / self.base for line in swept]
            panel.plot([getattr(line.world, name) for line in swept], gains, marker="o", label=name)
        panel.axhline(1.0, linestyle=":", color="grey")
        panel.set(ylabel="throughput / cloud-only, saturated", xlabel="sketch ratio; share of questions that suit")
        panel.legend(fontsize=7)
