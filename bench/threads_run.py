"""All runs of `bench/threads.py`."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.engine_work import Unfair
from bench.report import alternating
from bench.threads_figures import BUSY, ENGINES, VARIABLES, Load, Run, Setting
from bench.threads_load import EXPANSIONS, SKETCHES, Texts, Writing, busy_program, read_at_loading, watched
from pice.engine.llama.options import LlamaOptions
from pice.engine.process import ProcessEngine

N_CTX = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. `models` are files, by engine; `warm_s` go by before the `window_s` that are counted."""

    models: Mapping[str, Path]
    settings: Sequence[Setting]
    num_rounds: int
    warm_s: float
    window_s: float

    def options(self, name: str, n_threads: int) -> LlamaOptions:
        return LlamaOptions(self.models[name], name, n_ctx=N_CTX, n_seq_max=texts_of(name).num, n_threads=n_threads)


def texts_of(name: str) -> Texts:
    """Of an engine."""
    return SKETCHES if name == ENGINES[0] else EXPANSIONS


async def measure(plan: Plan) -> list[Run]:
    """Every setting under every load, once a round; but once only what is the same under a load."""
    runs = dict[tuple[int, Load, Setting], Run]()
    for number, setting in alternating(plan.settings, plan.num_rounds):
        print(f"round {number + 1} of {plan.num_rounds}: {setting}", file=sys.stderr)
        async with started(plan, setting) as engines:
            for load in Load:
                key = (number, load, setting.under(load))
                if key not in runs:
                    runs[key] = await _run(plan, engines, setting, load, number)
    return list(runs.values())


@asynccontextmanager
async def started(plan: Plan, setting: Setting) -> AsyncIterator[dict[str, ProcessEngine]]:
    """The three engines, in processes of their own."""
    threads = dict(zip(ENGINES, setting.threads, strict=True))
    engines = {name: ProcessEngine(plan.options(name, threads[name])) for name in ENGINES}
    async with AsyncExitStack() as stack:
        for engine in engines.values():
            stack.push_async_callback(engine.close)
        with read_at_loading(VARIABLES[setting.waiting]):
            async with asyncio.TaskGroup() as tasks:
                for engine in engines.values():
                    tasks.create_task(engine.start())
        yield engines


async def _run(plan: Plan, engines: Mapping[str, ProcessEngine], setting: Setting, load: Load, number: int) -> Run:
    writings = {name: Writing(engines[name], texts_of(name)) for name in BUSY[load]}
    async with AsyncExitStack() as stack:
        pids = {name: pid_of(name, engine) for name, engine in engines.items()} | {"benchmark": os.getpid()}
        if load == Load.beside:
            pids["program"] = await stack.enter_async_context(busy_program())
        window = await watched(writings, pids, warm_s=plan.warm_s, seconds=plan.window_s)
    return Run(setting, load, number, window.seconds, window.num_tokens, window.cpu_s)


def pid_of(name: str, engine: ProcessEngine) -> int:
    """Raises `Unfair` when its process has ended."""
    if engine.pid is None:
        raise Unfair(f"{name}: expected a process for as long as it is measured, got none: see the log")
    return engine.pid
