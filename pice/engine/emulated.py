"""An engine without a model: seeded text at the pace of a given timing curve. The reference for every engine.

It waits on loop timers alone, so it runs under a virtual clock as it runs live.
"""

import asyncio
import math
import random
import zlib
from collections.abc import AsyncGenerator

from pice.core import Curve, Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.engine.emulated_batch import Batch
from pice.engine.emulated_text import TextStyle, write
from pice.errors import ConfigError, EngineError, EngineUnavailable, InputError, PromptTooLong, UnsupportedParameter

__all__ = ["EmulatedEngine", "TextStyle"]


class EmulatedEngine:
    """An `Engine` whose text depends only on (`seed`, `model`, the messages, `Sampling.seed`).

    The prompt is evaluated in `base_s` + tokens x `prefill_s_per_token`, holding up nobody, and ends with the first
    token; from then on the generation is one of the b that share a decode step of `curve.step_s` at b (between the
    given batch sizes on a straight line, beyond them on the last one's, below them constant). Generations beyond
    `max_inflight` wait inside, first come first served. A curve of zeros sets no timer at all. Text comes in pieces
    of `piece_tokens`, that of a sketch also ends a piece at each line. A grammar is taken for that of a sketch: it
    rules out direct and malformed ones.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        model: str,
        curve: Curve,
        seed: int,
        context_tokens: int = 8192,
        max_inflight: int = 16,
        piece_tokens: int = 1,
        style: TextStyle | None = None,
    ) -> None:
        if max_inflight < 1 or piece_tokens < 1:
            raise ConfigError(
                f"max_inflight and piece_tokens of {model} must be >= 1, got {max_inflight}, {piece_tokens}"
            )
        if not curve.batch or len(curve.batch) != len(curve.step_s):
            raise ConfigError(f"the curve of {model} must give one step_s for each batch size, and at least one")
        self._info = EngineInfo(model=model, context_tokens=context_tokens, max_inflight=max_inflight, curve=curve)
        self._seed = seed
        self._piece_tokens = piece_tokens
        self._style = style or TextStyle()
        self._batch = Batch(curve, max_inflight)
        self._failure: EngineError | None = EngineUnavailable(f"{model} was not started: await start() first")
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def start(self) -> None:
        self.resume()

    async def count_tokens(self, prompt: Prompt) -> int:
        return self._num_tokens(prompt)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, deadline_s: float = math.inf
    ) -> AsyncGenerator[Piece, None]:
        num_prompt_tokens = self._admit(prompt, sampling)
        pieces, error = self._write(prompt, sampling, num_prompt_tokens)
        sequence = self._batch.enter([piece.num_tokens for piece in pieces], num_prompt_tokens, deadline_s)
        try:
            if self._batch.instant:
                await asyncio.sleep(0)
            for index, piece in enumerate(pieces):
                if sequence.num_ready <= index:
                    await sequence.ready(index)
                yield piece
            if error is not None:
                raise error
        finally:
            self._batch.leave(sequence)

    async def close(self) -> None:
        self._closed = True
        self.fail_with(EngineUnavailable(f"{self._info.model} is closed"))

    def pause(self) -> None:
        """Freezes every generation where it is until `resume`: a hung device."""
        self._batch.pause()

    def fail_with(self, error: EngineError) -> None:
        """Ends what runs and waits with `error`, and all that comes until `resume`: a crashed device."""
        self._failure = error
        self._batch.fail(error)

    def resume(self) -> None:
        """Ends `pause` and `fail_with`; a closed engine stays closed."""
        if not self._closed:
            self._failure = None
        self._batch.resume()

    def _admit(self, prompt: Prompt, sampling: Sampling) -> int:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        _check(prompt, sampling)
        num_prompt_tokens = self._num_tokens(prompt)
        if num_prompt_tokens + sampling.max_tokens > self._info.context_tokens:
            raise PromptTooLong(
                model=self._info.model,
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=sampling.max_tokens,
                context_tokens=self._info.context_tokens,
            )
        return num_prompt_tokens

    def _write(
        self, prompt: Prompt, sampling: Sampling, num_prompt_tokens: int
    ) -> tuple[list[Piece], EngineError | None]:
        """The whole generation, or its first half and the error that ends it."""
        rng = self._rng(prompt, sampling)
        prompt, style = self._as_asked(prompt)
        fails = rng.random() < style.error_rate
        pieces = write(prompt, sampling, num_prompt_tokens, self._piece_tokens, style, rng)
        if not fails:
            return pieces, None
        half = pieces[:-1][: (len(pieces) + 1) // 2]
        return half or [Piece("")], EngineError(f"{self._info.model} failed midway")

    def _num_tokens(self, prompt: Prompt) -> int:
        """Of a prompt: its words."""
        return sum(len(message.content.split()) for message in prompt.messages)

    def _as_asked(self, prompt: Prompt) -> tuple[Prompt, TextStyle]:
        """What is written, and how."""
        return prompt, self._style

    def _rng(self, prompt: Prompt, sampling: Sampling) -> random.Random:
        """Seeded by a hash that is the same in every process."""
        said = [text for message in prompt.messages for text in (message.role, message.content)]
        key = "\0".join((str(self._seed), self._info.model, str(sampling.seed), *said))
        return random.Random(zlib.crc32(key.encode()))


def _check(prompt: Prompt, sampling: Sampling) -> None:
    if not prompt.messages:
        raise InputError("expected at least one message, got none")
    if sampling.max_tokens < 1:
        raise InputError(f"max_tokens must be >= 1, got {sampling.max_tokens}")
    if sampling.temperature < 0:
        raise InputError(f"temperature must be >= 0, got {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1, got {sampling.top_p}")
    if "" in sampling.stop:
        raise InputError('a stop string must have at least one character, got ""')
    if prompt.grammar and prompt.kind != "sketch":
        raise UnsupportedParameter("grammar", "an emulated engine keeps to a grammar only when it writes a sketch")
