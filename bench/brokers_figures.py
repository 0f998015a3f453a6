"""What runs of PICE and of the bare loop come to, side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.brokers_host import Spent
from bench.instant import Size
from bench.report import Aim, Measured, Report, Table, at_least, over
from pice.core import Answer
from pice.metrics import percentile

SIZE = Size("10 words, all at once", 10, piece_tokens=1000)
AIM_RATIO = 0.7
CONCURRENCY = 32

Kind = Literal["PICE", "bare loop"]
KINDS: tuple[Kind, ...] = ("PICE", "bare loop")


@dataclass(frozen=True, slots=True)
class Load:
    """How many requests, of `SIZE.num_points` segments each, are asked many at once, and how many one by one."""

    num_busy: int
    num_single: int


@dataclass(frozen=True, slots=True)
class Run:
    """One kind once. Of CPU time per segment `cpu_us` is this process's, `kafka_us` and `redis_us` the brokers'.
    Percentiles are of single segments while one request's are on their way: placed to chosen, or sent to received."""

    kind: Kind
    num_sites: int
    round: int
    num_segments: int
    per_s: float
    cpu_us: float
    kafka_us: float
    redis_us: float
    p50_ms: float
    p99_ms: float


def took_s(answers: Sequence[Answer]) -> list[float]:
    """Of each segment, from its placement to its choice."""
    return [span.chosen_s - span.placements[0].placed_s for answer in answers for span in answer.spans]


def as_run(kind: Kind, num_sites: int, number: int, num: int, spent: Spent, single_s: Sequence[float]) -> Run:
    """The figures of one run, per segment."""
    return Run(
        kind,
        num_sites,
        number,
        num_segments=num,
        per_s=num / spent.wall_s,
        cpu_us=1e6 * spent.cpu_s / num,
        kafka_us=1e6 * spent.kafka_s / num,
        redis_us=1e6 * spent.redis_s / num,
        p50_ms=1e3 * percentile(single_s, 50),
        p99_ms=1e3 * percentile(single_s, 99),
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """Both kinds at one number of sites; ratios are of runs of the same round."""

    num_sites: int
    runs: Mapping[Kind, Sequence[Run]]

    def over(self, kind: Kind, name: str) -> Measured:
        return over(getattr(run, name) for run in self.runs[kind])

    def against(self, name: str, combine: Callable[[float, float], float]) -> Measured:
        """Of PICE's value and the bare loop's."""
        pairs = zip(self.runs["PICE"], self.runs["bare loop"], strict=True)
        return over(combine(getattr(ours, name), getattr(bare, name)) for ours, bare in pairs)


def compared(runs: Sequence[Run]) -> list[Compared]:
    found = []
    for num_sites in sorted({run.num_sites for run in runs}):
        own = sorted((run for run in runs if run.num_sites == num_sites), key=lambda run: run.round)
        found.append(Compared(num_sites, {kind: [run for run in own if run.kind == kind] for kind in KINDS}))
    return found


def ratio(ours: float, bare: float) -> float:
    return ours / bare


def difference(ours: float, bare: float) -> float:
    return ours - bare


def aims(runs: Sequence[Run]) -> list[Aim]:
    """One for each number of sites, of the median."""
    return [
        at_least(f"PICE / bare loop, segments/s, sites {one.num_sites}", one.against("per_s", ratio).median, AIM_RATIO)
        for one in compared(runs)
    ]


def make_report(runs: Sequence[Run], load: Load, found: Mapping[str, Any]) -> Report:
    about = asdict(load) | {"size": asdict(SIZE), "concurrent_requests": CONCURRENCY}
    return Report(
        "brokers", about, [asdict(run) for run in runs], aims(runs), table(runs), {"profile": found} if found else {}
    )


COLUMNS = (
    "sites",
    "segments/s",
    "bare loop",
    "ratio",
    "CPU us/segment",
    "bare loop",
    "Kafka",
    "bare",
    "Redis",
    "bare",
    "p50 ms",
    "p99",
    "added p50",
    "p99",
)


def table(runs: Sequence[Run]) -> Table:
    first = runs[0]
    notes = (
        f"Median (lowest-highest) of {len(compared(runs)[0].runs['PICE'])} alternating runs of {first.num_segments}",
        f"segments, {CONCURRENCY} requests of {SIZE.num_points} at once. All nodes and the client in one process; both",
        "brokers on the same cores. CPU: of this process, of Kafka's and of Redis's, per segment.",
        "p50, p99: of a segment from its placement to its choice, one request at a time; added: less that of a",
        f"message of the bare loop, {SIZE.num_points} at a time.",
    )
    return Table("PICE on Kafka and Redis / bare loop", COLUMNS, [_row(one) for one in compared(runs)], notes)


def _row(one: Compared) -> list[str]:
    cpu = [one.over(kind, name) for name in ("cpu_us", "kafka_us", "redis_us") for kind in KINDS]
    return [
        str(one.num_sites),
        *(one.over(kind, "per_s").text() for kind in KINDS),
        one.against("per_s", ratio).text(3),
        *(f"{each.median:,.0f}" for each in cpu),
        *(one.over("PICE", name).text(1) for name in ("p50_ms", "p99_ms")),
        *(one.against(name, difference).text(1) for name in ("p50_ms", "p99_ms")),
    ]


def draw(figure: Any, runs: Sequence[Run]) -> None:
    """Segments a second of both by sites, every run a dot."""
    axes = figure.subplots()
    for kind, colour in zip(KINDS, ("tab:blue", "tab:grey"), strict=True):
        found = [(one.num_sites, one.over(kind, "per_s").median) for one in compared(runs)]
        axes.plot([at for at, _ in found], [per_s for _, per_s in found], "-", color=colour, label=kind)
        own = [run for run in runs if run.kind == kind]
        axes.plot([run.num_sites for run in own], [run.per_s for run in own], ".", color=colour)
    axes.set_xlabel("sites")
    axes.set_ylabel("segments/s")
    axes.set_yscale("log")
    axes.legend()
