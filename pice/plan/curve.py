"""What a model was timed at -> its rows for people and its curve for the planner."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from statistics import median

from pice.core import Curve
from pice.errors import InputError

LEAST_PROMPT_TOKENS, LEAST_TOKENS = 32, 8
"""Less is no prefix worth sharing, or too short to be timed."""
STEADY = 1.5
"""How many times longer than the fastest the slowest run of a size may take."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is timed: at each of the batch `sizes`, so many sequences that share a prompt and go on for `num_tokens`
    steps, `num_runs` times.

    Raises:
        InputError: a number is out of range.
    """

    num_prompt_tokens: int
    num_tokens: int
    sizes: tuple[int, ...]
    num_runs: int

    def __post_init__(self) -> None:
        rules = {
            "prompt_tokens": (self.num_prompt_tokens, LEAST_PROMPT_TOKENS, self.num_prompt_tokens),
            "tokens": (self.num_tokens, LEAST_TOKENS, self.num_tokens),
            "batch": (min(self.sizes, default=0), 1, list(self.sizes)),
            "repeat": (self.num_runs, 1, self.num_runs),
        }
        for name, (value, least, given) in rules.items():
            if value < least:
                raise InputError(f"{name} must be >= {least}, got {given}")

    @property
    def most(self) -> int:
        return max(self.sizes)

    def num_cells(self, size: int, *, shared: bool = True) -> int:
        """Tokens of memory that a batch takes."""
        return (1 if shared else size) * self.num_prompt_tokens + size * self.num_tokens


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds that one batch took: to the first token of half the prompt and of the whole one, to evaluate all its
    prompts, and for all its steps."""

    batch: int
    half_s: float
    first_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """Medians at one batch size. Rates are tokens per second, infinite where nothing took time; a shared prompt counts
    once."""

    num_prompt_tokens: int
    num_tokens: int
    batch: int
    num_cells: int
    prefill_s: float
    prefill_per_s: float
    decode_s: float
    decode_per_s: float
    total_s: float
    total_per_s: float


@dataclass(frozen=True, slots=True)
class Timing:
    """All runs of a workload. `shared` says whether its sequences had one prompt in memory, or each its own."""

    workload: Workload
    shared: bool
    runs: tuple[Run, ...]

    def rows(self) -> Iterator[Row]:
        """One for each size, in ascending order."""
        prompt, tokens = self.workload.num_prompt_tokens, self.workload.num_tokens
        for size in sorted(set(self.workload.sizes)):
            prefill_s = self._median(lambda run: run.prefill_s, size)
            decode_s = self._median(lambda run: run.decode_s, size)
            num_drawn = size * tokens
            num_cells = self.workload.num_cells(size, shared=self.shared)
            yield Row(
                num_prompt_tokens=prompt,
                num_tokens=tokens,
                batch=size,
                num_cells=num_cells,
                prefill_s=prefill_s,
                prefill_per_s=(num_cells - num_drawn) / prefill_s if prefill_s else inf,
                decode_s=decode_s,
                decode_per_s=num_drawn / decode_s,
                total_s=prefill_s + decode_s,
                total_per_s=num_cells / (prefill_s + decode_s),
            )

    def curve(self) -> Curve:
        """To three digits. A larger batch that was measured to be faster counts as no slower: a curve only rises."""
        rows = list(self.rows())
        rate, base_s = self._first_token()
        steps = accumulate((row.decode_s / row.num_tokens for row in rows), max)
        return Curve(
            batch=tuple(row.batch for row in rows),
            step_s=tuple(map(_rounded, steps)),
            prefill_s_per_token=_rounded(rate),
            base_s=_rounded(base_s),
        )

    @property
    def spread(self) -> float:
        """How many times longer the slowest steps of a size took than its fastest; the worst of all sizes."""
        times = [[run.decode_s for run in self.runs if run.batch == size] for size in self.workload.sizes]
        return max(max(each) / min(each) for each in times)

    def _first_token(self) -> tuple[float, float]:
        """Seconds for each token of a prompt, and beyond that: the line through half a prompt and a whole one.

        Where that line makes no sense (prompts so short that noise or a fixed cost is all there is to see), it is the
        one from 0.
        """
        whole, half = self.workload.num_prompt_tokens, self.workload.num_prompt_tokens // 2
        first_s, half_s = self._median(lambda run: run.first_s), self._median(lambda run: run.half_s)
        rate = (first_s - half_s) / (whole - half)
        base_s = first_s - rate * whole
        return (rate, base_s) if rate > 0 and base_s >= 0 else (first_s / whole, 0.0)

    def _median(self, value: Callable[[Run], float], size: int | None = None) -> float:
        return median(value(run) for run in self.runs if size in (None, run.batch))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
