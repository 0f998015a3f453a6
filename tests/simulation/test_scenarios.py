"""Seeded faults against the real nodes: P1-P11 hold after each. Replay one with the command that a failure prints."""

import pytest

from tests.simulation.scenario import play

NUM_SCENARIOS = 500


@pytest.mark.parametrize("seed", range(NUM_SCENARIOS))
def test_promises_hold_under_faults(seed: int) -> None:
    result = play(seed)
    replay = f'python -m pytest "tests/simulation/test_scenarios.py::test_promises_hold_under_faults[{seed}]"'
    assert result.broken == [], f"replay: {replay}"


def test_same_seed_gives_the_same_run() -> None:
    assert play(7) == play(7)
