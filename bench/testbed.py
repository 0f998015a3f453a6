"""The testbed: six systems on published hardware figures and production arrivals, in virtual time.

The real planner, nodes, queue and store run under a virtual clock; only the models are emulated, at the pace of
published curves. The cloud is llama2-70b on eight H100-80GB, sites are a gaming GPU, a desktop and a board in turn
(`bench.testbed_data`). Questions are the 80 of Vicuna with the lengths of real answers, arrivals those of Azure's
conversation trace, scaled. What suits a sketch is decided by a person's labels (`labels`), or by length alone: every
answer that a sketch and an idle site finish sooner than an idle cloud (`length`).

Nothing here says how good the answers are. That a sketch has a fifth of its answer's length is assumed and swept, and
so is what a batch costs a small machine. A model that is asked for a shorter sketch than usual is taken to write one
that is shorter by as much.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Annotated, Any

import typer

from bench.report import Aim, PathOption, QuickOption, Report, Table, at_least, at_most, publish
from bench.testbed_run import GATES, GOOD_E2E_S, GOOD_TTFT_S, Cell, Figures, Gate, World, play_all
from bench.testbed_systems import ABLATIONS, SYSTEMS, System

LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
QUICK_LOADS = (0.2, 0.8)
HEADLINE, LOWEST = 0.8, 0.2
SIZES = (2, 4, 8, 12, 16, 24, 32, 48, 64)
ENOUGH = 0.97
"""Of what the largest fleet gives: the smallest that gives so much carries the load."""
NO_WORSE = 1.02
AIMS: Mapping[Gate, tuple[float, float]] = {"labels": (1.6, 0.4), "length": (3.5, 0.25)}
"""Of each gate: throughput at least, and median E2E at most, in parts of cloud-only's."""
SWEEPS: Mapping[str, Sequence[float]] = {
    "sketch_ratio": (0.1, 0.15, 0.2, 0.3, 0.4),
    "speed": (0.5, 1.0, 2.0),
    "batching": (0.5, 1.0, 2.0),
    "rtt_s": (0.01, 0.03, 0.1),
    "bits_per_s": (5e6, 50e6, 100e6),
}
TIMES = ("e2e_p50_s", "e2e_p95_s", "ttft_p50_s", "ttft_p95_s")

SeedsOption = Annotated[int | None, typer.Option("--seeds", min=1, help="Runs of each cell; else 3, with --quick 1.")]
PaperOption = Annotated[bool, typer.Option("--paper", help="The six systems alone: no ablations, no sweeps.")]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played: so many seeds of so many requests at each of the loads, shares of what cloud-only sustains."""

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
        else Plan(seeds or 3, 500, 1200, LOADS, SIZES, whole=not paper)
    )
    found = Testbed(plan).played()
    publish(found.report(), path, found.draw)


class Testbed:
    """Plays what the plan says, one set of cells after another, since later ones take sizes and rates from earlier."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._found: dict[Cell, Figures] = {}

    def played(self) -> "Found":
        base = self._base_rate()
        worlds = {gate: World(self._fleet(gate)) for gate in GATES}
        main = [
            cell
            for gate, system in ((gate, system) for gate in GATES for system in SYSTEMS)
            for cell in self._cells(system, gate, worlds[gate], base)
        ]
        self._play(main)
        small = [cell for gate in GATES for size in (0, 2) for cell in self._cells("pice", gate, World(size), base)]
        self._play(small)
        ablated = [
            replace(cell, without=name)
            for name in (ABLATIONS if self._plan.whole else ())
            for gate in GATES
            for cell in self._cells("pice", gate, worlds[gate], base, loads=(HEADLINE,))
        ]
        self._play(ablated)
        swept = [
            cell
            for gate in (GATES if self._plan.whole else ())
            for world in _swept(worlds[gate])
            for cell in self._cells("pice", gate, world, base, loads=(HEADLINE,))
        ]
        self._play(swept)
        return Found(self._plan, base, worlds, dict(self._found))

    def _base_rate(self) -> float:
        """Requests per second that cloud-only sustains."""
        cells = [self._cell("cloud-only", "labels", World(0), None, seed) for seed in range(self._plan.num_seeds)]
        return median(figures.answers_per_s for figures in self._play(cells))

    def _fleet(self, gate: Gate) -> int:
        """The smallest that gives nearly as much as the largest."""
        cells = [self._cell("pice", gate, World(size), None, 0) for size in self._plan.sizes]
        rates = {cell.world.num_sites: each.answers_per_s for cell, each in zip(cells, self._play(cells), strict=True)}
        most = max(rates.values())
        return min(size for size, rate in rates.items() if rate >= ENOUGH * most)

    def _cells(
        self, system: System, gate: Gate, world: World, base: float, *, loads: Sequence[float] | None = None
    ) -> Iterator[Cell]:
        for seed in range(self._plan.num_seeds):
            yield self._cell(system, gate, world, None, seed)
            for load in self._plan.loads if loads is None else loads:
                yield self._cell(system, gate, world, load * base, seed)

    def _cell(self, system: System, gate: Gate, world: World, rate: float | None, seed: int) -> Cell:
        num = self._plan.num_requests if rate else self._plan.num_saturated
        return Cell(system, gate, world, rate, seed, num)

    def _play(self, cells: Sequence[Cell]) -> list[Figures]:
        new = [cell for cell in dict.fromkeys(cells) if cell not in self._found]
        for figures in play_all(new, lambda line: typer.echo(line, err=True)):
            self._found[figures.cell] = figures
        return [self._found[cell] for cell in cells]


def _swept(world: World) -> Iterator[World]:
    for name, values in SWEEPS.items():
        for value in values:
            yield replace(world, **{name: value})
    for size in SIZES:
        yield replace(world, num_sites=size)


@dataclass(frozen=True, slots=True)
class Found:
    """All figures, and what they are measured by: what cloud-only sustains, and the fleet of each gate."""

    plan: Plan
    base: float
    worlds: Mapping[Gate, World]
    figures: Mapping[Cell, Figures]

    def of(self, system: System, gate: Gate, load: float | None, name: str, *, world: World | None = None) -> float:
        """The median over the seeds."""
        rate = None if load is None else load * self.base
        world = world or self.worlds[gate]
        return median(
            getattr(figures, name)
            for cell, figures in self.figures.items()
            if (cell.system, cell.gate, cell.rate, cell.world, cell.without) == (system, gate, rate, world, "")
        )

    def report(self) -> Report:
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
            aims=list(self._aims()),
            table=Table("Six systems in virtual time", _COLUMNS, list(self._rows()), self._notes()),
        )

    def _rows(self) -> Iterator[list[str]]:
        for gate in GATES:
            for system in SYSTEMS:
                yield [f"{gate} ({self.worlds[gate].num_sites} sites)", system, *self._row(system, gate)]

    def _row(self, system: System, gate: Gate) -> list[str]:
        saturated = self.of(system, gate, None, "answers_per_s")
        times = [self.of(system, gate, HEADLINE, name) for name in TIMES]
        good, edge, use = (self.of(system, gate, HEADLINE, name) for name in ("good_per_s", "edge_tokens", "edge_use"))
        return [
            f"{saturated:.2f} ({saturated / self.base:.2f}x)",
            *(f"{seconds:.2f}" for seconds in times),
            f"{good:.2f}",
            f"{edge:.2f}",
            f"{use:.0%}",
        ]

    def _notes(self) -> list[str]:
        return [
            f"Cloud-only sustains {self.base:.2f} answers/s; times, goodput, edge figures: at {HEADLINE:.0%} of it.",
            f"Medians of {self.plan.num_seeds} seeds. Goodput: TTFT <= {GOOD_TTFT_S:g} s and E2E <= {GOOD_E2E_S:g} s.",
            "Edge tokens: decoded at sites for each token of an answer, losers and what was cancelled included.",
        ]

    def _aims(self) -> Iterator[Aim]:
        for gate in GATES:
            yield from self._gate_aims(gate, *AIMS[gate])

    def _gate_aims(self, gate: Gate, times: float, lower: float) -> Iterator[Aim]:
        others: Sequence[System] = ("pice-paper", "router")

        def ratio(name: str, load: float | None, to: System = "cloud-only", *, size: int | None = None) -> float:
            world = None if size is None else World(size)
            other = self.of(to, gate, load, name)
            return self.of("pice", gate, load, name, world=world) / other if other else 1.0

        yield at_least(f"{gate}: throughput / cloud-only", ratio("answers_per_s", None), times)
        yield at_most(f"{gate}: median E2E / cloud-only at {HEADLINE:.0%}", ratio("e2e_p50_s", HEADLINE), lower)
        for name in ("e2e_p95_s", "ttft_p95_s"):
            yield at_most(f"{gate}: {name} / cloud-only at {HEADLINE:.0%}", ratio(name, HEADLINE), 1.0)
        yield at_most(f"{gate}: median E2E / cloud-only at {LOWEST:.0%}", ratio("e2e_p50_s", LOWEST), NO_WORSE)
        for size, what in ((0, "no site"), (2, "two sites")):
            for load in (LOWEST, HEADLINE):
                value = ratio("e2e_p50_s", load, size=size)
                yield at_most(f"{gate}, {what}: median E2E / cloud-only at {load:.0%}", value, NO_WORSE)
            value = ratio("answers_per_s", None, size=size)
            yield at_least(f"{gate}, {what}: throughput / cloud-only", value, 1 / NO_WORSE)
        for other in others:
            values = [ratio("e2e_p50_s", load, other) for load in self.plan.loads]
            yield at_most(f"{gate}: median E2E / {other}, worst load", max(values), 1.0)
            yield at_least(f"{gate}: throughput / {other}", ratio("answers_per_s", None, other), 1.0)

    def draw(self, figure: Any) -> None:
        """Throughput and median E2E against the load, for each gate."""
        axes = figure.subplots(2, len(GATES), squeeze=False)
        for column, gate in enumerate(GATES):
            for system in SYSTEMS:
                for row, (name, label) in enumerate((("e2e_p50_s", "median E2E, s"), ("good_per_s", "goodput, 1/s"))):
                    values = [self.of(system, gate, load, name) for load in self.plan.loads]
                    axes[row][column].plot(self.plan.loads, values, marker="o", label=system)
                    axes[row][column].set(ylabel=label, xlabel="load, of what cloud-only sustains")
                    axes[row][column].set_title(f"{gate}, {self.worlds[gate].num_sites} sites")
            axes[0][column].set_yscale("log")
        axes[0][0].legend(fontsize=7)


_COLUMNS = (
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
)
