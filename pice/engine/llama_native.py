"""A GGUF model and its context, by llama-cpp-python's low-level calls; the one file that imports it.

llama.cpp ends the process on wrong input instead of raising, so ids, positions, counts and indices are right by
construction or checked here. All calls of one `Model` come from one thread.
"""

import ctypes
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_cpp import _lib

from pice.core import Prompt, Sampling
from pice.engine.llama_batch import Chunk
from pice.engine.llama_text import CHATML, ChatTemplate, grammar_problem
from pice.errors import ConfigError, EngineError, EngineUnavailable, InputError, ModelLoadError

_PROBLEM_LEVELS = (3, 4)
"""Warnings and errors, as ggml numbers them."""


class _Log(threading.local):
    """What llama.cpp last complained of in this thread."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=20)

    def reason(self) -> str:
        return "; ".join(self.lines) or "llama.cpp gave no reason"


_log = _Log()


def _keep_problem(level: int, text: bytes, _data: object) -> None:
    if level in _PROBLEM_LEVELS:
        _log.lines.append(text.decode(errors="replace").strip())


_log_callback = llama_cpp.llama_log_callback(_keep_problem)
llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()

_quick_library = ctypes.PyDLL(vars(_lib)["_name"])


def _quick(name: str) -> Any:
    """A function by a handle that keeps the GIL: for calls too short to be worth winning it back for."""
    function = getattr(_quick_library, name)
    slow = getattr(llama_cpp.llama_cpp, name)
    function.argtypes, function.restype = slow.argtypes, slow.restype
    return function


_token_to_piece = _quick("llama_token_to_piece")
_is_eog = _quick("llama_vocab_is_eog")
_get_logits = _quick("llama_get_logits")
_sample = _quick("llama_sampler_sample")
_seq_rm = _quick("llama_memory_seq_rm")
_seq_cp = _quick("llama_memory_seq_cp")
_chain_add = _quick("llama_sampler_chain_add")


class Sampler:
    """How one sequence draws: a chain (None: the likeliest token), and a grammar in front of it (None: none)."""

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


def _grammar(vocab: Any, text: str) -> Any:
    data = text.encode(errors="replace")
    problem = grammar_problem(data)
    if problem:
        raise InputError(f"the grammar {problem}")
    _log.lines.clear()
    grammar = llama_cpp.llama_sampler_init_grammar(vocab, data, b"root")
    if not grammar:
        raise InputError(f"the grammar is not GBNF with a rule named root: {_log.reason()}")
    return grammar


class Model:
    """A loaded model with one context, whose memory is shared by up to `n_seq_max` sequences.

    Raises:
        ModelLoadError: with what llama.cpp said of the file.
        ConfigError: no chat template of that name.
        EngineUnavailable: `stopped` became true while loading.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int | None,
        default_n_ctx: int,
        n_seq_max: int,
        n_threads: int,
        n_batch: int,
        n_gpu_layers: int,
        chat_template: str | None,
        stopped: Callable[[], bool],
    ) -> None:
        _check_file(path)
        self._context: Any = None
        self._model = _load(path, n_gpu_layers, stopped)
        try:
            self._vocab = llama_cpp.llama_model_get_vocab(self._model)
            trained = llama_cpp.llama_model_n_ctx_train(self._model)
            self.num_cells = n_ctx or min(trained, default_n_ctx)
            self.context_tokens = min(self.num_cells, trained)
            self.shares_prefixes = not (
                llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
            )
            self._template = self._chat_template(chat_template)
            self._context = self._make_context(n_seq_max, n_threads, n_batch)
            self._memory = llama_cpp.llama_get_memory(self._context)
            if llama_cpp.llama_model_has_encoder(self._model) or not self._memory:
                raise ModelLoadError(f"{path}: expected a model that continues text, got an encoder")
        except BaseException:
            self.close()
            raise
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self._batch = _Batch(n_batch)
        self._outputs: list[int] = []
        candidate = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._candidates = np.zeros(self._n_vocab, candidate)

    def tokens(self, prompt: Prompt) -> list[int]:
        """The prompt by the model's chat template, as tokens; at least one.

        Raises:
            InputError: there are no messages, or the template refuses them.
        """
        rendered = self._template.render(prompt)
        text = rendered.encode(errors="replace")
        special = not (self._template.bos and rendered.startswith(self._template.bos))
        size = len(text) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            count = llama_cpp.llama_tokenize(self._vocab, text, len(text), buffer, size, special, True)
            if count >= 0:
                break
            size = -count
        if not count:
            raise InputError("the prompt is empty: the chat template made no tokens of its messages")
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens. A character may be spread over several."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token)
        return self._pieces[token]

    def ends(self, token: int) -> bool:
        """Whether the token says that the text is complete."""
        return bool(_is_eog(self._vocab, token))

    def sampler(self, sampling: Sampling, grammar: str, seed: int) -> Sampler:
        """For the caller to free.

        Raises:
            InputError: the grammar is wrong.
        """
        return Sampler(self._vocab, self._n_vocab, sampling, grammar, seed)

    def decode(self, chunks: Sequence[Chunk]) -> bool:
        """Evaluates the chunks as one batch; False when memory is short, with nothing changed.

        Raises:
            EngineError: llama.cpp failed.
        """
        self._outputs = self._batch.fill(chunks)
        status = llama_cpp.llama_decode(self._context, self._batch.native)
        if status == 0:
            llama_cpp.llama_synchronize(self._context)
        elif status != 1:
            raise EngineError(f"llama_decode returned {status}: {_log.reason()}")
        return bool(status == 0)

    def draw(self, samplers: Sequence[Sampler]) -> list[tuple[int, float] | None]:
        """The next token and its natural log-probability for each chunk of the last decode that was its sequence's
        `last`, in order; None where the model or the grammar leaves no token to draw."""
        if not samplers:
            return []
        logits = np.ctypeslib.as_array(_get_logits(self._context), shape=(len(self._outputs), self._n_vocab))
        with np.errstate(all="ignore"):
            peaks = logits.max(axis=1)
            norms = peaks + np.log(np.exp(logits - peaks[:, None]).sum(axis=1, dtype=np.float64))
        drawn: list[tuple[int, float] | None] = []
        for sampler, index, row, norm in zip(samplers, self._outputs, logits, norms, strict=True):
            token = self._draw(sampler, index, row) if math.isfinite(norm) else None
            drawn.append(None if token is None else (token, float(row[token] - norm)))
        return drawn

    def share(self, source_id: int, target_id: int, num_tokens: int) -> None:
        """The first `num_tokens` tokens in memory of one sequence become those of another too."""
        _seq_cp(self._memory, source_id, target_id, 0, num_tokens)

    def forget(self, seq_id: int) -> None:
        """Frees the memory that only this sequence uses."""
        _seq_rm(self._memory, seq_id, -1, -1)

    def close(self) -> None:
        """Frees everything but samplers. May be called twice."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context:
            llama_cpp.llama_free(context)
        if model:
            llama_cpp.llama_model_free(model)

    def _draw(self, sampler: Sampler, index: int, row: Any) -> int | None:
        if sampler.grammar:
            return self._draw_by_grammar(sampler, row)
        if not sampler.chain:
            return int(row.argmax())
        sample = llama_cpp.llama_sampler_sample if sampler.slow else _sample
        return int(sample(sampler.chain, self._context, index))

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

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = _token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _token_text(self, token: int) -> str:
        text = llama_cpp.llama_vocab_get_text(self._vocab, token) if token >= 0 else b""
        return (text or b"").decode(errors="replace")

    def _chat_template(self, name: str | None) -> ChatTemplate:
        named = name.encode() if name and name != "chatml" else None
        source = None if name == "chatml" else llama_cpp.llama_model_chat_template(self._model, named)
        if source is None and named:
            raise ConfigError(f"chat_template: the model has no chat template {name!r}; leave it out or use 'chatml'")
        bos, eos = llama_cpp.llama_vocab_bos(self._vocab), llama_cpp.llama_vocab_eos(self._vocab)
        return ChatTemplate(
            source.decode(errors="replace") if source else CHATML, bos=self._token_text(bos), eos=self._token_text(eos)
        )

    def _make_context(self, n_seq_max: int, n_threads: int, n_batch: int) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = self.num_cells
        parameters.n_batch = n_batch
        parameters.n_seq_max = n_seq_max
        parameters.n_threads = parameters.n_threads_batch = n_threads
        parameters.kv_unified = True
        _log.lines.clear()
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise ModelLoadError(f"no context of {self.num_cells} tokens can be made: {_log.reason()}")
        return context


class _Batch:
    """The arrays of one `llama_batch`, ours and reused, so that nothing is allocated or freed in a step."""

    def __init__(self, n_batch: int) -> None:
        self._tokens = np.zeros(n_batch, np.int32)
        self._positions = np.zeros(n_batch, np.int32)
        self._seq_ids = np.zeros(n_batch, np.int32)
        self._num_ids = np.ones(n_batch, np.int32)
        self._logits = np.zeros(n_batch, np.int8)
        stride = self._seq_ids.itemsize
        self._addresses = (self._seq_ids.ctypes.data + stride * np.arange(n_batch)).astype(np.uintp)
        ints = ctypes.POINTER(ctypes.c_int32)
        self.native = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ints),
            pos=self._positions.ctypes.data_as(ints),
            n_seq_id=self._num_ids.ctypes.data_as(ints),
            seq_id=self._addresses.ctypes.data_as(ctypes.POINTER(ints)),
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, chunks: Sequence[Chunk]) -> list[int]:
        """Writes the chunks one after another; returns the places of the tokens that ask for logits."""
        outputs = []
        end = 0
        for chunk in chunks:
            begin, end = end, end + len(chunk.tokens)
            self._tokens[begin:end] = chunk.tokens
            self._positions[begin:end] = range(chunk.start, chunk.start + len(chunk.tokens))
            self._seq_ids[begin:end] = chunk.sequence.seq_id
            self._logits[begin:end] = 0
            if chunk.last:
                self._logits[end - 1] = 1
                outputs.append(end - 1)
        self.native.n_tokens = end
        return outputs


def _check_file(path: Path) -> None:
    """Raises `ModelLoadError` for what is no GGUF file at all; llama.cpp itself finds one that is cut off."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelLoadError(f"{path}: expected a GGUF model, got {'an empty file' if not magic else repr(magic)}")


def _load(path: Path, n_gpu_layers: int, stopped: Callable[[], bool]) -> Any:
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = n_gpu_layers
    go_on = llama_cpp.llama_progress_callback(lambda _progress, _data: not stopped())
    parameters.progress_callback = go_on
    _log.lines.clear()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model and stopped():
        raise EngineUnavailable(f"{path}: closed while loading")
    if not model:
        raise ModelLoadError(f"{path}: {_log.reason()}")
    return model
