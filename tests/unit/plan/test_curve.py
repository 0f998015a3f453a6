"""What runs come to: rows, and the curve that a configuration takes."""

from dataclasses import replace
from typing import Any

import pytest

from pice.core import Curve
from pice.errors import InputError
from pice.plan.curve import Run, Timing, Workload
from pice.plan.estimate import prefill_s, step_s

WORKLOAD = Workload(num_prompt_tokens=200, num_tokens=10, sizes=(4, 1), num_runs=3)


def run(batch: int = 1, *, half_s: float = 1.5, first_s: float = 2.5, decode_s: float = 1.0) -> Run:
    return Run(batch, half_s, first_s, first_s, decode_s)


def timing(*runs: Run, sizes: tuple[int, ...] = (1,), shared: bool = True) -> Timing:
    return Timing(replace(WORKLOAD, sizes=sizes), shared, runs)


def test_row_holds_the_medians_of_its_size_in_tokens_per_second() -> None:
    runs = [run(4, decode_s=each) for each in (2.0, 9.0, 1.0)] + [run(1, decode_s=each) for each in (0.5, 0.5, 0.1)]
    rows = list(timing(*runs, sizes=(4, 1, 4)).rows())
    assert [row.batch for row in rows] == [1, 4]
    row = rows[1]
    assert (row.num_prompt_tokens, row.num_tokens, row.num_cells) == (200, 10, 240)
    assert (row.prefill_s, row.prefill_per_s, row.decode_s, row.decode_per_s) == (2.5, 80.0, 2.0, 20.0)
    assert (row.total_s, row.total_per_s) == (4.5, 240 / 4.5)


def test_spread_is_that_of_the_size_whose_runs_differ_most() -> None:
    runs = [run(1, decode_s=each) for each in (1.0, 1.1)] + [run(4, decode_s=each) for each in (6.0, 2.0, 4.0)]
    assert timing(*runs, sizes=(1, 4)).spread == 3.0


def test_prompts_that_are_not_shared_count_each() -> None:
    (row,) = timing(Run(4, 1.5, 2.5, 10.0, 2.0), sizes=(4,), shared=False).rows()
    assert (row.num_cells, row.prefill_per_s, row.decode_per_s) == (840, 80.0, 20.0)


def test_curve_gives_back_the_times_that_were_measured() -> None:
    curve = timing(run(1, decode_s=0.5), run(4, decode_s=2.0), sizes=(1, 4)).curve()
    assert curve == Curve(batch=(1, 4), step_s=(0.05, 0.2), prefill_s_per_token=0.01, base_s=0.5)
    assert (step_s(curve, 4) * 10, prefill_s(curve, 200), prefill_s(curve, 100)) == (2.0, 2.5, 1.5)


@pytest.mark.parametrize(
    ("half_s", "first_s", "rate"),
    [(1.0, 2.5, 0.0125), (2.5, 2.5, 0.0125), (3.0, 2.5, 0.0125)],
    ids=["half is less than half", "half takes as long", "half takes longer"],
)
def test_prompts_that_give_no_line_are_rated_from_nothing(half_s: float, first_s: float, rate: float) -> None:
    curve = timing(run(half_s=half_s, first_s=first_s)).curve()
    assert (curve.prefill_s_per_token, curve.base_s) == (rate, 0.0)


def test_larger_batch_that_was_faster_is_no_slower_in_the_curve() -> None:
    runs = [run(size, decode_s=decode_s) for size, decode_s in ((1, 1.0), (2, 3.0), (4, 2.0), (8, 4.0))]
    assert timing(*runs, sizes=(1, 2, 4, 8)).curve().step_s == (0.1, 0.3, 0.3, 0.4)


def test_curve_has_three_digits() -> None:
    curve = timing(run(half_s=1.23456, first_s=1.98765, decode_s=0.000123456)).curve()
    assert (curve.step_s, curve.prefill_s_per_token, curve.base_s) == ((1.23e-05,), 0.00753, 0.481)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"num_prompt_tokens": 31}, "prompt_tokens must be >= 32, got 31"),
        ({"num_tokens": 7}, "tokens must be >= 8, got 7"),
        ({"sizes": (4, 0)}, r"batch must be >= 1, got \[4, 0\]"),
        ({"sizes": ()}, r"batch must be >= 1, got \[\]"),
        ({"num_runs": 0}, "repeat must be >= 1, got 0"),
    ],
)
def test_workload_out_of_range_is_refused(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=f"^{expected}$"):
        replace(WORKLOAD, **wrong)
