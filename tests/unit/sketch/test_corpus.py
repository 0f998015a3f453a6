"""Every text in tests/data/sketches is read as its .json says, however it is cut."""

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pice.core import Point
from pice.sketch.parser import Direct, Item, SketchParser

DATA = Path(__file__).parents[2] / "data" / "sketches"
ANSWERS = (
    Path(os.environ.get("PICE_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
    / "judged"
    / "vicuna_answers.jsonl.gz"
)
NAMES = sorted(path.stem for path in DATA.glob("*.txt"))

Cut = Callable[[str], Iterator[str]]


def whole(text: str) -> Iterator[str]:
    yield text


def by_character(text: str) -> Iterator[str]:
    yield from text


def at_random(text: str) -> Iterator[str]:
    draw = random.Random(len(text))
    while text:
        size = draw.choice((0, 1, 2, 3, 5, 8, 21))
        yield text[:size]
        text = text[size:]


def read(pieces: Iterator[str], options: dict[str, Any]) -> tuple[str, list[Item]]:
    parser = SketchParser(**options)
    items = [item for piece in pieces for item in parser.feed(piece)]
    items += parser.finish()
    return parser.kind, items


@pytest.mark.parametrize("cut", [whole, by_character, at_random], ids=lambda cut: cut.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_text_is_read_as_expected(name: str, cut: Cut) -> None:
    text = (DATA / f"{name}.txt").read_bytes().decode()
    expected = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    kind, items = read(cut(text), expected.get("options", {}))
    assert kind == expected["kind"]
    if kind == "direct":
        assert "".join(item.text for item in items if isinstance(item, Direct)) == expected.get("text", text)
    assert [{"text": item.text, "words": item.words} for item in items if isinstance(item, Point)] == expected.get(
        "points", []
    )


def test_corpus_has_every_text_with_its_expectation() -> None:
    assert len(NAMES) >= 45
    assert sorted(path.stem for path in DATA.glob("*.json")) == NAMES


@pytest.mark.skipif(not ANSWERS.is_file(), reason="the answers of seven models are not here (PICE_DATA)")
def test_answers_written_without_our_prompts_pass_through_unchanged() -> None:
    with gzip.open(ANSWERS, "rt", encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 560
    for answer in answers:
        kind, items = read(at_random(answer), {})
        assert (kind, "".join(item.text for item in items)) == ("direct", answer)
