"""Lessons -> rows of tokens of one length, each row filled with as many lessons as it takes.

Most lessons are short, and attention over a short row is cheap: so most rows are short and hold only lessons that fit,
and long rows, which hold any, come between.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.demo.lessons import Lesson, cloud_lessons, edge_lessons
from tools.demo.tokenizer import encode_lesson

LONG_ROW, SHORT_ROW = 512, 160
"""Tokens of a row; every lesson fits a long one."""
Encoded = tuple[list[int], int]
"""The tokens of a lesson, and how many of them are its prompt."""
_EDGES = {"edge-a": 0, "edge-b": 1, "edge-c": 2}


@dataclass(frozen=True, slots=True)
class Rows:
    """Each array is (rows, tokens of a row). `targets` holds the token that comes next, `counts` whether the model is
    to learn it; `documents` numbers the lessons of a row, `positions` their tokens."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    counts: NDArray[np.float32]
    documents: NDArray[np.int32]
    positions: NDArray[np.int32]


def lessons_for(model: str, rng: random.Random) -> Iterator[Lesson]:
    """What `model` learns from: "cloud", or an edge model; any other name is for tests and learns as the first."""
    return cloud_lessons(rng) if model == "cloud" else edge_lessons(rng, _EDGES.get(model, 0))


def draw_rows(model: str, tokenizer: Tokenizer, seed: str, *, num_tokens: int, row_tokens: int) -> Rows:
    """Rows of lessons for `model`, `num_tokens` at most in all. The same seed draws the same rows, whatever was drawn
    before."""
    lessons = lessons_for(model, random.Random(seed))
    fitting = (each for each in (encode_lesson(tokenizer, lesson) for lesson in lessons) if len(each[0]) <= row_tokens)
    waiting: list[Encoded] = []
    rows = [_fill_row(fitting, waiting, row_tokens) for _ in range(num_tokens // row_tokens)]
    return Rows(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))


def _fill_row(lessons: Iterator[Encoded], waiting: list[Encoded], row_tokens: int) -> tuple[NDArray[Any], ...]:
    """The arrays of one row, in the order of `Rows`. A lesson that is too long for what is left of it waits for the
    next. The padding after the last lesson is a document of its own that nobody learns from."""
    tokens, targets, positions = (np.zeros(row_tokens, np.int32) for _ in range(3))
    documents, counts = np.full(row_tokens, -1, np.int32), np.zeros(row_tokens, np.float32)
    at, number = 0, 0
    while True:
        ids, num_prompt = waiting.pop() if waiting else next(lessons)
        length = len(ids) - 1
        if at + length > row_tokens:
            waiting.append((ids, num_prompt))
            return tokens, targets, counts, documents, positions
        place = slice(at, at + length)
        tokens[place], targets[place] = ids[:-1], ids[1:]
        documents[place], positions[place] = number, np.arange(length)
        counts[at + num_prompt - 1 : at + length] = 1.0
        at, number = at + length, number + 1
