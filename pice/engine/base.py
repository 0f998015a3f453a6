"""The engine port: one loaded model that writes text."""

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from pice.core import Curve, FinishReason, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What callers must know of a model.

    `context_tokens` bounds prompt plus output of one sequence; `max_inflight` is how many generations may run at
    once (more are refused or wait inside the engine); `curve` is its timing, measured or assumed.
    """

    model: str
    context_tokens: int
    max_inflight: int
    curve: Curve


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text of one generation.

    `num_tokens` tokens were drawn for it (a piece may hold several, and text may lag behind tokens while a UTF-8
    character is incomplete); `logprobs` holds one natural log-probability per token, or is empty. The last piece
    has `finish_reason` set and carries the totals of the prompt, and for how long the generation waited inside the
    engine before anything of it was evaluated (0 where the engine cannot tell).
    """

    text: str
    num_tokens: int = 0
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    queue_s: float = 0.0


class Engine(Protocol):
    """A model. Safe to call from any task of one event loop; never blocks it."""

    @property
    def info(self) -> EngineInfo:
        """Valid after `start`."""
        ...

    async def start(self) -> None:
        """Loads the model or reaches the server.

        Raises:
            ModelLoadError: the file is missing, cut off, of an unknown format, or the server has no such model.
        """
        ...

    async def count_tokens(self, prompt: Prompt) -> int:
        """Number of prompt tokens that `generate` would evaluate, template included; an upper bound where the
        engine cannot count exactly."""
        ...

    def generate(
        self, prompt: Prompt, sampling: Sampling, *, deadline_s: float = math.inf
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of the text, in order; exactly the last has a `finish_reason`.

        Of generations that wait inside the engine the one with the earliest `deadline_s` (a point on the event loop's
        clock) begins first, where it orders them itself; the deadline is not otherwise kept to.

        Closing the generator (`aclose`, or cancelling the task that iterates) frees the sequence within one decode
        step. Stop strings are not part of the text. All checks are made before anything is evaluated, at the first
        `__anext__`.

        Raises:
            PromptTooLong: prompt plus `max_tokens` does not fit; nothing was evaluated.
            InputError: a parameter is out of range or not supported by this engine.
            EngineUnavailable: try elsewhere or later.
            EngineError: this generation failed; text so far is void.
        """
        ...

    async def close(self) -> None:
        """Ends running generations with `EngineUnavailable` and frees the model. May be called twice."""
        ...
