from contextlib import aclosing

import pytest

import pice
from pice.errors import ConfigError, InputError, RequestFailed

CONFIG = "config/emulated.toml"
NO_TIME = "{batch=[1], step_s=[0.0], prefill_s_per_token=0.0, base_s=0.0}"
FAST = [f"engines.{name}.curve={NO_TIME}" for name in ("cloud", "workstation", "orin-super", "orin-gemma")]


@pytest.fixture(autouse=True)
def _at_the_root(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)


async def test_open_pipeline_answers_and_streams() -> None:
    async with pice.open(CONFIG, overrides=FAST) as pipeline:
        answer = await pipeline.ask("How do tides work?", mode="progressive")
        async with aclosing(pipeline.stream(pipeline.new_request("And why?", mode="cloud"))) as events:
            kinds = [event.kind async for event in events]
    assert answer.mode == "progressive"
    assert len(answer.spans) > 1
    assert (kinds[0], kinds[-1]) == ("planned", "answered")


def test_ask_answers_without_a_loop() -> None:
    answer = pice.ask("How do tides work?", config=CONFIG, overrides=FAST, sampling=pice.Sampling(max_tokens=20))
    assert answer.text
    assert answer.finish_reason == "length"


def test_empty_question_is_refused() -> None:
    with pytest.raises(InputError, match="question is empty"):
        pice.ask("  ", config=CONFIG, overrides=FAST)


def test_open_without_engines_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"config/emulated\.toml"):
        pice.open()


def test_failed_request_raises_with_its_cause() -> None:
    with pytest.raises(RequestFailed) as failed:
        pice.ask("why " * 9000, config=CONFIG, overrides=FAST)
    assert failed.value.failure_code == "context_length_exceeded"


async def test_error_in_the_block_comes_out_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        async with pice.open(CONFIG, overrides=FAST):
            raise ZeroDivisionError
