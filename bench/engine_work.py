"""What a contender of `bench/engine.py` is asked to do, and what it says it did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from pice.core import Sampling
from pice.errors import PiceError

MAX_TOKENS = 96
DRAWN = Sampling(max_tokens=MAX_TOKENS, temperature=0.8, top_k=40, top_p=0.95)
GREEDY = Sampling(max_tokens=MAX_TOKENS, temperature=0.0, top_k=1, top_p=1.0)


class Unfair(PiceError):
    """A contender did something else than the others, so its figures say nothing."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is the same for all contenders. `size` is the number of segments at once; `tools` is the folder of
    llama.cpp's own programs."""

    model: Path
    size: int
    n_threads: int
    tools: Path | None = None
    n_ctx: int = 8192
    n_batch: int = 512
    n_ubatch: int = 512


@dataclass(frozen=True, slots=True)
class Asked:
    """One segment: the two messages of a chat, and the tokens that they come to."""

    system: str
    user: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """Segments that are asked for at the same moment; segment i is drawn with `seed` + i."""

    segments: tuple[Asked, ...]
    greedy: bool
    seed: int

    @property
    def sampling(self) -> Sampling:
        return GREEDY if self.greedy else DRAWN


@dataclass(frozen=True, slots=True)
class Written:
    """One segment's text. Times are in seconds since the job began."""

    first_s: float
    end_s: float
    num_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """A job's end. `decode_per_s` is defined in `bench/engine.py`; `step_shares` says of what the owner's thread did
    while all segments were decoded, how much of the time each took."""

    decode_per_s: float | None
    segments: tuple[Written, ...] = ()
    step_shares: Mapping[str, float] | None = None

    @property
    def wall_s(self) -> float:
        return max(each.end_s for each in self.segments)

    @property
    def ttft_s(self) -> float:
        return median(each.first_s for each in self.segments)

    @property
    def num_evaluated(self) -> int:
        """Prompt tokens that were evaluated, and not taken from memory."""
        return sum(each.num_prompt_tokens - each.num_cached_tokens for each in self.segments)

    def check(self, job: Job) -> None:
        """Raises `Unfair` when not exactly what was asked for was written."""
        found = [(each.num_prompt_tokens, each.num_tokens) for each in self.segments]
        asked = [(len(each.tokens), MAX_TOKENS) for each in job.segments]
        if found and found != asked:
            raise Unfair(f"expected (prompt, written) tokens of {asked}, got {found}")


class Contender(Protocol):
    """One way to write segments, in a process of its own. `start` before the first `run`, `close` after the last."""

    async def start(self) -> None: ...

    async def run(self, job: Job) -> Done: ...

    async def close(self) -> None: ...


def decode_per_s(arrivals: Sequence[Sequence[float]]) -> float | None:
    """Tokens per second, of all segments, while all were decoded; from the times at which tokens came, by segment.

    From when the last segment has its first token until a segment ends every step gives each a token. So it is the
    number of segments times the rate of the last to begin, whose tokens mark the steps. None if there is no such time:
    on a busy machine the first may end before the last begins.
    """
    until = min(own[-1] for own in arrivals)
    inside = [at_s for at_s in max(arrivals, key=lambda own: own[0]) if at_s <= until]
    if len(inside) < 2:
        return None
    return len(arrivals) * (len(inside) - 1) / (inside[-1] - inside[0])
