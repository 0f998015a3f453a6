"""Each model's log-probabilities are measured against its own."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pice.answer.normalise import LOWEST, PRIOR_MEAN, PRIOR_STD, PRIOR_WEIGHT, ModelStats

LOGPROBS = st.floats(LOWEST, 0.0)


def after(*values: float) -> ModelStats:
    stats = ModelStats()
    for value in values:
        stats.observe("m", value)
    return stats


@pytest.mark.parametrize(("z", "normal"), [(0, 0.5), (1, 0.7311), (-1, 0.2689), (-2, 0.1192)])
def test_model_never_seen_is_measured_against_the_prior(z: float, normal: float) -> None:
    assert ModelStats().normal("m", PRIOR_MEAN + z * PRIOR_STD) == pytest.approx(normal, abs=1e-4)


def test_model_that_is_always_sure_of_itself_gains_nothing_by_it() -> None:
    stats = ModelStats()
    for step in range(200):
        spread = 0.05 if step % 2 else -0.05
        stats.observe("sure", -0.2 + spread)
        stats.observe("doubtful", -1.2 + spread)
    assert stats.normal("sure", -0.2) == pytest.approx(stats.normal("doubtful", -1.2), abs=0.1)
    assert stats.normal("sure", -0.3) < stats.normal("doubtful", -1.1)


def test_one_observation_moves_a_model_only_a_little() -> None:
    assert 0.4 < after(-1.5).normal("m", PRIOR_MEAN) < 0.8
    assert after(-1.5).normal("other", PRIOR_MEAN) == 0.5


@settings(deadline=None)
@given(values=st.lists(LOGPROBS, min_size=1, max_size=30), asked=LOGPROBS)
def test_mean_and_variance_are_those_of_the_observations_and_the_prior_together(
    values: list[float], asked: float
) -> None:
    weight = PRIOR_WEIGHT + len(values)
    mean = (PRIOR_WEIGHT * PRIOR_MEAN + sum(values)) / weight
    around = [(value - mean) ** 2 for value in values]
    variance = (PRIOR_WEIGHT * (PRIOR_STD**2 + (PRIOR_MEAN - mean) ** 2) + sum(around)) / weight
    wanted = 1 / (1 + math.exp((mean - asked) / math.sqrt(variance)))
    assert after(*values).normal("m", asked) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(values=st.lists(st.floats(allow_nan=False), max_size=10), asked=st.floats(allow_nan=False))
def test_normal_is_between_0_and_1_whatever_was_seen(values: list[float], asked: float) -> None:
    assert 0.0 <= after(*values).normal("m", asked) <= 1.0


@settings(deadline=None)
@given(values=st.lists(LOGPROBS, max_size=10), asked=st.tuples(LOGPROBS, LOGPROBS))
def test_likelier_text_of_one_model_is_never_rated_lower(values: list[float], asked: tuple[float, float]) -> None:
    stats = after(*values)
    assert stats.normal("m", min(asked)) <= stats.normal("m", max(asked))


def test_absurd_value_does_not_outweigh_all_others() -> None:
    stats = after(*[-0.5] * 500, -1e300)
    assert stats.normal("m", -0.2) > 0.5
