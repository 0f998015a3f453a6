"""An engine that writes what the test tells it to, when the test tells it to."""

import asyncio
import math
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from pice.core import Curve, FinishReason, Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.errors import EngineError, PromptTooLong

_TOKEN = re.compile(r"\S+\s*")
FAST = Curve((1,), (0.01,))


@dataclass(frozen=True, slots=True)
class Script:
    """One generation: its text, a word every `step_s`, and the error that may end it."""

    text: str
    step_s: float = 0.01
    error: Exception | None = None
    logprob: float | None = None
    queue_s: float = 0.0


class ScriptedEngine:
    """Plays its scripts one after another, the last again and again. A word is a token."""

    def __init__(
        self,
        model: str,
        *scripts: Script,
        context_tokens: int = 4096,
        max_inflight: int = 8,
        curve: Curve = FAST,
    ) -> None:
        self.info = EngineInfo(model, context_tokens, max_inflight, curve)
        self.prompts: list[Prompt] = []
        self.samplings: list[Sampling] = []
        self.deadlines_s: list[float] = []
        self.num_running = 0
        self.num_finished = 0
        self.text = ""
        self.down: EngineError | None = None
        self._scripts = scripts

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""

    async def count_tokens(self, prompt: Prompt) -> int:
        return sum(len(message.content.split()) for message in prompt.messages)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, deadline_s: float = math.inf
    ) -> AsyncGenerator[Piece, None]:
        await self._check(prompt, sampling)
        script = self._scripts[min(len(self.prompts), len(self._scripts) - 1)]
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        self.deadlines_s.append(deadline_s)
        self.num_running += 1
        self.text = ""
        tokens = _TOKEN.findall(script.text)
        try:
            for token in tokens[: sampling.max_tokens]:
                await asyncio.sleep(script.step_s)
                self.text += token
                yield Piece(token, 1, () if script.logprob is None else (script.logprob,))
            if script.error is not None:
                raise script.error
            self.num_finished += 1
            reason: FinishReason = "length" if len(tokens) > sampling.max_tokens else "stop"
            num_prompt_tokens = await self.count_tokens(prompt)
            yield Piece("", finish_reason=reason, num_prompt_tokens=num_prompt_tokens, queue_s=script.queue_s)
        finally:
            self.num_running -= 1

    async def _check(self, prompt: Prompt, sampling: Sampling) -> None:
        if self.down is not None:
            raise self.down
        num_tokens = await self.count_tokens(prompt)
        if num_tokens + sampling.max_tokens > self.info.context_tokens:
            raise PromptTooLong(
                model=self.info.model,
                num_prompt_tokens=num_tokens,
                max_tokens=sampling.max_tokens,
                context_tokens=self.info.context_tokens,
            )


def outline(*points: str, words: int = 60) -> str:
    """A sketch as a model writes it."""
    return "OUTLINE\n" + "".join(f"- ({words}) {point}\n" for point in points)
