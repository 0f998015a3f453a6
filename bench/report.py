"""What every benchmark shares: figures with their spread, aims, and the file, the table and the picture they end in."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

import orjson
import typer
from rich.console import Console
from rich.table import Table as RichTable

from pice.errors import InputError

ROOT = Path(__file__).parents[1]
OUT = ROOT / "bench" / "out"
_PIPED_WIDTH = 160

QuickOption = Annotated[bool, typer.Option("--quick", help="A coarse answer in under a minute.")]
PathOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="PATH", help="Where the figures go, and the picture beside; else to bench/out."),
]
RoundsOption = Annotated[
    int | None, typer.Option("--rounds", min=1, help="Runs of each kind; else 5, with --quick fewer.")
]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure beside what was aimed for; `aim` reads like ">= 5000"."""

    name: str
    value: float
    aim: str
    met: bool


def at_least(name: str, value: float, bound: float) -> Aim:
    return Aim(name, value, f">= {bound:g}", value >= bound)


def at_most(name: str, value: float, bound: float) -> Aim:
    return Aim(name, value, f"<= {bound:g}", value <= bound)


@dataclass(frozen=True, slots=True)
class Measured:
    """The median of several runs, the lowest and the highest."""

    median: float
    low: float
    high: float
    num: int

    def text(self, decimals: int = 0) -> str:
        return f"{self.median:,.{decimals}f} ({self.low:,.{decimals}f}-{self.high:,.{decimals}f})"


def over(values: Iterable[float]) -> Measured:
    """What the runs come to.

    Raises:
        InputError: there are no runs.
    """
    ranked = sorted(values)
    if not ranked:
        raise InputError("expected the values of at least one run, got none")
    return Measured(median(ranked), ranked[0], ranked[-1], len(ranked))


def alternating(variants: Sequence[T], num_rounds: int) -> Iterator[tuple[int, T]]:
    """Every variant once a round, in every other round backwards, so that a drift of the machine meets all alike."""
    for number in range(num_rounds):
        yield from ((number, variant) for variant in variants[:: -1 if number % 2 else 1])


@dataclass(frozen=True, slots=True)
class Table:
    """What is printed. `notes` stand below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found. `load` says what was run, `runs` holds every single run."""

    name: str
    load: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    aims: Sequence[Aim]
    table: Table
    detail: Mapping[str, Any] = field(default_factory=dict)


def publish(report: Report, path: Path | None, draw: Callable[[Any], None]) -> None:
    """Writes the figures to `path`, has `draw` fill a matplotlib Figure for the picture beside it, prints the table."""
    path = path or OUT / f"{report.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(document(report), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    picture = _picture(path.with_suffix(".png"), draw)
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, markup=False, highlight=False)
    console.print(_printed(report.table))
    for line in (*report.table.notes, *map(_verdict, report.aims), f"written: {_shown(path)}, {picture}"):
        console.print(line, soft_wrap=True)


def document(report: Report) -> dict[str, Any]:
    """The file's content: a figure can be checked from it alone."""
    return {
        "benchmark": report.name,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "machine": machine(),
        "commit": commit(),
        "load": dict(report.load),
        "runs": [dict(run) for run in report.runs],
        "aims": [asdict(aim) for aim in report.aims],
        **({"detail": dict(report.detail)} if report.detail else {}),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was with other things when they were written."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "load_average": os.getloadavg()[0],
    }


def commit() -> dict[str, Any]:
    """The revision, and whether tracked files differ from it; None where there is no repository."""
    try:
        return {"revision": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"revision": None, "dirty": None}


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _picture(path: Path, draw: Callable[[Any], None]) -> str:
    """What to say of the picture, drawn where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture, since matplotlib is not installed: pip install 'pice[bench]'"
    figure = Figure(layout="constrained")
    draw(figure)
    figure.savefig(path, dpi=120)
    return _shown(path)


def _printed(table: Table) -> RichTable:
    printed = RichTable(title=table.title)
    for number, column in enumerate(table.columns):
        printed.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        printed.add_row(*row)
    return printed


def _verdict(aim: Aim) -> str:
    return f"{'met' if aim.met else 'MISSED'}: {aim.name} {aim.aim}: {aim.value:,.4g}"


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
