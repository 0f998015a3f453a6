"""Where the time of a profiled run goes, by module of pice."""

import cProfile
import pstats
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from bench.report import ROOT

Function = tuple[str, int, str]
Calls = tuple[int, int, float, float]
"""Primitive calls, calls, own seconds, seconds with everything called: as in `pstats.Stats.stats`."""
Stats = Mapping[Function, tuple[int, int, float, float, Mapping[Function, Calls]]]

LOOP = "event loop"
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Hot:
    """One function: own time includes that of what it called outside pice."""

    where: str
    num_calls: int
    own_s: float
    all_s: float


def stats_of(profile: cProfile.Profile) -> Stats:
    return cast("Stats", pstats.Stats(profile).stats)  # type: ignore[attr-defined]  # typeshed leaves it out


def by_module(stats: Stats) -> dict[str, float]:
    """Own seconds of each module of ours, what it called elsewhere (msgpack, copies, regular expressions) included;
    what nothing of ours called is the event loop's. Largest first."""
    shares = defaultdict[str, float](float)
    for function, seconds in _own(stats).items():
        shares[_module(function)] += seconds
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def hottest(stats: Stats, num: int) -> list[Hot]:
    """The functions of ours with the largest own time."""
    own = _own(stats)
    ranked = sorted((function for function in own if _is_ours(function)), key=own.__getitem__, reverse=True)
    return [Hot(_named(it), stats[it][1], own[it], stats[it][3]) for it in ranked[:num]]


def _own(stats: Stats) -> dict[Function, float]:
    """Own seconds of our functions and of the loop, foreign functions' divided among those that called them."""
    own = defaultdict[Function, float](float)

    @cache
    def owners(function: Function, depth: int) -> tuple[tuple[Function, float], ...]:
        """Whose a foreign function's time is, by share, as its callers' time in it goes."""
        if _is_ours(function):
            return ((function, 1.0),)
        callers = stats[function][4] if function in stats and depth < _MAX_DEPTH else {}
        whole = sum(calls[3] for calls in callers.values())
        if whole <= 0:
            return ((("", 0, LOOP), 1.0),)
        shares = defaultdict[Function, float](float)
        for caller, calls in callers.items():
            for owner, share in owners(caller, depth + 1):
                shares[owner] += share * calls[3] / whole
        return tuple(shares.items())

    for function, (_, _, own_s, _, callers) in stats.items():
        if _is_ours(function) or not callers:
            own[owners(function, 0)[0][0]] += own_s
            continue
        for caller, calls in callers.items():
            for owner, share in owners(caller, 1):
                own[owner] += share * calls[2]
    return dict(own)


def _is_ours(function: Function) -> bool:
    return function[0].startswith((f"{ROOT}/pice/", f"{ROOT}/bench/"))


def _module(function: Function) -> str:
    if not _is_ours(function):
        return LOOP
    return ".".join(Path(function[0]).relative_to(ROOT).with_suffix("").parts)


def _named(function: Function) -> str:
    return f"{Path(function[0]).relative_to(ROOT)}:{function[1]} {function[2]}"
