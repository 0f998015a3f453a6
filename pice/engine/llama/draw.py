"""Logits -> the next token of each sequence, with its log-probability.

llama.cpp's samplers draw; but they look at every token of the vocabulary one by one, so only those that can be drawn
are put before them. Which these are numpy finds in a tenth of the time.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pice.core import Sampling
from pice.engine.llama.grammar import grammar_problem
from pice.engine.llama.native import llama_cpp, log, quick
from pice.errors import InputError

_chain_add = quick("llama_sampler_chain_add")
_apply = quick("llama_sampler_apply")
_accept = quick("llama_sampler_accept")

BLOCK = 32
"""Tokens of which only the likeliest is looked at first. They lie far apart, so that numpy compares whole lines."""

SAFE = 60.0
"""Logits up to this, and sums of their exponentials, are well inside of what single floats hold."""

Drawn = tuple[int, float] | None
"""A token and its natural log-probability; None where nothing is left to draw."""


class Sampler:
    """How one sequence draws: a chain (None: the likeliest token), and a grammar before it (None: none).

    For its maker to free.

    Raises:
        InputError: the grammar is wrong.
    """

    def __init__(self, vocab: Any, n_vocab: int, sampling: Sampling, grammar: str, seed: int) -> None:
        self.grammar = _grammar(vocab, grammar) if grammar else None
        self.chain = None
        self.sampling = sampling
        self.num_drawn = 0
        self.penalties = sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty
        if sampling.temperature or self.penalises or grammar:
            self.chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
            if self.penalises:
                repeat, presence, frequency = self.penalties
                self._add(
                    llama_cpp.llama_sampler_init_penalties, n_vocab, sampling.max_tokens, repeat, frequency, presence
                )
            self._add_choice(sampling, seed)

    @property
    def penalises(self) -> bool:
        return self.penalties != (1.0, 0.0, 0.0)

    @property
    def num_likeliest(self) -> int | None:
        """How many of the likeliest tokens hold every one that may be drawn; None where that cannot be said.

        A penalty only lowers tokens drawn before, of which there are at most `num_drawn`, unless it is a reward.
        """
        repeat, presence, frequency = self.penalties
        if repeat < 1 or presence < 0 or frequency < 0:
            return None
        greedy = not self.sampling.temperature
        if not (greedy or self.sampling.top_k):
            return None
        return (1 if greedy else self.sampling.top_k) + (self.num_drawn if self.penalises else 0)

    @property
    def by_nucleus(self) -> bool:
        """Whether `nucleus` stands in for llama.cpp's top_p, which is slow where no top_k comes before it."""
        return self.sampling.top_p < 1 and not (self.sampling.top_k or self.penalises or self.grammar)

    def _add_choice(self, sampling: Sampling, seed: int) -> None:
        if not sampling.temperature:
            self._add(llama_cpp.llama_sampler_init_greedy)
            return
        self._add(llama_cpp.llama_sampler_init_top_k, sampling.top_k)
        if sampling.top_p < 1 and not self.by_nucleus:
            self._add(llama_cpp.llama_sampler_init_top_p, sampling.top_p, 1)
        if sampling.min_p:
            self._add(llama_cpp.llama_sampler_init_min_p, sampling.min_p, 1)
        self._add(llama_cpp.llama_sampler_init_temp, sampling.temperature)
        self._add(llama_cpp.llama_sampler_init_dist, seed)

    def _add(self, make: Callable[..., Any], *arguments: float) -> None:
        _chain_add(self.chain, make(*arguments))

    def free(self) -> None:
        for sampler in (self.chain, self.grammar):
            if sampler:
                llama_cpp.llama_sampler_free(sampler)
        self.chain = self.grammar = None


class Drawing:
    """Draws for the sequences of a step. Belongs to one thread.

    A step of the model leaves nothing of this in the processor's caches, so each call into numpy costs some 10 us,
    whatever it does: there are few of them.
    """

    def __init__(self, n_vocab: int) -> None:
        np.seterr(all="ignore")  # of this thread; entering np.errstate takes longer than finding the likeliest token
        self._scratch = np.empty(n_vocab, np.float32)
        self._all = np.arange(n_vocab, dtype=np.int32)
        self._likeliest = Likeliest(n_vocab)
        self._shortlist = np.zeros(n_vocab, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._ids, self._logits = self._shortlist["id"], self._shortlist["logit"]
        address = self._shortlist.ctypes.data_as(llama_cpp.llama_token_data_p)
        self._array = llama_cpp.llama_token_data_array(address, 0, -1, False)
        self._array_ref = ctypes.byref(self._array)

    def draw(self, logits: Any, samplers: Sequence[Sampler]) -> list[Drawn]:
        """For each row of `logits` (float32, shape: samplers x vocabulary)."""
        return [self._draw(row, sampler) for row, sampler in zip(logits, samplers, strict=True)]

    def norm(self, row: Any, peak: float) -> float:
        """Natural logarithm of the sum of exp(logit); not finite where the model gave no numbers."""
        if -SAFE < peak < SAFE:
            total = np.add.reduce(np.exp(row, out=self._scratch))
            return math.log(total) if total > 0 else math.nan
        total = np.add.reduce(np.exp(np.subtract(row, np.float32(peak), out=self._scratch), out=self._scratch))
        return peak + math.log(total) if total > 0 else math.nan

    def _draw(self, row: Any, sampler: Sampler) -> Drawn:
        best = int(row.argmax())
        norm = self.norm(row, float(row[best]))
        if not math.isfinite(norm):
            return None
        token = self._by_chain(sampler, row, best, norm) if sampler.chain else best
        return None if token is None else (token, float(row[token]) - norm)

    def _by_chain(self, sampler: Sampler, row: Any, best: int, norm: float) -> int | None:
        token = self._choose(sampler, *self._candidates(sampler, row, best, norm))
        if sampler.grammar:
            token = self._by_grammar(sampler, row, token)
        if token is not None and sampler.penalises:
            sampler.num_drawn += 1
            _accept(sampler.chain, token)
        return token

    def _candidates(self, sampler: Sampler, row: Any, best: int, norm: float) -> tuple[Any, Any]:
        """Ids among which are all that the sampler may draw, and their logits."""
        num_likeliest, min_p = sampler.num_likeliest, sampler.sampling.min_p
        if num_likeliest is not None:
            return self._likeliest.of(row, num_likeliest)
        if sampler.by_nucleus:
            ids = nucleus(self._likeliest, row, norm, sampler.sampling.top_p)
        elif min_p and not sampler.penalises:
            ids = np.flatnonzero(row >= row[best] + math.log(min_p) - 1e-3)
        else:
            return self._all, row
        return ids, row[ids]

    def _choose(self, sampler: Sampler, ids: Any, logits: Any) -> int | None:
        """What the chain draws from these."""
        array = self._list(ids, logits)
        _apply(sampler.chain, self._array_ref)
        return int(self._ids[array.selected]) if 0 <= array.selected < array.size else None

    def _by_grammar(self, sampler: Sampler, row: Any, token: int | None) -> int | None:
        """The token if the grammar allows it, else one drawn from those that it allows.

        Looks before it accepts: accepting a token that the grammar forbids would end the process.
        """
        if token is None or not len(self._allowed(sampler, row, np.array([token], np.int32))):
            allowed = self._allowed(sampler, row, self._all)
            token = self._choose(sampler, allowed, row[allowed]) if len(allowed) else None
        if token is not None:
            llama_cpp.llama_sampler_accept(sampler.grammar, token)
        return token

    def _allowed(self, sampler: Sampler, row: Any, ids: Any) -> Any:
        self._list(ids, row[ids])
        llama_cpp.llama_sampler_apply(sampler.grammar, self._array_ref)
        return ids[np.isfinite(self._logits[: len(ids)])]

    def _list(self, ids: Any, logits: Any) -> Any:
        array, num = self._array, len(ids)
        self._ids[:num], self._logits[:num] = ids, logits
        array.size, array.selected, array.sorted = num, -1, False
        return array


class Likeliest:
    """Finds the likeliest of `n_vocab` tokens.

    Of the greatest in each block of tokens, `num` are no less than the num-th of them; so are that many tokens, and
    what is less is not among the `num` greatest. Only blocks that reach it are taken.
    """

    def __init__(self, n_vocab: int) -> None:
        self._num_blocks = n_vocab // BLOCK
        self._num_even = self._num_blocks * BLOCK
        self._first = (np.arange(BLOCK, dtype=np.int32) * self._num_blocks)[:, None]
        self._rest = np.arange(self._num_even, n_vocab, dtype=np.int32)
        self._all = np.arange(n_vocab, dtype=np.int32)

    def of(self, row: Any, num: int) -> tuple[Any, Any]:
        """Ids and logits of tokens among which are the `num` likeliest; some tens of times as many."""
        num_blocks = self._num_blocks
        if num > num_blocks // 2:
            return self._all, row
        blocks = row[: self._num_even].reshape(BLOCK, num_blocks)
        peaks = blocks.max(axis=0)
        reaching = (peaks >= np.partition(peaks, num_blocks - num)[num_blocks - num]).nonzero()[0]
        ids = (self._first + reaching).ravel()
        if len(self._rest):
            ids = np.concatenate((ids, self._rest))
        return ids, row[ids]


def nucleus(likeliest: Likeliest, row: Any, norm: float, top_p: float) -> Any:
    """Ids of the fewest tokens, likeliest first, whose probabilities come to `top_p`; at least one."""
    num = 256
    while True:
        ids, logits = likeliest.of(row, num)
        order = np.argsort(-logits, kind="stable")[: num if len(ids) < len(row) else None]
        sums = np.cumsum(np.exp(logits[order].astype(np.float64) - norm))
        if sums[-1] >= top_p or len(order) == len(row):
            return ids[order[: int(np.searchsorted(sums, top_p)) + 1]]
        num *= 8


def _grammar(vocab: Any, text: str) -> Any:
    data = text.encode(errors="replace")
    problem = grammar_problem(data)
    if problem:
        raise InputError(f"the grammar {problem}")
    log.lines.clear()
    grammar = llama_cpp.llama_sampler_init_grammar(vocab, data, b"root")
    if not grammar:
        raise InputError(f"the grammar is not GBNF with a rule named root: {log.reason()}")
    return grammar
