"""What every command that asks something does around its own work: open, interrupt, report."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import typer

from pice.app import open_pipeline
from pice.cli.streams import note
from pice.core import Message
from pice.errors import ConfigError, InputError, ModelLoadError, PiceError
from pice.loop import Shutdown, run
from pice.pipeline import Pipeline
from pice.settings import Settings

OK, FAILED, REFUSED, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: done; the request failed; what was given is wrong; a batch has failures; stopped by a signal."""


def report(error: PiceError) -> int:
    """Says on standard error what is wrong, and returns the exit code for it."""
    for line in str(error).splitlines():
        note(f"error: {line}")
    return REFUSED if isinstance(error, ConfigError | InputError | ModelLoadError) else FAILED


def messages(question: str, system: str = "") -> tuple[Message, ...]:
    """The conversation to send; `-` reads the question from standard input.

    Raises:
        InputError: there is no question.
    """
    text = _standard_input() if question == "-" else question
    if not text.strip():
        raise InputError("the question is empty: give it as an argument, or - to read it from standard input")
    for name, given in (("question", text), ("system message", system)):
        _check_encodable(name, given)
    before = (Message("system", system),) if system else ()
    return (*before, Message("user", text.strip()))


def _standard_input() -> str:
    try:
        return typer.get_binary_stream("stdin").read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input must be UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"standard input cannot be read: {error.strerror}") from error


def _check_encodable(name: str, text: str) -> None:
    """What the shell gave that was no UTF-8 has surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {name} must be UTF-8 text, got a byte that is none at character {error.start}") from None


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that a lone error leaves as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise


def with_pipeline(settings: Settings, body: Callable[[Pipeline], Awaitable[int]]) -> int:
    """Exit code of `body` with an open pipeline; see `until_signal`."""

    async def work() -> int:
        async with open_pipeline(settings) as pipeline:
            return await body(pipeline)

    return until_signal(work)


def until_signal(work: Callable[[], Awaitable[int]]) -> int:
    """Exit code of `work`, or of the error it raised. A signal cancels it, waits for its cleanup and gives 130."""

    async def main(shutdown: Shutdown) -> int:
        async with task_group() as group:
            task = group.create_task(_reported(work))
            stop = group.create_task(shutdown.draining.wait())
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            stop.cancel()
        return INTERRUPTED if task.cancelled() else task.result()

    return run(main)


async def _reported(work: Callable[[], Awaitable[int]]) -> int:
    try:
        return await work()
    except PiceError as error:
        return report(error)
