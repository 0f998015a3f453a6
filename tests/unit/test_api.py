import asyncio
from contextlib import aclosing
from typing import Any, cast

import pytest

import pice
from pice.errors import Cancelled, ConfigError, InputError, RequestFailed

CONFIG = "config/emulated.toml"
NO_TIME = "{batch=[1], step_s=[0.0], prefill_s_per_token=0.0, base_s=0.0}"
FAST = [f"engines.{name}.curve={NO_TIME}" for name in ("cloud", "workstation", "orin-super", "orin-gemma")]

SLOW = [*FAST, "engines.cloud.curve={batch=[1], step_s=[1.0], prefill_s_per_token=0.0, base_s=0.0}"]


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


async def test_leaving_the_block_cancels_what_is_asked_and_nothing_is_taken_after() -> None:
    async with pice.open(CONFIG, overrides=SLOW) as pipeline:
        request = pipeline.new_request("How do tides work?", mode="cloud")
        asked = asyncio.ensure_future(pipeline.ask_request(request))
        await asyncio.sleep(0)
        async with aclosing(pipeline.stream(request)) as events:
            await anext(events)
    async with asyncio.timeout(5):
        with pytest.raises(Cancelled, match="pipeline is closed"):
            await asked
        with pytest.raises(InputError, match="pipeline is closed"):
            await pipeline.ask("And why?")


async def test_ask_within_a_running_loop_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"async with pice\.open"):
        pice.ask("How do tides work?", config=CONFIG, overrides=FAST)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (["hi"], "got a list with 'hi' in it"),
        ([{"role": "user", "content": "hi"}], "got a list with a dict in it"),
        (123, "expected a question as text, or a sequence of pice.Message.* got 123"),
        (None, "expected a question as text, .* got None"),
        ([pice.Message("user", cast("Any", 7))], "got a message whose content is 7"),
        ([pice.Message(cast("Any", "robot"), "x"), pice.Message("user", "hi")], "messages.role: expected one of"),
    ],
)
async def test_question_that_is_none_is_refused_with_what_was_expected(question: Any, says: str) -> None:
    async with pice.open(CONFIG, overrides=FAST) as pipeline:
        with pytest.raises(InputError, match=says):
            await pipeline.ask(question)


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, float("nan"), float("inf")])
async def test_timeout_that_is_no_time_is_refused(timeout_s: float) -> None:
    async with pice.open(CONFIG, overrides=FAST) as pipeline:
        with pytest.raises(InputError, match="timeout_s: expected a finite number of seconds above 0"):
            await pipeline.ask("How do tides work?", timeout_s=timeout_s)
        assert await pipeline.ask("How do tides work?")


def test_overrides_in_one_string_are_refused() -> None:
    with pytest.raises(InputError, match=r"overrides: expected a list .* got 'limits\.drain_s=1'"):
        pice.open(CONFIG, overrides="limits.drain_s=1")
