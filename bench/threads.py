"""A larger model and two edge models on one machine: how many threads each, and how the threads wait for one another.

Each engine is a `ProcessEngine`. The larger one writes 2 texts at once that go on and on, as a sketch does; each edge
engine 4 of 96 tokens after a shared prefix of 200, as expansions are, the next when one is written.

**All**: all three write at once. **Alone**: one writes, the others are loaded and idle. **Beside a program**: the
larger one writes while another program computes in one thread. Tokens are counted over a window that begins once every
text has its first token. **CPU ms**: user and system time per token, of the processes that write.

**Progress**: each engine's rate in parts of the best that it has alone, added up. A setting that takes from the larger
engine, whose tokens are dear, and gives to the edge's, raises tokens per second, but not progress.

Settings alternate, with processes of their own each time; what is the same setting under a load, since engines that it
differs in are idle, is run once a round. Ratios are of the same round.

With `--mode isolation`: the same texts from one engine in a thread of a program and in a process of its own.
"""

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from bench import threads_isolation as isolation
from bench.engine_run import MODELS, model_file
from bench.report import PathOption, QuickOption, Report, publish
from bench.threads_figures import ENGINES, VARIABLES, Figures, Waiting, compared
from bench.threads_load import EXPANSIONS, SKETCHES
from bench.threads_run import N_CTX, Plan, measure
from pice.engine.llama.options import num_cores
from pice.errors import InputError
from pice.loop import run_once

NUM_CORES = num_cores()
PRESETS = dict(zip(ENGINES, ("one-b-q4_0", "half-b-q4_0", "half-b-q4_0"), strict=True))
QUICK_PRESETS = dict.fromkeys(ENGINES, "small-f16")
QUICK_WAITINGS = (Waiting.passive, Waiting.spin_3000)


class Mode(StrEnum):
    """What is compared."""

    settings = "settings"
    isolation = "isolation"


Modes = Annotated[Mode, typer.Option("--mode", help="Settings of three engines, or what a process of its own costs.")]
Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help="Runs of each kind; else 5, with --quick 1 or 3.")]
Window = Annotated[float | None, typer.Option("--window", min=0.1, help="Seconds counted of a run; else 10, or 1.5.")]


def command(
    quick: QuickOption = False,
    path: PathOption = None,
    mode: Modes = Mode.settings,
    rounds: Rounds = None,
    window: Window = None,
) -> None:
    """Threads and waiting of three engines that share this machine; or an engine in a thread and in a process."""
    require_proc()
    window_s, warm_s = window or (1.5 if quick else 10.0), 0.2 if quick else 1.0
    presets = QUICK_PRESETS if quick else PRESETS
    models = {name: model_file(preset, MODELS) for name, preset in presets.items()}
    if mode == Mode.isolation:
        hosting = isolation.Plan(models[ENGINES[1]], NUM_CORES, rounds or (3 if quick else 5), warm_s, window_s)
        hosted = run_once(lambda: isolation.measure(hosting))
        publish(isolation.make_report(hosted, hosting), path, lambda figure: isolation.draw(figure, hosted))
        return
    settings = compared(NUM_CORES, QUICK_WAITINGS if quick else Waiting)
    plan = Plan(models, settings, rounds or (1 if quick else 5), warm_s, window_s)
    figures = Figures(run_once(lambda: measure(plan)), settings, NUM_CORES)
    publish(make_report(figures, plan), path, figures.draw)


def require_proc() -> None:
    """Raises InputError where processes cannot be looked at."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise InputError("expected /proc/PID/stat and smaps_rollup, got a system without: run this on Linux")


def make_report(figures: Figures, plan: Plan) -> Report:
    load = {
        "models": {name: path.stem for name, path in plan.models.items()},
        "texts": {"cloud": asdict(SKETCHES), "edge": asdict(EXPANSIONS)},
        "n_ctx": N_CTX,
        "warm_s": plan.warm_s,
        "window_s": plan.window_s,
        "waiting": {waiting.value: dict(variables) for waiting, variables in VARIABLES.items()},
        "sched_autogroup": autogroup(),
        "llama_cpp_python": version("llama-cpp-python"),
    }
    runs = [asdict(run) for run in figures.runs]
    return Report("threads", load, runs, figures.aims(), figures.table(notes(plan)), {"medians": figures.summary()})


def autogroup() -> bool | None:
    """Whether Linux shares the cores out among sessions, of which each engine is one, and not among threads."""
    known = Path("/proc/sys/kernel/sched_autogroup_enabled")
    return known.read_text().strip() == "1" if known.exists() else None


def notes(plan: Plan) -> Sequence[str]:
    models = ", ".join(path.stem for path in plan.models.values())
    return (
        f"{models}; median (lowest-highest) of {plan.num_rounds} alternating runs of {plan.window_s:g} s.",
        "Threads of cloud/edge/edge, and how OpenMP's wait; libgomp's default is 300000; one thread waits for none.",
        "Progress: each engine's rate in parts of the best it has alone, added up. Program: another one computes.",
        "CPU: of who writes, with all, cloud alone, edge alone, and beside the program.",
    )


if __name__ == "__main__":
    typer.run(command)
