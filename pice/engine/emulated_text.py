"""What an emulated engine writes: seeded words in the form asked for, cut into pieces. A token is a word with the
blank after it."""

import math
import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pice.core import FinishReason, Prompt, Sampling
from pice.engine.base import Piece

_TOKEN = re.compile(r"\S+\s*")
_CONTENT_WORD = re.compile(r"[^\W\d_]{4,}")
_NUMBER = re.compile(r"\d{1,9}")
_NUMBERED = re.compile(r"\W*(\d{1,9})\W+(.+)")
_VOCABULARY = _CONTENT_WORD.findall(
    """
    about across after again almost along always among answer around aside basic because before begin below between
    both bring build careful case cause change choose clear close common consider cost daily deep detail differ
    early easy effect either enough even example expect fact feel few find first follow form further gain general
    give good grow hand help hold idea improve keep kind large later lead learn less likely little local long main
    make many matter mean measure method most move much need never next note often open order other over part people
    place plan point possible practice reach reason result right several share short simple since small some start
    step still strong such sure take then thing through time together under until use value very view want way well
    when while whole wide with within without word work
    """,
)
_SKETCH = ("OUTLINE\n", "- ({words}) {text}\n")
_ODD_SKETCHES = (
    ("", "{number}. {text} ({words} words)\n"),
    ("**Outline:**\n\n", "* **{text}** ~{words}\n"),
    ("OUTLINE\n", "{text}; "),
    ("Sure! Here is an outline:\n", "- {text}\n"),
    ("OUTLINE\n", ""),
)
_FAITHFUL, _OTHER = 0.3, 1.6
"""Mean negative log-probability of a word the prompt holds, and of any other."""


@dataclass(frozen=True, slots=True)
class TextStyle:
    """What an emulated model writes. Pairs are an inclusive range; rates are shares of generations, 0 to 1.

    A `Prompt` that names its words gets about as many; else `answer_words` and, for each point or expansion,
    `words_per_point` say how many. `direct_rate` is how often a sketch prompt is answered in full instead,
    `fidelity` the share of words taken from the prompt (those are also more probable): from the points that an
    expansion is asked for, else from the user's last message. The other rates are for tests: a failure midway, no
    text at all, one phrase until the token limit, a sketch out of format.
    """

    points: tuple[int, int] = (4, 8)
    words_per_point: tuple[int, int] = (30, 80)
    answer_words: tuple[int, int] = (150, 400)
    direct_rate: float = 0.0
    fidelity: float = 0.6
    error_rate: float = 0.0
    empty_rate: float = 0.0
    loop_rate: float = 0.0
    malformed_rate: float = 0.0


def write(
    prompt: Prompt, sampling: Sampling, num_prompt_tokens: int, piece_tokens: int, style: TextStyle, rng: random.Random
) -> list[Piece]:
    """A whole generation; every choice in it comes from `rng`."""
    source = _CONTENT_WORD.findall(_subject(prompt)) or _VOCABULARY
    text = _Writer(style, source, rng).text(prompt, sampling.max_tokens)
    tokens, finish_reason = _cut(_TOKEN.findall(text), sampling)
    logprobs = _logprobs(tokens, source, rng)
    bounds = _bounds(tokens, piece_tokens, by_line=prompt.kind == "sketch")
    pieces = [Piece("".join(tokens[i:k]), k - i, logprobs[i:k]) for i, k in pairwise(bounds[:-1])]
    i, k = bounds[-2:]
    return [*pieces, Piece("".join(tokens[i:k]), k - i, logprobs[i:k], finish_reason, num_prompt_tokens)]


def _subject(prompt: Prompt) -> str:
    """What the text is to be about: the points an expansion is asked for, else the user's last message."""
    asked = next((it.content for it in reversed(prompt.messages) if it.role == "user"), prompt.messages[-1].content)
    return (_own_points(asked, prompt.words) if prompt.kind == "expand" else "") or asked


def _own_points(asked: str, words: int) -> str:
    """The numbered lines that the text after the last of them names by number, one or the first and the last; ""
    where it names none. The number of words is not that of a point."""
    points: dict[int, str] = {}
    task: list[str] = []
    for line in asked.splitlines():
        if numbered := _NUMBERED.match(line):
            points[int(numbered[1])] = numbered[2]
            task = []
        else:
            task.append(line)
    named = [int(number) for number in _NUMBER.findall(" ".join(task))]
    if words in named:
        named.remove(words)
    return "\n".join([text for number, text in points.items() if min(named) <= number <= max(named)]) if named else ""


def _cut(tokens: list[str], sampling: Sampling) -> tuple[list[str], FinishReason]:
    """The tokens up to the first stop string or the token limit; the one a stop string begins in is cut there."""
    kept = tokens[: sampling.max_tokens]
    text = "".join(kept)
    stops = [at for at in map(text.find, sampling.stop) if at >= 0]
    if not stops:
        return kept, "length" if len(kept) < len(tokens) else "stop"
    ends = list(accumulate(map(len, kept)))
    last = bisect_right(ends, min(stops))
    return [*kept[:last], kept[last][: min(stops) - ends[last] + len(kept[last])]], "stop"


def _bounds(tokens: Sequence[str], piece_tokens: int, *, by_line: bool) -> list[int]:
    """Where pieces begin and end: 0, ..., the number of tokens."""
    lines = [i for i, token in enumerate(tokens[:-1], 1) if token.endswith("\n")] if by_line else []
    spans = pairwise((0, *lines, len(tokens)))
    return [0, *(cut for start, end in spans for cut in (*range(start + piece_tokens, end, piece_tokens), end))]


def _logprobs(tokens: Sequence[str], source: Sequence[str], rng: random.Random) -> tuple[float, ...]:
    known = set(map(str.lower, source))
    draw, log = rng.random, math.log
    return tuple(
        [(_FAITHFUL if token.strip(" \n.").lower() in known else _OTHER) * log(1.0 - draw()) for token in tokens]
    )


class _Writer:
    """Writes one text; every choice in it comes from `rng`."""

    def __init__(self, style: TextStyle, source: Sequence[str], rng: random.Random) -> None:
        self._style = style
        self._source = source
        self._rng = rng

    def text(self, prompt: Prompt, max_tokens: int) -> str:
        style = self._style
        if self._happens(style.empty_rate):
            return ""
        if self._happens(style.loop_rate):
            return " ".join(self._rng.choices(_VOCABULARY, k=5) * max_tokens)
        if prompt.kind == "expand":
            return self._prose(prompt.words, style.words_per_point)
        if prompt.kind == "answer":
            return self._prose(prompt.words, style.answer_words)
        if not prompt.grammar and self._happens(style.direct_rate):
            return self._prose(0, style.answer_words)
        odd = not prompt.grammar and self._happens(style.malformed_rate)
        return self._sketch(prompt.words, *(self._rng.choice(_ODD_SKETCHES) if odd else _SKETCH))

    def _happens(self, rate: float) -> bool:
        return rate > 0.0 and self._rng.random() < rate

    def _words(self, num_words: int) -> list[str]:
        source, fidelity, draw = self._source, self._style.fidelity, self._rng.random
        num_own, num_free = len(source), len(_VOCABULARY)
        return [
            source[int(draw() * num_own)] if draw() < fidelity else _VOCABULARY[int(draw() * num_free)]
            for _ in range(num_words)
        ]

    def _prose(self, asked: int, usual: tuple[int, int]) -> str:
        """Sentences of 7 to 14 words: within 15 % of the words asked for, or as many as usual."""
        rng = self._rng
        words = self._words(max(1, round(asked * rng.uniform(0.85, 1.15))) if asked else rng.randint(*usual))
        sentences = []
        while words:
            size = rng.randint(7, 14)
            sentences.append(" ".join(words[:size]).capitalize() + ".")
            words = words[size:]
        return " ".join(sentences)

    def _sketch(self, asked: int, header: str, line: str) -> str:
        """An outline of about the words asked for, `line` for each point."""
        rng = self._rng
        num_points = rng.randint(*self._style.points)
        num_words = max(1, asked // num_points) if asked else rng.randint(3, 6)
        return header + "".join(
            line.format(
                number=number, words=rng.randint(*self._style.words_per_point), text=" ".join(self._words(num_words))
            )
            for number in range(1, num_points + 1)
        )
