"""`OpenAIEngine` over real sockets: what vLLM really sent, whole, cut and dropped; and what may go wrong besides."""

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pice.core import Message, Prompt, Sampling
from pice.engine.base import Piece
from pice.engine.openai import OpenAIEngine
from pice.engine.openai_http import back_off_s
from pice.errors import (
    ConfigError,
    EngineError,
    EngineUnavailable,
    InputError,
    ModelLoadError,
    PiceError,
    PromptTooLong,
    UnsupportedParameter,
)
from tests.contract.engine_openai import (
    CURVE,
    STREAM_HEAD,
    Answer,
    LoopbackServer,
    Seen,
    choice,
    event,
    framed,
    models,
    plain,
    usage,
)

RECORDED = Path(os.environ.get("PICE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "vllm_wire"
needs_recordings = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings of vLLM are not here (PICE_DATA)")

DEADLINE_S = 10.0
PROMPT = Prompt((Message("system", "You are terse."), Message("user", "Say something about rivers. 河流")))
SAMPLING = Sampling(max_tokens=24, temperature=0.0)
KEY = "sk-secret"

STREAMS = ["chat_stream_logprobs_usage", "chat_stream_plain", "chat_stream_stop", "chat_stream_continuous_usage"]
TOKEN = framed(event(choice("one", -0.5)))
ROLE = framed(event(choice(role="assistant")))
END = framed(event(choice(finish="stop"))) + framed(event(usage(5, 1))) + framed(event("[DONE]")) + framed(b"")
WHOLE = STREAM_HEAD + ROLE + TOKEN + END


class Instant(random.Random):
    """Never waits."""

    def random(self) -> float:
        return 0.0


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.body.txt").read_bytes()


def recorded_head(name: str) -> bytes:
    return b"\r\n".join((RECORDED / f"{name}.headers.txt").read_bytes().rstrip().splitlines()) + b"\r\n\r\n"


def recorded_reply(name: str, *cuts: int) -> bytes:
    """A recording as it was on the wire, its body in as many chunks as `cuts` make."""
    body = recorded(name)
    if b"chunked" not in recorded_head(name):
        return recorded_head(name) + body
    blocks = [body[start:end] for start, end in zip((0, *cuts), (*cuts, len(body)), strict=True)]
    return recorded_head(name) + b"".join(framed(block) for block in blocks if block) + framed(b"")


def recorded_text(name: str) -> str:
    lines = [line.removeprefix("data: ") for line in recorded(name).decode().splitlines() if line.startswith("data: {")]
    return "".join(said["delta"].get("content", "") for line in lines for said in json.loads(line)["choices"])


Then = Callable[[asyncio.StreamWriter], Awaitable[object]]


def replaying(*replies: bytes, at: str = "/v1/chat/completions", then: Then | None = None) -> Answer:
    """Answers each request `at` with the next of `replies`, the last for ever, and then does `then`."""
    left = list(replies)
    others = {
        "/v1/models": plain(200, models(max_model_len=1024)),
        "/tokenize": plain(200, {"count": 49}),
        "/v1/chat/completions": WHOLE,
    }

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.path != at:
            writer.write(others[seen.path])
            return
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()
        if then:
            await then(writer)

    return answer


def tokenizing(*replies: bytes, then: Then | None = None) -> Answer:
    return replaying(*replies, at="/tokenize", then=then)


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def drop(writer: asyncio.StreamWriter) -> None:
    writer.close()


def move_clock(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    clock = loop.time
    loop.time = lambda: clock() + seconds  # type: ignore[method-assign]  # the loop of this one test


async def leap(writer: asyncio.StreamWriter) -> None:
    """Nothing more comes while six seconds pass."""
    move_clock(6.0)
    await asyncio.Event().wait()


class Pinging(httpx.AsyncByteStream):
    """A stream in which two seconds pass before each of its comments, which never end."""

    def __init__(self, first: bytes) -> None:
        self.is_closed = False
        self._first = first

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        while True:
            move_clock(2.0)
            await asyncio.sleep(0)
            yield b": ping\n\n"

    async def aclose(self) -> None:
        self.is_closed = True


def client_of(stream: httpx.AsyncByteStream) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=models(max_model_len=1024))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=stream)

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


@asynccontextmanager
async def running(
    answer: Answer, max_retries: int = 0, **settings: Any
) -> AsyncIterator[tuple[OpenAIEngine, LoopbackServer]]:
    async with asyncio.timeout(DEADLINE_S), LoopbackServer(answer) as server:
        engine = OpenAIEngine(
            **{"base_url": f"{server.url}/v1", "curve": CURVE, "rng": Instant(), "max_retries": max_retries, **settings}
        )
        try:
            await engine.start()
            yield engine, server
        finally:
            await engine.close()


async def generate(engine: OpenAIEngine, prompt: Prompt = PROMPT, sampling: Sampling = SAMPLING) -> list[Piece]:
    async with aclosing(engine.generate(prompt, sampling)) as pieces:
        return [piece async for piece in pieces]


async def begun(engine: OpenAIEngine) -> AsyncGenerator[Piece, None]:
    """A generation whose first piece has come."""
    pieces = engine.generate(PROMPT, SAMPLING)
    assert (await anext(pieces)).text == "one"
    return pieces


def text(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def num_posted(server: LoopbackServer) -> int:
    return sum(seen.path == "/v1/chat/completions" for seen in server.seen)


@needs_recordings
@pytest.mark.parametrize(
    ("name", "num_tokens", "finish_reason", "num_prompt_tokens"),
    [
        ("chat_stream_logprobs_usage", 24, "length", 49),
        ("chat_stream_stop", 8, "stop", 49),
        ("chat_stream_continuous_usage", 12, "length", 49),
        ("chat_stream_plain", 0, "length", 0),
    ],
)
async def test_recorded_stream_gives_its_text_tokens_and_totals(
    name: str, num_tokens: int, finish_reason: str, num_prompt_tokens: int
) -> None:
    async with running(replaying(recorded_reply(name))) as (engine, _):
        pieces = await generate(engine)
    assert text(pieces) == recorded_text(name)
    assert sum(piece.num_tokens for piece in pieces) == num_tokens
    assert (pieces[-1].finish_reason, pieces[-1].num_prompt_tokens) == (finish_reason, num_prompt_tokens)
    assert all(piece.finish_reason is None for piece in pieces[:-1])


@needs_recordings
async def test_recorded_log_probabilities_come_one_for_each_token() -> None:
    async with running(replaying(recorded_reply("chat_stream_logprobs_usage"))) as (engine, _):
        pieces = await generate(engine)
    assert [len(piece.logprobs) for piece in pieces] == [piece.num_tokens for piece in pieces]
    assert pieces[0] == Piece(" TypeError", 1, (-1.5066981315612793,))


@needs_recordings
@pytest.mark.parametrize("name", STREAMS)
async def test_recorded_stream_cut_over_the_socket_gives_the_same_pieces(name: str) -> None:
    body = recorded(name)
    inside_character = body.index("�".encode()) + 1
    cuts = (1, inside_character, body.index(b"\n\n") + 1, len(body) - 3)
    replies = [recorded_reply(name), *(recorded_reply(name, cut) for cut in cuts), recorded_reply(name, *sorted(cuts))]
    async with running(replaying(*replies)) as (engine, _):
        whole, *others = [await generate(engine) for _ in replies]
    assert others == [whole] * len(others)


@needs_recordings
@pytest.mark.parametrize("name", STREAMS)
async def test_recorded_stream_dropped_anywhere_before_its_end_is_unavailable(name: str) -> None:
    reply = recorded_reply(name)
    done = reply.index(b"data: [DONE]\n\n") + len(b"data: [DONE]\n\n")
    ends = sorted({*range(0, done, 101), *range(done - 8, done)})
    async with running(replaying(*(reply[:end] for end in ends), then=drop)) as (engine, server):
        for _ in ends:
            with pytest.raises(EngineUnavailable):
                await generate(engine)
        assert num_posted(server) == len(ends)


@needs_recordings
async def test_stream_dropped_after_its_last_event_is_whole() -> None:
    name = "chat_stream_stop"
    async with running(replaying(recorded_reply(name)[: -len(framed(b""))], then=drop)) as (engine, _):
        assert text(await generate(engine)) == recorded_text(name)


@needs_recordings
async def test_stream_framed_by_its_closing_is_cut_off_until_its_finish_reason_came() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    events = recorded("chat_stream_stop").split(b"\n\n")
    finished = 1 + next(number for number, data in enumerate(events) if b'"finish_reason":"stop"' in data)
    replies = [head + b"\n\n".join([*events[:count], b""]) for count in range(finished + 1)]
    async with running(replaying(*replies, then=drop)) as (engine, _):
        for _ in range(finished):
            with pytest.raises(EngineUnavailable):
                await generate(engine)
        assert text(await generate(engine)) == recorded_text("chat_stream_stop")


@needs_recordings
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("error_bad_json", InputError, "JSON decode error"),
        ("error_bad_temperature", InputError, "temperature must be non-negative, got -3.0"),
        ("error_empty_messages", InputError, "empty conversation"),
        ("error_too_long", InputError, "max_model_len=1024"),
        ("error_unknown_model", ModelLoadError, "`nope` does not exist.*; the server lists: scripted"),
    ],
)
async def test_recorded_error_says_what_the_server_said(name: str, kind: type[PiceError], words: str) -> None:
    async with running(replaying(recorded_reply(name)), max_retries=2) as (engine, server):
        with pytest.raises(kind, match=words):
            await generate(engine)
        assert num_posted(server) == 1


@needs_recordings
async def test_recorded_list_of_models_gives_name_and_context() -> None:
    async with running(replaying(plain(200, json.loads(recorded("models"))), at="/v1/models")) as (engine, _):
        assert (engine.info.model, engine.info.context_tokens) == ("tiny", 1024)


async def test_sampling_is_posted_whole_with_the_extra_body_and_the_key() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    async with running(replaying(WHOLE), api_key=KEY, extra_body=extra) as (engine, server):
        await generate(engine, sampling=Sampling(max_tokens=3, seed=7, stop=("\n",)))
    posted = server.seen[-1]
    assert posted.headers["authorization"] == f"Bearer {KEY}"
    assert posted.headers["accept-encoding"] == "identity"
    assert posted.body == {
        "model": "scripted",
        "messages": [{"role": message.role, "content": message.content} for message in PROMPT.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "max_tokens": 3,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 7,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 0,
        "chat_template_kwargs": {"enable_thinking": False},
    }


async def test_parameter_the_dialect_cannot_say_is_refused_unsent() -> None:
    async with running(replaying(WHOLE), dialect="openai") as (engine, server):
        with pytest.raises(UnsupportedParameter):
            await generate(engine, sampling=Sampling(top_k=40))
        assert num_posted(server) == 0


@pytest.mark.parametrize("status", [401, 403, 418, 500])
async def test_key_is_in_no_error_and_no_repr(status: int) -> None:
    async with running(replaying(plain(status, f"who is {KEY}?")), api_key=KEY) as (engine, _):
        with pytest.raises(EngineError) as failed:
            await generate(engine)
    assert KEY not in str(failed.value) + repr(failed.value) + repr(engine) + repr(vars(engine))


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_busy_server_is_asked_again_until_it_answers(status: int) -> None:
    busy = plain(status, "busy", "retry-after: 0")
    async with running(replaying(busy, busy, WHOLE), max_retries=2, rng=random.Random(1)) as (engine, server):
        assert text(await generate(engine)) == "one"
        assert num_posted(server) == 3


async def test_busy_server_is_asked_no_more_than_max_retries_say() -> None:
    async with running(replaying(plain(503, "busy")), max_retries=3) as (engine, server):
        with pytest.raises(EngineUnavailable, match="503: busy"):
            await generate(engine)
        assert num_posted(server) == 4


async def test_server_that_wants_a_long_rest_is_not_waited_for() -> None:
    async with running(replaying(plain(429, "busy", "retry-after: 31")), max_retries=3) as (engine, server):
        with pytest.raises(EngineUnavailable):
            await generate(engine)
        assert num_posted(server) == 1


@pytest.mark.parametrize("retry_after", ["Wed, 21 Oct 2026 07:28:00 GMT", "nan", "-1"])
async def test_retry_after_that_is_no_number_leaves_the_back_off(retry_after: str) -> None:
    busy = plain(503, "busy", f"retry-after: {retry_after}")
    async with running(replaying(busy, WHOLE), max_retries=1) as (engine, _):
        assert text(await generate(engine)) == "one"


@pytest.mark.parametrize("sent", [b"", STREAM_HEAD, STREAM_HEAD + ROLE], ids=["nothing", "head", "role"])
async def test_connection_dropped_before_the_first_token_is_tried_again(sent: bytes) -> None:
    async with running(replaying(sent, WHOLE, then=drop), max_retries=1) as (engine, server):
        assert text(await generate(engine)) == "one"
        assert num_posted(server) == 2


@pytest.mark.parametrize(
    "then", [b"", framed(event({"error": {"message": "dead", "code": 500}}))], ids=["dropped", "error in stream"]
)
async def test_nothing_is_tried_again_after_the_first_token(then: bytes) -> None:
    async with running(replaying(STREAM_HEAD + TOKEN + then, then=drop), max_retries=3) as (engine, server):
        with pytest.raises(EngineUnavailable):
            await generate(engine)
        assert num_posted(server) == 1


def test_back_off_doubles_up_to_its_cap_and_is_spread() -> None:
    class Longest(random.Random):
        def random(self) -> float:
            return 1.0

    assert [back_off_s(attempt, Longest()) for attempt in (0, 1, 2, 3, 4, 5, 2000)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert 0 < back_off_s(1, random.Random(1)) < 1


@pytest.mark.parametrize("sent", [b"", STREAM_HEAD, STREAM_HEAD + ROLE], ids=["nothing", "head", "role"])
async def test_no_first_token_in_time_is_unavailable_and_not_tried_again(sent: bytes) -> None:
    async with running(replaying(sent, then=leap), max_retries=3, first_token_s=5.0) as (engine, server):
        with pytest.raises(EngineUnavailable, match="in time"):
            await generate(engine)
        assert num_posted(server) == 1


async def test_no_further_token_in_time_is_unavailable() -> None:
    async with running(replaying(STREAM_HEAD + TOKEN, then=hang), between_tokens_s=5.0) as (engine, server):
        pieces = await begun(engine)
        asyncio.get_running_loop().call_soon(move_clock, 6.0)
        with pytest.raises(EngineUnavailable, match="in time"):
            await anext(pieces)
        await server.gone.wait()


@pytest.mark.parametrize("first", [b": ping\n\n", event(choice("one", -0.5))], ids=["first", "further"])
async def test_comments_do_not_stand_in_for_a_token(first: bytes) -> None:
    settings: dict[str, Any] = {"first_token_s": 5.0, "between_tokens_s": 5.0, "client": client_of(Pinging(first))}
    async with running(replaying(b""), **settings) as (engine, _):
        with pytest.raises(EngineUnavailable, match="in time"):
            await generate(engine)


async def test_slow_reader_loses_nothing_to_the_bound_between_tokens() -> None:
    go_on = asyncio.Event()

    async def then(writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(END)

    async with running(replaying(STREAM_HEAD + TOKEN, then=then), between_tokens_s=5.0) as (engine, _):
        pieces = await begun(engine)
        move_clock(6.0)
        go_on.set()
        assert [piece.finish_reason async for piece in pieces] == ["stop"]


async def test_server_that_is_not_there_is_unavailable() -> None:
    async with LoopbackServer(replaying(WHOLE)) as server:
        url = server.url
    engine = OpenAIEngine(base_url=f"{url}/v1", curve=CURVE, rng=Instant(), max_retries=1)
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (plain(200, "<html>Sign in</html>"), EngineError, "Sign in"),
        (plain(200, {"error": {"message": "no", "code": 400}}), InputError, "no"),
        (plain(200, {"choices": [{"index": 0, "message": {}}]}), EngineError, "expected text/event-stream"),
        (plain(302, "moved", "location: http://elsewhere/"), EngineError, "check base_url"),
        (STREAM_HEAD + framed(b"data: " + b"x" * (2 << 20)), EngineError, "larger than"),
    ],
    ids=["html", "error", "no stream", "redirect", "endless line"],
)
async def test_reply_that_is_no_stream_is_an_engine_error(reply: bytes, kind: type[PiceError], words: str) -> None:
    async with running(replaying(reply)) as (engine, _):
        with pytest.raises(kind, match=words) as failed:
            await generate(engine)
    assert not failed.value.retriable


@pytest.mark.parametrize("reply", [plain(404, {"detail": "Not Found"}), plain(200, "<html>"), plain(200, [])])
async def test_address_without_a_model_list_is_no_model(reply: bytes) -> None:
    with pytest.raises(ModelLoadError):
        async with running(replaying(reply, at="/v1/models")):
            pass


async def test_closing_the_generator_closes_the_connection() -> None:
    async with running(replaying(STREAM_HEAD + TOKEN, then=hang), max_inflight=1) as (engine, server):
        await (await begun(engine)).aclose()
        await server.gone.wait()
        await (await begun(engine)).aclose()


async def test_stream_is_closed_when_closing_the_generator_returns() -> None:
    stream = Pinging(event(choice("one", -0.5)))
    async with running(replaying(b""), client=client_of(stream)) as (engine, _):
        await (await begun(engine)).aclose()
        assert stream.is_closed


@pytest.mark.parametrize("sent", [b"", STREAM_HEAD + ROLE, STREAM_HEAD + TOKEN], ids=["unanswered", "role", "token"])
async def test_cancelling_the_task_closes_the_connection(sent: bytes) -> None:
    arrived = asyncio.Event()

    async def then(writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await asyncio.Event().wait()

    async with running(replaying(sent, then=then)) as (engine, server):
        task = asyncio.create_task(generate(engine))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.gone.wait()


async def test_close_ends_paused_generations_and_those_that_wait_for_their_slot() -> None:
    async with running(replaying(STREAM_HEAD + TOKEN, then=hang), max_inflight=1) as (engine, server):
        paused = await begun(engine)
        waiting = asyncio.create_task(generate(engine))
        await asyncio.sleep(0)
        await engine.close()
        await server.gone.wait()
        with pytest.raises(EngineUnavailable, match="was closed"):
            await waiting
        with pytest.raises(EngineUnavailable, match="was closed"):
            await anext(paused)
        assert num_posted(server) == 1


async def test_close_ends_a_generation_that_waits_for_its_next_token() -> None:
    async with running(replaying(STREAM_HEAD + TOKEN, then=hang)) as (engine, server):
        blocked = asyncio.ensure_future(anext(await begun(engine)))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(EngineUnavailable, match="was closed"):
            await blocked
        await server.gone.wait()


async def test_close_ends_a_wait_before_another_try() -> None:
    backing_off = asyncio.Event()

    class Long(random.Random):
        def random(self) -> float:
            backing_off.set()
            return 50.0

    async with running(replaying(plain(503, "busy")), max_retries=1, rng=Long()) as (engine, server):
        task = asyncio.create_task(generate(engine))
        await backing_off.wait()
        await engine.close()
        with pytest.raises(EngineUnavailable):
            await task
        assert num_posted(server) == 1


async def test_close_keeps_back_what_has_come_but_was_not_read() -> None:
    together = framed(event(choice("one", -0.5)) + event(choice("two", -0.5, finish="stop")) + event("[DONE]"))
    async with running(replaying(STREAM_HEAD + together + framed(b""))) as (engine, _):
        pieces = await begun(engine)
        await engine.close()
        with pytest.raises(EngineUnavailable):
            await anext(pieces)


async def test_no_more_than_max_inflight_are_posted_and_a_cancelled_wait_leaks_no_slot() -> None:
    async with running(replaying(STREAM_HEAD + TOKEN, then=hang), max_inflight=1) as (engine, server):
        first = await begun(engine)
        waiting = [asyncio.create_task(generate(engine)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert num_posted(server) == 1
        await first.aclose()
        await (await begun(engine)).aclose()


async def test_finished_stream_leaves_its_connection_for_the_next() -> None:
    async with running(replaying(WHOLE)) as (engine, server):
        for _ in range(3):
            await generate(engine)
        assert server.num_connections == 1


async def test_prompt_too_long_by_exact_count_is_refused_unsent() -> None:
    async with running(replaying(WHOLE)) as (engine, server):
        with pytest.raises(PromptTooLong) as refused:
            await generate(engine, sampling=Sampling(max_tokens=1000))
        assert num_posted(server) == 0
    assert (refused.value.num_prompt_tokens, refused.value.max_tokens, refused.value.context_tokens) == (49, 1000, 1024)


async def test_prompt_that_surely_fits_is_not_counted_first() -> None:
    async with running(replaying(WHOLE)) as (engine, server):
        await generate(engine)
    assert [seen.path for seen in server.seen] == ["/v1/models", "/v1/chat/completions"]


async def test_prompt_that_may_not_fit_is_counted_by_the_template_it_will_get() -> None:
    switches = {"enable_thinking": False}
    async with running(replaying(WHOLE), extra_body={"chat_template_kwargs": switches}) as (engine, server):
        await generate(engine, sampling=Sampling(max_tokens=975))
    assert [seen.path for seen in server.seen[1:]] == ["/tokenize", "/v1/chat/completions"]
    assert server.seen[1].body["chat_template_kwargs"] == switches


@pytest.mark.parametrize("reply", [plain(404, {"detail": "Not Found"}), plain(405, "no"), plain(200, {"tokens": []})])
async def test_server_without_a_tokenizer_is_asked_once_and_then_decides_itself(reply: bytes) -> None:
    async with running(tokenizing(reply)) as (engine, server):
        assert await engine.count_tokens(PROMPT) > 49
        assert text(await generate(engine, sampling=Sampling(max_tokens=1024))) == "one"
        assert [seen.path for seen in server.seen].count("/tokenize") == 1


async def test_busy_tokenizer_is_unavailable_and_asked_again_later() -> None:
    async with running(tokenizing(plain(503, "busy"), plain(200, {"count": 49}))) as (engine, _):
        with pytest.raises(EngineUnavailable):
            await engine.count_tokens(PROMPT)
        assert await engine.count_tokens(PROMPT) == 49


async def test_tokenizer_that_does_not_answer_in_time_is_unavailable() -> None:
    async with running(tokenizing(b"", then=leap), first_token_s=5.0) as (engine, _):
        with pytest.raises(EngineUnavailable, match="in time"):
            await engine.count_tokens(PROMPT)


async def test_tokenizer_whose_answer_does_not_end_in_time_is_unavailable() -> None:
    async with running(replaying(b""), client=client_of(Pinging(b"{")), first_token_s=5.0) as (engine, _):
        with pytest.raises(EngineUnavailable, match="in time"):
            await engine.count_tokens(PROMPT)


async def test_openai_dialect_asks_no_tokenizer() -> None:
    async with running(replaying(WHOLE), dialect="openai") as (engine, server):
        assert await engine.count_tokens(PROMPT) > 49
        await generate(engine, sampling=Sampling(max_tokens=1024, top_k=0))
    assert [seen.path for seen in server.seen] == ["/v1/models", "/v1/chat/completions"]


async def test_lone_surrogate_in_a_prompt_is_for_the_server_to_refuse() -> None:
    async with running(replaying(WHOLE)) as (engine, server):
        await generate(engine, prompt=Prompt((Message("user", "a\ud83d"),)))
    assert server.seen[-1].body["messages"][0]["content"] == "a\ud83d"


async def test_given_client_is_used_and_closed_with_the_engine() -> None:
    client = httpx.AsyncClient()
    async with running(replaying(WHOLE), client=client) as (engine, _):
        assert text(await generate(engine)) == "one"
    assert client.is_closed


async def test_engine_that_was_not_started_is_unavailable() -> None:
    engine = OpenAIEngine(base_url="http://127.0.0.1:1/v1", curve=CURVE, rng=Instant())
    with pytest.raises(EngineUnavailable, match="not been started"):
        await generate(engine)
    await engine.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "host:8000/v1"},
        {"base_url": "http://"},
        {"base_url": "http://host:port"},
        {"base_url": f"http://user:{KEY}@host/v1"},
        {"api_key": f"{KEY}\n"},
        {"max_inflight": 0},
        {"extra_body": {"temperature": 1.0}},
    ],
    ids=["no scheme", "no host", "no port", "password", "line end", "inflight", "extra body"],
)
def test_setting_that_cannot_be_used_is_a_config_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        OpenAIEngine(**{"base_url": "http://host/v1", "curve": CURVE, "rng": Instant(), **wrong})
    assert KEY not in str(refused.value)
