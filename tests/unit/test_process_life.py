"""How an engine's process ended, in words."""

import signal

import pytest

from pice.engine.process_life import how_ended


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        pytest.param(0, "with exit code 0", id="by itself"),
        pytest.param(-signal.SIGKILL, "by SIGKILL", id="killed"),
        pytest.param(-signal.SIGILL, "docs/llama-cpp.md", id="wrong processor: what to do"),
        pytest.param(None, "with exit code None", id="unknown"),
    ],
)
def test_how_a_process_ended_is_told(returncode: int | None, words: str) -> None:
    assert words in how_ended(returncode)
