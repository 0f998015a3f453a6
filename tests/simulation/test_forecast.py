"""What a simulated run comes to, bounds, and the search for the fewest sites."""

import math

import pytest

from pice.core import Curve
from pice.errors import InputError
from pice.simulation.forecast import Bound, Forecast, Prices, fewest, forecast, read_bound
from pice.simulation.play import Deployment, Ended, Model, Played, Site

MODEL = Model("m", Curve((1,), (0.01,)), max_inflight=1)
WHOLE = Deployment(MODEL, {"a": Site((MODEL, MODEL)), "b": Site((MODEL,))})


def ended(ended_s: float, e2e_s: float, *, ttft_s: float = 0.1, error: str = "") -> Ended:
    return Ended(0.0, ended_s, "cloud", e2e_s, ttft_s, 0.0, 0.0, 1, 10, 0, 10, 0, error)


def made(*runs: Ended, bounds: tuple[Bound, ...] = (), prices: Prices | None = None) -> Forecast:
    return forecast(WHOLE, Played(runs, 30, 600), bounds, prices or Prices())


def test_rates_use_and_cost_are_of_the_whole_span() -> None:
    found = made(ended(5.0, 1.0), ended(10.0, 3.0), prices=Prices(cloud=9.0, site=0.5))
    assert found.answers_per_s == pytest.approx(0.2)
    assert found.edge_use == pytest.approx(600 / (3 * 100 * 10))
    assert (found.cloud_tokens, found.edge_tokens) == (1.5, 30.0)
    assert found.cost == pytest.approx(10.0 * 10 / 3600 / 2 * 1000)


def test_failures_are_counted_by_cause_and_keep_nothing() -> None:
    found = made(ended(5.0, 1.0), ended(6.0, 1.0, error="no_site"), ended(6.0, 1.0, error="no_site"))
    assert (found.failures, found.num_failed) == ({"no_site": 2}, 2)
    assert found.excess((), {}) == math.inf
    assert found.excess((), {"no_site": 2}) == 0.0
    assert found.excess((), {"no_site": 1, "other": 5}) == math.inf


def test_good_answers_keep_every_bound() -> None:
    bounds = (Bound("e2e", 95, 2.0), Bound("ttft", 50, 1.0))
    found = made(ended(1.0, 1.0), ended(2.0, 3.0), ended(4.0, 1.0, ttft_s=2.0), bounds=bounds)
    assert found.good_per_s == pytest.approx(1 / 4)
    assert found.excess(bounds, {}) == pytest.approx(2.8 / 2.0)
    assert made(ended(1.0, 1.0)).excess(bounds, {}) == 0.5


def test_good_answers_keep_the_loosest_bound_of_a_kind() -> None:
    bounds = (Bound("e2e", 50, 2.0), Bound("e2e", 95, 4.0))
    found = made(ended(1.0, 1.0), ended(2.0, 3.0), ended(4.0, 5.0), bounds=bounds)
    assert found.good_per_s == pytest.approx(2 / 4)


def test_run_without_answers_has_neither_times_nor_a_cost() -> None:
    found = made(ended(1.0, 1.0, error="no_site"), prices=Prices(cloud=1.0))
    assert (found.answers_per_s, found.times_s, found.cost) == (0.0, {}, None)
    assert found.excess((), {"no_site": 1}) == math.inf


def test_sites_that_take_no_time_are_never_full() -> None:
    instant = Model("m", Curve((1,), (0.0,)), max_inflight=1)
    deployment = Deployment(MODEL, {"a": Site((instant,))})
    assert forecast(deployment, Played([ended(1.0, 1.0)], 1, 100)).edge_use == 0.0


@pytest.mark.parametrize(
    ("text", "bound"), [("e2e_p95=8", Bound("e2e", 95, 8.0)), (" ttft_p50 = 0.5", Bound("ttft", 50, 0.5))]
)
def test_bound_is_read(text: str, bound: Bound) -> None:
    assert read_bound(text) == bound


@pytest.mark.parametrize(
    "text", ["", "e2e=8", "e2e_p95", "e2e_p95=0", "e2e_p95=nan", "e2e_p90=1", "sum_p95=1", "e2e_p95=x"]
)
def test_bound_that_is_none_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(InputError, match=r"e2e_p95=8, got"):
        read_bound(text)


@pytest.mark.parametrize("enough", [0, 1, 2, 3, 7, 64, 99, 100])
def test_fewest_is_the_first_that_is_enough(enough: int) -> None:
    tried: list[int] = []

    def excess(num: int) -> float:
        tried.append(num)
        return 1.0 if num >= enough else 1.0 + (enough - num) / 2

    assert fewest(excess, 100) == enough
    assert len(set(tried)) <= 16


def test_search_ends_where_twice_as_many_as_many_are_no_better() -> None:
    tried: list[int] = []

    def excess(num: int) -> float:
        tried.append(num)
        return max(2.0, 10.0 - num)

    assert fewest(excess, 1000) is None
    assert max(tried) == 64


def test_most_sites_can_be_too_few() -> None:
    assert fewest(lambda num: 1000.0 / (num + 1), 100) is None
