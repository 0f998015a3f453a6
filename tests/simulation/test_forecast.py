"""What a simulated run comes to, bounds, and the search for the fewest sites."""

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
    assert not found.keeps(())
    assert made(ended(5.0, 1.0)).keeps(())


def test_good_answers_keep_every_bound() -> None:
    bounds = (Bound("e2e", 95, 2.0), Bound("ttft", 50, 1.0))
    found = made(ended(1.0, 1.0), ended(2.0, 3.0), ended(4.0, 1.0, ttft_s=2.0), bounds=bounds)
    assert found.good_per_s == pytest.approx(1 / 4)
    assert not found.keeps(bounds)
    assert made(ended(1.0, 1.0)).keeps(bounds)


def test_run_without_answers_has_no_times() -> None:
    found = made(ended(1.0, 1.0, error="no_site"))
    assert (found.answers_per_s, found.times_s["e2e_p95"]) == (0.0, 0.0)


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

    def keeps(num: int) -> bool:
        tried.append(num)
        return num >= enough

    assert fewest(keeps, 100) == enough
    assert len(tried) == len(set(tried)) <= 16


def test_nothing_is_enough() -> None:
    assert fewest(lambda _: False, 100) is None
