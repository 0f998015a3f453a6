"""The atlas the demo models know: questions about it with reference answers, and facts by which answers are checked.

The file beside this one is written by `tools.demo.questions_file`; how its questions are phrased was kept out of all
training.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from pice.answer.words import words_of
from pice.core import Sampling
from pice.errors import ConfigError, InputError

Kind = Literal["overview", "comparison", "fact", "chain"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GREEDY = Sampling(max_tokens=450, temperature=0.0)
"""How the demo models are asked: what they have learned has one best wording, at most 400 tokens long."""

FOLDER = Path(str(files("pice.demo")))
CONFIG = FOLDER / "demo.toml"
"""The demo's configuration: a file like any other."""
MODELS = tuple(FOLDER / "models" / f"atlas-{name}.gguf" for name in ("cloud", "edge-a", "edge-b", "edge-c"))
_DATA = "questions.json"
_NUMBER = re.compile(r"\b(?:1\d{3}|\d{1,2},\d{3})\b")
"""How years and populations are written."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its reference answer. `town_facts` are what only those know who know the town, `general_facts`
    what is known of such towns; both as words that a right answer has in it."""

    id: str
    kind: Kind
    text: str
    answer: str
    town_facts: tuple[str, ...]
    general_facts: tuple[str, ...]

    @property
    def facts(self) -> tuple[str, ...]:
        return self.town_facts + self.general_facts


@dataclass(frozen=True, slots=True)
class Atlas:
    """`towns` are the names; `values` all that a town's attributes can be, but for numbers, and `keys` the phrases by
    which general knowledge is found, each as in the facts; `asks` are questions about values."""

    towns: tuple[str, ...]
    values: tuple[str, ...]
    keys: tuple[str, ...]
    asks: tuple[str, ...]
    questions: tuple[Question, ...]

    def of_kind(self, kind: Kind) -> list[Question]:
        return [question for question in self.questions if question.kind == kind]

    def check(self, question: str) -> None:
        """Refuses what the demo models cannot know.

        Raises:
            InputError: it names no town of the atlas, and is no question about a value that they know.
        """
        named = set(re.findall(r"\w+", question))
        if named.isdisjoint(self.towns) and question.strip() not in self.asks:
            raise InputError(
                f"the demo models know the {len(self.towns)} towns of an imaginary atlas and nothing else, and the "
                f"question names none of them: expected one like {self.questions[0].text!r} (`pice demo questions` "
                "lists more). For questions about anything, point PICE at real models: pass --config with GGUF files, "
                "as in config/llama.toml, or a server, as in config/vllm.toml"
            )


@cache
def atlas() -> Atlas:
    """The atlas with its questions."""
    data = orjson.loads((FOLDER / _DATA).read_bytes())
    return Atlas(
        towns=tuple(data["towns"]),
        values=tuple(data["values"]),
        keys=tuple(data["keys"]),
        asks=tuple(data["asks"]),
        questions=tuple(_question(entry) for entry in data["questions"]),
    )


def check_models() -> None:
    """Makes sure that the models are there.

    Raises:
        ConfigError: they are not.
    """
    missing = [path.name for path in MODELS if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{FOLDER / 'models'}: expected the demo's models, and {', '.join(missing)} are not there: in a checkout, "
            "make them as docs/demo-models.md says (hours on a CPU), or pass --config with models of your own"
        )


def facts_in(text: str, facts: Collection[str]) -> list[str]:
    """Those of `facts` whose words stand in `text` one after another, whatever their case."""
    padded = _padded(text)
    return [fact for fact in facts if _padded(fact) in padded]


def recall(text: str, facts: Sequence[str]) -> float | None:
    """The share of `facts` that `text` has; None where there are none."""
    return len(facts_in(text, facts)) / len(facts) if facts else None


def precision(text: str, question: Question) -> float | None:
    """The share of what `text` states that is right, of values, numbers and what is generally known of values; None
    where it states nothing of the kind."""
    stated = [*facts_in(text, (*atlas().values, *atlas().keys)), *dict.fromkeys(_NUMBER.findall(text))]
    return sum(fact in question.facts for fact in stated) / len(stated) if stated else None


def _padded(text: str) -> str:
    return f" {' '.join(words_of(text))} "


def _question(entry: dict[str, Any]) -> Question:
    return Question(
        id=entry["id"],
        kind=entry["kind"],
        text=entry["question"],
        answer=entry["answer"],
        town_facts=tuple(entry["town_facts"]),
        general_facts=tuple(entry["general_facts"]),
    )
