"""A GGUF model and its context: what is in memory, and the step that adds to it."""

import ctypes
import math
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pice.core import Sampling
from pice.engine.llama.draw import Drawing, Sampler
from pice.engine.llama.native import llama_cpp, log, quick
from pice.engine.llama.options import DEFAULT_N_CTX, NUM_CACHE_SEQUENCES, KVType, LlamaOptions
from pice.engine.llama.sequence import Change, Chunk, Share
from pice.engine.llama.vocabulary import Vocabulary
from pice.errors import EngineError, EngineUnavailable, ModelLoadError

_get_logits = quick("llama_get_logits")
_get_logits.restype = ctypes.c_void_p
_seq_rm = quick("llama_memory_seq_rm")
_seq_cp = quick("llama_memory_seq_cp")

_FLOATS = ctypes.POINTER(ctypes.c_float)
_KV_TYPES: dict[KVType, int] = {
    "f32": llama_cpp.GGML_TYPE_F32,
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q5_1": llama_cpp.GGML_TYPE_Q5_1,
    "q5_0": llama_cpp.GGML_TYPE_Q5_0,
    "q4_1": llama_cpp.GGML_TYPE_Q4_1,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
_FLASH_ATTN_TYPES = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class Model:
    """A loaded model with one context, whose memory is shared by up to `n_seq_max` sequences.

    Raises:
        ModelLoadError: with what llama.cpp said of the file.
        ConfigError: no chat template of that name.
        EngineUnavailable: `stopped` became true while loading.
    """

    def __init__(self, options: LlamaOptions, *, stopped: Callable[[], bool]) -> None:
        path = options.path
        _check_file(path)
        self._options = options
        self._context: Any = None
        self._model = _load(options, stopped)
        try:
            trained = llama_cpp.llama_model_n_ctx_train(self._model)
            if trained < 1:
                raise ModelLoadError(f"{path}: expected a model trained for 1 token or more, got {trained}")
            self.num_cells = options.n_ctx or min(trained, DEFAULT_N_CTX)
            self.context_tokens = min(self.num_cells, trained)
            self.window = self._attention_window()
            self.num_resting = NUM_CACHE_SEQUENCES if self.window else 0
            self.vocabulary = Vocabulary(self._model, chat_template=options.chat_template)
            self._context = self._make_context()
            self._memory = llama_cpp.llama_get_memory(self._context)
            if llama_cpp.llama_model_has_encoder(self._model) or not self._memory:
                raise ModelLoadError(f"{path}: expected a model that continues text, got an encoder")
        except BaseException:
            self.close()
            raise
        self._batch = _Batch(options.n_batch)
        self._logits_address: int | None = None
        self._drawing = Drawing(self.vocabulary.num_tokens)

    def sampler(self, sampling: Sampling, grammar: str, seed: int) -> Sampler:
        """For the caller to free.

        Raises:
            InputError: the grammar is wrong.
        """
        return Sampler(self.vocabulary.native, self.vocabulary.num_tokens, sampling, grammar, seed)

    def decode(self, chunks: Sequence[Chunk]) -> bool:
        """Evaluates the chunks as one batch; False when memory is short, with nothing changed.

        Raises:
            EngineError: llama.cpp failed.
        """
        self._batch.fill(chunks)
        status = llama_cpp.llama_decode(self._context, self._batch.native)
        if status == 0:
            llama_cpp.llama_synchronize(self._context)
        elif status != 1:
            raise EngineError(f"llama_decode returned {status}: {log.reason()}")
        return bool(status == 0)

    def draw(self, samplers: Sequence[Sampler]) -> list[tuple[int, float] | None]:
        """The next token and its natural log-probability for each chunk of the last decode that was its sequence's
        `last`, in order; None where the model or the grammar leaves no token to draw."""
        if not samplers:
            return []
        return self._drawing.draw(self._logits(len(samplers)), samplers)

    def _logits(self, num_rows: int) -> Any:
        """The logits that the last decode asked for, where llama.cpp keeps them; shape: rows x vocabulary."""
        address = _get_logits(self._context)
        if address != self._logits_address:
            shape = (self._options.n_seq_max, self.vocabulary.num_tokens)
            self._logits_address = address
            self._all_logits = np.ctypeslib.as_array(ctypes.cast(address, _FLOATS), shape=shape)
        return self._all_logits[:num_rows]

    def change(self, changes: Sequence[Change]) -> None:
        """Does to the memory what the batch's bookkeeping has noted."""
        for change in changes:
            if isinstance(change, Share):
                _seq_cp(self._memory, change.source_id, change.target_id, 0, change.num_tokens)
            else:
                _seq_rm(self._memory, change.seq_id, change.num_tokens or -1, -1)

    def set_threads(self, num_threads: int) -> None:
        """From the next step on."""
        llama_cpp.llama_set_n_threads(self._context, num_threads, num_threads)

    def renew_context(self) -> None:
        """A context with an empty memory in place of one that failed.

        Raises:
            ModelLoadError: there is no room for it.
        """
        context, self._context = self._context, None
        llama_cpp.llama_free(context)
        self._context = self._make_context()
        self._memory = llama_cpp.llama_get_memory(self._context)

    def close(self) -> None:
        """Frees everything but samplers. May be called twice."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context:
            llama_cpp.llama_free(context)
        if model:
            llama_cpp.llama_model_free(model)

    def _attention_window(self) -> float:
        """How many tokens back the memory of a sequence is sure to be whole."""
        if llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model):
            return 0
        return llama_cpp.llama_model_n_swa(self._model) or math.inf

    def _make_context(self) -> Any:
        options, parameters = self._options, llama_cpp.llama_context_default_params()
        parameters.n_seq_max = options.n_seq_max + self.num_resting
        parameters.n_ctx = max(self.num_cells, parameters.n_seq_max)
        # Fewer places in a batch than sequences end the process.
        parameters.n_batch = max(options.n_batch, parameters.n_seq_max)
        parameters.n_ubatch = max(min(options.n_ubatch, options.n_batch), parameters.n_seq_max)
        parameters.n_threads = parameters.n_threads_batch = options.num_threads
        parameters.type_k = parameters.type_v = _KV_TYPES[options.kv_type]
        parameters.flash_attn_type = _FLASH_ATTN_TYPES[options.flash_attn]
        parameters.kv_unified = True
        log.lines.clear()
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise ModelLoadError(f"no context of {self.num_cells} tokens can be made: {log.reason()}")
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

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Writes the chunks one after another; the last token of a `last` one asks for logits."""
        end = 0
        for chunk in chunks:
            begin, end = end, end + len(chunk.tokens)
            self._tokens[begin:end] = chunk.tokens
            self._positions[begin:end] = range(chunk.start, chunk.start + len(chunk.tokens))
            self._seq_ids[begin:end] = chunk.sequence.seq_id
            self._logits[begin:end] = 0
            self._logits[end - 1] = chunk.last
        self.native.n_tokens = end


def _check_file(path: Path) -> None:
    """Raises `ModelLoadError` for what is no GGUF file at all; llama.cpp itself finds one that is cut off."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "something else than a file"
            raise ModelLoadError(f"{path}: expected a GGUF model, got {what}")
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelLoadError(f"{path}: expected a GGUF model, got {'an empty file' if not magic else repr(magic)}")


def _load(options: LlamaOptions, stopped: Callable[[], bool]) -> Any:
    path, parameters = options.path, llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = options.n_gpu_layers
    parameters.use_mmap = options.mmap
    go_on = llama_cpp.llama_progress_callback(lambda _progress, _data: not stopped())
    parameters.progress_callback = go_on
    log.lines.clear()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model and stopped():
        raise EngineUnavailable(f"{path}: closed while loading")
    if not model:
        raise ModelLoadError(f"{path}: {log.reason()}")
    return model
