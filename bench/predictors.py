"""What a question alone tells of its answer: how long that is, and whether a sketch suits it.

Each question is predicted from the other questions alone. A baseline knows nothing of it: the median length, the more
frequent label. `category` is what the file says of a question and no service would know. `another model` is a line from
the length of another model's answer to the same question: what a length that is announced may tell. For the label a
question is looked at for its words, its first and first two words, and how many there are.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import StatisticsError, correlation, fmean, linear_regression, median
from typing import Annotated, Any

import typer

from bench.judged import ANSWERS, QUESTIONS, json_lines
from bench.report import Aim, PathOption, QuickOption, Report, Table, at_least, at_most, publish
from pice.errors import InputError

OF_MODEL, OTHER_MODEL = "vicuna-13b", "gpt35"
_WORD = re.compile(r"[^\W\d_]+|\d+")
_LEAST_SEEN = 2
_WORDS_PER_CLASS, _CLASSES = 8, 4

QuestionsOption = Annotated[
    Path, typer.Option("--questions", help="Lines with question_id, question, category and suits_sketch.")
]
AnswersOption = Annotated[Path, typer.Option("--answers", help="Lines with question_id, model and answer.")]
OfOption = Annotated[str, typer.Option("--of", help="The model whose answers' lengths are predicted.")]
OtherOption = Annotated[str, typer.Option("--other", help="The model whose lengths tell of them.")]


@dataclass(frozen=True, slots=True)
class Known:
    """One question. Lengths are words, of the model whose lengths are predicted and of another."""

    text: str
    category: str
    suits: bool
    words: int
    other_words: int

    @property
    def features(self) -> frozenset[str]:
        return features(self.text)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One predictor over all questions. `error` is the mean absolute one in words, or the share of wrong labels;
    `better` is how many times smaller than the baseline's it is."""

    what: str
    predictor: str
    error: float
    better: float


def command(
    quick: QuickOption = False,
    path: PathOption = None,
    questions: QuestionsOption = QUESTIONS,
    answers: AnswersOption = ANSWERS,
    of: OfOption = OF_MODEL,
    other: OtherOption = OTHER_MODEL,
) -> None:
    """How well a question alone tells its answer's length, and whether a sketch suits it."""
    del quick  # it takes a second
    known = load(questions, answers, of, other)
    found = [*lengths(known), *labels(known)]
    publish(make_report(known, found, of, other), path, partial(draw, found=found))


def load(questions: Path, answers: Path, of: str, other: str) -> list[Known]:
    """All questions that both models have answered.

    Raises:
        InputError: a file is missing or holds something else, or there are fewer than three.
    """
    written = {
        (row["model"], row["question_id"]): len(row["answer"].split())
        for row in json_lines(answers, ("question_id", "model", "answer"))
    }
    known = [
        Known(row["question"], row["category"], bool(row["suits_sketch"]), *words)
        for row in json_lines(questions, ("question_id", "question", "category", "suits_sketch"))
        if all(words := [written.get((model, row["question_id"]), 0) for model in (of, other)])
    ]
    if len(known) < 3:
        raise InputError(f"{answers}: expected three answers by {of} and {other} at least, got {len(known)}")
    return known


def features(text: str) -> frozenset[str]:
    """What is looked at in a question. Numbers are alike."""
    words = ["0" if word.isdigit() else word for word in _WORD.findall(text.lower())]
    size = min(_CLASSES, len(words) // _WORDS_PER_CLASS)
    return frozenset((*words, f"first {words[:1]}", f"first {words[:2]}", f"size {size}"))


Predict = Callable[[Sequence[Known], Known], float]
"""From all other questions and this one."""


def lengths(known: Sequence[Known]) -> Iterator[Prediction]:
    predictors: dict[str, Predict] = {
        "baseline: median": lambda others, _: median(each.words for each in others),
        "words of the question": lambda others, one: _line(others, one, lambda it: len(it.text.split())),
        "category": lambda others, one: median([it.words for it in others if it.category == one.category] or [0]),
        "another model": lambda others, one: _line(others, one, lambda it: it.other_words),
    }
    yield from _compared("length", known, predictors, lambda predicted, one: abs(predicted - one.words))


def labels(known: Sequence[Known]) -> Iterator[Prediction]:
    predictors: dict[str, Predict] = {
        "baseline: more frequent": lambda others, _: _share(others),
        "words of the question": lambda others, one: suits(others, one.features),
        "category": lambda others, one: _share([it for it in others if it.category == one.category]),
    }
    yield from _compared("label", known, predictors, lambda predicted, one: float((predicted > 0.5) != one.suits))


def suits(others: Sequence[Known], seen: frozenset[str]) -> float:
    """The probability of the label by naive Bayes, over what is there and what is not."""
    groups = [[it.features for it in others if it.suits is label] for label in (False, True)]
    counts = [Counter(feature for features in group for feature in features) for group in groups]
    odds = math.log((len(groups[1]) + 1) / (len(groups[0]) + 1))
    for feature in sorted(counts[0].keys() | counts[1].keys()):
        if counts[0][feature] + counts[1][feature] >= _LEAST_SEEN:
            no, yes = ((count[feature] + 0.5) / (len(group) + 1) for count, group in zip(counts, groups, strict=True))
            odds += math.log(yes / no) if feature in seen else math.log((1 - yes) / (1 - no))
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, odds))))


def _compared(
    what: str, known: Sequence[Known], predictors: dict[str, Predict], error: Callable[[float, Known], float]
) -> Iterator[Prediction]:
    baseline = 0.0
    for name, predict in predictors.items():
        errors = [error(predict([*known[:at], *known[at + 1 :]], one), one) for at, one in enumerate(known)]
        mean = fmean(errors)
        baseline = baseline or mean
        yield Prediction(what, name, mean, baseline / mean if mean else math.inf)


def _line(others: Sequence[Known], one: Known, value: Callable[[Known], float]) -> float:
    """On the straight line of length over a value; the mean where all values are equal."""
    try:
        slope, start = linear_regression([value(it) for it in others], [it.words for it in others])
    except StatisticsError:
        return fmean(it.words for it in others)
    return slope * value(one) + start


def _share(group: Sequence[Known]) -> float:
    return fmean(it.suits for it in group) if group else 0.0


def make_report(known: Sequence[Known], found: Sequence[Prediction], of: str, other: str) -> Report:
    words = [it.words for it in known]
    correlated = {
        "question": _correlation([len(it.text.split()) for it in known], words),
        "another model": _correlation([it.other_words for it in known], words),
    }
    rows = [[it.what, it.predictor, _shown(it), f"{it.better:.2f}"] for it in found]
    notes = (
        f"{len(known)} questions, each predicted from the others; lengths of {of}, another model: {other}.",
        "Correlation of lengths: " + ", ".join(f"{name} {value:.2f}" for name, value in correlated.items()) + ".",
    )
    table = Table("What a question tells of its answer", ("of", "predictor", "error", "baseline / error"), rows, notes)
    load = {"questions": len(known), "of": of, "other": other, "correlations": correlated}
    return Report("predictors", load, [asdict(it) for it in found], list(aims(found)), table)


def aims(found: Sequence[Prediction]) -> Iterator[Aim]:
    by_words = {it.what: it for it in found if it.predictor == "words of the question"}
    yield at_least("length: baseline / error, words of the question", by_words["length"].better, 1.0)
    yield at_least("label: baseline / error, words of the question", by_words["label"].better, 1.0)
    yield at_most("label: share of wrong ones", by_words["label"].error, 0.2)


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    try:
        return correlation(one, other)
    except StatisticsError:
        return 0.0


def _shown(it: Prediction) -> str:
    return f"{it.error:.1f} words" if it.what == "length" else f"{it.error:.1%} wrong"


def draw(figure: Any, found: Sequence[Prediction]) -> None:
    """The errors of each kind."""
    for panel, what in zip(figure.subplots(1, 2), ("length", "label"), strict=True):
        shown = [it for it in found if it.what == what]
        panel.barh([it.predictor for it in shown], [it.error for it in shown])
        panel.set_title("length: mean error, words" if what == "length" else "label: share of wrong ones")
