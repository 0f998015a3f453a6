"""Sequences decoded together: who runs, who shares a prefix with whom, what the next step evaluates.

Plain bookkeeping: no model, no thread, no clock. A sequence is a list of tokens of which the first `num_evaluated` are
in the model's memory; evaluating the rest yields its next token, whether the rest is a prompt or the token just drawn.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

PREFILL_TOKENS = 128
"""Prompt tokens evaluated in a step beside running generations, so that a long prompt does not make them wait."""

MIN_SHARED_TOKENS = 16
"""A shorter common prefix is cheaper to evaluate again than to wait for."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One generation's tokens. `seq_id` is -1 until it runs.

    The memory cells of its first `num_shared` tokens are the cells of `parent`; it never needs more than `max_cells`.
    """

    tokens: list[int]
    max_tokens: int
    num_prompt_tokens: int = 0
    seq_id: int = -1
    num_evaluated: int = 0
    num_cached: int = 0
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
    """The memory of the first `num_tokens` tokens of `source` now serves `target` too."""

    source: Sequence
    target: Sequence
    num_tokens: int


@dataclass(slots=True)
class Batch:
    """The sequences of one context of `num_cells` cells. First come, first admitted.

    A sequence is admitted when an id is free and the cells that it and all running ones may ever need fit, so that no
    running one goes out of memory; one that is alone always fits, its length having been checked.
    """

    num_cells: int
    n_seq_max: int
    n_batch: int
    shares_prefixes: bool = True
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)

    @property
    def num_reserved(self) -> int:
        """Cells that the running sequences may come to need, shared ones counted once."""
        return sum(sequence.max_cells - sequence.num_shared for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Moves sequences from waiting to running, as far as there is room, and returns them."""
        admitted = []
        while self.waiting and len(self.running) < self.n_seq_max:
            if self.running and self.num_reserved + self.waiting[0].max_cells > self.num_cells:
                break
            sequence = self.waiting.popleft()
            sequence.seq_id = min(set(range(self.n_seq_max)) - {other.seq_id for other in self.running})
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def plan(self) -> tuple[list[Share], list[Chunk]]:
        """What the next step does: first the shares (noted as done), then one batch of chunks.

        A sequence that has not begun waits while an earlier one still evaluates a prefix of both.
        """
        shares, ready = [], []
        for index, sequence in enumerate(self.running):
            share, later = self._best_share(sequence, self.running[:index])
            if later:
                continue
            if share is not None:
                self._note(share)
                shares.append(share)
            ready.append(sequence)
        return shares, list(self._chunks(ready))

    def done(self, chunks: list[Chunk]) -> None:
        """Notes that the chunks were evaluated."""
        for chunk in chunks:
            chunk.sequence.num_evaluated += len(chunk.tokens)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence. Cells it shared pass to the one that shares most of them."""
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        children = [other for other in self.running if other.parent is sequence]
        if children:
            heir = max(children, key=lambda child: child.num_shared)
            for child in children:
                child.parent = heir
            heir.parent, heir.num_shared = sequence.parent, min(heir.num_shared, sequence.num_shared)

    def requeue_youngest(self) -> Sequence | None:
        """For when memory was short after all: the sequence admitted last goes back in front of the waiting ones, to
        be evaluated again from its first token, and as much is not admitted again. None when only one is running."""
        if len(self.running) < 2:
            return None
        youngest = self.running[-1]
        self.num_cells = self.num_reserved - 1
        self.remove(youngest)
        youngest.num_evaluated, youngest.num_shared, youngest.parent = 0, 0, None
        self.waiting.appendleft(youngest)
        return youngest

    def _best_share(self, target: Sequence, sources: list[Sequence]) -> tuple[Share | None, bool]:
        """The longest prefix that `target` can take over now, and whether a longer one is worth waiting for."""
        if target.num_evaluated or not self.shares_prefixes:
            return None, False
        best, most = None, 0
        for source in sources:
            num_common = num_common_tokens(source.tokens, target.tokens[:-1])
            most = max(most, num_common)
            num_now = min(num_common, source.num_evaluated)
            if num_now >= (best.num_tokens + 1 if best else MIN_SHARED_TOKENS):
                best = Share(source, target, num_now)
        return best, most - (best.num_tokens if best else 0) >= MIN_SHARED_TOKENS

    def _note(self, share: Share) -> None:
        target = share.target
        target.num_evaluated = target.num_shared = share.num_tokens
        target.parent = share.source
        if not target.num_drawn:
            target.num_cached = share.num_tokens

    def _chunks(self, ready: list[Sequence]) -> Iterator[Chunk]:
        decoding = [sequence for sequence in ready if sequence.num_left == 1]
        for sequence in decoding:
            yield Chunk(sequence, sequence.num_evaluated, sequence.tokens[-1:], last=True)
        room = min(PREFILL_TOKENS, self.n_batch - len(decoding)) if decoding else self.n_batch
        for sequence in ready:
            start = sequence.num_evaluated
            if sequence.num_left > 1 and room > 0:
                tokens = sequence.tokens[start : start + room]
                room -= len(tokens)
                yield Chunk(sequence, start, tokens, last=start + len(tokens) == len(sequence.tokens))


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
