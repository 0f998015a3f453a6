"""This project's engine as a contender: in a thread, in a process of its own, and without log-probabilities."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

from bench.engine_prompts import as_prompt
from bench.engine_work import Asked, Done, Job, Setup, Unfair, Written, decode_per_s
from pice.core import Sampling
from pice.engine.base import Engine
from pice.engine.llama.options import LlamaOptions


def options(setup: Setup) -> LlamaOptions:
    return LlamaOptions(
        path=setup.model,
        n_ctx=setup.n_ctx,
        n_seq_max=setup.size,
        n_threads=setup.n_threads,
        n_batch=setup.n_batch,
        n_ubatch=setup.n_ubatch,
    )


class Pice:
    """Any `Engine`, its pieces taken as they come."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make

    async def start(self) -> None:
        self._engine = self._make()
        await self._engine.start()

    async def run(self, job: Job) -> Done:
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._write(asked, replace(job.sampling, seed=job.seed + number), began_s))
                for number, asked in enumerate(job.segments)
            ]
        written = [task.result() for task in running]
        return Done(decode_per_s([arrivals for _, arrivals in written]), tuple(segment for segment, _ in written))

    async def close(self) -> None:
        await self._engine.close()

    async def _write(self, asked: Asked, sampling: Sampling, began_s: float) -> tuple[Written, list[float]]:
        arrivals = list[float]()
        async with aclosing(self._engine.generate(as_prompt(asked.system, asked.user), sampling)) as pieces:
            async for piece in pieces:
                arrivals += [time.perf_counter() - began_s] * piece.num_tokens
        cached = piece.num_cached_tokens
        return Written(arrivals[0], arrivals[-1], len(arrivals), piece.num_prompt_tokens, cached), arrivals


class WatchedPice(Pice):
    """The engine in a thread of this process, with the time of its parts."""

    async def start(self) -> None:
        self._spans = Spans()
        await super().start()

    async def run(self, job: Job) -> Done:
        self._spans.clear()
        done = await super().run(job)
        return replace(done, step_shares=self._spans.shares(len(job.segments)))


class Spans:
    """When the thread that owns the model was in llama.cpp's evaluation, and when in drawing. Made before the engine
    is loaded, whose functions it wraps."""

    def __init__(self) -> None:
        from pice.engine.llama.native import llama_cpp

        self._evaluating = list[tuple[int, int, int]]()
        self._drawing = list[tuple[int, int, int]]()
        for name in ("llama_decode", "llama_synchronize"):
            setattr(llama_cpp, name, _timed(getattr(llama_cpp, name), self._evaluating))
        from pice.engine.llama.model import Model

        Model.draw = _timed(Model.draw, self._drawing)  # type: ignore[method-assign] # its signature is kept

    def clear(self) -> None:
        self._evaluating.clear()
        self._drawing.clear()

    def shares(self, size: int) -> dict[str, float]:
        """Of the time between the steps in which each of `size` segments gets one token: `evaluating`, `drawing`, and
        the `rest`. Waiting for the GIL counts to what waits.

        Raises:
            Unfair: there were no two such steps in a row.
        """
        begins = [(begin, num_tokens) for begin, _, num_tokens in self._evaluating if num_tokens]
        steps = [(one, two) for (one, num), (two, then) in pairwise(begins) if num == then == size]
        if not steps:
            raise Unfair(f"expected steps of {size} tokens through llama_decode, found {len(begins)} of other sizes")
        whole = sum(two - one for one, two in steps)
        evaluating, drawing = (_within(spans, steps) / whole for spans in (self._evaluating, self._drawing))
        return {"evaluating": evaluating, "drawing": drawing, "rest": 1 - evaluating - drawing}


def _timed(function: Any, spans: list[tuple[int, int, int]]) -> Any:
    """Notes begin, end and, where it evaluates a batch, its number of tokens."""

    def timed(*arguments: Any) -> Any:
        num_tokens = getattr(arguments[-1], "n_tokens", 0)
        begin = time.perf_counter_ns()
        try:
            return function(*arguments)
        finally:
            spans.append((begin, time.perf_counter_ns(), num_tokens))

    return timed


def _within(spans: list[tuple[int, int, int]], steps: list[tuple[int, int]]) -> int:
    """Of both in order of time: how long the spans that begin within a step are."""
    total, waiting = 0, iter(steps)
    step = next(waiting, None)
    for begin, end, _ in spans:
        while step and begin >= step[1]:
            step = next(waiting, None)
        total += end - begin if step and begin >= step[0] else 0
    return total


def in_thread(setup: Setup) -> Engine:
    from pice.engine.llama_cpp import LlamaCppEngine

    return LlamaCppEngine(options(setup))


def in_process(setup: Setup) -> Engine:
    from pice.engine.process import ProcessEngine

    return ProcessEngine(options(setup))


def without_logprobs(setup: Setup) -> Engine:
    """In a thread, with the one thing left out that only log-probabilities need: each row's normaliser."""
    from pice.engine.llama.draw import Drawing

    Drawing.norm = lambda _self, _row, peak: peak  # type: ignore[method-assign,assignment] # its type is kept
    return in_thread(setup)
