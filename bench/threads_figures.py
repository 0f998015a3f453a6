"""The runs of `bench/threads.py` -> medians, shares of the best, aims, table and picture."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from bench.report import Aim, Measured, Table, at_least, at_most, over
from pice.engine.llama.waiting import waiting

ENGINES = ("cloud", "edge-a", "edge-b")
TOGETHER_AIM = 0.95
IDLE_AIM = 0.01


class Waiting(StrEnum):
    """How OpenMP's threads wait for one another."""

    passive = "passive"
    spin_3000 = "spin 3000"
    libgomp = "spin 300000"


VARIABLES: Mapping[Waiting, Mapping[str, str]] = {
    Waiting.passive: {"OMP_WAIT_POLICY": "passive"},
    Waiting.spin_3000: {"GOMP_SPINCOUNT": "3000"},
    Waiting.libgomp: {"GOMP_SPINCOUNT": "300000"},
}
"""The last is what libgomp takes where nothing is set."""


class Load(StrEnum):
    """Which engines write."""

    together = "all"
    cloud = "cloud alone"
    edge = "edge alone"
    beside = "cloud, program"


BUSY: Mapping[Load, tuple[str, ...]] = {
    Load.together: ENGINES,
    Load.cloud: ENGINES[:1],
    Load.edge: ENGINES[1:2],
    Load.beside: ENGINES[:1],
}


@dataclass(frozen=True, slots=True)
class Setting:
    """Threads by engine. One thread has none to wait for: llama.cpp then does without OpenMP."""

    threads: tuple[int, ...]
    waiting: Waiting

    def under(self, load: Load) -> "Setting":
        """What of it matters when the other engines are idle."""
        threads = tuple(self.threads[ENGINES.index(name)] for name in BUSY[load])
        return Setting(threads, self.waiting if max(threads) > 1 else Waiting.passive)

    def __str__(self) -> str:
        threads = "/".join(map(str, self.threads))
        return f"{threads} {self.waiting}" if max(self.threads) > 1 else threads


def chosen_by_pice(num_cores: int) -> Setting:
    """Where nothing is set and all three engines are on this machine: as in `pice/app/engines.py`."""
    threads = max(min(2, num_cores), num_cores // len(ENGINES))
    shares_cores = threads * len(ENGINES) > num_cores
    return Setting((threads,) * len(ENGINES), waiting_of_pice(shares_cores=shares_cores)).under(Load.together)


def chosen_for_one(num_cores: int) -> Setting:
    """Where nothing is set and one engine is on this machine."""
    return Setting((num_cores,) * len(ENGINES), waiting_of_pice(shares_cores=False)).under(Load.together)


def waiting_of_pice(*, shares_cores: bool) -> Waiting:
    """Where nothing is set."""
    said = waiting({}, shares_cores=shares_cores)
    return next(each for each, variables in VARIABLES.items() if variables == said)


def compared(num_cores: int, waitings: Iterable[Waiting]) -> list[Setting]:
    """All that is tried, each once."""
    own, one = chosen_by_pice(num_cores), chosen_for_one(num_cores)
    known = list(waitings)
    combinations = ((1, 1, 1), (2, 1, 1), (2, 2, 2), one.threads, own.threads)
    settings = (Setting(threads, each).under(Load.together) for threads in combinations for each in known)
    return list(dict.fromkeys([*settings, own, one]))


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens of the engines that write, and CPU seconds of every process, in so many seconds."""

    setting: Setting
    load: Load
    round: int
    seconds: float
    num_tokens: Mapping[str, int]
    cpu_s: Mapping[str, float]

    def per_s(self) -> float:
        return sum(self.num_tokens.values()) / self.seconds

    def cpu_ms_per_token(self) -> float:
        """Of the engines that write; infinite when they stood still."""
        num_tokens = sum(self.num_tokens.values())
        return 1000 * sum(self.cpu_s[name] for name in self.num_tokens) / num_tokens if num_tokens else math.inf

    def idle_share(self) -> float:
        """Of a core, that the busiest engine that writes nothing takes."""
        return max((self.cpu_s[name] / self.seconds for name in ENGINES if name not in self.num_tokens), default=0.0)


Value = Callable[[Run], float]


class Figures:
    """All runs. A run under a load stands for all settings that are the same there."""

    def __init__(self, runs: Sequence[Run], settings: Sequence[Setting], num_cores: int) -> None:
        self.runs, self.settings = runs, settings
        self.own, self.one = chosen_by_pice(num_cores), chosen_for_one(num_cores)
        cloud, edge = (self._best_alone_per_s(load) for load in (Load.cloud, Load.edge))
        self._alone_per_s = dict(zip(ENGINES, (cloud, edge, edge), strict=True))

    def by_round(self, value: Value, setting: Setting, load: Load) -> dict[int, float]:
        wanted = setting.under(load)
        return {run.round: value(run) for run in self.runs if run.load == load and run.setting.under(load) == wanted}

    def measured(self, value: Value, setting: Setting, load: Load) -> Measured:
        return over(self.by_round(value, setting, load).values())

    def best(self, value: Value, load: Load) -> Setting:
        """The highest median."""
        return max(self.settings, key=lambda setting: median(self.by_round(value, setting, load).values()))

    def to_best(self, value: Value, setting: Setting, load: Load) -> Measured:
        """One setting's over the best one's in the same round."""
        best = self.by_round(value, self.best(value, load), load)
        return over(found / best[number] for number, found in self.by_round(value, setting, load).items())

    def progress(self, run: Run) -> float:
        """Each engine's rate in parts of the best that it has alone, added up."""
        return sum(tokens / run.seconds / self._alone_per_s[name] for name, tokens in run.num_tokens.items())

    def _best_alone_per_s(self, load: Load) -> float:
        return self.measured(Run.per_s, self.best(Run.per_s, load), load).median

    def aims(self) -> list[Aim]:
        together = {"tok/s": Run.per_s, "progress": self.progress}
        idle = max(run.idle_share() for run in self.runs)
        return [
            *(
                at_least(
                    f"all busy, {name}: PICE's {self.own} / best, {self.best(value, Load.together)}",
                    self.to_best(value, self.own, Load.together).median,
                    TOGETHER_AIM,
                )
                for name, value in together.items()
            ),
            at_most("share of a core that an idle engine takes, highest", idle, IDLE_AIM),
        ]

    def summary(self) -> list[dict[str, Any]]:
        """What the table shows, as numbers: medians."""
        return [
            {
                "setting": str(setting),
                "load": load,
                "tokens_per_s": self.measured(Run.per_s, setting, load).median,
                "to_best": self.to_best(Run.per_s, setting, load).median,
                "progress": self.measured(self.progress, setting, load).median,
                "cpu_ms_per_token": self.measured(Run.cpu_ms_per_token, setting, load).median,
            }
            for setting in self.settings
            for load in Load
        ]

    def table(self, notes: Sequence[str]) -> Table:
        alone = list(Load)[1:]
        columns = ("threads", "all: tok/s", "/ best", "cloud", "edges", "progress", "/ best", *alone, "CPU ms/token")
        rows = [self._row(setting) for setting in self.settings]
        return Table("Three engines on one machine", columns, rows, [*notes, *self.costs()])

    def _row(self, setting: Setting) -> list[str]:
        def middle(value: Value, load: Load = Load.together) -> float:
            return self.measured(value, setting, load).median

        rates = {load: _spread(self.measured(Run.per_s, setting, load)) for load in Load}
        return [
            self._name(setting),
            rates.pop(Load.together),
            f"{self.to_best(Run.per_s, setting, Load.together).median:.2f}",
            f"{middle(rate_of(ENGINES[:1])):.1f}",
            f"{middle(rate_of(ENGINES[1:])):.1f}",
            f"{middle(self.progress):.2f}",
            f"{self.to_best(self.progress, setting, Load.together).median:.2f}",
            *rates.values(),
            "/".join(_two_digits(middle(Run.cpu_ms_per_token, load)) for load in Load),
        ]

    def _name(self, setting: Setting) -> str:
        return f"{setting} *" if setting == self.own else str(setting)

    def costs(self) -> list[str]:
        """What PICE's choices come to under each load."""
        loads_of_one = (Load.cloud, Load.edge, Load.beside)
        return [
            f"*: what PICE chooses for three engines: {self._shares(self.own, Load)}.",
            f"What it chooses for one engine, {self.one.under(Load.cloud)}: {self._shares(self.one, loads_of_one)}.",
        ]

    def _shares(self, setting: Setting, loads: Iterable[Load]) -> str:
        return ", ".join(
            f"{load} {self.to_best(Run.per_s, setting, load).median:.2f} of {self.best(Run.per_s, load).under(load)}"
            for load in loads
        )

    def draw(self, figure: Any) -> None:
        """A panel for each load: tokens per second by setting, with all busy by engine."""
        axes = figure.subplots(1, len(Load), sharey=True)
        figure.set_size_inches(16, 2 + 0.4 * len(self.settings))
        names = [self._name(setting) for setting in self.settings]
        for panel, load in zip(axes, Load, strict=True):
            left = [0.0] * len(names)
            for number, engine in enumerate(BUSY[load]):
                widths = [self.measured(rate_of([engine]), setting, load).median for setting in self.settings]
                panel.barh(names, widths, left=left, color=f"C{number + (load == Load.edge)}", label=engine)
                left = [one + other for one, other in zip(left, widths, strict=True)]
            found = [self.measured(Run.per_s, setting, load) for setting in self.settings]
            for name, each in zip(names, found, strict=True):
                panel.plot([each.low, each.high], [name, name], color="black", linewidth=1)
            panel.set_title(f"{load}: tok/s")
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ENGINES))


def rate_of(names: Iterable[str]) -> Value:
    """Tokens per second of these engines."""
    return lambda run: sum(run.num_tokens[name] for name in names) / run.seconds


def _spread(found: Measured) -> str:
    return found.text(0 if found.median >= 100 else 1)


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
