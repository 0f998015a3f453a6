"""An emulated engine whose answers have the lengths of real ones."""

import math
import re
from collections.abc import AsyncGenerator, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from pice.core import Message, Plan, Prompt, Request, Sampling
from pice.engine.base import Piece
from pice.engine.emulated import EmulatedEngine, TextStyle
from pice.errors import EngineError
from pice.plan.base import TOKENS_PER_WORD
from pice.plan.board import Option
from pice.plan.planner import EarliestFinish, PlanPolicy

_ASKED = re.compile(r"\[ask (\d+)\]")


@dataclass(frozen=True, slots=True)
class Known:
    """What the answer to a question comes to: its length, and whether the cloud model would sketch it."""

    num_tokens: int
    suits_sketch: bool


@dataclass(frozen=True, slots=True)
class Sketching:
    """How sketches are written: `ratio` is a sketch's usual length to its answer's, everything in its lines counted. A
    point is given about `words_per_point`, so that the points divide the answer evenly."""

    ratio: float = 0.2
    words_per_point: int = 55


def numbered(number: int, text: str) -> str:
    """The text of a question by which the engine knows it again."""
    return f"{text} [ask {number}]"


class LengthEngine(EmulatedEngine):
    """An `EmulatedEngine` that knows by its number how long the answer to a question is (`known`), and writes that many
    tokens: in full, or as a sketch whose points deserve that much together. An expansion has the length asked for.

    A sketch has its usual length times what `flexed` says of the question, by number, when it is asked for. A word
    takes `TOKENS_PER_WORD`. `num_written` counts every token decoded, whatever became of it.
    """

    def __init__(
        self, known: Mapping[int, Known], sketching: Sketching, flexed: Mapping[int, float], **options: Any
    ) -> None:
        super().__init__(**options)
        self.num_written = 0
        self._known = known
        self._sketching = sketching
        self._flexed = flexed

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

    def _as_asked(self, prompt: Prompt) -> tuple[Prompt, TextStyle]:
        if prompt.kind == "expand":
            return super()._as_asked(prompt)
        number, sketching = _number(prompt), self._sketching
        known = self._known[number]
        words = max(1, round(known.num_tokens / TOKENS_PER_WORD))
        num_points = max(1, round(words / sketching.words_per_point))
        each = max(1, round(words / num_points))
        style = TextStyle(
            points=(num_points, num_points),
            words_per_point=(each, each),
            answer_words=(words, words),
            direct_rate=0.0 if known.suits_sketch else 1.0,
            fidelity=0.0,  # a direct answer that took its words from the prompt might begin as an outline does
        )
        if prompt.kind == "answer":
            return replace(prompt, words=0), style
        ratio = sketching.ratio * self._flexed.get(number, 1.0)
        marks = 2 * num_points
        return replace(prompt, words=max(num_points, round(ratio * words) - marks)), style


class NotedPlanner(EarliestFinish):
    """Notes for every question, by its number, how long its sketch is to be, to the usual length."""

    def __init__(self, policy: PlanPolicy, flexed: MutableMapping[int, float]) -> None:
        super().__init__(policy)
        self._noted = flexed
        self._latest = 1.0

    def decide(self, request: Request, num_prompt_tokens: int) -> Plan:
        self._latest = 1.0
        plan = super().decide(request, num_prompt_tokens)
        self._noted[_number_in(request.messages)] = self._latest
        return plan

    def _flexed(self, cloud: Option, edges: Sequence[Option]) -> float:
        self._latest = super()._flexed(cloud, edges)
        return self._latest


def _number(prompt: Prompt) -> int:
    return _number_in(prompt.messages)


def _number_in(messages: Sequence[Message]) -> int:
    found = [int(match[1]) for message in messages for match in _ASKED.finditer(message.content)]
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
