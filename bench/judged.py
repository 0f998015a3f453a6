"""Answers of several models to the same questions, with what judges gave them: files of the form of FastChat's review
of Vicuna (`questions/`, `judged/` of PICE_DATA; lm-sys/FastChat, Apache-2.0)."""

import csv
import gzip
import io
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import orjson

from bench.report import ROOT
from pice.errors import InputError

DATA = Path(os.environ.get("PICE_DATA", ROOT.parent / "shared" / "data"))
QUESTIONS = DATA / "questions" / "vicuna_80.jsonl.gz"
ANSWERS = DATA / "judged" / "vicuna_answers.jsonl.gz"
SCORES = DATA / "judged" / "vicuna_pairwise_scores.csv.gz"
OTHER_NAMES = {"llama": "llama-13b", "vicuna-13b-20230322-clean-lang": "vicuna-13b"}
"""Models that reviews call otherwise than the file of answers."""
_REVIEW = "review_"
_UNREADABLE = -1.0
"""Both scores where the judge's were not to be found in what it wrote."""
_FIRST_JUDGE = "gpt-4"
"""Whose reviews carry no name before that word."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One question, the answer of each model, and of each judge the mean score of each model's answer, 1 to 10."""

    number: int
    question: str
    answers: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]


def load_judged(questions: Path = QUESTIONS, answers: Path = ANSWERS, scores: Path = SCORES) -> list[Judged]:
    """All questions in order.

    Raises:
        InputError: a file is missing or holds something else; says which line and what was expected.
    """
    texts: dict[int, dict[str, str]] = defaultdict(dict)
    for row in json_lines(answers, ("question_id", "model", "answer")):
        texts[row["question_id"]][row["model"]] = row["answer"]
    models = {model for each in texts.values() for model in each}
    given = _given(scores, models)
    return [
        Judged(
            number := row["question_id"],
            row["question"],
            texts[number],
            {
                judge: {model: fmean(values) for model, values in by_model.items()}
                for judge, by_model in given[number].items()
            },
        )
        for row in json_lines(questions, ("question_id", "question"))
    ]


def _given(path: Path, models: Collection[str]) -> Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]]:
    """Every score by question, judge and model. A model beside itself is one answer, given two scores."""
    found: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, row in enumerate(csv.DictReader(io.StringIO(_text(path))), 2):
        try:
            judge, pair = _read_review(row["review_file"], models)
            values = [float(row["score_answer1"]), float(row["score_answer2"])]
            if values == [_UNREADABLE, _UNREADABLE]:
                continue
            if not all(0 <= value <= 10 for value in values):
                raise ValueError(f"scores must be 0 to 10, got {values}")
            by_model = found[int(row["question_id"])][judge]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number}: expected a review and its two scores: {error!r}") from error
        for model, value in zip(pair, values, strict=True):
            by_model[model].append(value)
    return found  # type: ignore[no-any-return]


def _read_review(name: str, models: Collection[str]) -> tuple[str, tuple[str, str]]:
    """Judge and models of `[JUDGE_]review_ONE_OTHER`."""
    before, _, pair = name.partition(_REVIEW)
    known = {**{model: model for model in models}, **OTHER_NAMES}
    for first in known:
        if pair.startswith(f"{first}_") and (second := pair[len(first) + 1 :]) in known:
            return before.rstrip("_") or _FIRST_JUDGE, (known[first], known[second])
    raise ValueError(f"{name} names no two models of {sorted(known)}")


def json_lines(path: Path, fields: Sequence[str]) -> Iterator[Any]:
    """The objects of a file, one a line, plain or gzipped, each with these fields.

    Raises:
        InputError: a line is something else; says which.
    """
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            row = orjson.loads(line)
            missing = [name for name in fields if name not in row]
        except (orjson.JSONDecodeError, TypeError) as error:
            raise InputError(f"{path}, line {number}: expected a JSON object: {error}") from error
        if missing:
            raise InputError(f"{path}, line {number}: expected {', '.join(fields)}; {', '.join(missing)} not there")
        yield row


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; PICE_DATA names the folder of public data") from error
