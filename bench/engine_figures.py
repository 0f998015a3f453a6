"""The runs of `bench/engine.py` -> ratios, aims, table and picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.engine_work import Done
from bench.report import Aim, Measured, Table, at_least, over

PICE, PROCESS, BARE = "pice", "pice-process", "pice-no-logprobs"
SEQUENTIAL, SERVER, CEILING = "create_completion", "llama-server", "llama-batched-bench"
COLD, WARM, GREEDY = "cold", "warm", "greedy"
PHASES = (COLD, WARM, GREEDY)
"""Prefix never seen, prefix of the run before; both drawn. And the latter with the likeliest token."""

DECODE_AIM = 0.97
LOGPROB_AIM = 0.98
COMPARED_SIZE = 8
COLD_SERVER_AIM, WARM_SERVER_AIM = 1.8, 1.0
SEQUENTIAL_AIMS = {"half-b-q8_0": 1.8, "half-b-q4_0": 2.2}


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's job. Where no text was written all but `decode_per_s` is 0; that is None where there was no time
    in which all segments were decoded."""

    model: str
    size: int
    contender: str
    phase: str
    round: int
    decode_per_s: float | None
    wall_s: float = 0.0
    tokens_per_s: float = 0.0
    ttft_s: float = 0.0
    num_evaluated: int = 0
    step_shares: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """What is compared: all contenders on one model with so many segments at once."""

    model: str
    size: int

    def __str__(self) -> str:
        return f"{self.model} x {self.size}"


def as_run(cell: Cell, contender: str, phase: str, number: int, done: Done) -> Run:
    run = Run(cell.model, cell.size, contender, phase, number, done.decode_per_s)
    if not done.segments:
        return run
    tokens = sum(each.num_tokens for each in done.segments)
    return replace(
        run,
        wall_s=done.wall_s,
        tokens_per_s=tokens / done.wall_s,
        ttft_s=done.ttft_s,
        num_evaluated=done.num_evaluated,
        step_shares=done.step_shares,
    )


class Figures:
    """All runs, by what they are compared by."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.cells = list(dict.fromkeys(Cell(run.model, run.size) for run in runs))
        self.contenders = list(dict.fromkeys(run.contender for run in runs))

    def of(self, cell: Cell, contender: str, *phases: str) -> list[Run]:
        return [
            run
            for run in self.runs
            if (run.model, run.size, run.contender) == (cell.model, cell.size, contender)
            and (not phases or run.phase in phases)
        ]

    def measured(self, cell: Cell, contender: str, name: str, *phases: str) -> Measured | None:
        """Of one figure; None where that contender has none."""
        values = [value for run in self.of(cell, contender, *phases) if (value := getattr(run, name)) is not None]
        return over(values) if values else None

    def ratio(self, cell: Cell, name: str, above: str, below: str, *phases: str) -> Measured | None:
        """One contender's figure over the other's in the same round and, but for the ceiling, phase."""
        found = {(run.round, run.phase): getattr(run, name) for run in self.of(cell, below)}
        ratios = [
            over_it / under
            for run in self.of(cell, above, *phases)
            if (under := found.get((run.round, CEILING if below == CEILING else run.phase)))
            if (over_it := getattr(run, name)) is not None
        ]
        return over(ratios) if ratios else None

    def aims(self) -> list[Aim]:
        """Of medians; where both contenders ran."""
        return [
            at_least(f"{cell}: {name}", found.median, bound)
            for cell in self.cells
            for name, found, bound in self._aimed(cell)
            if found
        ]

    def _aimed(self, cell: Cell) -> Iterator[tuple[str, Measured | None, float]]:
        drawn = (COLD, WARM)
        yield "decode / ceiling", self.ratio(cell, "decode_per_s", PICE, CEILING, *drawn), DECODE_AIM
        if cell.size != COMPARED_SIZE:
            return
        on_off = self.ratio(cell, "decode_per_s", PICE, BARE, *drawn)
        yield "decode with log-probabilities / without", on_off, LOGPROB_AIM
        yield "cold wall, llama-server / pice", self.ratio(cell, "wall_s", SERVER, PICE, COLD), COLD_SERVER_AIM
        yield "warm wall, llama-server / pice", self.ratio(cell, "wall_s", SERVER, PICE, WARM), WARM_SERVER_AIM
        if bound := SEQUENTIAL_AIMS.get(cell.model):
            yield "cold wall, one by one / pice", self.ratio(cell, "wall_s", SEQUENTIAL, PICE, COLD), bound

    def summary(self) -> list[dict[str, Any]]:
        """What the table shows, as numbers."""
        return [
            {
                "model": cell.model,
                "size": cell.size,
                "process / thread, cold wall": _median(self.ratio(cell, "wall_s", PROCESS, PICE, COLD)),
                "process / thread, decode": _median(self.ratio(cell, "decode_per_s", PROCESS, PICE, COLD, WARM)),
                "step_shares": self.step_shares(cell),
            }
            for cell in self.cells
        ]

    def step_shares(self, cell: Cell, contender: str = PICE) -> dict[str, float]:
        """Medians over the runs."""
        shares = [run.step_shares for run in self.of(cell, contender, COLD, WARM) if run.step_shares]
        return {name: over(each[name] for each in shares).median for name in (shares[0] if shares else ())}

    def table(self, notes: Sequence[str]) -> Table:
        columns = (
            "model x segments",
            "contender",
            "wall s, cold",
            "wall s, warm",
            "greedy",
            "decode tok/s",
            "/ ceiling",
            "TTFT s",
            "evaluated",
            "not eval.",
        )
        rows = [
            [str(cell), contender, *self._row(cell, contender)]
            for cell in self.cells
            for contender in self.contenders
            if self.of(cell, contender)
        ]
        return Table("Segments decoded together", columns, rows, notes)

    def _row(self, cell: Cell, contender: str) -> list[str]:
        def measured(name: str, *phases: str) -> Measured | None:
            return self.measured(cell, contender, name, *phases)

        cold, warm = (measured("num_evaluated", phase) for phase in (COLD, WARM))
        shares = self.step_shares(cell, contender)
        return [
            *(_spread(measured("wall_s", phase), 2) for phase in (COLD, WARM)),
            _middle(measured("wall_s", GREEDY), 2),
            _spread(measured("decode_per_s", COLD, WARM, CEILING), 0),
            _middle(self.ratio(cell, "decode_per_s", contender, CEILING, COLD, WARM), 2),
            _middle(measured("ttft_s", COLD), 2),
            f"{cold.median:.0f}/{warm.median:.0f}" if cold and warm else "",
            f"{1 - shares['evaluating']:.1%}" if shares else "",
        ]

    def draw(self, figure: Any) -> None:
        """For each model: decode rate, cold walls and warm walls against segments at once."""
        models = list(dict.fromkeys(cell.model for cell in self.cells))
        axes = figure.subplots(len(models), 3, squeeze=False)
        figure.set_size_inches(14, 4 * len(models))
        for row, model in zip(axes, models, strict=True):
            cells = sorted((cell for cell in self.cells if cell.model == model), key=lambda cell: cell.size)
            self._panel(row[0], cells, "decode_per_s", (COLD, WARM, CEILING), f"{model}: decode, tok/s")
            self._panel(row[1], cells, "wall_s", (COLD,), "wall s, cold prefix")
            self._panel(row[2], cells, "wall_s", (WARM,), "wall s, warm prefix")
        axes[0][0].legend()

    def _panel(self, panel: Any, cells: Sequence[Cell], name: str, phases: tuple[str, ...], title: str) -> None:
        for number, contender in enumerate(self.contenders):
            found = [(cell.size, self.measured(cell, contender, name, *phases)) for cell in cells]
            known = [(size, value) for size, value in found if value]
            if known:
                sizes, values = zip(*known, strict=True)
                panel.plot(sizes, [value.median for value in values], "o-", color=f"C{number}", label=contender)
                panel.vlines(sizes, [value.low for value in values], [value.high for value in values], f"C{number}")
        panel.set_xscale("log", base=2)
        panel.set_xticks([cell.size for cell in cells], [str(cell.size) for cell in cells])
        panel.set_xlabel("segments at once (bars: lowest to highest)")
        panel.set_ylim(bottom=0)
        panel.set_title(title)


def _median(found: Measured | None) -> float | None:
    return found.median if found else None


def _middle(found: Measured | None, decimals: int) -> str:
    return f"{found.median:,.{decimals}f}" if found else ""


def _spread(found: Measured | None, decimals: int) -> str:
    return found.text(decimals) if found else ""
