"""Questions about the atlas with their reference answers. Some phrasings are kept out of all training."""

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tools.demo.world import Attribute, Town, Value, atlas, attributes
from tools.demo.writing import CHAINS, Fact, Part, chain_text, comparison_parts, general_text, overview_part

Kind = Literal["overview", "comparison", "fact", "chain", "general"]
Use = Literal["training", "held out"]

NUM_COMPARED = 4
"""Attributes in a comparison: the first ones of its theme."""
_NUM_HELD_OUT_FACTS = 2


@dataclass(frozen=True, slots=True)
class Question:
    """`parts` are the independent parts of the answer; empty where it is not made of such."""

    kind: Kind
    text: str
    answer: str
    facts: tuple[Fact, ...]
    parts: tuple[Part, ...] = ()


@cache
def themes() -> Mapping[str, Sequence[str]]:
    """Keys of the attributes an overview speaks of, by theme."""
    return {name: tuple(theme["attributes"]) for name, theme in _phrasings()["themes"].items()}


def overview(town: Town, theme: str, rng: random.Random, use: Use) -> Question:
    """A question that takes a long answer of independent parts."""
    parts = tuple(overview_part(attributes()[key], town, "long") for key in themes()[theme])
    text = _frame("overview", rng, use).format(town=town.name, theme=_theme(theme, rng, use))
    return _of_parts("overview", text, parts)


def comparison(town: Town, other: Town, theme: str, rng: random.Random, use: Use) -> Question:
    """A question about two towns, answered attribute by attribute; see `differ`."""
    compared = [attributes()[key] for key in themes()[theme][:NUM_COMPARED]]
    parts = tuple(part for attribute in compared for part in comparison_parts(attribute, town, other))
    phrase = _theme(theme, rng, use, only="for ")
    text = _frame("comparison", rng, use).format(town=town.name, other=other.name, theme=phrase)
    return _of_parts("comparison", text, parts)


def differ(town: Town, other: Town, theme: str) -> bool:
    """Whether the towns have nothing in common that a comparison would speak of."""
    return not any(town.traits[key].text == other.traits[key].text for key in themes()[theme][:NUM_COMPARED])


def fact(town: Town, attribute: Attribute, rng: random.Random, use: Use) -> Question:
    """A question about one attribute of one town, answered in two sentences."""
    part = overview_part(attribute, town, "short")
    text = _pick(attribute.questions, _NUM_HELD_OUT_FACTS, rng, use).format(town=town.name)
    return Question("fact", text, part.text, part.facts)


def chain(town: Town, theme: str, rng: random.Random, use: Use) -> Question:
    """A question whose answer is one line of thought."""
    answer, facts = chain_text(theme, town)
    return Question("chain", _frame(theme, rng, use).format(town=town.name), answer, facts)


def general(value: Value) -> Question:
    """A question about a value as such, with no town in it."""
    answer, facts = general_text(value)
    return Question("general", value.asks, answer, facts)


def held_out(seed: int, per_kind: int) -> Iterator[Question]:
    """So many questions of each of the kinds overview, comparison, fact and chain, in phrasings never trained on."""
    rng = random.Random(f"held out {seed}")
    towns = list(atlas().values())
    for _ in range(per_kind):
        town, theme = rng.choice(towns), rng.choice(list(themes()))
        other = rng.choice([each for each in towns if differ(town, each, theme)])
        yield overview(town, theme, rng, "held out")
        yield comparison(town, other, theme, rng, "held out")
        yield fact(town, rng.choice(list(attributes().values())), rng, "held out")
        yield chain(town, rng.choice(list(CHAINS)), rng, "held out")


def _of_parts(kind: Kind, text: str, parts: tuple[Part, ...]) -> Question:
    answer = "\n\n".join(part.text for part in parts)
    return Question(kind, text, answer, tuple(fact for part in parts for fact in part.facts), parts)


def _frame(kind: str, rng: random.Random, use: Use) -> str:
    table = _phrasings()[kind]
    return _pick(table["frames"], table["held_out"], rng, use)


def _theme(theme: str, rng: random.Random, use: Use, *, only: str = "") -> str:
    table = _phrasings()["themes"][theme]
    return _pick(table["phrases"], table["held_out"], rng, use, only=only)


def _pick(texts: Sequence[str], num_held_out: int, rng: random.Random, use: Use, *, only: str = "") -> str:
    of_use = texts[-num_held_out:] if use == "held out" else texts[:-num_held_out]
    return rng.choice([text for text in of_use if text.startswith(only)])


@cache
def _phrasings() -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_name("atlas").joinpath("questions.toml").read_text(encoding="utf-8"))
