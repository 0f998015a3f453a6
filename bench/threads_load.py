"""Engines that are kept busy, and what that takes of the machine. Imports little: it runs in what is measured."""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench.lifeline import killed_with_parent
from pice.core import Message, Prompt, Sampling
from pice.engine.base import Engine

READ_AT_LOADING = ("OMP_", "GOMP_", "KMP_", "GGML_", "LLAMA_")
_WORDS = ("the", "of", "and", "to", "in", "is", "that", "for")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Texts:
    """What an engine writes: `num` texts at once, whose prompts share so many tokens and have so many of their own,
    in models that `tools/` writes, and the chat template's."""

    num: int
    shared_tokens: int
    own_tokens: int
    max_tokens: int

    def prompt(self, seed: str) -> Prompt:
        system, user = words("shared", self.shared_tokens), words(seed, self.own_tokens)
        return Prompt((Message("system", system), Message("user", user)))


SKETCHES = Texts(2, shared_tokens=20, own_tokens=40, max_tokens=1024)
EXPANSIONS = Texts(4, shared_tokens=200, own_tokens=20, max_tokens=96)


class Writing:
    """Texts of one engine, without end: when one is written, the next begins. `num_tokens` counts what has come."""

    def __init__(self, engine: Engine, texts: Texts) -> None:
        self.num_tokens = 0
        self._engine, self._texts = engine, texts

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Every text has its first token when the block begins; after it nothing is evaluated for them any more."""
        firsts = [asyncio.Event() for _ in range(self._texts.num)]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._write(slot, first)) for slot, first in enumerate(firsts)]
            for first in firsts:
                await first.wait()
            yield
            for task in running:
                task.cancel()
        await self._engine.count_tokens(self._texts.prompt(""))

    async def _write(self, slot: int, first: asyncio.Event) -> None:
        """The first text is cut so that not all end at the same time."""
        texts = self._texts
        for number in count():
            max_tokens = texts.max_tokens if number else texts.max_tokens * (slot + 1) // texts.num
            sampling = Sampling(max_tokens=max_tokens, temperature=0.8, top_k=40, top_p=0.95, seed=slot)
            async with aclosing(self._engine.generate(texts.prompt(f"{slot} {number}"), sampling)) as pieces:
                async for piece in pieces:
                    self.num_tokens += piece.num_tokens
                    first.set()


@dataclass(frozen=True, slots=True)
class Window:
    """So long, so many tokens by engine and so much CPU time by process."""

    seconds: float
    num_tokens: Mapping[str, int]
    cpu_s: Mapping[str, float]


async def watched(writings: Mapping[str, Writing], pids: Mapping[str, int], *, warm_s: float, seconds: float) -> Window:
    """What comes of all writing at once, from when each text is begun and some more seconds have gone by."""
    async with AsyncExitStack() as stack:
        for writing in writings.values():
            await stack.enter_async_context(writing.going_on())
        await asyncio.sleep(warm_s)
        begin = _taken(writings, pids)
        await asyncio.sleep(seconds)
        end = _taken(writings, pids)
    return Window(
        end.seconds - begin.seconds,
        {name: value - begin.num_tokens[name] for name, value in end.num_tokens.items()},
        {name: value - begin.cpu_s[name] for name, value in end.cpu_s.items()},
    )


def _taken(writings: Mapping[str, Writing], pids: Mapping[str, int]) -> Window:
    """Since ever."""
    num_tokens = {name: writing.num_tokens for name, writing in writings.items()}
    cpu_s = {name: ticks_of(Path(f"/proc/{pid}/stat").read_text()) / _TICKS_PER_S for name, pid in pids.items()}
    return Window(time.perf_counter(), num_tokens, cpu_s)


def ticks_of(stat: str) -> int:
    """User and system time in a line of `/proc/PID/stat` (man 5 proc); the name in brackets may hold anything."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def memory_bytes(pid: int) -> int:
    """Resident; what several processes share is divided among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10


def words(seed: str, num: int) -> str:
    """Each is one token with the space before it."""
    return "".join(f" {word}" for word in random.Random(seed).choices(_WORDS, k=num))


@asynccontextmanager
async def busy_program() -> AsyncIterator[int]:
    """The process id of a program that computes all the time, in one thread."""
    program: Sequence[str] = (sys.executable, "-c", "while True: pass")
    process = await asyncio.create_subprocess_exec(*program, **killed_with_parent())
    try:
        yield process.pid
    finally:
        process.kill()
        await process.wait()


@contextmanager
def read_at_loading(variables: Mapping[str, str]) -> Iterator[None]:
    """What is started inside finds these, and nothing else that llama.cpp or OpenMP look for."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(READ_AT_LOADING):
            del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
