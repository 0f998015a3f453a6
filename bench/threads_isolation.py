"""What it costs that an engine is in a process of its own: the same load on one that is in a thread."""

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.engine_work import Unfair
from bench.lifeline import killed_with_parent
from bench.report import Measured, Report, Table, alternating, over
from bench.threads_figures import VARIABLES, Waiting
from bench.threads_load import EXPANSIONS, read_at_loading

THREAD, PROCESS = "thread", "process"
WAITING = Waiting.passive
"""Of both: a thread in this program cannot be told otherwise once it runs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: so many rounds of both, each on so many threads, and each load for `window_s`."""

    model: Path
    n_threads: int
    num_rounds: int
    warm_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Hosted:
    """What `bench.threads_host` found."""

    kind: str
    round: int
    start_s: float
    one_token_s: float
    loads: Mapping[str, Mapping[str, float]]
    memory_bytes: Mapping[str, int]


async def measure(plan: Plan) -> list[Hosted]:
    """Both kinds in turn, each time in a program that did nothing before."""
    found = list[Hosted]()
    for number, kind in alternating((THREAD, PROCESS), plan.num_rounds):
        print(f"round {number + 1} of {plan.num_rounds}: {kind}", file=sys.stderr)
        found.append(Hosted(kind, number, **await _host(plan, kind)))
    return found


async def _host(plan: Plan, kind: str) -> dict[str, Any]:
    arguments = (kind, str(plan.model), *map(str, (plan.n_threads, plan.warm_s, plan.window_s)))
    with read_at_loading(VARIABLES[WAITING]):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.threads_host", *arguments),
            stdout=asyncio.subprocess.PIPE,
            env=dict(os.environ),
            **killed_with_parent(),
        )
    output, _ = await process.communicate()
    if process.returncode:
        raise Unfair(f"{kind} ended with {process.returncode}, see above")
    found: dict[str, Any] = orjson.loads(output.splitlines()[-1])
    return found


def figures_of(run: Hosted) -> dict[str, float]:
    """What is compared, by the names of the table."""
    return {
        "start s": run.start_s,
        "one token ms": 1000 * run.one_token_s,
        **{f"tok/s, {num} at once": load["tokens_per_s"] for num, load in run.loads.items()},
        **{f"CPU ms/token, {num}": load["cpu_ms_per_token"] for num, load in run.loads.items()},
        "memory MiB": sum(run.memory_bytes.values()) / (1 << 20),
    }


def measured(runs: Sequence[Hosted], kind: str) -> dict[str, Measured]:
    """Of every figure."""
    return _over(figures_of(run) for run in runs if run.kind == kind)


def ratios(runs: Sequence[Hosted]) -> dict[str, Measured]:
    """A process's figure over a thread's in the same round."""
    found = {(run.kind, run.round): figures_of(run) for run in runs}
    rounds = sorted({run.round for run in runs})
    return _over(
        {name: value / found[THREAD, number][name] for name, value in found[PROCESS, number].items()}
        for number in rounds
    )


def _over(found: Iterable[Mapping[str, float]]) -> dict[str, Measured]:
    rows = list(found)
    return {name: over(row[name] for row in rows) for name in rows[0]}


def make_report(runs: Sequence[Hosted], plan: Plan) -> Report:
    load = {
        "model": plan.model.stem,
        "n_threads": plan.n_threads,
        "environment": dict(VARIABLES[WAITING]),
        "texts": {name: getattr(EXPANSIONS, name) for name in ("shared_tokens", "own_tokens", "max_tokens")},
        "window_s": plan.window_s,
    }
    rows = {
        "in a thread": measured(runs, THREAD),
        "in a process": measured(runs, PROCESS),
        "process / thread": ratios(runs),
    }
    return Report("isolation", load, [_as_run(run) for run in runs], [], table(rows, plan))


def _as_run(run: Hosted) -> dict[str, Any]:
    return {"kind": run.kind, "round": run.round, "memory_bytes": dict(run.memory_bytes), **figures_of(run)}


def table(rows: Mapping[str, Mapping[str, Measured]], plan: Plan) -> Table:
    columns = ("engine", *next(iter(rows.values())))
    cells = [[name, *(each.text(2) for each in found.values())] for name, found in rows.items()]
    notes = (
        f"{plan.model.stem}, {plan.n_threads} threads; median (lowest-highest) of {plan.num_rounds} alternating runs.",
        "Start: until a text can be asked for. One token: asked for until it comes, of a prompt in memory.",
        "Memory and CPU: of both processes where there are two, what they share counted once.",
    )
    return Table("An engine in a process of its own", columns, cells, notes)


def draw(figure: Any, runs: Sequence[Hosted]) -> None:
    """Every figure, process over thread: a bar at the median, a line from lowest to highest."""
    found = ratios(runs)
    panel = figure.subplots()
    figure.set_size_inches(8, 4)
    panel.barh(list(found), [each.median for each in found.values()])
    for name, each in found.items():
        panel.plot([each.low, each.high], [name, name], color="black", linewidth=1)
    panel.axvline(1.0, color="tab:grey", linestyle="--", linewidth=1)
    panel.invert_yaxis()
    panel.set_title("in a process / in a thread")
