import pytest

from pice.core import Curve, ModelState
from pice.plan.estimate import finish_s, step_s, wait_s

CURVE = Curve(batch=(1, 4, 8), step_s=(0.10, 0.16, 0.32), prefill_s_per_token=0.001, base_s=0.05)


def model(*, outstanding: int = 0, backlog: int = 0, max_inflight: int = 4, curve: Curve = CURVE) -> ModelState:
    return ModelState("m", 4096, max_inflight, curve, outstanding, backlog)


@pytest.mark.parametrize(
    ("batch", "seconds"),
    [(0, 0.10), (1, 0.10), (2, 0.12), (4, 0.16), (6, 0.24), (8, 0.32), (10, 0.40)],
    ids=["below", "first", "between", "given", "steeper", "last", "beyond"],
)
def test_step_time_is_a_line_through_the_measured_points(batch: int, seconds: float) -> None:
    assert step_s(CURVE, batch) == pytest.approx(seconds)


def test_curve_of_one_point_is_constant() -> None:
    assert step_s(Curve((4,), (0.2,)), 64) == 0.2


def test_free_slot_means_no_wait() -> None:
    assert wait_s(model(outstanding=3, backlog=900)) == 0.0


def test_full_engine_makes_wait_for_the_share_of_backlog_ahead() -> None:
    # 8 outstanding, 4 at a time: 5 of 8 must end first; 800 x 5/8 tokens at 4 tokens per 0.16 s
    assert wait_s(model(outstanding=8, backlog=800)) == pytest.approx(800 * 5 / 8 * 0.16 / 4)


def test_finish_adds_round_trip_wait_prefill_and_decode() -> None:
    # 50 ms there and back, 0.05 + 100 x 1 ms of prompt, 20 tokens in a batch of two
    assert finish_s(model(outstanding=1), 100, 20, rtt_s=0.05) == pytest.approx(0.05 + 0.15 + 20 * 0.12)
