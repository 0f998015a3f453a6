"""An event loop whose clock jumps: hours of waiting pass in the time their work takes."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Every task waits, and no timer is set that could wake one."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A selector loop that never waits: when nothing is ready, `time()` moves to the next timer.

    Raises `Deadlock` out of `run_until_complete` where a real loop would hang. For code that takes time from the
    loop alone; a thread that calls back into it is not waited for.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now_s

    def jump(self, wait_s: float) -> None:
        self._now_s += wait_s


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise Deadlock("every task waits and no timer is set")
        self._loop.jump(timeout)
        return ready


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` to its end on a fresh virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)
