"""One run of `bench/threads_isolation.py`: an engine in a thread of this process, or in a process of its own.

    python -m bench.threads_host KIND MODEL N_THREADS WARM_S WINDOW_S

It prints a line of JSON. All it imports before is what a service needs anyway, so that memory and times are its own.
"""

import os
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from bench.threads_load import EXPANSIONS, Writing, memory_bytes, watched
from pice.core import Sampling
from pice.engine.llama.options import LlamaOptions
from pice.engine.llama_cpp import LlamaCppEngine
from pice.engine.process import ProcessEngine
from pice.loop import run_once

SIZES = (1, 8)
N_CTX = 4096
NUM_ONE_TOKENS = 21


async def measured(kind: str, model: Path, n_threads: int, warm_s: float, window_s: float) -> dict[str, Any]:
    """How long starting and one token take, rates by number of texts at once, memory after that by process."""
    options = LlamaOptions(model, n_ctx=N_CTX, n_seq_max=max(SIZES), n_threads=n_threads)
    began_s = time.perf_counter()
    engine = ProcessEngine(options) if kind == "process" else LlamaCppEngine(options)
    await engine.start()
    start_s = time.perf_counter() - began_s
    try:
        pids = {"host": os.getpid()}
        if isinstance(engine, ProcessEngine):
            assert engine.pid
            pids["engine"] = engine.pid
        token_s = await _one_token_s(engine)
        loads = {}
        for num in SIZES:
            writing = Writing(engine, replace(EXPANSIONS, num=num))
            window = await watched({kind: writing}, pids, warm_s=warm_s, seconds=window_s)
            num_tokens = window.num_tokens[kind]
            cpu_ms = 1000 * sum(window.cpu_s.values()) / num_tokens
            loads[str(num)] = {"tokens_per_s": num_tokens / window.seconds, "cpu_ms_per_token": cpu_ms}
        memory = {name: memory_bytes(pid) for name, pid in pids.items()}
    finally:
        await engine.close()
    return {"start_s": start_s, "one_token_s": token_s, "loads": loads, "memory_bytes": memory}


async def _one_token_s(engine: LlamaCppEngine | ProcessEngine) -> float:
    """For a prompt that is in memory but for its end; the median of some."""
    taken_s = list[float]()
    prompt = EXPANSIONS.prompt("")
    for _ in range(NUM_ONE_TOKENS):
        began_s = time.perf_counter()
        async with aclosing(engine.generate(prompt, Sampling(max_tokens=1))) as pieces:
            async for _ in pieces:
                pass
        taken_s.append(time.perf_counter() - began_s)
    return median(taken_s)


def main() -> None:
    kind, model, n_threads, warm_s, window_s = sys.argv[1:]
    found = run_once(lambda: measured(kind, Path(model), int(n_threads), float(warm_s), float(window_s)))
    sys.stdout.buffer.write(orjson.dumps(found) + b"\n")


if __name__ == "__main__":
    main()
