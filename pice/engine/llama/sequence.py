"""A generation's tokens, and what is done about them: evaluated, shared, forgotten."""

import math
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Sequence:
    """One generation's tokens. `seq_id` is -1 until it runs.

    The cells of its first `num_shared` tokens are the cells of `parent`; it never needs more than `max_cells`.
    """

    tokens: list[int]
    max_tokens: int
    deadline_s: float = math.inf
    arrival: int = 0
    num_prompt_tokens: int = 0
    seq_id: int = -1
    num_evaluated: int = 0
    num_cached: int | None = None
    num_shared: int = 0
    parent: "Sequence | None" = None
    max_cells: int = 0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)
        self.max_cells = len(self.tokens) + self.max_tokens

    @property
    def num_drawn(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_left(self) -> int:
        """Tokens to evaluate before the next can be drawn."""
        return len(self.tokens) - self.num_evaluated

    @property
    def num_own_cells(self) -> int:
        """Cells that it alone may come to need."""
        return self.max_cells - self.num_shared


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence to evaluate in one step, at positions from `start`; after the `last` of them the next
    token is drawn."""

    sequence: Sequence
    start: int
    tokens: list[int]
    last: bool


@dataclass(frozen=True, slots=True)
class Share:
    """The memory of the first `num_tokens` tokens of one sequence now serves another too."""

    source_id: int
    target_id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Forget:
    """A sequence keeps its first `num_tokens` tokens in memory and no more."""

    seq_id: int
    num_tokens: int = 0


Change = Share | Forget
"""What has to be done to the model's memory, in the order given, before anything else is evaluated."""


def num_common_tokens(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
