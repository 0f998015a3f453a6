"""Writes the questions that ship with the demo models.

    python -m tools.demo.questions_file pice/demo/questions.json

All are in phrasings kept out of training. The same seed writes the same bytes.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tools.demo.questions import Question, held_out
from tools.demo.world import SEED, atlas, attributes

PER_KIND = 96


def document() -> dict[str, Any]:
    """What the file holds."""
    values = [value for each in attributes().values() for value in each.values]
    return {
        "towns": sorted(atlas()),
        "values": [value.name for value in values if value.numbers is None],
        "keys": [key for value in values for key in value.keys],
        "asks": [value.asks for value in values],
        "questions": list(_entries(held_out(SEED, PER_KIND))),
    }


def _entries(questions: Iterator[Question]) -> Iterator[dict[str, Any]]:
    numbers = Counter[str]()
    for question in questions:
        numbers[question.kind] += 1
        facts = {
            kind: list(dict.fromkeys(fact.text for fact in question.facts if fact.kind == kind))
            for kind in ("town", "general")
        }
        yield {
            "id": f"{question.kind}-{numbers[question.kind]}",
            "kind": question.kind,
            "question": question.text,
            "answer": question.answer,
            "town_facts": facts["town"],
            "general_facts": facts["general"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the questions that ship with the demo models.")
    parser.add_argument("path", type=Path)
    args = parser.parse_args()
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    args.path.write_bytes(orjson.dumps(document(), option=options))


if __name__ == "__main__":
    sys.exit(main())
