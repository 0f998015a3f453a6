"""What every engine keeps to.

Each `engine_*.py` beside this file offers `make_engine`, an async context manager that gives a started engine and
closes it. Texts are compared only between generations that run alone: batching changes the order of float sums.
"""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from pice.core import Message, Prompt, Sampling
from pice.engine.base import Engine, Piece
from pice.errors import EngineUnavailable, InputError, PromptTooLong

HERE = Path(__file__).parent
DEADLINE_S = 60.0
SHORT = Sampling(max_tokens=12, seed=7)
LONG = Sampling(max_tokens=200, seed=7)


def asking(text: str = "Name some uses of a lighthouse.", words: int = 400) -> Prompt:
    return Prompt(messages=(Message("system", "Be brief."), Message("user", text)), words=words)


def maker(name: str) -> Callable[[], AbstractAsyncContextManager[Engine]]:
    spec = importlib.util.spec_from_file_location(f"contract_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("pice"):
            raise
        pytest.skip(f"{name} needs {error.name}, which is not installed")
    return cast("Callable[[], AbstractAsyncContextManager[Engine]]", module.make_engine)


@pytest.fixture(params=sorted(path.stem for path in HERE.glob("engine_*.py")))
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    async with maker(request.param)() as made:
        yield made


async def generate(engine: Engine, prompt: Prompt | None = None, sampling: Sampling = SHORT) -> list[Piece]:
    async with asyncio.timeout(DEADLINE_S):
        return [piece async for piece in engine.generate(prompt or asking(), sampling)]


async def begin(engine: Engine, sampling: Sampling = LONG) -> AsyncGenerator[Piece, None]:
    """A generation that has given its first piece and has more to come."""
    pieces = engine.generate(asking(), sampling)
    async with asyncio.timeout(DEADLINE_S):
        assert (await anext(pieces)).finish_reason is None
    return pieces


async def begin_and_cancel(engine: Engine) -> None:
    begun = asyncio.Event()

    async def iterate() -> None:
        async for _ in engine.generate(asking(), LONG):
            begun.set()

    task = asyncio.create_task(iterate())
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def num_tokens(pieces: list[Piece]) -> int:
    return sum(piece.num_tokens for piece in pieces)


def assert_whole(pieces: list[Piece], sampling: Sampling) -> None:
    ends = [piece.finish_reason is not None for piece in pieces]
    assert ends == [False] * (len(pieces) - 1) + [True]
    assert num_tokens(pieces) <= sampling.max_tokens
    if pieces[-1].finish_reason == "length":
        assert num_tokens(pieces) == sampling.max_tokens


@pytest.mark.parametrize("max_tokens", [1, 12])
async def test_exactly_the_last_piece_has_a_finish_reason_and_tokens_are_counted(
    engine: Engine, max_tokens: int
) -> None:
    pieces = await generate(engine, sampling=replace(SHORT, max_tokens=max_tokens))
    assert_whole(pieces, replace(SHORT, max_tokens=max_tokens))
    assert text(pieces)
    assert num_tokens(pieces) >= 1


async def test_every_token_has_its_log_probability_or_none_has(engine: Engine) -> None:
    pieces = await generate(engine)
    if any(piece.logprobs for piece in pieces):
        assert [len(piece.logprobs) for piece in pieces] == [piece.num_tokens for piece in pieces]
    assert all(logprob <= 0.0 for piece in pieces for logprob in piece.logprobs)


async def test_count_of_prompt_tokens_bounds_what_is_reported(engine: Engine) -> None:
    last = (await generate(engine))[-1]
    assert 0 < last.num_prompt_tokens <= await engine.count_tokens(asking())
    assert 0 <= last.num_cached_tokens <= last.num_prompt_tokens


async def test_generations_at_once_all_finish_and_keep_their_own_totals(engine: Engine) -> None:
    prompts = [asking("Name some uses of a lighthouse. " * (number + 1)) for number in range(8)]
    samplings = [replace(SHORT, max_tokens=4 + number) for number in range(8)]
    at_once = await asyncio.gather(*map(generate, [engine] * 8, prompts, samplings))
    for prompt, sampling, pieces in zip(prompts, samplings, at_once, strict=True):
        alone = await generate(engine, prompt, sampling)
        assert_whole(pieces, sampling)
        assert pieces[-1].num_prompt_tokens == alone[-1].num_prompt_tokens


async def test_same_seed_alone_gives_the_same_text(engine: Engine) -> None:
    assert text(await generate(engine)) == text(await generate(engine))


async def test_stop_string_ends_the_text_and_is_not_part_of_it(engine: Engine) -> None:
    whole = text(await generate(engine))
    stop = whole[len(whole) // 2 :][:3]
    pieces = await generate(engine, sampling=replace(SHORT, stop=(stop,)))
    assert text(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"


async def test_closed_generations_free_their_slots_and_leave_others_alone(engine: Engine) -> None:
    other = asyncio.create_task(generate(engine, sampling=LONG))
    for _ in range(engine.info.max_inflight + 1):
        await (await begin(engine)).aclose()
    assert_whole(await other, LONG)
    assert_whole(await generate(engine), SHORT)


async def test_cancelled_generations_free_their_slots_and_leave_others_alone(engine: Engine) -> None:
    other = asyncio.create_task(generate(engine, sampling=LONG))
    for _ in range(engine.info.max_inflight + 1):
        await begin_and_cancel(engine)
    assert_whole(await other, LONG)
    assert_whole(await generate(engine), SHORT)


@pytest.mark.parametrize("too_long", ["prompt", "output"])
async def test_what_does_not_fit_the_context_is_refused_with_its_numbers(engine: Engine, too_long: str) -> None:
    context_tokens = engine.info.context_tokens
    prompt = asking("lamp " * context_tokens) if too_long == "prompt" else asking()
    sampling = SHORT if too_long == "prompt" else replace(SHORT, max_tokens=context_tokens)
    with pytest.raises(PromptTooLong) as refused:
        await generate(engine, prompt, sampling)
    assert refused.value.context_tokens == context_tokens
    assert refused.value.max_tokens == sampling.max_tokens
    assert refused.value.num_prompt_tokens + sampling.max_tokens > context_tokens
    assert_whole(await generate(engine), SHORT)


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        (Prompt(messages=()), SHORT),
        (asking(), replace(SHORT, max_tokens=0)),
        (asking(), replace(SHORT, temperature=-0.1)),
    ],
    ids=["no messages", "no tokens", "negative temperature"],
)
async def test_what_no_model_could_do_is_refused(engine: Engine, prompt: Prompt, sampling: Sampling) -> None:
    with pytest.raises(InputError):
        await generate(engine, prompt, sampling)


async def test_close_ends_running_and_later_generations_as_unavailable(engine: Engine) -> None:
    running = await begin(engine, replace(LONG, max_tokens=engine.info.context_tokens // 2))
    await engine.close()
    with pytest.raises(EngineUnavailable):
        async with asyncio.timeout(DEADLINE_S):
            _ = [piece async for piece in running]
    with pytest.raises(EngineUnavailable):
        await generate(engine)
    await engine.close()
