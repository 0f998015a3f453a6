"""Sequences decoded together: who runs, who shares a prefix with whom, what the next step evaluates.

Plain bookkeeping: no model, no thread, no clock. A sequence is a list of tokens of which the first `num_evaluated` are
in the model's memory; evaluating the rest yields its next token, whether the rest is a prompt or the token just drawn.
A cell of memory holds one token and may serve several sequences.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

from pice.engine.llama.sequence import Change, Chunk, Forget, Sequence, Share, num_common_tokens

PREFILL_TOKENS = 128
"""Prompt tokens evaluated in a step beside running generations, so that a long prompt does not make them wait."""

MIN_SHARED_TOKENS = 16
"""A shorter common prefix is cheaper to evaluate again than to wait for."""

MIN_RESTING_TOKENS = 64
"""A prompt stays in memory when this many of its tokens are in no other."""


@dataclass(slots=True)
class Batch:
    """The sequences of one context of `num_cells` cells. The earliest deadline is admitted first.

    A sequence is admitted when one of `n_seq_max` places is free and the cells that it and all running ones may ever
    need fit, so that no running one goes out of memory; one that is alone always fits, its length having been
    checked. Where memory was short all the same, as much is not admitted again until nothing runs.

    Prompts of sequences that ended rest in memory, at most `num_resting` of them in `max_resting_cells`, until the room
    is needed, those not used for longest first; so a prefix is found that was evaluated a while ago.

    A model that attends to the last `window` tokens only, or has a state instead of cells (0), keeps no earlier ones:
    its prefixes serve others only while they are shorter. `most_cells` is `num_cells` as it was given.
    """

    num_cells: int
    n_seq_max: int
    n_batch: int
    num_resting: int = 0
    max_resting_cells: int = 0
    window: float = math.inf
    running: list[Sequence] = field(default_factory=list)
    resting: list[Sequence] = field(default_factory=list)
    _waiting: list[tuple[float, int, Sequence]] = field(default_factory=list)
    _arrivals: Iterator[int] = field(default_factory=count)
    most_cells: int = 0

    def __post_init__(self) -> None:
        self.most_cells = self.num_cells

    def add(self, sequence: Sequence) -> None:
        sequence.arrival = next(self._arrivals)
        heappush(self._waiting, (sequence.deadline_s, sequence.arrival, sequence))

    @property
    def waiting(self) -> list[Sequence]:
        """In the order in which they are admitted."""
        return [sequence for _, _, sequence in sorted(self._waiting, key=lambda entry: entry[:2])]

    def admit(self) -> list[Change]:
        """Moves sequences from waiting to running, as far as there is room.

        One that shares a prefix with a sequence which is still evaluating it lets others go first.
        """
        changes, deferred = list[Change](), list[tuple[float, int, Sequence]]()
        while self._waiting and len(self.running) < self.n_seq_max and len(deferred) < self.n_seq_max:
            entry = self._waiting[0]
            source, num_now, num_later = self._best_source(entry[2])
            if num_later - num_now >= MIN_SHARED_TOKENS:
                deferred.append(heappop(self._waiting))
                continue
            fits, forgotten = self._make_room_for(entry[2], source, num_now)
            changes += forgotten
            if not fits:
                break
            changes += self._begin(heappop(self._waiting)[2], source, num_now)
        for entry in deferred:
            heappush(self._waiting, entry)
        return changes

    def chunks(self) -> list[Chunk]:
        """What the next step evaluates, as one batch: a token of each running generation, and prompts."""
        chunks = [
            Chunk(sequence, sequence.num_evaluated, sequence.tokens[-1:], last=True)
            for sequence in self.running
            if sequence.num_left == 1
        ]
        room = min(PREFILL_TOKENS, self.n_batch - len(chunks)) if chunks else self.n_batch
        for sequence in sorted(self.running, key=_urgency):
            start = sequence.num_evaluated
            if sequence.num_left > 1 and room > 0:
                tokens = sequence.tokens[start : start + room]
                room -= len(tokens)
                chunks.append(Chunk(sequence, start, tokens, last=start + len(tokens) == len(sequence.tokens)))
        return chunks

    def done(self, chunks: list[Chunk]) -> None:
        """Notes that the chunks were evaluated."""
        for chunk in chunks:
            chunk.sequence.num_evaluated += len(chunk.tokens)

    def end(self, sequence: Sequence) -> list[Change]:
        """Takes a sequence out; its prompt rests where that is worth while."""
        if sequence not in self.running:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapify(self._waiting)
            return []
        self.running.remove(sequence)
        self._take_courage()
        num_kept = min(sequence.num_evaluated, sequence.num_prompt_tokens)
        if len(sequence.tokens) >= self.window or num_kept - self._num_known(sequence) < MIN_RESTING_TOKENS:
            return [self._forget(sequence)]
        return [self._rest(sequence, num_kept), *self._keep_within_bounds()]

    def make_room(self) -> list[Change]:
        """For when memory was short after all: the resting prompts go, or where there are none the least urgent
        sequence goes back to wait, to be evaluated again from its first token. Nothing when only one is running."""
        if self.resting:
            return [self._forget(resting) for resting in list(self.resting)]
        if len(self.running) < 2:
            return []
        self.num_cells = self.num_reserved - 1
        least_urgent = max(self.running, key=_urgency)
        self.running.remove(least_urgent)
        return [self._put_back(least_urgent)]

    def start_over(self) -> None:
        """For when the whole memory was lost: what runs goes back to wait, and evaluates its tokens again."""
        self.resting.clear()
        while self.running:
            self._put_back(self.running.pop())
        self._take_courage()

    def _take_courage(self) -> None:
        """With nothing running, memory that was short is not short any more."""
        if not self.running:
            self.num_cells = self.most_cells

    @property
    def num_reserved(self) -> int:
        """Cells that running sequences may come to need and resting ones hold, shared ones counted once."""
        return sum(sequence.num_own_cells for sequence in (*self.running, *self.resting))

    def _best_source(self, target: Sequence) -> tuple[Sequence | None, int, int]:
        """Whose memory holds the longest prefix of `target`, how many tokens of it, and how many it may come to hold
        of one that is still evaluated."""
        best, num_now, num_later = None, 0, 0
        own, begin = target.tokens[:-1], target.tokens[:MIN_SHARED_TOKENS]
        for source in (*self.running, *self.resting):
            if source.tokens[:MIN_SHARED_TOKENS] != begin or len(source.tokens) >= self.window:
                continue
            num_common = num_common_tokens(source.tokens, own)
            num_later = max(num_later, num_common)
            if min(num_common, source.num_evaluated) > num_now:
                best, num_now = source, min(num_common, source.num_evaluated)
        return (best, num_now, num_later) if num_now >= MIN_SHARED_TOKENS else (None, 0, num_later)

    def _fits(self, target: Sequence, num_shared: int) -> bool:
        return self.num_reserved + target.max_cells - num_shared <= self.num_cells

    def _make_room_for(self, target: Sequence, source: Sequence | None, num_shared: int) -> tuple[bool, list[Change]]:
        """Whether `target` fits, when as many resting prompts as need be are forgotten; the source stays. None is
        where that would not be enough."""
        changes = list[Change]()
        least = sum(sequence.num_own_cells for sequence in self.running) + target.max_cells - num_shared
        if self.running and least > self.num_cells:
            return False, changes
        while not self._fits(target, num_shared):
            oldest = next((resting for resting in self.resting if resting is not source), None)
            if oldest is None:
                break
            changes.append(self._forget(oldest))
        if not self.running and source is not None and not self._fits(target, num_shared):
            changes.append(self._trim(source, num_shared))
        return not self.running or self._fits(target, num_shared), changes

    def _begin(self, sequence: Sequence, source: Sequence | None, num_shared: int) -> list[Change]:
        sequence.seq_id = self._free_id()
        if sequence.num_cached is None:
            sequence.num_cached = num_shared
        self.running.append(sequence)
        if source is None:
            return []
        sequence.num_evaluated = sequence.num_shared = num_shared
        sequence.parent = source
        if source in self.resting:
            self.resting.remove(source)
            self.resting.append(source)
        return [Share(source.seq_id, sequence.seq_id, num_shared)]

    def _free_id(self) -> int:
        taken = {sequence.seq_id for sequence in (*self.running, *self.resting)}
        return next(seq_id for seq_id in range(self.n_seq_max + self.num_resting) if seq_id not in taken)

    def _num_known(self, sequence: Sequence) -> int:
        """How many of its first tokens some other sequence has in memory too."""
        others = (*self.running, *self.resting)
        return max(
            (min(num_common_tokens(other.tokens, sequence.tokens), other.num_evaluated) for other in others), default=0
        )

    def _rest(self, sequence: Sequence, num_tokens: int) -> Change:
        self.resting.append(sequence)
        num_tokens = max(num_tokens, *(child.num_shared for child in self._children(sequence)), 0)
        return self._trim(sequence, num_tokens)

    def _trim(self, sequence: Sequence, num_tokens: int) -> Change:
        """Nobody may share more of it."""
        del sequence.tokens[num_tokens:]
        sequence.num_evaluated = sequence.max_cells = num_tokens
        sequence.num_shared = min(sequence.num_shared, num_tokens)
        return Forget(sequence.seq_id, num_tokens)

    def _keep_within_bounds(self) -> list[Change]:
        """The prompts used least recently go; of one that is too long by itself its beginning stays."""
        changes = list[Change]()
        while len(self.resting) > self.num_resting or (len(self.resting) > 1 and self._num_too_many() > 0):
            changes.append(self._forget(self.resting[0]))
        if self.resting and (num_too_many := self._num_too_many()) > 0:
            changes += self._shorten(self.resting[0], len(self.resting[0].tokens) - num_too_many)
        return changes

    def _num_too_many(self) -> int:
        return sum(resting.num_own_cells for resting in self.resting) - self.max_resting_cells

    def _shorten(self, resting: Sequence, num_tokens: int) -> list[Change]:
        """What others share of it is not given up for that."""
        num_tokens = max(num_tokens, *(child.num_shared for child in self._children(resting)), 0)
        if num_tokens < MIN_SHARED_TOKENS:
            return [self._forget(resting)]
        return [self._trim(resting, num_tokens)]

    def _children(self, sequence: Sequence) -> list[Sequence]:
        return [other for other in (*self.running, *self.resting) if other.parent is sequence]

    def _forget(self, sequence: Sequence) -> Change:
        """Takes it out of memory. Cells it shared pass to the one that shares most of them."""
        if sequence in self.resting:
            self.resting.remove(sequence)
        children = self._children(sequence)
        if children:
            heir = max(children, key=lambda child: child.num_shared)
            for child in children:
                child.parent = heir
            heir.parent, heir.num_shared = sequence.parent, min(heir.num_shared, sequence.num_shared)
        return Forget(sequence.seq_id)

    def _put_back(self, sequence: Sequence) -> Change:
        forgotten = self._forget(sequence)
        sequence.seq_id, sequence.num_evaluated, sequence.num_shared, sequence.parent = -1, 0, 0, None
        heappush(self._waiting, (sequence.deadline_s, sequence.arrival, sequence))
        return forgotten


def _urgency(sequence: Sequence) -> tuple[float, int]:
    return sequence.deadline_s, sequence.arrival
