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
from pice.engine.llama.native import llama_cpp, log, quick
from pice.engine.llama.text import grammar_problem
from pice.errors import InputError

_chain_add = quick("llama_sampler_chain_add")
_apply = quick("llama_sampler_apply")
_accept = quick("llama_sampler_accept")

BLOCK = 64
"""Tokens of which only the likeliest is looked at first. They lie far apart, so that numpy compares whole lines."""

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
    """Draws for all sequences of a step at once; at most `max_rows` of them."""

    def __init__(self, n_vocab: int, max_rows: int) -> None:
        self._scratch = np.empty((max_rows, n_vocab), np.float32)
        self._all = np.arange(n_vocab, dtype=np.int32)
        self._shortlist = np.zeros(n_vocab, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._address = self._shortlist.ctypes.data_as(llama_cpp.llama_token_data_p)

    def draw(self, logits: Any, samplers: Sequence[Sampler]) -> list[Drawn]:
        """For each row of `logits` (float32, shape: samplers x vocabulary)."""
        peaks = logits.max(axis=1)
        norms = self.norms(logits, peaks)
        best = logits.argmax(axis=1)
        drawn: list[Drawn] = []
        for row, sampler, peak, norm, likeliest in zip(logits, samplers, peaks, norms, best, strict=True):
            token: int | None = int(likeliest)
            if not math.isfinite(norm):
                token = None
            elif sampler.chain:
                token = self._draw(sampler, row, float(peak), float(norm))
            drawn.append(None if token is None else (token, float(row[token] - norm)))
        return drawn

    def norms(self, logits: Any, peaks: Any) -> Any:
        """Natural logarithm of the sum of exp(logit) of each row; not finite where the model gave no numbers."""
        scratch = self._scratch[: len(logits)]
        with np.errstate(all="ignore"):
            np.subtract(logits, peaks[:, None], out=scratch)
            np.exp(scratch, out=scratch)
            return peaks + np.log(scratch.sum(axis=1), dtype=np.float64)

    def _draw(self, sampler: Sampler, row: Any, peak: float, norm: float) -> int | None:
        token = self._choose(sampler, row, self._candidates(sampler, row, peak, norm))
        if sampler.grammar:
            token = self._by_grammar(sampler, row, token)
        if token is not None:
            sampler.num_drawn += 1
            _accept(sampler.chain, token)
        return token

    def _candidates(self, sampler: Sampler, row: Any, peak: float, norm: float) -> Any:
        """Ids among which are all that the sampler may draw; none the worse for it."""
        num_likeliest, min_p = sampler.num_likeliest, sampler.sampling.min_p
        if num_likeliest is not None:
            return likeliest(row, num_likeliest)
        if sampler.by_nucleus:
            return nucleus(row, norm, sampler.sampling.top_p)
        if min_p and not sampler.penalises:
            return np.flatnonzero(row >= peak + math.log(min_p) - 1e-3)
        return self._all

    def _choose(self, sampler: Sampler, row: Any, ids: Any) -> int | None:
        """What the chain draws from these."""
        num = len(ids)
        shortlist = self._shortlist[:num]
        shortlist["id"], shortlist["logit"], shortlist["p"] = ids, row[ids], 0.0
        array = llama_cpp.llama_token_data_array(self._address, num, -1, False)
        _apply(sampler.chain, ctypes.byref(array))
        return int(array.data[array.selected].id) if 0 <= array.selected < array.size else None

    def _by_grammar(self, sampler: Sampler, row: Any, token: int | None) -> int | None:
        """The token if the grammar allows it, else one drawn from those that it allows.

        Looks before it accepts: accepting a token that the grammar forbids would end the process.
        """
        if token is None or not len(self._allowed(sampler, row, np.array([token], np.int32))):
            allowed = self._allowed(sampler, row, self._all)
            token = self._choose(sampler, row, allowed) if len(allowed) else None
        if token is not None:
            llama_cpp.llama_sampler_accept(sampler.grammar, token)
        return token

    def _allowed(self, sampler: Sampler, row: Any, ids: Any) -> Any:
        shortlist = self._shortlist[: len(ids)]
        shortlist["id"], shortlist["logit"], shortlist["p"] = ids, row[ids], 0.0
        array = llama_cpp.llama_token_data_array(self._address, len(ids), -1, False)
        llama_cpp.llama_sampler_apply(sampler.grammar, ctypes.byref(array))
        return ids[np.isfinite(shortlist["logit"])]


def likeliest(row: Any, num: int) -> Any:
    """Ids of at least the `num` greatest of `row`, and few more.

    Of the greatest in each block of tokens, `num` are no less than the num-th of them; so are that many tokens, and
    what is less is not among the `num` greatest. Only blocks that reach it are looked into.
    """
    num_blocks = len(row) // BLOCK
    if num * 4 > num_blocks:
        return np.arange(len(row), dtype=np.int32) if num * 4 > len(row) else np.argpartition(row, -num)[-num:]
    blocks = row[: num_blocks * BLOCK].reshape(BLOCK, num_blocks)
    peaks = blocks.max(axis=0)
    bound = np.partition(peaks, -num)[-num]
    reaching = np.flatnonzero(peaks >= bound)
    place, within = np.nonzero(blocks[:, reaching] >= bound)
    rest = np.flatnonzero(row[num_blocks * BLOCK :] >= bound) + num_blocks * BLOCK
    return np.concatenate((place * num_blocks + reaching[within], rest))


def nucleus(row: Any, norm: float, top_p: float) -> Any:
    """Ids of the fewest tokens, likeliest first, whose probabilities come to `top_p`; at least one."""
    num = 256
    while True:
        ids = likeliest(row, min(num, len(row)))
        ids = ids[np.argsort(-row[ids], kind="stable")]
        sums = np.cumsum(np.exp(row[ids].astype(np.float64) - norm))
        if sums[-1] >= top_p or len(ids) == len(row):
            return ids[: int(np.searchsorted(sums, top_p)) + 1]
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
