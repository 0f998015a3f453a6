"""How OpenMP's threads are told to wait."""

import os

import pytest

from pice.engine.llama.waiting import set_while_loading, waiting


@pytest.mark.parametrize(
    ("own", "shares_cores", "expected"),
    [
        ({}, False, {"GOMP_SPINCOUNT": "3000"}),
        ({}, True, {"OMP_WAIT_POLICY": "passive"}),
        ({"OMP_WAIT_POLICY": "active"}, True, {}),
        ({"GOMP_SPINCOUNT": "7"}, True, {}),
    ],
    ids=["alone", "shared", "own policy", "own count"],
)
def test_threads_that_share_cores_sleep_unless_the_user_has_set_it(
    own: dict[str, str], shares_cores: bool, expected: dict[str, str]
) -> None:
    assert waiting(own, shares_cores=shares_cores) == expected


def test_what_is_set_for_loading_is_not_left_for_later_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with set_while_loading(shares_cores=True):
        assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in os.environ


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with set_while_loading(shares_cores=True):
        pass
    assert os.environ["OMP_WAIT_POLICY"] == "active"
