"""What choosing among answers is worth: the judged score of what PICE's confidence picks, where judges have scored.

Of every set of so many models each has written one answer to the question, and one is chosen: at random (the mean of
all), the longest, that of the model which was best over all other questions, by the confidence with the weights that
ship or with those that did best on all other questions, or by an oracle. No log-probabilities are known of these
answers and they have no points, so the terms `length` and `agreement` are tested, and hard failures.

Judges like long answers, so each figure stands there twice: as given, and with what a judge gives for length alone
taken out (the slope of score over the logarithm of words, within questions).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import fmean, median, quantiles
from typing import Annotated, Any

import typer

from bench.judged import ANSWERS, QUESTIONS, SCORES, Judged, load_judged
from bench.report import Aim, PathOption, QuickOption, Report, Table, at_least, publish
from pice.answer.normalise import ModelStats
from pice.answer.score import Weights, confidence, score
from pice.answer.words import words_of
from pice.core import Candidate, Message, Sampling, Segment

POLICIES = ("random", "longest", "best single", "as shipped", "fitted", "oracle")
SHARES = tuple(round(0.1 * number, 1) for number in range(11))
"""Weights of `agreement` that are tried; the rest is `length`'s."""
NUM_RESAMPLED = 1000
_NO_LOGPROBS = ModelStats()

QuestionsOption = Annotated[Path, typer.Option("--questions", help="Lines with question_id and question.")]
AnswersOption = Annotated[Path, typer.Option("--answers", help="Lines with question_id, model and answer.")]
ScoresOption = Annotated[Path, typer.Option("--scores", help="Table of review_file, question_id and two scores.")]


@dataclass(frozen=True, slots=True)
class Draw:
    """One question put to one set of models: of each its words, its score, that without what length gives, and its
    confidence by share of agreement, first with the weights that ship."""

    question: int
    models: tuple[str, ...]
    words: tuple[int, ...]
    scores: tuple[float, ...]
    level: tuple[float, ...]
    shipped: tuple[float, ...]
    by_share: Sequence[tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Run:
    """What each policy's choices scored, over all sets of `num_models`; of one judge, with or without length. `gain` is
    of what was fitted over the best single model: the mean, and its 95 % range over resampled questions."""

    judge: str
    num_models: int
    is_level: bool
    scored: Mapping[str, float]
    gain: float
    gain_low: float
    gain_high: float


def command(
    quick: QuickOption = False,
    path: PathOption = None,
    questions: QuestionsOption = QUESTIONS,
    answers: AnswersOption = ANSWERS,
    scores: ScoresOption = SCORES,
) -> None:
    """The judged score of the candidate PICE chooses, beside random, longest, the best single model and an oracle."""
    judged = load_judged(questions, answers, scores)
    runs = [run for judge in judges_of(judged) for run in _runs(judged, judge, quick=quick)]
    publish(make_report(runs, judged), path, partial(draw, runs=runs))


def judges_of(judged: Sequence[Judged]) -> list[str]:
    return sorted({judge for each in judged for judge in each.scores})


def _runs(judged: Sequence[Judged], judge: str, *, quick: bool) -> Iterator[Run]:
    models = sorted({model for each in judged for model in each.scores.get(judge, ())})
    for num_models in (2, len(models)) if quick else (2, 3, len(models)):
        draws = list(draws_of(judged, judge, num_models))
        for is_level in (False, True):
            yield run_of(draws, judge, num_models, is_level=is_level)


def draws_of(judged: Sequence[Judged], judge: str, num_models: int) -> Iterator[Draw]:
    """Every set of so many models at every question that this judge scored all of them at."""
    slope = length_slope(judged, judge)
    for each in judged:
        given = each.scores.get(judge, {})
        budget = round(median(_num_words(text) for it in judged if it is not each for text in it.answers.values()))
        for models in combinations(sorted(given), num_models):
            candidates = [Candidate("", 1, 0, model, model, each.answers[model]) for model in models]
            words = tuple(_num_words(candidate.text) for candidate in candidates)
            values = tuple(given[model] for model in models)
            level = tuple(v - slope * math.log(max(1, num)) for v, num in zip(values, words, strict=True))
            shipped, *by_share = confidences(each.question, candidates, budget, [Weights(), *map(_weights, SHARES)])
            yield Draw(each.number, models, words, values, level, shipped, by_share)


def _weights(share: float) -> Weights:
    return Weights(logprob=0, overlap=0, length=1 - share, agreement=share)


def length_slope(judged: Sequence[Judged], judge: str) -> float:
    """What a judge gives for e times the words, within questions; 0 where all are of one length."""
    pairs = []
    for each in judged:
        given = each.scores.get(judge, {})
        logs = {model: math.log(max(1, _num_words(each.answers[model]))) for model in given}
        if given:
            mean_log, mean_score = fmean(logs.values()), fmean(given.values())
            pairs += [(logs[model] - mean_log, given[model] - mean_score) for model in given]
    squares = sum(log**2 for log, _ in pairs)
    return sum(log * value for log, value in pairs) / squares if squares else 0.0


def confidences(
    question: str, candidates: Sequence[Candidate], budget: int, weights: Sequence[Weights]
) -> list[tuple[float, ...]]:
    """PICE's own, of whole answers in the order given, with each of the weights."""
    segment = Segment("", 1, 0, "answer", (Message("user", question),), (), (), budget, Sampling(), math.inf)
    scored = {one.candidate.model: one for one in score(segment, candidates, _NO_LOGPROBS, Weights())}
    found = [scored[candidate.model] for candidate in candidates]
    return [tuple(confidence(one.terms, one.failures, each) for one in found) for each in weights]


def run_of(draws: Sequence[Draw], judge: str, num_models: int, *, is_level: bool) -> Run:
    """Every policy on every draw, what is learned being of the other questions alone."""
    scored: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    gains: dict[int, list[float]] = {}
    shares, means = fitted_shares(draws, is_level=is_level), mean_scores(draws, is_level=is_level)
    for each in draws:
        values = _values(each, is_level=is_level)
        picks = {
            "longest": each.words,
            "best single": [means[each.question][model] for model in each.models],
            "as shipped": each.shipped,
            "fitted": each.by_share[shares[each.question]],
        }
        chosen = {policy: values[_top(wanted)] for policy, wanted in picks.items()}
        chosen |= {"random": fmean(values), "oracle": max(values)}
        for policy in POLICIES:
            scored[policy].append(chosen[policy])
        gains.setdefault(each.question, []).append(chosen["fitted"] - chosen["best single"])
    by_question = [fmean(each) for each in gains.values()]
    low, high = _range(by_question)
    means_of = {policy: fmean(values) for policy, values in scored.items()}
    return Run(judge, num_models, is_level, means_of, fmean(by_question), low, high)


def fitted_shares(draws: Sequence[Draw], *, is_level: bool) -> dict[int, int]:
    """Of each question, which of `SHARES` made the choices that scored best at all others."""
    won: dict[int, list[float]] = {}
    for each in draws:
        totals = won.setdefault(each.question, [0.0] * len(each.by_share))
        for at, wanted in enumerate(each.by_share):
            totals[at] += _values(each, is_level=is_level)[_top(wanted)]
    overall = [sum(column) for column in zip(*won.values(), strict=True)]
    return {question: _top([all_ - own for all_, own in zip(overall, of, strict=True)]) for question, of in won.items()}


def mean_scores(draws: Sequence[Draw], *, is_level: bool) -> dict[int, dict[str, float]]:
    """Of each question, what each model's answers scored at all others; 0 where it has none."""
    found: dict[str, dict[int, float]] = {}
    for each in draws:
        for model, value in zip(each.models, _values(each, is_level=is_level), strict=True):
            found.setdefault(model, {})[each.question] = value
    return {
        question: {
            model: fmean([value for number, value in values.items() if number != question] or [0.0])
            for model, values in found.items()
        }
        for question in {each.question for each in draws}
    }


def _values(each: Draw, *, is_level: bool) -> tuple[float, ...]:
    return each.level if is_level else each.scores


def _top(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Where the mean lies in 95 % of resamples."""
    rng = Random(0)
    means = [fmean(rng.choices(values, k=len(values))) for _ in range(NUM_RESAMPLED)]
    cuts = quantiles(means, n=40)
    return cuts[0], cuts[-1]


def _num_words(text: str) -> int:
    return len(words_of(text))


def aims(runs: Sequence[Run]) -> list[Aim]:
    """The choice must not be worse than the best single model."""
    return [
        at_least(f"{run.judge}, {run.num_models} models, {_kind(run)}: fitted - best single", run.gain, 0.0)
        for run in runs
    ]


def make_report(runs: Sequence[Run], judged: Sequence[Judged]) -> Report:
    columns = ("judge, models, score", *POLICIES, "fitted - best single (95 %)")
    rows = [
        [
            f"{run.judge}, {run.num_models}, {_kind(run)}",
            *(f"{run.scored[policy]:.2f}" for policy in POLICIES),
            f"{run.gain:+.2f} ({run.gain_low:+.2f} to {run.gain_high:+.2f})",
        ]
        for run in runs
    ]
    notes = (
        f"{len(judged)} questions, every set of so many models; weights and best model from all other questions.",
        "level: without what a judge gives for length. Terms: length and agreement; no log-probabilities, no points.",
    )
    load = {
        "questions": len(judged),
        "models": sorted({model for each in judged for model in each.answers}),
        "shares": SHARES,
        "length_slope": {judge: length_slope(judged, judge) for judge in judges_of(judged)},
    }
    table = Table("Mean judged score of the chosen answer", columns, rows, notes)
    return Report("ensemble", load, [asdict(run) for run in runs], aims(runs), table)


def _kind(run: Run) -> str:
    return "level" if run.is_level else "given"


def draw(figure: Any, runs: Sequence[Run]) -> None:
    """Every policy's score, a panel for each judge and kind of score."""
    kinds = list(dict.fromkeys((run.judge, run.is_level) for run in runs))
    figure.set_size_inches(4 * len(kinds), 4)
    for panel, (judge, is_level) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for run in (run for run in runs if (run.judge, run.is_level) == (judge, is_level)):
            panel.plot(POLICIES, [run.scored[policy] for policy in POLICIES], "o-", label=f"{run.num_models} models")
        panel.set_title(f"{judge}, {'level' if is_level else 'as given'}")
        panel.tick_params(axis="x", rotation=60)
        panel.legend()


if __name__ == "__main__":
    typer.run(command)
