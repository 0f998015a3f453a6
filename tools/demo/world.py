"""The atlas: imaginary towns with their attributes, drawn from a seed, and what is generally known of each value.

What is written by hand stands in `atlas/`: one TOML file per attribute with its values and the sentences about them.
"""

import random
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.demo.names import town_names

SEED = 20250116
"""Of the world, the questions and the tokenizer; training has one of its own."""
NUM_TOWNS = 320
"""Towns of the atlas; all other names are towns that only the edge models' lessons speak of."""

_FOLDER = Path(__file__).with_name("atlas")
_KEY = re.compile(r"\*(.+?)\*")


@dataclass(frozen=True, slots=True)
class Value:
    """One value an attribute can have. `knows` are two sentences true of every town that has it, `keys` the phrase
    in each by which a program finds it again. `numbers` is the range of a numeric attribute's bucket, its end left out.
    """

    name: str
    knows: tuple[str, str]
    keys: tuple[str, str]
    asks: str
    numbers: range | None = None


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing every town has. The last two `questions` are kept out of all training."""

    key: str
    label: str
    questions: tuple[str, ...]
    states: tuple[str, ...]
    contrasts: tuple[str, ...]
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Trait:
    """What one town has of one attribute, as it stands in texts: a value's name, or a number."""

    text: str
    value: Value


@dataclass(frozen=True, slots=True)
class Town:
    name: str
    traits: Mapping[str, Trait]


@cache
def attributes() -> Mapping[str, Attribute]:
    """All attributes by key, in alphabetical order."""
    return {path.stem: _attribute(path) for path in sorted(_FOLDER.glob("*.toml")) if path.stem != "questions"}


@cache
def atlas() -> Mapping[str, Town]:
    """The towns of the atlas by name."""
    rng = random.Random(f"atlas {SEED}")
    return {name: draw_town(name, rng) for name in sorted(town_names(SEED)[:NUM_TOWNS])}


@cache
def strangers() -> Sequence[str]:
    """Names of towns that are not in the atlas."""
    return tuple(town_names(SEED)[NUM_TOWNS:])


def draw_town(name: str, rng: random.Random, withheld: Collection[Value] = ()) -> Town:
    """A town of that name with values drawn from `rng`, none of them `withheld`."""
    traits = {}
    for key, attribute in attributes().items():
        value = rng.choice([value for value in attribute.values if value not in withheld])
        traits[key] = Trait(_number(rng.choice(value.numbers)) if value.numbers else value.name, value)
    return Town(name, traits)


def _number(number: int) -> str:
    """Years as they are, larger numbers with a comma."""
    return str(number) if number < 2000 else f"{number:,}"


def _attribute(path: Path) -> Attribute:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return Attribute(
        key=path.stem,
        label=table["label"],
        questions=tuple(table["questions"]),
        states=tuple(table["states"]),
        contrasts=tuple(table["contrasts"]),
        values=tuple(_value(entry) for entry in table["values"]),
    )


def _value(entry: Mapping[str, object]) -> Value:
    marked = entry["knows"]
    assert isinstance(marked, list)
    assert len(marked) == 2
    first, second = ([match[1] for match in _KEY.finditer(sentence)] for sentence in marked)
    assert len(first) == len(second) == 1, f"{entry['name']}: each sentence needs one *key phrase*"
    knows = tuple(_KEY.sub(r"\1", sentence) for sentence in marked)
    numbers = entry.get("numbers")
    return Value(
        name=str(entry["name"]),
        knows=(knows[0], knows[1]),
        keys=(first[0], second[0]),
        asks=str(entry["asks"]),
        numbers=range(*numbers) if isinstance(numbers, list) else None,
    )
