"""Metrics against figures worked out by hand, and percentiles against numpy's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.core import CLOUD_SITE, Answer, Candidate, Placement, Plan, Scored, Span, Times, Usage
from pice.errors import InputError
from pice.metrics import (
    Slo,
    Spread,
    cloud_tokens_saved,
    edge_answer_tokens,
    edge_tokens_per_answer_token,
    goodput_per_s,
    itl_s,
    meets,
    offload_ratio,
    per_s,
    percentile,
    segment_skew,
    summarise,
    tpot_s,
    ttft_s,
)

AT_CLOUD = Answer(
    request_id="c",
    text="...",
    mode="cloud",
    finish_reason="stop",
    attempt=1,
    plan=Plan(mode="cloud", reason="too short"),
    usage=Usage(num_cloud_output_tokens=101, num_answer_tokens=101),
    times=Times(queue_s=0.5, ttft_s=1.0, e2e_s=11.0),
)


def span(index: int, site: str, num_tokens: int, took_s: float, *, degraded: bool = False) -> Span:
    """A span whose chosen candidate has `num_tokens` and whose loser, of the same site, has 7."""
    candidates = tuple(
        Scored(
            Candidate("p", 1, index, site, model, "...", num_output_tokens=num),
            confidence=0.5,
        )
        for model, num in (("won", num_tokens), ("lost", 7))
    )
    return Span(
        index=index,
        text="...",
        site=site,
        model="won",
        confidence=0.5,
        degraded=degraded,
        candidates=candidates,
        placements=(Placement(site, "won", 100.0, 0.0), Placement(CLOUD_SITE, "big", 101.0, 0.0, "hedge")),
        chosen_s=100.0 + took_s,
    )


PROGRESSIVE = replace(
    AT_CLOUD,
    mode="progressive",
    spans=(span(0, "yard", 60, 2.0), span(1, "pier", 40, 3.0), span(2, CLOUD_SITE, 50, 12.0)),
    usage=Usage(
        num_cloud_output_tokens=30 + 50, num_edge_output_tokens=114, num_discarded_tokens=14, num_answer_tokens=150
    ),
    times=Times(queue_s=0.1, sketch_s=1.5, first_segment_s=2.0, ttft_s=2.0, e2e_s=13.0),
)
DEGRADED = replace(
    PROGRESSIVE,
    spans=(span(0, "yard", 10, 4.0, degraded=True),),
    degraded=(0,),
    usage=Usage(num_cloud_output_tokens=30, num_answer_tokens=10),
)


def figures(spread: Spread | None) -> tuple[float, ...]:
    assert spread is not None
    return astuple(spread)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_that_of_numpy(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "percent"), [([], 50.0), ([1.0], -1.0), ([1.0], 101.0), ([1.0], math.nan)], ids=repr
)
def test_percentile_of_nothing_or_outside_its_range_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(InputError):
        percentile(values, percent)


def test_token_stamps_give_ttft_and_the_intervals_between_tokens() -> None:
    stamps = (10.5, 10.75, 11.25)
    assert ttft_s(10.0, stamps) == 0.5
    assert itl_s(stamps) == (0.25, 0.5)


def test_no_token_has_no_ttft_and_one_token_no_interval() -> None:
    assert ttft_s(10.0, ()) is None
    assert itl_s([10.5]) == ()


@pytest.mark.parametrize(("num_tokens", "expected"), [(5, 0.25), (2, 1.0), (1, None), (0, None)])
def test_tpot_spreads_the_time_after_the_first_token_over_the_others(num_tokens: int, expected: float | None) -> None:
    assert tpot_s(1.5, 0.5, num_tokens) == expected


def test_throughput_needs_a_duration() -> None:
    assert per_s(30, 12.0) == 2.5
    with pytest.raises(InputError, match="duration"):
        per_s(30, 0.0)


@pytest.mark.parametrize(
    ("slo", "kept"),
    [
        (Slo(), True),
        (Slo(ttft_s=1.0, tpot_s=0.1, e2e_s=11.0), True),
        (Slo(ttft_s=0.99), False),
        (Slo(tpot_s=0.099), False),
        (Slo(e2e_s=10.9), False),
    ],
    ids=["no bounds", "just kept", "first token late", "tokens slow", "end late"],
)
def test_answer_meets_an_slo_when_every_bound_is_kept(slo: Slo, kept: bool) -> None:
    assert meets(AT_CLOUD, slo) is kept


def test_answer_of_one_token_keeps_any_bound_on_tpot() -> None:
    assert meets(replace(AT_CLOUD, usage=Usage(num_answer_tokens=1)), Slo(tpot_s=0.0))


def test_goodput_counts_only_answers_within_the_slo() -> None:
    assert goodput_per_s([AT_CLOUD, AT_CLOUD, PROGRESSIVE], Slo(e2e_s=12.0), 4.0) == 0.5


def test_segment_skew_is_the_slowest_over_the_median_from_first_placement() -> None:
    assert segment_skew(PROGRESSIVE) == 12.0 / 3.0


def test_answer_without_placed_segments_has_no_skew() -> None:
    assert segment_skew(AT_CLOUD) is None


def test_only_chosen_candidates_of_edge_sites_count_as_offloaded() -> None:
    assert edge_answer_tokens(PROGRESSIVE) == 60 + 40
    assert edge_answer_tokens(DEGRADED) == 0


@pytest.mark.parametrize(
    ("measure", "expected"),
    [(offload_ratio, 100 / 251), (cloud_tokens_saved, 251 - 181), (edge_tokens_per_answer_token, 114 / 251)],
    ids=["offloaded", "saved", "edge work"],
)
def test_token_ratios_are_of_sums_over_all_answers(
    measure: Callable[[Sequence[Answer]], float], expected: float
) -> None:
    assert measure([AT_CLOUD, PROGRESSIVE]) == pytest.approx(expected)
    assert measure([]) == 0


def test_sketch_that_saved_nothing_shows_as_tokens_lost() -> None:
    assert cloud_tokens_saved([DEGRADED]) == -20


def test_summary_holds_every_measure_of_the_answers() -> None:
    summary = summarise([AT_CLOUD, PROGRESSIVE, DEGRADED], duration_s=10.0, slo=Slo(e2e_s=12.0))
    assert (summary.num_answers, summary.num_degraded, summary.duration_s) == (3, 1, 10.0)
    assert (summary.requests_per_s, summary.output_tokens_per_s, summary.goodput_per_s) == (0.3, 26.1, 0.1)
    assert figures(summary.e2e_s) == pytest.approx((3, 37 / 3, 13.0, 13.0, 13.0))
    assert figures(summary.queue_s) == pytest.approx((3, 0.7 / 3, 0.1, 0.46, 0.492))
    assert figures(summary.ttft_s) == pytest.approx((3, 5 / 3, 2.0, 2.0, 2.0))
    assert figures(summary.tpot_s)[:3] == pytest.approx((3, (0.1 + 11 / 149 + 11 / 9) / 3, 0.1))
    assert figures(summary.segment_skew) == pytest.approx((2, 2.5, 2.5, 3.85, 3.97))
    assert summary.offload_ratio == pytest.approx(100 / 261)
    assert summary.cloud_tokens_saved == 261 - 211
    assert summary.edge_tokens_per_answer_token == pytest.approx(114 / 261)


def test_times_that_did_not_happen_are_left_out_of_a_summary() -> None:
    mixed = summarise([AT_CLOUD, PROGRESSIVE], duration_s=1.0)
    assert mixed.sketch_s == Spread(1, 1.5, 1.5, 1.5, 1.5)
    assert mixed.first_segment_s == Spread(1, 2.0, 2.0, 2.0, 2.0)
    cloud = summarise([AT_CLOUD], duration_s=1.0)
    assert (cloud.sketch_s, cloud.first_segment_s, cloud.segment_skew) == (None, None, None)


def test_summary_of_no_answers_has_no_spreads_and_no_rates() -> None:
    summary = summarise([], duration_s=5.0)
    assert (summary.requests_per_s, summary.ttft_s, summary.tpot_s, summary.offload_ratio) == (0.0, None, None, 0.0)
