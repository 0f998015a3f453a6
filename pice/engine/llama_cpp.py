"""A GGUF model in this process, by llama.cpp.

One thread owns the model and makes every call to it: it admits sequences, decodes all of them in one batch per step
and hands what a step gave to the event loop in one go. A wrong call to llama.cpp ends the process, so a service keeps
an engine in a process of its own.
"""

import asyncio
import logging
import os
import queue
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pice.core import Curve, Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.engine.llama.batch import Batch
from pice.engine.llama.owner import Answer, Call, Owner, check_sampling
from pice.errors import ConfigError, EngineError, EngineUnavailable, PiceError

DEFAULT_N_CTX = 8192
"""Tokens of memory where none are asked for; a model's own maximum can be far more than a small machine has."""

ROUGH_CURVE = Curve(batch=(1, 8), step_s=(0.05, 0.08), prefill_s_per_token=0.005, base_s=0.05)
"""A 1-billion-parameter model on a few cores, within a factor of some: measure, and say so in the configuration."""

_logger = logging.getLogger(__name__)


class LlamaCppEngine:
    """An `Engine` on a GGUF file.

    Args:
        path: the model file.
        model: its name; the file's stem if not given.
        n_ctx: tokens of memory, shared by all running sequences; None is the model's own, at most `DEFAULT_N_CTX`.
        n_seq_max: sequences decoded at once; further ones wait.
        n_threads: None is one per core. Engines that share cores must share them out.
        n_batch: tokens evaluated in one step at most; bounds how long a step, and so a cancellation, can take.
        curve: its timing, if measured.
        chat_template: a template's name in the file, or "chatml"; None is the file's default.
        seed: of the seeds of generations that bring none.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        *,
        path: Path,
        model: str = "",
        n_ctx: int | None = None,
        n_seq_max: int = 8,
        n_threads: int | None = None,
        n_batch: int = 512,
        n_gpu_layers: int = 0,
        curve: Curve | None = None,
        chat_template: str | None = None,
        seed: int = 0,
    ) -> None:
        _check_settings(n_ctx=n_ctx, n_seq_max=n_seq_max, n_threads=n_threads, n_batch=n_batch)
        self._path = Path(path)
        self._model = model or self._path.stem
        self._n_ctx = n_ctx
        self._n_seq_max = n_seq_max
        self._n_threads = n_threads or os.cpu_count() or 1
        self._n_batch = n_batch
        self._n_gpu_layers = n_gpu_layers
        self._curve = curve or ROUGH_CURVE
        self._chat_template = chat_template
        self._rng = random.Random(seed)
        self._info: EngineInfo | None = None
        self._error: PiceError | None = None
        self._inbox: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._open: set[Call] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailable(f"{self._model}: not started")
        return self._info

    async def start(self) -> None:
        """Loads the model. An engine is started once.

        Raises:
            ModelLoadError: the file cannot be used; says what llama.cpp said.
            ConfigError: llama-cpp-python is not installed, or the file has no such chat template.
            EngineUnavailable: closed while loading.
        """
        if self._thread is not None or self._stopping.is_set():
            raise EngineError(f"{self._model}: an engine is started once; make a new one")
        self._loop = asyncio.get_running_loop()
        self._ready, self._gone = asyncio.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._own, name=f"llama.cpp {self._model}", daemon=True)
        self._thread.start()
        try:
            await self._ready.wait()
        except asyncio.CancelledError:
            self._stop()
            raise
        if self._error:
            raise _again(self._error)

    async def count_tokens(self, prompt: Prompt) -> int:
        with self._opened(Call(prompt)) as call:
            answer = await _answer(call)
            assert isinstance(answer, int)
            return answer

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        check_sampling(sampling)
        with self._opened(Call(prompt, sampling)) as call:
            while True:
                piece = await _answer(call)
                assert isinstance(piece, Piece)
                yield piece
                if piece.finish_reason is not None:
                    return

    async def close(self) -> None:
        self._stop()
        if self._thread is not None:
            await self._gone.wait()
            self._thread.join()

    def _stop(self) -> None:
        self._stopping.set()
        self._inbox.put(None)

    @contextmanager
    def _opened(self, call: Call) -> Iterator[Call]:
        """Asks the owner; when the block is left, it may drop the call."""
        if self._error:
            raise _again(self._error)
        if self._info is None:
            raise EngineUnavailable(f"{self._model}: not started")
        self._open.add(call)
        self._inbox.put(call)
        try:
            yield call
        finally:
            call.cancelled = True
            self._open.discard(call)

    def _own(self) -> None:
        """The owner's thread, from loading to freeing."""
        error: PiceError = EngineUnavailable(f"{self._model}: closed")
        try:
            self._load_and_serve()
        except PiceError as problem:
            error = problem
        except Exception as problem:
            _logger.exception("%s: the engine failed", self._model)
            error = EngineError(f"{self._model}: the engine failed and must be made anew: {problem!r}")
        self._post(self._on_end, error)

    def _load_and_serve(self) -> None:
        model = _native().Model(
            self._path,
            n_ctx=self._n_ctx,
            default_n_ctx=DEFAULT_N_CTX,
            n_seq_max=self._n_seq_max,
            n_threads=self._n_threads,
            n_batch=self._n_batch,
            n_gpu_layers=self._n_gpu_layers,
            chat_template=self._chat_template,
            stopped=self._stopping.is_set,
        )
        try:
            batch = Batch(model.num_cells, self._n_seq_max, self._n_batch, model.shares_prefixes)
            owner = Owner(self._model, model, batch, self._rng)
            info = EngineInfo(self._model, model.context_tokens, self._n_seq_max, self._curve)
            self._post(self._on_ready, info)
            owner.serve(self._inbox, self._stopping, lambda said: self._post(_deliver, said))
        finally:
            model.close()

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._stopping.set()

    def _on_ready(self, info: EngineInfo) -> None:
        self._info = info
        self._ready.set()

    def _on_end(self, error: PiceError) -> None:
        self._error = error
        for call in self._open:
            call.answers.put_nowait(_again(error))
        self._ready.set()
        self._gone.set()


def _check_settings(*, n_ctx: int | None, n_seq_max: int, n_threads: int | None, n_batch: int) -> None:
    rules = {
        "n_ctx": (n_ctx, n_ctx is None or n_ctx >= 1, ">= 1"),
        "n_seq_max": (n_seq_max, 1 <= n_seq_max <= 256, "from 1 to 256"),
        "n_threads": (n_threads, n_threads is None or n_threads >= 1, ">= 1"),
        "n_batch": (n_batch, n_batch >= n_seq_max, f">= n_seq_max ({n_seq_max})"),
    }
    for name, (value, right, expected) in rules.items():
        if not right:
            raise ConfigError(f"{name} must be {expected}, got {value!r}")


def _native() -> ModuleType:
    """The module of the model, with what the library reads from the environment set before.

    Threads that spin at barriers stand still when anything else, such as the event loop, wants their core.
    """
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from pice.engine.llama import model
    except ImportError as error:
        raise ConfigError(f'a GGUF model needs llama-cpp-python: pip install "pice[llama]" ({error})') from error
    return model


async def _answer(call: Call) -> Piece | int:
    answer = await call.answers.get()
    if isinstance(answer, PiceError):
        raise answer
    return answer


def _deliver(said: list[tuple[Call, Answer]]) -> None:
    for call, answer in said:
        call.answers.put_nowait(answer)


def _again(error: PiceError) -> PiceError:
    """The same error for another caller, with no traceback of an earlier one."""
    return type(error)(str(error))
