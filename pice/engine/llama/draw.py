"""Logits -> the next token of each sequence, with its log-probability."""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pice.core import Sampling
from pice.engine.llama.native import llama_cpp, log, quick
from pice.engine.llama.text import grammar_problem
from pice.errors import InputError

_sample = quick("llama_sampler_sample")
_chain_add = quick("llama_sampler_chain_add")


class Sampler:
    """How one sequence draws: a chain (None: the likeliest token), and a grammar in front of it (None: none).

    For its maker to free.

    Raises:
        InputError: the grammar is wrong.
    """

    def __init__(self, vocab: Any, n_vocab: int, sampling: Sampling, grammar: str, seed: int) -> None:
        self.grammar = _grammar(vocab, grammar) if grammar else None
        self.chain = None
        self.slow = sampling.top_k == 0
        penalised = sampling.repeat_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        if sampling.temperature or penalised or grammar:
            self.chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
            if penalised:
                self._add(
                    llama_cpp.llama_sampler_init_penalties,
                    n_vocab,
                    sampling.max_tokens,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            self._add_choice(sampling, seed)

    def _add_choice(self, sampling: Sampling, seed: int) -> None:
        if not sampling.temperature:
            self._add(llama_cpp.llama_sampler_init_greedy)
            return
        self._add(llama_cpp.llama_sampler_init_top_k, sampling.top_k)
        self._add(llama_cpp.llama_sampler_init_top_p, sampling.top_p, 1)
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
    """Draws for all sequences of a step at once."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        candidate = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._candidates = np.zeros(n_vocab, candidate)

    def draw(
        self, context: Any, logits: Any, outputs: Sequence[int], samplers: Sequence[Sampler]
    ) -> list[tuple[int, float] | None]:
        """A token and its natural log-probability for each row of `logits` (shape: samplers x vocabulary), which is
        at `outputs` in the batch last decoded; None where the model or the grammar leaves no token to draw."""
        with np.errstate(all="ignore"):
            peaks = logits.max(axis=1)
            norms = peaks + np.log(np.exp(logits - peaks[:, None]).sum(axis=1, dtype=np.float64))
        drawn: list[tuple[int, float] | None] = []
        for sampler, index, row, norm in zip(samplers, outputs, logits, norms, strict=True):
            token = self._draw(context, sampler, index, row) if math.isfinite(norm) else None
            drawn.append(None if token is None else (token, float(row[token] - norm)))
        return drawn

    def _draw(self, context: Any, sampler: Sampler, index: int, row: Any) -> int | None:
        if sampler.grammar:
            return self._draw_by_grammar(sampler, row)
        if not sampler.chain:
            return int(row.argmax())
        sample = llama_cpp.llama_sampler_sample if sampler.slow else _sample
        return int(sample(sampler.chain, context, index))

    def _draw_by_grammar(self, sampler: Sampler, row: Any) -> int | None:
        """Looks before it draws: accepting a token that the grammar forbids would end the process."""
        candidates = self._candidates
        candidates["id"], candidates["logit"], candidates["p"] = np.arange(self._n_vocab), row, 0.0
        data = candidates.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data, self._n_vocab, -1, False)
        llama_cpp.llama_sampler_apply(sampler.grammar, ctypes.byref(array))
        llama_cpp.llama_sampler_apply(sampler.chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size or not math.isfinite(array.data[array.selected].logit):
            return None
        token = int(array.data[array.selected].id)
        for each in (sampler.grammar, sampler.chain):
            llama_cpp.llama_sampler_accept(each, token)
        return token


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
