"""All runs of `bench/engine.py`."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.contenders import KINDS, Worker
from bench.engine_figures import CEILING, COLD, GREEDY, Cell, Run, as_run
from bench.engine_prompts import Prompts, prompts_for
from bench.engine_work import Job, Setup
from bench.report import OUT, alternating
from tools.tiny_gguf import BENCH_PRESETS, write_tiny_gguf

MODELS = OUT / "models"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. `tools` is the folder of llama.cpp's own programs, if any."""

    models: Sequence[str]
    sizes: Sequence[int]
    contenders: Sequence[str]
    phases: Sequence[str]
    num_rounds: int
    n_threads: int
    tools: Path | None
    environment: Mapping[str, str]

    def setup(self, model: Path, size: int) -> Setup:
        return Setup(model, size, self.n_threads, self.tools)

    def memory(self) -> dict[str, Any]:
        """Of every contender: tokens of memory, and of a batch."""
        setup = asdict(self.setup(Path(), 1))
        return {name: setup[name] for name in ("n_ctx", "n_batch", "n_ubatch")}


async def measure(plan: Plan) -> list[Run]:
    """Every run, model after model, size after size."""
    runs = list[Run]()
    for name in plan.models:
        path = model_file(name, MODELS)
        with prompts_for(path) as prompts:
            for size in plan.sizes:
                print(f"{name}, {size} at once", file=sys.stderr)
                runs += await _at_size(plan, path, Cell(name, size), prompts)
    return runs


def model_file(name: str, folder: Path) -> Path:
    """Where the model is; written if it is not there."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as beside:
            write_tiny_gguf(Path(beside, path.name), seed=0, shape=BENCH_PRESETS[name])
            Path(beside, path.name).rename(path)
    return path


async def _at_size(plan: Plan, path: Path, cell: Cell, prompts: Prompts) -> list[Run]:
    """All contenders in turn, after a run of each that is not counted."""
    runs = list[Run]()
    async with AsyncExitStack() as stack:
        workers = dict[str, Worker]()
        for name in plan.contenders:
            if cell.size in (KINDS[name].sizes or (cell.size,)):
                worker = Worker(name, plan.setup(path, cell.size), plan.environment)
                workers[name] = await stack.enter_async_context(worker)
                await workers[name].run(job(prompts, cell.size, COLD, -1))
        for number, name in alternating(list(workers), plan.num_rounds):
            for phase in plan.phases if KINDS[name].writes else (CEILING,):
                done = await workers[name].run(job(prompts, cell.size, phase, number))
                runs.append(as_run(cell, name, phase, number, done))
    return runs


def job(prompts: Prompts, size: int, phase: str, number: int) -> Job:
    """The same for all contenders. Within a round the prefix stays, and no own part comes twice."""
    segments = prompts.segments(size, prefix=f"{size} {number}", own=f"{size} {number} {phase}")
    return Job(segments, greedy=phase == GREEDY, seed=1000 * (number + 1))
