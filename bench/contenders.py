"""The contenders of `bench/engine.py` by name, each in a process of its own: what libraries read from the environment
when they are loaded, and what they leave behind, is then one contender's only.

    python -m bench.contenders NAME SETUP

It reads a job a line and answers each with a line; it ends with its input, or when the process that started it does.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Self

import orjson
from pydantic import TypeAdapter

from bench.engine_llama import Ceiling, OneAfterAnother, Server
from bench.engine_pice import Pice, WatchedPice, in_process, in_thread, without_logprobs
from bench.engine_work import Contender, Done, Job, Setup, Unfair
from bench.lifeline import killed_with_parent
from pice.loop import run_once

LINE_BYTES = 16 << 20
END_WAIT_S = 10.0
"""What a contender may take to end by itself before it is killed."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A contender. `program` is what of llama.cpp's own it needs, `sizes` the numbers of segments it is for (none:
    all); one that writes no text has no phases."""

    make: Callable[[Setup], Contender]
    program: str = ""
    module: str = ""
    sizes: tuple[int, ...] = ()
    writes: bool = True

    def lacks(self, tools: Path | None) -> str:
        """What to do before it can be run; "" if nothing."""
        if self.program and tools is None:
            return f"needs {self.program}: python tools/llama_cpp_tools.py"
        if self.module and find_spec(self.module) is None:
            return f"needs the module {self.module}"
        return ""


KINDS: Mapping[str, Kind] = {
    "pice": Kind(lambda setup: WatchedPice(lambda: in_thread(setup))),
    "pice-process": Kind(lambda setup: Pice(lambda: in_process(setup))),
    "pice-no-logprobs": Kind(lambda setup: WatchedPice(lambda: without_logprobs(setup)), sizes=(8,)),
    "create_completion": Kind(OneAfterAnother),
    "llama-server": Kind(Server, program="llama-server"),
    "llama-batched-bench": Kind(Ceiling, program="llama-batched-bench", writes=False),
}


class Worker:
    """A contender's process, seen from the one that started it."""

    def __init__(self, name: str, setup: Setup, environment: Mapping[str, str]) -> None:
        self._name, self._setup, self._environment = name, setup, environment

    async def __aenter__(self) -> Self:
        command = [
            sys.executable,
            "-m",
            "bench.contenders",
            self._name,
            orjson.dumps(self._setup, default=str).decode(),
        ]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            env=dict(self._environment),
            **killed_with_parent(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(END_WAIT_S):
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()

    async def run(self, job: Job) -> Done:
        """Raises `Unfair` when it dies of it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(orjson.dumps(job) + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise Unfair(f"{self._name} ended with {await self._process.wait()}, see above")
        done = TypeAdapter(Done).validate_json(line)
        done.check(job)
        return done


async def serve(contender: Contender, jobs: BinaryIO, answers: BinaryIO) -> None:
    """Runs jobs until there are no more."""
    await _start(contender)
    try:
        while line := await asyncio.to_thread(jobs.readline):
            answers.write(orjson.dumps(await contender.run(TypeAdapter(Job).validate_json(line))) + b"\n")
            answers.flush()
    finally:
        await contender.close()


async def _start(contender: Contender) -> None:
    """Where that fails or is given up, what had begun is closed as far as it can be."""
    try:
        await contender.start()
    except BaseException:
        with suppress(Exception):
            await contender.close()
        raise


def main() -> None:
    """What anyone else prints goes to stderr: stdout is for answers."""
    name, setup = sys.argv[1], TypeAdapter(Setup).validate_json(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    run_once(lambda: serve(KINDS[name].make(setup), sys.stdin.buffer, answers))


if __name__ == "__main__":
    main()
