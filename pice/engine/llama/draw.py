"""Logits -> the next token of each sequence, with its log-probability.

llama.cpp's samplers draw; but they look at every token of the vocabulary one by one, so only those that can be drawn
are put before them. Which these are numpy finds in a tenth of the time, for all sequences of a step together.
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
        return self.sampling.top_p < 1 and not self.sampling.top_k and not self.penalises

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
    """Draws for all sequences of a step at once; at most `max_rows` of them. Belongs to one thread."""

    def __init__(self, n_vocab: int, max_rows: int) -> None:
        np.seterr(all="ignore")  # of this thread; entering np.errstate takes longer than finding the likeliest token
        self._scratch = np.empty((max_rows, n_vocab), np.float32)
        self._rows = np.arange(max_rows)
        self._all = np.arange(n_vocab, dtype=np.int32)
        self._shortlist = np.zeros(n_vocab, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._ids, self._logits = self._shortlist["id"], self._shortlist["logit"]
        self._address = self._shortlist.ctypes.data_as(llama_cpp.llama_token_data_p)

    def draw(self, logits: Any, samplers: Sequence[Sampler]) -> list[Drawn]:
        """For each row of `logits` (float32, shape: samplers x vocabulary)."""
        best = logits.argmax(axis=1)
        norms = self.norms(logits, logits[self._rows[: len(best)], best])
        drawn: list[Drawn] = []
        for row, sampler, norm, token in zip(logits, samplers, norms.tolist(), best.tolist(), strict=True):
            if not math.isfinite(norm):
                token = None
            elif sampler.chain:
                token = self._draw(sampler, row, token, norm)
            drawn.append(None if token is None else (token, float(row[token]) - norm))
        return drawn

    def norms(self, logits: Any, peaks: Any) -> Any:
        """Natural logarithm of the sum of exp(logit) of each row; not finite where the model gave no numbers."""
        scratch = self._scratch[: len(logits)]
        if peaks.min() > -SAFE and peaks.max() < SAFE:
            return np.log(np.add.reduce(np.exp(logits, out=scratch), axis=1), dtype=np.float64)
        np.exp(np.subtract(logits, peaks[:, None], out=scratch), out=scratch)
        return peaks + np.log(np.add.reduce(scratch, axis=1), dtype=np.float64)

    def _draw(self, sampler: Sampler, row: Any, best: int, norm: float) -> int | None:
        token = self._choose(sampler, *self._candidates(sampler, row, best, norm))
        if sampler.grammar:
            token = self._by_grammar(sampler, row, token)
        if token is not None:
            sampler.num_drawn += 1
            _accept(sampler.chain, token)
        return token

    def _candidates(self, sampler: Sampler, row: Any, best: int, norm: float) -> tuple[Any, Any]:
        """Ids among which are all that the sampler may draw, and their logits."""
        num_likeliest, min_p = sampler.num_likeliest, sampler.sampling.min_p
        if num_likeliest is not None:
            return likeliest(row, num_likeliest)
        if sampler.by_nucleus:
            ids = nucleus(row, norm, sampler.sampling.top_p)
        elif min_p and not sampler.penalises:
            ids = np.flatnonzero(row >= row[best] + math.log(min_p) - 1e-3)
        else:
            return self._all, row
        return ids, row[ids]

    def _choose(self, sampler: Sampler, ids: Any, logits: Any) -> int | None:
        """What the chain draws from these."""
        array = self._list(ids, logits)
        _apply(sampler.chain, ctypes.byref(array))
        return int(array.data[array.selected].id) if 0 <= array.selected < array.size else None

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
        array = self._list(ids, row[ids])
        llama_cpp.llama_sampler_apply(sampler.grammar, ctypes.byref(array))
        return ids[np.isfinite(self._logits[: len(ids)])]

    def _list(self, ids: Any, logits: Any) -> Any:
        num = len(ids)
        self._ids[:num], self._logits[:num] = ids, logits
        return llama_cpp.llama_token_data_array(self._address, num, -1, False)


def likeliest(row: Any, num: int) -> tuple[Any, Any]:
    """Ids and logits of tokens among which are the `num` likeliest; some tens of times as many.

    Of the greatest in each block of tokens, `num` are no less than the num-th of them; so are that many tokens, and
    what is less is not among the `num` greatest. Only blocks that reach it are taken.
    """
    num_blocks = len(row) // BLOCK
    if num > num_blocks // 2:
        return np.arange(len(row), dtype=np.int32), row
    blocks = row[: num_blocks * BLOCK].reshape(BLOCK, num_blocks)
    peaks = blocks.max(axis=0)
    reaching = np.flatnonzero(peaks >= np.partition(peaks, num_blocks - num)[num_blocks - num])
    ids = (np.arange(BLOCK, dtype=np.int32)[:, None] * num_blocks + reaching).ravel()
    if num_blocks * BLOCK < len(row):
        ids = np.concatenate((ids, np.arange(num_blocks * BLOCK, len(row))))
    return ids, row[ids]


def nucleus(row: Any, norm: float, top_p: float) -> Any:
    """Ids of the fewest tokens, likeliest first, whose probabilities come to `top_p`; at least one."""
    num = 256
    while True:
        ids, logits = likeliest(row, num)
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
