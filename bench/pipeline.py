"""How many segments a second one core carries: the real nodes on memory, engines that take no time."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import islice
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from bench.costs import Sampler, Stack, by_module, own_shares, whole_shares
from bench.instant import Cost, Known, Size, serve
from bench.report import Aim, PathOption, QuickOption, Report, Table, alternating, at_least, over, publish
from pice.core import Answer

SIZES = (
    Size("10 words, all at once", 10, piece_tokens=1000),
    Size("10 words, token by token", 10),
    Size("60 words, token by token", 60),
    Size("60 words, 8 tokens at a time", 60, piece_tokens=8),
)
NUM_SITES = 4
CONCURRENCY = 32
AIM_PER_S = 5_000
NUM_HOT = 25


class LoopName(StrEnum):
    """Which event loop."""

    uvloop = "uvloop"
    asyncio = "asyncio"


@dataclass(frozen=True, slots=True)
class Run:
    """Everything answered once. `per_s` is per second of CPU time: the process has one thread."""

    size: str
    round: int
    num_requests: int
    num_segments: int
    words_per_point: float
    words_per_segment: float
    wall_us: float
    cpu_us: float
    per_s: float


def command(
    quick: QuickOption = False,
    path: PathOption = None,
    loop: Annotated[LoopName, typer.Option("--loop", help="The event loop.")] = LoopName.uvloop,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where the time goes.")] = False,
) -> None:
    """Segments per second through the nodes of one process, with engines that take no time."""
    num_rounds, num_requests = (5, 60) if quick else (7, 300)
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runs = runner.run(measure(SIZES, num_rounds=num_rounds, num_requests=num_requests))
        profiles = runner.run(profiled(SIZES, num_requests=4 * num_requests)) if profile else {}
    report = make_report(runs, loop, profiles)
    publish(report, path, lambda figure: draw(figure, runs))
    for name, found in profiles.items():
        Console(width=160).print(profile_table(name, found))


def loop_factory(loop: LoopName) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop is LoopName.asyncio:
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def measure(sizes: Sequence[Size], *, num_rounds: int, num_requests: int) -> list[Run]:
    """Every run, of alternating sizes. A first round is not measured: in it the engines write their texts."""
    known = {size.name: Known() for size in sizes}
    for size in sizes:
        await _serve(size, known[size.name], num_requests)
    runs = list[Run]()
    for number, size in alternating(sizes, num_rounds):
        cost, answers = await _serve(size, known[size.name], num_requests)
        runs.append(as_run(size, number, answers, cost))
    return runs


async def profiled(sizes: Sequence[Size], *, num_requests: int) -> dict[str, dict[str, Any]]:
    """The profile of one run of each size, after one in which the engines write their texts."""
    found = {}
    for size in sizes:
        known = Known()
        await _serve(size, known, num_requests)
        with Sampler() as sampler:
            cost, answers = await _serve(size, known, num_requests)
        found[size.name] = as_profile(sampler.stacks, 1e6 * cost.cpu_s / num_segments(answers))
    return found


def as_profile(stacks: Counter[Stack], cpu_us: float) -> dict[str, Any]:
    """Microseconds of CPU per segment, of `cpu_us` in all: of each module, and of the hottest functions."""
    whole = whole_shares(stacks)
    return {
        "num_samples": stacks.total(),
        "modules_us": {name: cpu_us * share for name, share in by_module(stacks).items()},
        "functions": [
            {"where": name, "own_us": cpu_us * share, "whole_us": cpu_us * whole[name]}
            for name, share in islice(own_shares(stacks).items(), NUM_HOT)
        ],
    }


async def _serve(size: Size, known: Known, num_requests: int) -> tuple[Cost, list[Answer]]:
    return await serve(size, known, num_requests=num_requests, concurrency=CONCURRENCY, num_sites=NUM_SITES)


def num_segments(answers: Sequence[Answer]) -> int:
    """Chosen segments only."""
    return sum(len(answer.spans) for answer in answers)


def as_run(size: Size, number: int, answers: Sequence[Answer], cost: Cost) -> Run:
    num = num_segments(answers)
    return Run(
        size=size.name,
        round=number,
        num_requests=len(answers),
        num_segments=num,
        words_per_point=fmean(len(point.text.split()) for answer in answers for point in answer.sketch),
        words_per_segment=fmean(len(span.text.split()) for answer in answers for span in answer.spans),
        wall_us=1e6 * cost.wall_s / num,
        cpu_us=1e6 * cost.cpu_s / num,
        per_s=num / cost.cpu_s,
    )


def aims(runs: Sequence[Run]) -> list[Aim]:
    """One for each size, of the median."""
    return [
        at_least(f"segments/s of one core, {name}", over(run.per_s for run in own).median, AIM_PER_S)
        for name, own in by_size(runs).items()
    ]


def by_size(runs: Sequence[Run]) -> Mapping[str, list[Run]]:
    return {name: [run for run in runs if run.size == name] for name in dict.fromkeys(run.size for run in runs)}


def make_report(runs: Sequence[Run], loop: LoopName, profiles: Mapping[str, Any]) -> Report:
    load = {
        "loop": loop.value,
        "num_sites": NUM_SITES,
        "concurrent_requests": CONCURRENCY,
        "candidates_per_segment": 1,
        "sizes": [asdict(size) for size in SIZES],
    }
    detail = {"profile": profiles} if profiles else {}
    return Report("pipeline", load, [asdict(run) for run in runs], aims(runs), table(runs, loop), detail)


def table(runs: Sequence[Run], loop: LoopName) -> Table:
    columns = ("an expansion", "segments/s, one core", "CPU us/segment", "wall us/segment")
    names = ("per_s", "cpu_us", "wall_us")
    rows = [
        [size, *(over(getattr(run, name) for run in own).text() for name in names)]
        for size, own in by_size(runs).items()
    ]
    num_runs, first = len(runs) // len(rows), runs[0]
    notes = (
        f"Median (lowest-highest) of {num_runs} runs of {first.num_segments} chosen segments, all answers whole.",
        f"{NUM_SITES} sites, {CONCURRENCY} requests at once, points of {first.words_per_point:.0f} words, {loop}.",
        "One core: per second of the process's CPU time, client and engines included; engines hand out texts",
        "that they wrote before.",
    )
    return Table("Pipeline in one process, engines that take no time", columns, rows, notes)


def profile_table(name: str, found: Mapping[str, Any]) -> RichTable:
    """Modules, then functions."""
    shown = RichTable(title=f"CPU us/segment, {name} ({found['num_samples']} samples)")
    shown.add_column("module, or function")
    shown.add_column("own", justify="right")
    shown.add_column("with what it called", justify="right")
    for module, us in found["modules_us"].items():
        shown.add_row(module, f"{us:.1f}", "")
    shown.add_section()
    for hot in found["functions"]:
        shown.add_row(hot["where"], f"{hot['own_us']:.1f}", f"{hot['whole_us']:.1f}")
    return shown


def draw(figure: Any, runs: Sequence[Run]) -> None:
    """Bars of CPU time per segment, with a mark for every run."""
    axes = figure.subplots()
    for at, (name, own) in enumerate(by_size(runs).items()):
        axes.bar(at, over(run.cpu_us for run in own).median, color="tab:blue", label="" if at else "median")
        axes.plot([at] * len(own), [run.cpu_us for run in own], "k.", label="" if at else "runs")
        axes.text(at, 0, name.replace(", ", "\n"), ha="center", va="bottom", color="white")
    axes.axhline(1e6 / AIM_PER_S, color="tab:red", linestyle="--", label=f"{AIM_PER_S:,} segments/s")
    axes.set_xticks([])
    axes.set_ylabel("CPU microseconds per segment")
    axes.legend()


if __name__ == "__main__":
    typer.run(command)
