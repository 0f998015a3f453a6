"""Log-probabilities of different models made comparable."""

from dataclasses import dataclass
from math import sqrt, tanh

PRIOR_MEAN = -0.6
PRIOR_STD = 0.3
PRIOR_WEIGHT = 8.0
"""What is assumed of a model before it is known, and how many observations that is worth: small instruct models at
temperature 0.7 mostly draw tokens of mean probability 0.4 to 0.75. Set by judgement, to be measured."""

LOWEST = -20.0
"""Mean log-probabilities below are taken as this: no model writes text so unlikely, and one absurd value (a site can
send any) would outweigh all others."""


@dataclass(slots=True)
class _Moments:
    """Count, mean and sum of squared deviations of what was seen, by Welford's recurrence."""

    num: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.num += 1
        delta = value - self.mean
        self.mean += delta / self.num
        self.squares += delta * (value - self.mean)


class ModelStats:
    """How likely each model finds its own text, so that one that is always sure of itself does not win by it."""

    def __init__(self) -> None:
        self._models: dict[str, _Moments] = {}

    def observe(self, model: str, logprob_mean: float) -> None:
        """Counts one text's mean log-probability per token."""
        self._models.setdefault(model, _Moments()).add(_clamped(logprob_mean))

    def normal(self, model: str, logprob_mean: float) -> float:
        """0..1: 0.5 is this model's average, 0.73 one standard deviation above it, 0.27 one below (logistic of the
        z-score). Mean and variance begin at the prior and move to what was observed."""
        seen = self._models.get(model) or _Moments()
        weight = PRIOR_WEIGHT + seen.num
        mean = (PRIOR_WEIGHT * PRIOR_MEAN + seen.num * seen.mean) / weight
        between = PRIOR_WEIGHT * seen.num / weight * (seen.mean - PRIOR_MEAN) ** 2
        variance = (PRIOR_WEIGHT * PRIOR_STD**2 + seen.squares + between) / weight
        z = (_clamped(logprob_mean) - mean) / sqrt(variance)
        return 0.5 + 0.5 * tanh(z / 2)


def _clamped(logprob_mean: float) -> float:
    return min(0.0, max(LOWEST, logprob_mean))
