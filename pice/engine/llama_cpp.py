"""A GGUF model in this process, by llama.cpp.

One thread owns the model and makes every call to it: it admits sequences, decodes all of them in one batch per step
and hands what a step gave to the event loop in one go. A wrong call to llama.cpp ends the process, so a service keeps
an engine in a process of its own.
"""

import asyncio
import logging
import math
import os
import queue
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from pice.core import Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.engine.llama.batch import Batch
from pice.engine.llama.options import PREFIX_CACHE_PART, LlamaOptions
from pice.engine.llama.owner import Answer, Call, Owner
from pice.engine.llama.pace import Pace
from pice.engine.llama.sampling import check_sampling
from pice.engine.llama.waiting import set_while_loading
from pice.errors import ConfigError, EngineError, EngineUnavailable, PiceError

_logger = logging.getLogger(__name__)


class LlamaCppEngine:
    """An `Engine` on a GGUF file."""

    def __init__(self, options: LlamaOptions) -> None:
        self._options = options
        self._model = options.name
        self._rng = random.Random(options.seed)
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

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, deadline_s: float = math.inf
    ) -> AsyncGenerator[Piece, None]:
        check_sampling(sampling)
        with self._opened(Call(prompt, sampling, deadline_s)) as call:
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
        options = self._options
        model = _native(shares_cores=options.shares_cores).Model(options, stopped=self._stopping.is_set)
        try:
            num_cached = options.prefix_cache_tokens
            batch = Batch(
                model.num_cells,
                options.n_seq_max,
                options.n_batch,
                num_resting=model.num_resting,
                max_resting_cells=model.num_cells // PREFIX_CACHE_PART if num_cached is None else num_cached,
                window=model.window,
            )
            owner = Owner(self._model, model, batch, Pace(options.num_threads), self._rng)
            info = EngineInfo(options.name, model.context_tokens, options.n_seq_max, options.curve)
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


def _native(*, shares_cores: bool) -> ModuleType:
    """The module of the model; it loads the library, for which the first engine of a process sets the terms."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        with set_while_loading(shares_cores=shares_cores):
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
