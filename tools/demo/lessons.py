"""What each model learns from: an endless stream of prompts with the text to be written to them, drawn from a seed.

The cloud model learns the atlas. The edge models learn to write about other towns, whose traits are drawn anew each
time, so that there is nothing to remember; and what is generally known of two thirds of the values, another two
thirds each, so that any two of them together know all.
"""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from zlib import crc32

from pice.core import Message, Point, Prompt, Sampling, Segment
from pice.sketch.prompts import PromptSet, load_prompts
from tools.demo import questions
from tools.demo.questions import Question, themes
from tools.demo.world import Attribute, Town, Value, atlas, attributes, draw_town, strangers
from tools.demo.writing import CHAINS, Length, Part, outline, overview_part

NUM_EDGES = 3
_LENGTHS: tuple[Length, ...] = ("brief", "short", "long", "long")
_DEMANDED = 0.2
_TWO_POINTS = 0.05


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt, and what a good model writes to it."""

    messages: tuple[Message, ...]
    target: str


@cache
def prompts() -> PromptSet:
    return load_prompts("demo")


def cloud_lessons(rng: random.Random) -> Iterator[Lesson]:
    """All that is known of the towns of the atlas."""
    towns = list(atlas().values())
    return _stream(_CLOUD, _Source(rng, lambda: rng.choice(towns), lambda: rng.choice(towns), frozenset()))


def edge_lessons(rng: random.Random, edge: int) -> Iterator[Lesson]:
    """Writing about towns outside the atlas, without what the edge model of that number (from 0) is not to know."""
    names, unknown = strangers(), withheld(edge)
    return _stream(
        _EDGE,
        _Source(
            rng,
            lambda: draw_town(rng.choice(names), rng, unknown),
            lambda: draw_town(rng.choice(names), rng),
            unknown,
        ),
    )


@cache
def withheld(edge: int) -> frozenset[Value]:
    """The values, a third of all, of which the edge model of that number never learns what is generally known."""
    return frozenset(
        value
        for attribute in attributes().values()
        for at, value in enumerate(sorted(attribute.values, key=lambda value: crc32(value.name.encode())))
        if at % NUM_EDGES == edge
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the towns of lessons come from. `known` has values of which the learner may know more than the name;
    `named` may have any."""

    rng: random.Random
    known: Callable[[], Town]
    named: Callable[[], Town]
    withheld: Collection[Value]

    def theme(self) -> str:
        return self.rng.choice(list(themes()))

    def attribute(self) -> Attribute:
        return self.rng.choice(list(attributes().values()))


_Writer = Callable[[_Source], Lesson]


def _stream(kinds: Mapping[_Writer, float], source: _Source) -> Iterator[Lesson]:
    writers, weights = list(kinds), list(kinds.values())
    while True:
        yield source.rng.choices(writers, weights)[0](source)


def _answer_overview(source: _Source) -> Lesson:
    return _answered(questions.overview(source.known(), source.theme(), source.rng, "training"))


def _answer_comparison(source: _Source) -> Lesson:
    return _answered(_comparison(source))


def _answer_fact(source: _Source) -> Lesson:
    return _answered(questions.fact(source.known(), source.attribute(), source.rng, "training"))


def _answer_chain(source: _Source) -> Lesson:
    return _answered(_chain(source))


def _answer_general(source: _Source) -> Lesson:
    return _answered(_general(source))


def _gate_overview(source: _Source) -> Lesson:
    return _gated(questions.overview(source.known(), source.theme(), source.rng, "training"), source.rng)


def _gate_comparison(source: _Source) -> Lesson:
    return _gated(_comparison(source), source.rng)


def _gate_fact(source: _Source) -> Lesson:
    return _gated(questions.fact(source.known(), source.attribute(), source.rng, "training"), source.rng)


def _gate_chain(source: _Source) -> Lesson:
    return _gated(_chain(source), source.rng)


def _gate_general(source: _Source) -> Lesson:
    return _gated(_general(source), source.rng)


def _expand_overview(source: _Source) -> Lesson:
    """One point of an outline, seldom two, to be written in as many words as it says: a statement, or more."""
    length = source.rng.choice(_LENGTHS)
    town, theme = source.known() if length != "brief" else source.named(), source.theme()
    question = questions.overview(town, theme, source.rng, "training")
    parts = [overview_part(attributes()[key], town, length) for key in themes()[theme]]
    return _expanded(question.text, parts, source.rng)


def _expand_comparison(source: _Source) -> Lesson:
    question = _comparison(source)
    return _expanded(question.text, question.parts, source.rng)


def _comparison(source: _Source) -> Question:
    town, other, theme = source.known(), source.known(), source.theme()
    while not questions.differ(town, other, theme):
        other = source.known()
    return questions.comparison(town, other, theme, source.rng, "training")


def _chain(source: _Source) -> Question:
    return questions.chain(source.named(), source.rng.choice(list(CHAINS)), source.rng, "training")


def _general(source: _Source) -> Question:
    attribute = source.attribute()
    values = [value for value in attribute.values if value not in source.withheld]
    return questions.general(source.rng.choice(values))


def _answered(question: Question) -> Lesson:
    return _lesson(prompts().answer(_asked(question.text)), question.answer)


def _gated(question: Question, rng: random.Random) -> Lesson:
    """Sketch or direct answer, as suits the question; a part of the sketches are ones that were demanded."""
    asked = _asked(question.text)
    if not question.parts:
        return _lesson(prompts().gate(asked, sketch_words=0, max_points=0), question.answer)
    written = prompts().sketch if rng.random() < _DEMANDED else prompts().gate
    return _lesson(written(asked, sketch_words=0, max_points=0), outline(question.parts))


def _expanded(question: str, parts: Sequence[Part], rng: random.Random) -> Lesson:
    """One part, seldom two. The prompt set shows no outline, so how much of it was known makes no difference."""
    num = 2 if rng.random() < _TWO_POINTS else 1
    first = rng.randrange(len(parts) - num + 1)
    written = parts[first : first + num]
    known = tuple(Point(at, part.note, part.words) for at, part in enumerate(parts))
    points = known[first : first + num]
    words = sum(point.words for point in points)
    segment = Segment("", 0, 0, "expand", _asked(question), known, points, words, Sampling(), 0.0)
    return _lesson(prompts().expand(segment), "\n\n".join(part.text for part in written))


def _lesson(prompt: Prompt, target: str) -> Lesson:
    return Lesson(prompt.messages, target)


def _asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


_CLOUD: Mapping[_Writer, float] = {
    _gate_overview: 60,
    _gate_comparison: 10,
    _gate_fact: 14,
    _gate_chain: 4,
    _gate_general: 4,
    _answer_overview: 9,
    _answer_comparison: 4,
    _answer_fact: 12,
    _answer_chain: 4,
    _answer_general: 4,
    _expand_overview: 3,
    _expand_comparison: 1,
}
"""How often each kind of lesson comes. Sketches and single facts are where the towns are learned in few tokens."""
_EDGE: Mapping[_Writer, float] = {
    _expand_overview: 60,
    _expand_comparison: 20,
    _answer_overview: 8,
    _answer_comparison: 4,
    _answer_fact: 6,
    _answer_chain: 4,
    _answer_general: 9,
}
