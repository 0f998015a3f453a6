"""The llama.cpp engine against what else llama.cpp can be driven by, with 1 to 16 segments at once.

Each segment has 200 prompt tokens that all share and 20 of its own, and 96 tokens are written for it; no text ends
before. All segments of a run are asked for at the same moment.

- `pice`: this project's engine in a thread; `pice-process`: in a process of its own; `pice-no-logprobs`: in a thread,
  with the arithmetic of log-probabilities taken out.
- `create_completion`: `llama_cpp.Llama`, one segment after another, with its own reuse of the prefix that it still has.
- `llama-server`: a slot for each segment over one memory, asked over HTTP on loopback. It streams nothing and has no
  prompt cache in RAM, since both cost it time; that its tokens come evenly between the first and the last is assumed.
- `llama-batched-bench`: the ceiling. It only evaluates, so many tokens a step after a shared prompt of 220: no texts,
  no sampling, nobody who waits for it. With so many cells before each token as the others have; of the own parts'
  20 tokens it has one copy.

**Cold**: a prefix that was never seen, but for the template's few tokens. **Warm**: the prefix of the run before, with
new own parts. **Greedy**: warm, and the likeliest token; cold and warm are drawn by top_k, top_p, temperature.

**Wall**: from the moment all are asked for until the last has its last token. **TTFT**: the median segment's.
**Decode**: tokens per second while all segments are decoded, sampling and handing out included: from when the last
segment has its first token until one ends, the number of segments times the rate of the last to begin. One by one it
is the rate after each prompt. **Not evaluating**: the share of such steps that the thread that owns the model spends
outside of llama_decode and llama_synchronize; `step_shares` says how much of it is drawing.

All have the same file, threads, context, batch sizes, tokens, kind of sampling and OpenMP environment (by default none:
only `pice-process` then sets what it sets for itself). Each is a
process of its own that is there for all rounds at one model and size, and idle while the others run; its first run is
not counted. Contenders alternate, and ratios are of the same round.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from bench.contenders import KINDS
from bench.engine_figures import BARE, COLD, PHASES, WARM, Figures
from bench.engine_prompts import OWN_TOKENS, SHARED_TOKENS
from bench.engine_run import Plan, measure
from bench.engine_work import DRAWN, GREEDY
from bench.report import PathOption, QuickOption, Report, RoundsOption, publish
from pice.engine.llama.options import num_cores
from pice.errors import InputError
from pice.loop import run_once
from tools.llama_cpp_tools import Tools
from tools.tiny_gguf import BENCH_PRESETS

MODELS, SIZES = ("half-b-q8_0", "half-b-q4_0", "small-f16"), (1, 2, 4, 8, 16)
NUM_CORES = num_cores()
QUICK_MODELS, QUICK_SIZES = ("small-f16",), (1, 8)
READ_AT_LOADING = ("OMP_", "GOMP_", "KMP_", "GGML_", "LLAMA_")


class Omp(StrEnum):
    """How OpenMP's threads wait for one another; `default` leaves it to each contender."""

    passive = "passive"
    spin = "spin"
    default = "default"


WAITING = {
    Omp.passive: {"OMP_WAIT_POLICY": "passive"},
    Omp.spin: {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "10000"},
    Omp.default: {},
}

Models = Annotated[str, typer.Option("--models", help=f"Of {', '.join(BENCH_PRESETS)}, by comma.")]
Sizes = Annotated[str, typer.Option("--sizes", help=f"Segments at once, by comma; else {SIZES}.")]
Names = Annotated[str, typer.Option("--contenders", help=f"Of {', '.join(KINDS)}, by comma; else all.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Of each contender.")]
Waiting = Annotated[Omp, typer.Option("--omp", help="How OpenMP's threads wait for one another.")]


def command(
    quick: QuickOption = False,
    path: PathOption = None,
    models: Models = "",
    sizes: Sizes = "",
    contenders: Names = "",
    threads: Threads = NUM_CORES,
    rounds: RoundsOption = None,
    omp: Waiting = Omp.default,
) -> None:
    """Tokens per second against the number of segments at once, beside llama.cpp's other ways."""
    tools = Tools()
    programs = tools.programs if tools.are_built() else None
    compared = [name for name in KINDS if not (quick and name == BARE)]
    names, left_out = runnable(chosen(contenders, KINDS, else_=compared), programs)
    plan = Plan(
        models=chosen(models, BENCH_PRESETS, else_=QUICK_MODELS if quick else MODELS),
        sizes=[int(size) for size in sizes.split(",")] if sizes else (QUICK_SIZES if quick else SIZES),
        contenders=names,
        phases=(COLD, WARM) if quick else PHASES,
        num_rounds=rounds or (3 if quick else 5),
        n_threads=threads,
        tools=programs,
        environment=environment(os.environ, omp),
    )
    runs = run_once(lambda: measure(plan))
    figures = Figures(runs)
    publish(make_report(figures, plan, left_out), path, figures.draw)


def chosen(text: str, known: Iterable[str], *, else_: Iterable[str]) -> list[str]:
    """The names in a text; others if it is empty.

    Raises:
        InputError: a name is not known.
    """
    names = text.split(",") if text else list(else_)
    if unknown := sorted(set(names) - set(known)):
        raise InputError(f"expected names of {', '.join(known)}; got {', '.join(unknown)}")
    return names


def runnable(names: Sequence[str], tools: Path | None) -> tuple[list[str], list[str]]:
    """Those that can run, and a line for each that cannot, which says what to do."""
    lacks = {name: KINDS[name].lacks(tools) for name in names}
    return [name for name in names if not lacks[name]], [
        f"left out: {name} {what}" for name, what in lacks.items() if what
    ]


def environment(own: Mapping[str, str], omp: Omp) -> dict[str, str]:
    """Of the contenders: this process's, with nothing else that their libraries look for."""
    return {name: value for name, value in own.items() if not name.startswith(READ_AT_LOADING)} | WAITING[omp]


def make_report(figures: Figures, plan: Plan, left_out: Sequence[str]) -> Report:
    waiting = {name: value for name, value in plan.environment.items() if name.startswith(READ_AT_LOADING)}
    load = {
        "models": {name: asdict(BENCH_PRESETS[name]) for name in plan.models},
        "prompt_tokens": {"shared": SHARED_TOKENS, "own": OWN_TOKENS},
        "drawn": asdict(DRAWN),
        "greedy": asdict(GREEDY),
        "setup": {"n_threads": plan.n_threads, **plan.memory()},
        "environment": waiting,
        "llama_cpp_python": version("llama-cpp-python"),
        "left_out": list(left_out),
    }
    runs = [asdict(run) for run in figures.runs]
    return Report(
        "engine", load, runs, figures.aims(), figures.table(notes(plan, left_out)), {"cells": figures.summary()}
    )


def notes(plan: Plan, left_out: Sequence[str]) -> list[str]:
    return [
        f"Median (lowest-highest) of {plan.num_rounds} alternating runs; {plan.n_threads} threads.",
        f"{SHARED_TOKENS} shared and {OWN_TOKENS} own prompt tokens, {DRAWN.max_tokens} written, for each segment.",
        "Greedy: the likeliest token, warm. Decode: of cold and warm runs. TTFT: cold, the median segment's.",
        "Evaluated: prompt tokens not taken from memory, cold/warm. Not eval.: share of a step outside llama_decode.",
        *left_out,
    ]


if __name__ == "__main__":
    typer.run(command)
