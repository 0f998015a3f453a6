"""What the testbed aims at: PICE against cloud-only, the paper's scheme and a router."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.report import Aim, at_least, at_most
from bench.testbed_run import GATES, Gate, Line

HEADLINE = 0.8
"""The load at which times are compared, as a share of what cloud-only sustains."""
NO_WORSE = 1.02
AIMS: Mapping[Gate, tuple[float, float]] = {"labels": (1.6, 0.4), "length": (3.5, 0.25)}
"""Of each gate: throughput at least, and median E2E at most, in parts of cloud-only's."""

Of = Callable[[Line, float | None, str], float]
"""A figure of a line at a load; saturated where there is none."""


def aims(lines: Sequence[Line], of: Of, loads: Sequence[float]) -> Iterator[Aim]:
    """Every aim of every gate. `loads` are those that the systems were played at."""
    for gate in GATES:
        by_name = {line.label or line.system: line for line in lines if line.gate == gate}
        yield from _Gate(gate, by_name, of, loads).aims()


class _Gate:
    def __init__(self, gate: Gate, lines: Mapping[str, Line], of: Of, loads: Sequence[float]) -> None:
        self._gate = gate
        self._lines = lines
        self._of = of
        self._loads = loads

    def aims(self) -> Iterator[Aim]:
        gate, (times, lower) = self._gate, AIMS[self._gate]
        yield at_least(f"{gate}: throughput / cloud-only", self._ratio("answers_per_s", None), times)
        yield at_most(f"{gate}: median E2E / cloud-only at {HEADLINE:.0%}", self._ratio("e2e_p50_s", HEADLINE), lower)
        for name, what in (("e2e_p95_s", "p95 E2E"), ("ttft_p95_s", "p95 TTFT")):
            yield at_most(f"{gate}: {what} / cloud-only, worst load", self._worst(name), 1.0)
        yield from self._no_worse("pice")
        yield from self._no_worse("pice, 0 sites")
        yield from self._no_worse("pice, 2 sites")
        for other in ("pice-paper", "router"):
            yield at_most(f"{gate}: median E2E / {other}, worst load", self._worst("e2e_p50_s", to=other), 1.0)
            yield at_least(f"{gate}: throughput / {other}", self._ratio("answers_per_s", None, to=other), 1.0)

    def _no_worse(self, name: str) -> Iterator[Aim]:
        """Than cloud-only, at no load; and however many sites there are."""
        worst = self._worst("e2e_p50_s", of=name)
        yield at_most(f"{self._gate}, {name}: median E2E / cloud-only, worst load", worst, NO_WORSE)
        rate = self._ratio("answers_per_s", None, of=name)
        yield at_least(f"{self._gate}, {name}: throughput / cloud-only", rate, 1 / NO_WORSE)

    def _worst(self, name: str, *, of: str = "pice", to: str = "cloud-only") -> float:
        return max(self._ratio(name, load, of=of, to=to) for load in self._loads)

    def _ratio(self, name: str, load: float | None, *, of: str = "pice", to: str = "cloud-only") -> float:
        other = self._of(self._lines[to], load, name)
        return self._of(self._lines[of], load, name) / other if other else 1.0
