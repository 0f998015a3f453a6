"""An emulated engine whose answers have the lengths of real ones."""

import math
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from pice.core import Prompt, Sampling
from pice.engine.base import Piece
from pice.engine.emulated import EmulatedEngine, TextStyle
from pice.errors import EngineError
from pice.plan.base import TOKENS_PER_WORD

_ASKED = re.compile(r"\[ask (\d+)\]")


@dataclass(frozen=True, slots=True)
class Known:
    """What the answer to a question comes to: its length, and whether the cloud model would sketch it. Its prompt takes
    `num_prompt_tokens` beside the words that are there."""

    num_tokens: int
    suits_sketch: bool
    num_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Sketching:
    """How sketches are written: `ratio` is a sketch's length to its answer's, everything in its lines counted, where it
    is asked for in `usual_words`; in fewer it is shorter by as much. A point is given about `words_per_point`, so that
    the points divide the answer evenly."""

    ratio: float = 0.2
    words_per_point: int = 55
    usual_words: int = 50


def numbered(number: int, text: str) -> str:
    """The text of a question by which the engine knows it again."""
    return f"{text} [ask {number}]"


class LengthEngine(EmulatedEngine):
    """An `EmulatedEngine` that knows by its number how long the answer to a question is (`known`), and writes that many
    tokens: in full, or as a sketch whose points deserve that much together. An expansion has the length asked for.

    A word takes `TOKENS_PER_WORD`. `num_written` counts every token decoded, whatever became of it.
    """

    def __init__(self, known: Mapping[int, Known], sketching: Sketching, **options: Any) -> None:
        super().__init__(**options)
        self.num_written = 0
        self._known = known
        self._sketching = sketching

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, deadline_s: float = math.inf
    ) -> AsyncGenerator[Piece, None]:
        async with aclosing(super().generate(prompt, sampling, deadline_s=deadline_s)) as pieces:
            async for piece in pieces:
                self.num_written += piece.num_tokens
                yield piece

    def _write(
        self, prompt: Prompt, sampling: Sampling, num_prompt_tokens: int
    ) -> tuple[list[Piece], EngineError | None]:
        pieces, error = super()._write(prompt, sampling, num_prompt_tokens)
        return _in_tokens(_with_first_word(pieces)), error

    def _num_tokens(self, prompt: Prompt) -> int:
        return super()._num_tokens(prompt) + self._known[_number(prompt)].num_prompt_tokens

    def _as_asked(self, prompt: Prompt) -> tuple[Prompt, TextStyle]:
        if prompt.kind == "expand":
            return super()._as_asked(prompt)
        known, sketching = self._known[_number(prompt)], self._sketching
        words = max(1, round(known.num_tokens / TOKENS_PER_WORD))
        num_points = max(1, round(words / sketching.words_per_point))
        each = max(1, round(words / num_points))
        style = TextStyle(
            points=(num_points, num_points),
            words_per_point=(each, each),
            answer_words=(words, words),
            direct_rate=0.0 if known.suits_sketch else 1.0,
        )
        if prompt.kind == "answer":
            return replace(prompt, words=0), style
        ratio = sketching.ratio * (prompt.words / sketching.usual_words if prompt.words else 1.0)
        marks = 2 * num_points
        return replace(prompt, words=max(num_points, round(ratio * words) - marks)), style


def _number(prompt: Prompt) -> int:
    found = [int(match[1]) for message in prompt.messages for match in _ASKED.finditer(message.content)]
    assert found, "the question was not made by `numbered`"
    return found[-1]


def _with_first_word(pieces: Sequence[Piece]) -> list[Piece]:
    """The first word as a piece of its own, so that a first token is seen when there is one."""
    first, *rest = pieces
    head, blank, tail = first.text.partition(" ")
    if not tail or "\n" in head:
        return list(pieces)
    logprobs = first.logprobs
    opening = Piece(head + blank, 1, logprobs[:1])
    return [opening, replace(first, text=tail, num_tokens=first.num_tokens - 1, logprobs=logprobs[1:]), *rest]


def _in_tokens(pieces: Sequence[Piece]) -> list[Piece]:
    """With words counted in tokens."""
    counted, num_words, num_tokens = list[Piece](), 0, 0
    for piece in pieces:
        num_words += piece.num_tokens
        ends = round(num_words * TOKENS_PER_WORD)
        counted.append(replace(piece, num_tokens=ends - num_tokens))
        num_tokens = ends
    return counted
