"""Facts about towns -> prose: the reference answers, the notes of their sketches, and the facts in them.

Which of an attribute's frames states a value is settled by the value, so a text has one best wording and a model can
learn to write just that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

from tools.demo.world import Attribute, Town, Trait, Value, attributes

Length = Literal["brief", "short", "long"]
"""A statement alone; with one sentence of what is generally known of the value; with both."""

_HISTORY = (
    "{town} lies on a {setting}, and that decided everything else. "
    "Because of the {setting}, its first people had to live by {trade}. "
    "The long hours of {trade} made them hungry, and so they came to cook {dish}. "
    "Since {dish} makes one thirsty, they soon drank {drink} with it. "
    "After enough {drink} somebody proposed a feast, and that became the {festival}. "
    "But the {festival} was too quiet at first, and therefore they sent for {music}. "
    "To this day there is no {festival} in {town} without {music}."
)
_DAY = (
    "A day in {town} begins in one of its {lodging}, so leave your bags there first. "
    "From there the {transport} bring you to the {landmark} before the crowd comes. "
    "When you have seen the {landmark} you will be curious, so go on to the market, which is known for {market}. "
    "By then it is noon and you are hungry, so sit down to {dish}. "
    "After so much {dish} you need to move, and that is the time for {pastime}. "
    "When {pastime} has made you tired, let the {transport} carry you back to where the day began."
)
CHAINS = {"history": _HISTORY, "day": _DAY}


@dataclass(frozen=True, slots=True)
class Fact:
    """Something a text says, found by looking for `text` in it. A town's fact is a trait of one town; a general one
    is a key phrase of what is known of a value."""

    kind: Literal["town", "general"]
    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an answer that can be written without the others. `note` is what stands of it in a sketch."""

    note: str
    text: str
    facts: tuple[Fact, ...]

    @property
    def words(self) -> int:
        return len(self.text.split())


def overview_part(attribute: Attribute, town: Town, length: Length) -> Part:
    """What is to be said of one attribute of one town."""
    trait = town.traits[attribute.key]
    known = _known(trait.value, length)
    text = " ".join([_state(attribute.states, attribute, town, trait), *trait.value.knows[:known]])
    return Part(f"{attribute.label}: {trait.text}", text, _facts(trait, known))


def comparison_parts(attribute: Attribute, town: Town, other: Town) -> tuple[Part, Part]:
    """What is to be said of one attribute of a town, and then of another."""
    return (
        _comparison_part(attribute, town, attribute.states),
        _comparison_part(attribute, other, attribute.contrasts),
    )


def _comparison_part(attribute: Attribute, town: Town, frames: Sequence[str]) -> Part:
    trait = town.traits[attribute.key]
    text = f"{_state(frames, attribute, town, trait)} {trait.value.knows[0]}"
    return Part(f"{attribute.label}: {town.name} {trait.text}", text, _facts(trait, 1))


def chain_text(theme: str, town: Town) -> tuple[str, tuple[Fact, ...]]:
    """A text whose sentences each need the one before, and the facts in it."""
    frame = CHAINS[theme]
    used = [key for key in attributes() if f"{{{key}}}" in frame]
    text = frame.format(town=town.name, **{key: town.traits[key].text for key in used})
    return text, tuple(Fact("town", town.traits[key].text) for key in used)


def general_text(value: Value) -> tuple[str, tuple[Fact, ...]]:
    """What is known of a value, whatever town has it."""
    return " ".join(value.knows), tuple(Fact("general", key) for key in value.keys)


def outline(parts: Sequence[Part]) -> str:
    """The sketch of an answer with these parts, in the form that PICE's prompts ask for."""
    return "\n".join(["OUTLINE", *(f"- ({part.words}) {part.note}" for part in parts)]) + "\n"


def _state(frames: Sequence[str], attribute: Attribute, town: Town, trait: Trait) -> str:
    text = frames[crc32(f"{attribute.key} {trait.value.name}".encode()) % len(frames)]
    return text.format(town=town.name, value=trait.text)


def _known(value: Value, length: Length) -> int:
    return {"brief": 0, "short": 1, "long": len(value.knows)}[length]


def _facts(trait: Trait, known: int) -> tuple[Fact, ...]:
    return (Fact("town", trait.text), *(Fact("general", key) for key in trait.value.keys[:known]))
