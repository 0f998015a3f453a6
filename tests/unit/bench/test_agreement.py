"""How texts written alone and together are compared."""

import pytest

from bench.agreement import compare, difference, share_equal

ALONE = [("a", -0.5), ("b", -0.25), ("c", -1.0)]


@pytest.mark.parametrize(
    ("together", "num_same", "apart"),
    [
        (ALONE, 3, 0.0),
        ([("a", -0.5), ("b", -0.5), ("c", -1.0)], 3, 0.25),
        ([("a", -0.75), ("x", -9.0), ("c", -9.0)], 1, 0.25),
        ([("x", -9.0), ("b", -9.0), ("c", -9.0)], 0, 0.0),
    ],
    ids=["equal", "other log-probabilities", "other text", "all other"],
)
def test_log_probabilities_are_compared_as_far_as_the_texts_are_the_same(
    together: list[tuple[str, float]], num_same: int, apart: float
) -> None:
    found = compare("m", 0, 0, ALONE, together)
    assert (found.num_tokens, found.num_same, found.logprob_difference) == (3, num_same, apart)


def test_share_counts_whole_texts_of_the_model_alone() -> None:
    other = [("a", -0.5), ("x", -0.25), ("c", -1.0)]
    found = [compare("m", 0, 0, ALONE, ALONE), compare("m", 0, 1, ALONE, other), compare("n", 0, 0, ALONE, other)]
    assert (share_equal(found, "m"), share_equal(found, "n")) == (0.5, 0.0)
    assert difference(found, "m") == 0.0
