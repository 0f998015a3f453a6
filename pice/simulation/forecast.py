"""What a deployment would do with some traffic: rates, times, use and cost."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pice.errors import InputError
from pice.metrics import percentile
from pice.simulation.play import Deployment, Ended, Played

PERCENTS = (50, 95, 99)
TIMES = ("e2e", "ttft")
MANY, HELPS = 32, 0.99
"""Twice as many sites as these must come to less than this share of what those come to, or more do not help."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a time must keep: the percentile of a kind of time, in seconds."""

    time: str
    percent: int
    most_s: float

    @property
    def name(self) -> str:
        return f"{self.time}_p{self.percent}"


@dataclass(frozen=True, slots=True)
class Forecast:
    """Rates are per second from the first request to the last end, times seconds by name (`e2e_p95`), tokens per token
    of an answer; `edge_use` is a share of what the sites could write. `failures` counts those without an answer by the
    code of their cause. Cost is per 1,000 answers, in the unit given. Without answers there are no times."""

    num_requests: int
    failures: dict[str, int]
    num_degraded: int
    answers_per_s: float
    good_per_s: float
    times_s: dict[str, float]
    progressive: float
    cloud_tokens: float
    edge_tokens: float
    edge_use: float
    cost: float | None

    @property
    def num_failed(self) -> int:
        return sum(self.failures.values())

    def excess(self, bounds: Sequence[Bound], excused: Mapping[str, int]) -> float:
        """By how many times the worst bound is passed; 1 or less where all are kept. Infinite where more failed than
        the `excused`, or all."""
        if any(num > excused.get(code, 0) for code, num in self.failures.items()) or not self.times_s:
            return math.inf
        return max((self.times_s[bound.name] / bound.most_s for bound in bounds), default=0.0)


@dataclass(frozen=True, slots=True)
class Prices:
    """Of an hour: the cloud's, and one site's."""

    cloud: float = 0.0
    site: float = 0.0


FREE = Prices()


def read_bound(text: str) -> Bound:
    """A bound as it is written: e2e_p95=8.

    Raises:
        InputError: it is none.
    """
    name, _, value = text.partition("=")
    time, _, percent = name.strip().partition("_p")
    try:
        bound = Bound(time, int(percent), float(value))
    except ValueError:
        bound = None
    if bound is None or time not in TIMES or bound.percent not in PERCENTS or not bound.most_s > 0:
        names = ", ".join(f"{time}_p{percent}" for time in TIMES for percent in PERCENTS)
        raise InputError(f"slo: expected one of {names} and seconds above 0, like e2e_p95=8, got {text!r}")
    return bound


def forecast(deployment: Deployment, played: Played, bounds: Sequence[Bound] = (), prices: Prices = FREE) -> Forecast:
    """What the traffic came to. Good is an answer whose times are each within the loosest bound of their
    kind."""
    answered = [each for each in played.ended if not each.error]
    span_s = max(played.span_s, 1e-9)
    num_tokens = max(1, sum(each.num_answer_tokens for each in answered))
    kinds = {"e2e": [each.e2e_s for each in answered], "ttft": [each.ttft_s for each in answered]}
    most = deployment.edge_tokens_per_s * span_s
    per_hour = prices.cloud + prices.site * len(deployment.sites)
    return Forecast(
        num_requests=len(played.ended),
        failures=dict(Counter(each.error for each in played.ended if each.error)),
        num_degraded=sum(each.num_degraded > 0 for each in answered),
        answers_per_s=len(answered) / span_s,
        good_per_s=sum(_is_good(each, bounds) for each in answered) / span_s,
        times_s={
            f"{kind}_p{percent}": percentile(values, percent)
            for kind, values in kinds.items()
            for percent in PERCENTS
            if values
        },
        progressive=sum(each.mode == "progressive" for each in answered) / max(1, len(answered)),
        cloud_tokens=played.num_cloud_tokens / num_tokens,
        edge_tokens=played.num_edge_tokens / num_tokens,
        edge_use=played.num_edge_tokens / most if most else 0.0,
        cost=per_hour * span_s / 3600 / len(answered) * 1000 if answered else None,
    )


def fewest(excess: Callable[[int], float], most: int) -> int | None:
    """The fewest sites with which `excess` is 1 or less, where more are never worse. None when `most` are too few, or
    when twice as many as `MANY` or more are no better."""
    low, high = -1, 0
    while excess(high) > 1:
        if high >= most or (low >= MANY and excess(high) > HELPS * excess(low)):
            return None
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(middle) <= 1 else (middle, high)
    return high


def _is_good(ended: Ended, bounds: Sequence[Bound]) -> bool:
    times = {"e2e": ended.e2e_s, "ttft": ended.ttft_s}
    loosest = {kind: max(bound.most_s for bound in bounds if bound.time == kind) for kind in {it.time for it in bounds}}
    return all(times[kind] <= most_s for kind, most_s in loosest.items())
