"""Figures of merit: from time stamps and answers to what a report states.

TTFT, TPOT, ITL, throughput and goodput are defined as in `benchmarks/serve.py` of vllm-project/vllm; for a
progressive answer TTFT is the first text of the answer itself. Times are in seconds, tokens those of the model that
wrote them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from pice.core import CLOUD_SITE, Answer, Span
from pice.errors import InputError


@dataclass(frozen=True, slots=True)
class Slo:
    """What one answer must keep to, in seconds; each bound is still met when equal."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf
    e2e_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Spread:
    """How the values of one measure lie, in its own unit."""

    num: int
    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What many answers say of the system that gave them.

    A spread is None where no answer had such a value: `sketch_s`, `first_segment_s` and `segment_skew` are those of
    answers made of segments, `tpot_s` of answers of two tokens or more. Ratios are of the sums over all answers.
    """

    num_answers: int
    num_degraded: int
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    goodput_per_s: float
    queue_s: Spread | None
    ttft_s: Spread | None
    tpot_s: Spread | None
    e2e_s: Spread | None
    sketch_s: Spread | None
    first_segment_s: Spread | None
    segment_skew: Spread | None
    offload_ratio: float
    cloud_tokens_saved: int
    edge_tokens_per_answer_token: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` (0 to 100) of the values lie, on a straight line between the two nearest ranks.

    The default of `numpy.percentile`. The values may be in any order.

    Raises:
        InputError: there are no values, or `percent` is outside its range.
    """
    if not values or not 0 <= percent <= 100:
        raise InputError(f"expected values and a percentage of 0 to 100, got {len(values)} values and {percent}")
    ranked = sorted(values)
    rank = (len(ranked) - 1) * percent / 100
    low, high = ranked[math.floor(rank)], ranked[math.ceil(rank)]
    return low + (high - low) * (rank - math.floor(rank))


def spread(values: Sequence[float]) -> Spread | None:
    """Number, mean and percentiles of the values; None of none."""
    if not values:
        return None
    p50, p95, p99 = (percentile(values, percent) for percent in (50, 95, 99))
    return Spread(num=len(values), mean=fmean(values), p50=p50, p95=p95, p99=p99)


def ttft_s(sent_s: float, token_at_s: Sequence[float]) -> float | None:
    """Seconds from sending to the first token; None when none came. Both stamps are of one clock."""
    return token_at_s[0] - sent_s if token_at_s else None


def tpot_s(e2e_s: float, ttft_s: float, num_output_tokens: int) -> float | None:
    """Mean seconds per output token after the first; None when there is no second."""
    return (e2e_s - ttft_s) / (num_output_tokens - 1) if num_output_tokens > 1 else None


def itl_s(token_at_s: Iterable[float]) -> tuple[float, ...]:
    """Seconds between each token, or piece where several come at once, and the one before it."""
    return tuple(later - earlier for earlier, later in pairwise(token_at_s))


def per_s(count: float, duration_s: float) -> float:
    """Throughput: requests or tokens per second.

    Raises:
        InputError: the duration is not above 0.
    """
    if duration_s <= 0:
        raise InputError(f"expected a duration above 0 s, got {duration_s}")
    return count / duration_s


def answer_tpot_s(answer: Answer) -> float | None:
    """Mean seconds per token of the answer's text after its first."""
    return tpot_s(answer.times.e2e_s, answer.times.ttft_s, answer.usage.num_answer_tokens)


def meets(answer: Answer, slo: Slo) -> bool:
    """Whether the answer kept every bound; an answer without a second token keeps any on TPOT."""
    in_time = answer.times.ttft_s <= slo.ttft_s and answer.times.e2e_s <= slo.e2e_s
    return in_time and (answer_tpot_s(answer) or 0.0) <= slo.tpot_s


def goodput_per_s(answers: Iterable[Answer], slo: Slo, duration_s: float) -> float:
    """Answers within the SLO per second."""
    return per_s(sum(meets(answer, slo) for answer in answers), duration_s)


def segment_skew(answer: Answer) -> float | None:
    """How many times the median segment the slowest took, from its first placement to its choice; at least 1.

    None when no segment was placed, or all were chosen the moment they were placed.
    """
    took_s = [span.chosen_s - span.placements[0].placed_s for span in answer.spans if span.placements]
    middle_s = median(took_s) if took_s else 0.0
    return max(took_s) / middle_s if middle_s > 0 else None


def edge_answer_tokens(answer: Answer) -> int:
    """Tokens of the answer's own text that edge sites wrote: those of each span's chosen candidate."""
    return sum(_chosen_tokens(span) for span in answer.spans if span.site != CLOUD_SITE and not span.degraded)


def offload_ratio(answers: Sequence[Answer]) -> float:
    """Answer tokens written at the edge / all answer tokens; 0 without any token."""
    return _ratio(sum(map(edge_answer_tokens, answers)), _answer_tokens(answers))


def cloud_tokens_saved(answers: Sequence[Answer]) -> int:
    """Answer tokens less the tokens the cloud wrote for them, sketches and fallbacks included.

    Against a cloud that writes answers of the same length itself; below 0 when sketching cost it more.
    """
    return _answer_tokens(answers) - sum(answer.usage.num_cloud_output_tokens for answer in answers)


def edge_tokens_per_answer_token(answers: Sequence[Answer]) -> float:
    """Tokens edge sites wrote, those of losers included, per token of the answers; 0 without any token.

    Work that left no candidate in the record (cancelled midway) is not in `Usage` and must be added by who saw it.
    """
    return _ratio(sum(answer.usage.num_edge_output_tokens for answer in answers), _answer_tokens(answers))


def summarise(answers: Sequence[Answer], *, duration_s: float, slo: Slo | None = None) -> Summary:
    """The summary of the answers given within `duration_s`, the whole time measured.

    Raises:
        InputError: the duration is not above 0.
    """
    times = [answer.times for answer in answers]
    return Summary(
        num_answers=len(answers),
        num_degraded=sum(bool(answer.degraded) for answer in answers),
        duration_s=duration_s,
        requests_per_s=per_s(len(answers), duration_s),
        output_tokens_per_s=per_s(_answer_tokens(answers), duration_s),
        goodput_per_s=goodput_per_s(answers, slo or Slo(), duration_s),
        queue_s=spread([time.queue_s for time in times]),
        ttft_s=spread([time.ttft_s for time in times]),
        tpot_s=spread(_known(map(answer_tpot_s, answers))),
        e2e_s=spread([time.e2e_s for time in times]),
        sketch_s=spread([time.sketch_s for time in times if time.sketch_s > 0]),
        first_segment_s=spread([time.first_segment_s for time in times if time.first_segment_s > 0]),
        segment_skew=spread(_known(map(segment_skew, answers))),
        offload_ratio=offload_ratio(answers),
        cloud_tokens_saved=cloud_tokens_saved(answers),
        edge_tokens_per_answer_token=edge_tokens_per_answer_token(answers),
    )


def _chosen_tokens(span: Span) -> int:
    return sum(
        scored.candidate.num_output_tokens
        for scored in span.candidates
        if (scored.candidate.site, scored.candidate.model) == (span.site, span.model)
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _answer_tokens(answers: Iterable[Answer]) -> int:
    return sum(answer.usage.num_answer_tokens for answer in answers)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
