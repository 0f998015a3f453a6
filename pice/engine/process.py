"""A GGUF model in a process of its own, by llama.cpp, which ends its process where it finds something wrong.

When that happens, what was being written ends as `EngineUnavailable`, and another process is started.
"""

import asyncio
import itertools
import logging
import math
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress

from pice.core import Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.engine.llama.options import LlamaOptions
from pice.engine.llama.sampling import check_sampling
from pice.engine.process_life import Life
from pice.engine.process_wire import Answer, Ask, Load, error_of, fault_of
from pice.errors import EngineError, EngineUnavailable, PiceError

LEAST_PAUSE_S, MOST_PAUSE_S = 0.1, 10.0
"""Before another process is started."""
RESTART_WAIT_S = 10.0
"""For how long a call waits while another process is started."""

_logger = logging.getLogger(__name__)


class ProcessEngine:
    """An `Engine` on a GGUF file, in another process.

    Args:
        options: as for `LlamaCppEngine`.
    """

    def __init__(self, options: LlamaOptions) -> None:
        self._name = options.name
        self._load = Load(options)
        self._info: EngineInfo | None = None
        self._problem: PiceError = EngineUnavailable(f"{self._name}: not started")
        self._keeper: asyncio.Task[PiceError] | None = None
        self._life: Life | None = None
        self._news = asyncio.Event()
        self._ids = itertools.count()
        self._cannot_start = False

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailable(f"{self._name}: not started")
        return self._info

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._life.pid if self._life else None

    async def start(self) -> None:
        """Loads the model. An engine is started once.

        Raises:
            ModelLoadError: the file cannot be used; says what llama.cpp said, or how its process ended.
            ConfigError: llama-cpp-python is not installed, or the file has no such chat template.
            EngineUnavailable: closed while loading, or no process can be started.
        """
        if self._keeper is not None:
            raise EngineError(f"{self._name}: an engine is started once; make a new one")
        self._keeper = asyncio.create_task(self._keep(), name=f"llama.cpp {self._name}")
        self._keeper.add_done_callback(self._on_end)
        try:
            await self._news.wait()
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._info is None:
            raise _again(self._problem)

    async def count_tokens(self, prompt: Prompt) -> int:
        life = await self._serving()
        with life.asked(Ask(next(self._ids), prompt)) as answers:
            num_tokens = await _answer(answers)
            assert isinstance(num_tokens, int)
            return num_tokens

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, deadline_s: float = math.inf
    ) -> AsyncGenerator[Piece, None]:
        check_sampling(sampling)
        life = await self._serving()
        within_s = None if math.isinf(deadline_s) else deadline_s - asyncio.get_running_loop().time()
        with life.asked(Ask(next(self._ids), prompt, sampling, within_s)) as answers:
            while True:
                piece = await _answer(answers)
                assert isinstance(piece, Piece)
                yield piece
                if piece.finish_reason is not None:
                    return

    async def close(self) -> None:
        if self._keeper is None:
            return
        if not self._keeper.cancelling():
            self._keeper.cancel()
        await asyncio.wait([self._keeper])

    async def _serving(self) -> Life:
        """The process that serves. Waits while it is being started again, but not for ever, and not if that failed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._cannot_start else RESTART_WAIT_S):
                if self._keeper and not self._keeper.done() and not (self._life and self._life.serves):
                    await self._news.wait()
        if self._life is None or not self._life.serves:
            raise _again(self._problem)
        return self._life

    async def _keep(self) -> PiceError:
        """Starts a process whenever there is none, until cancelled. Returns why the first cannot be used."""
        pause_s = 0.0
        while True:
            life = self._life = Life(self._name, self._on_ready)
            error = await life.run(self._load, environment(os.environ))
            if self._info is None:
                return error
            self._problem = EngineUnavailable(f"{error}; it is being started again")
            _logger.warning("%s", self._problem)
            self._cannot_start = life.info is None
            if self._cannot_start:
                self._wake()
            pause_s = next_pause_s(pause_s, life.has_finished)
            await asyncio.sleep(pause_s)

    def _on_ready(self) -> None:
        assert self._life is not None
        self._info = self._life.info
        self._cannot_start = False
        self._wake()

    def _on_end(self, keeper: "asyncio.Task[PiceError]") -> None:
        if keeper.cancelled():
            self._problem = EngineUnavailable(f"{self._name}: closed")
        elif bug := keeper.exception():
            _logger.error("%s: the engine failed", self._name, exc_info=bug)
            self._problem = EngineError(f"{self._name}: the engine failed and must be made anew: {bug!r}")
        else:
            self._problem = keeper.result()
        self._wake()

    def _wake(self) -> None:
        """Lets all who wait look again."""
        self._news.set()
        self._news = asyncio.Event()


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """The variables of an engine's process, from those of its parent."""
    return {"GGML_NO_BACKTRACE": "1", **own, "PYTHONPATH": os.pathsep.join(sys.path)}


def next_pause_s(last_s: float, has_finished: bool) -> float:
    """How long to wait before another process is started: twice as long as last time, unless this one was of use."""
    return LEAST_PAUSE_S if has_finished else min(MOST_PAUSE_S, max(LEAST_PAUSE_S, 2 * last_s))


async def _answer(answers: "asyncio.Queue[Answer]") -> Piece | int:
    answer = await answers.get()
    if isinstance(answer, PiceError):
        raise answer
    return answer


def _again(error: PiceError) -> PiceError:
    """The same error for another caller, with no traceback of an earlier one."""
    return error_of(fault_of(error))
