"""Where the time of a run goes, by module and function of pice: stacks looked at a thousand times a second."""

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from bench.report import ROOT

EVERY_S = 0.001
LOOP = "event loop, benchmark"

Function = tuple[str, str]
"""File, relative to the repository, and qualified name."""
Stack = tuple[Function, ...]
"""Functions of pice that were running, the innermost first; empty where none was."""


@dataclass(slots=True)
class Sampler:
    """Counts the stacks of the main thread while its block runs. Every sample is as likely to fall on a small
    function as its time says, which is not so where calls are traced. For Unix; takes SIGALRM."""

    stacks: Counter[Stack] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGALRM, self._take)
        signal.setitimer(signal.ITIMER_REAL, EVERY_S, EVERY_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _take(self, _: int, frame: FrameType | None) -> None:
        self.stacks[_stack(frame)] += 1


def by_module(stacks: Mapping[Stack, int]) -> dict[str, float]:
    """Share of each module, what it called elsewhere (msgpack, copies, regular expressions) included; where nothing of
    pice ran, it was the event loop or the benchmark. Largest first."""
    return _shares(stacks, lambda stack: [_module(stack[0][0]) if stack else LOOP])


def own_shares(stacks: Mapping[Stack, int]) -> dict[str, float]:
    """Share of each function without other functions of pice. Largest first."""
    return _shares(stacks, lambda stack: map(named, stack[:1]))


def whole_shares(stacks: Mapping[Stack, int]) -> dict[str, float]:
    """Share of each function with all that it called or awaited. Largest first."""
    return _shares(stacks, lambda stack: set(map(named, stack)))


def named(function: Function) -> str:
    return f"{function[0]} {function[1]}"


def _shares(stacks: Mapping[Stack, int], names: Callable[[Stack], Iterable[str]]) -> dict[str, float]:
    counts, num_samples = Counter[str](), max(1, sum(stacks.values()))
    for stack, count in stacks.items():
        for name in names(stack):
            counts[name] += count
    return {name: count / num_samples for name, count in counts.most_common()}


def _stack(frame: FrameType | None) -> Stack:
    found = list[Function]()
    while frame is not None:
        if file := _our_file(frame.f_code.co_filename):
            found.append((file, frame.f_code.co_qualname))
        frame = frame.f_back
    return tuple(found)


@cache
def _our_file(name: str) -> str:
    """The file relative to the repository, "" for one outside pice."""
    path = Path(name)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT / "pice") else ""


def _module(file: str) -> str:
    return ".".join(Path(file).with_suffix("").parts)
