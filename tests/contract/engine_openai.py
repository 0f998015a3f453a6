"""An `OpenAIEngine` against a small scripted server, for the contract every engine keeps."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from pice.core import Curve
from pice.engine.base import Engine
from pice.engine.openai import OpenAIEngine

CURVE = Curve(batch=(1, 8), step_s=(0.001, 0.002), prefill_s_per_token=0.0001)
CONTEXT_TOKENS = 512
MAX_INFLIGHT = 4
NUM_TOKENS_TO_END = 300
WORDS = ("river", "stone", "light", "über", "河流", "north", "quiet", "seven", "glass", "wind")


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


Answer = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


class LoopbackServer:
    """HTTP/1.1 on a free loopback port. `answer` writes each raw reply and may close the connection.

    `seen` holds the requests in order; `gone` is set when a client left before its answer was complete.
    """

    def __init__(self, answer: Answer) -> None:
        self.seen: list[Seen] = []
        self.num_connections = 0
        self.gone = asyncio.Event()
        self._answer = answer
        self._connections: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._failures:
            raise self._failures[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._talk(reader, writer))
        self._connections.add(task)
        self.num_connections += 1
        try:
            await asyncio.wait((task,))
        finally:
            self._connections.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        early = b""
        try:
            while not writer.is_closing() and (seen := await _read_request(reader, early)):
                self.seen.append(seen)
                early = await self._answer_while_wanted(seen, reader, writer)
        except ConnectionError:
            self.gone.set()
        except Exception as error:  # noqa: BLE001 - raised when the test leaves the server
            self._failures.append(error)

    async def _answer_while_wanted(
        self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Answers until done or the client leaves; gives what was read of the next request meanwhile."""
        answering = asyncio.ensure_future(self._answer(seen, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
                return leaving.result() if leaving.done() else b""
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        raise ConnectionResetError


async def _read_request(reader: asyncio.StreamReader, early: bytes) -> Seen | None:
    try:
        head = (early + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    request_line, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = request_line.split(" ")
    return Seen(method, path, headers, json.loads(body) if body else None)


def plain(status: int, body: object, *headers: str) -> bytes:
    """A whole reply; `body` is text, or becomes JSON."""
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    head = (f"HTTP/1.1 {status} Said", f"content-type: {kind}", f"content-length: {len(content)}", *headers)
    return "\r\n".join((*head, "", "")).encode() + content


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(block: bytes) -> bytes:
    """One chunk of a chunked body; b"" is its end."""
    return b"%x\r\n%s\r\n" % (len(block), block)


def event(chunk: object) -> bytes:
    """One server-sent event."""
    return f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def choice(text: str = "", *logprobs: float | None, finish: str | None = None, **delta: object) -> dict[str, object]:
    """A chunk with one choice."""
    tokens = [{"token": "", "logprob": logprob, "bytes": None} for logprob in logprobs]
    listed: object = {"content": tokens} if tokens else None
    said = {"index": 0, "delta": {"content": text, **delta}, "logprobs": listed, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [said]}


def usage(num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int = 0) -> dict[str, object]:
    """The chunk at the end that counts."""
    counts = {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_output_tokens}
    return {"choices": [], "usage": counts | {"prompt_tokens_details": {"cached_tokens": num_cached_tokens}}}


def models(**entry: object) -> dict[str, object]:
    """A list of one model."""
    return {"object": "list", "data": [{"id": "scripted", "object": "model", **entry}]}


def _count(messages: list[dict[str, str]]) -> int:
    return 3 + sum(4 + len(message["content"].split()) for message in messages)


def _tokens(seed: int | None) -> Iterator[tuple[str, float]]:
    """A text that the seed decides, token by token with log-probabilities, up to its own end."""
    rng = random.Random(seed or 0)
    for _ in range(NUM_TOKENS_TO_END):
        yield f" {rng.choice(WORDS)}", -rng.random()


def _chunks(body: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """Chunks that hold text back while it may still become a stop string."""
    sent, text, num_tokens, finish = 0, "", 0, "stop"
    held_back = max((len(stop) - 1 for stop in body["stop"] or ()), default=0)
    yield choice(role="assistant")
    for token, logprob in _tokens(body["seed"]):
        text += token
        num_tokens += 1
        found = [text.index(stop) for stop in body["stop"] or () if stop in text]
        finish = "stop" if found else "length" if num_tokens == body["max_tokens"] else ""
        end = min(found) if found else len(text) if finish else len(text) - held_back
        yield choice(text[sent : max(sent, end)], logprob)
        sent = max(sent, end)
        if finish:
            break
    yield choice(text[sent:] if finish == "" else "", finish=finish or "stop")
    yield usage(_count(body["messages"]), num_tokens)


async def _chat(body: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
    num_prompt_tokens = _count(body["messages"])
    if not body["messages"] or num_prompt_tokens + body["max_tokens"] > CONTEXT_TOKENS:
        writer.write(plain(400, {"error": {"message": "no messages, or too many", "code": 400}}))
        return
    writer.write(STREAM_HEAD)
    for chunk in _chunks(body):
        writer.write(framed(event(chunk)))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(framed(event("[DONE]")) + framed(b""))


async def _answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
    match seen.path:
        case "/v1/models":
            writer.write(plain(200, models(max_model_len=CONTEXT_TOKENS)))
        case "/tokenize":
            writer.write(plain(200, {"count": _count(seen.body["messages"]), "max_model_len": CONTEXT_TOKENS}))
        case "/v1/chat/completions":
            await _chat(seen.body, writer)
        case _:
            writer.write(plain(404, {"detail": "Not Found"}))


@asynccontextmanager
async def make_engine() -> AsyncIterator[Engine]:
    async with LoopbackServer(_answer) as server:
        engine = OpenAIEngine(base_url=f"{server.url}/v1", curve=CURVE, rng=random.Random(1), max_inflight=MAX_INFLIGHT)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()
