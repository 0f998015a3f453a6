"""Candidates of one segment, best first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from pice.answer.failures import Given, failures, given
from pice.answer.normalise import ModelStats
from pice.answer.words import Bag, bag, rouge1_f, rouge1_recall
from pice.core import Candidate, Scored, Segment

SOUND = 0.1
"""Confidence that every candidate without a hard failure has at least, and none with one reaches."""
NOTHING_KNOWN = 0.5
"""Confidence in a sound candidate of which no term can be measured."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each term counts; only their ratios matter. Set by judgement: what the model thinks of its text and
    whether it speaks of its points, before its length and the company it keeps; to be measured."""

    logprob: float = 0.3
    length: float = 0.2
    overlap: float = 0.3
    agreement: float = 0.2


def score(segment: Segment, candidates: Sequence[Candidate], stats: ModelStats, weights: Weights) -> list[Scored]:
    """All candidates by falling confidence (0..1), then by site and model; those with a hard failure after all others.

    Each term is 0..1; one that says nothing is left out and the others' weights rescaled. `logprob` is the mean
    log-probability beside this model's usual one, where the engine gives any; `length` the ratio to the budget, where
    there is one; `overlap` the share of the points' words in the text (not for a whole answer: a good one need not
    repeat its question); `agreement` the mean ROUGE-1 F with the other sound candidates, if there are others.
    """
    if not candidates:
        return []
    source = given(segment)
    points = bag("\n".join(point.text for point in segment.points))
    read = [_read(candidate, source) for candidate in candidates]
    sound = [one for one in read if not one.failures]
    scored = []
    for one in read:
        terms = dict(_terms(one, segment.words, points, sound, stats)) if one.text.words else {}
        scored.append(Scored(one.candidate, confidence(terms, one.failures, weights), terms, one.failures))
    return sorted(scored, key=_rank)


@dataclass(frozen=True, slots=True)
class _Read:
    """A candidate with its words and what is wrong with it."""

    candidate: Candidate
    text: Bag
    failures: tuple[str, ...]


def _read(candidate: Candidate, source: Given) -> _Read:
    text = bag(candidate.text)
    return _Read(candidate, text, failures(candidate, text, source))


def _terms(
    one: _Read, budget: int, points: Bag, sound: Sequence[_Read], stats: ModelStats
) -> Iterator[tuple[str, float]]:
    if one.candidate.logprob_mean is not None:
        yield "logprob", stats.normal(one.candidate.model, one.candidate.logprob_mean)
    if budget > 0:
        num_words = len(one.text.words)
        yield "length", min(num_words, budget) / max(num_words, budget)
    if points.words:
        yield "overlap", rouge1_recall(points, one.text)
    if others := [other for other in sound if other is not one]:
        yield "agreement", fsum(rouge1_f(one.text, other.text) for other in others) / len(others)


def confidence(terms: Mapping[str, float], failed: tuple[str, ...], weights: Weights) -> float:
    """0..1: the weighted mean of the terms there are, in the upper part where nothing is wrong, else in the lower."""
    total = sum(getattr(weights, name) for name in terms)
    if not total:
        return 0.0 if failed else NOTHING_KNOWN
    mean: float = sum(getattr(weights, name) * term for name, term in terms.items()) / total
    return mean * SOUND / 2 if failed else SOUND + mean * (1 - SOUND)


def _rank(scored: Scored) -> tuple[float, str, str]:
    return -scored.confidence, scored.candidate.site, scored.candidate.model
