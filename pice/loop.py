"""The event loop that a process runs on: uvloop where there is one, signals, and the exit code."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pice.errors import InputError

T = TypeVar("T")

INTERRUPTED = 130
"""Exit code of a process that a signal ended."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """`draining` is set by the first SIGINT or SIGTERM; the second cancels the main task."""

    draining: asyncio.Event = field(default_factory=asyncio.Event)


def run(main: Callable[[Shutdown], Coroutine[Any, Any, int]]) -> int:
    """Runs `main` on uvloop (or asyncio's own loop where there is none) and returns its exit code; 130 when it was
    cut short by a second signal."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_with_signals(main))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return INTERRUPTED


def run_once(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs `main` to its end on the same kind of loop, for callers that have none.

    Raises:
        InputError: a loop runs in this thread already.
    """
    if _is_in_a_loop():
        raise InputError(
            "expected no running event loop, got one (async code or a notebook): use `async with pice.open(...) as p` "
            "and `await p.ask(...)` there"
        )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _with_signals(main: Callable[[Shutdown], Coroutine[Any, Any, int]]) -> int:
    shutdown, loop, task = Shutdown(), asyncio.get_running_loop(), asyncio.current_task()

    def stop() -> None:
        if shutdown.draining.is_set() and task is not None:
            task.cancel()
        shutdown.draining.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        return await main(shutdown)
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
