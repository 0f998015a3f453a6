"""A model behind an OpenAI-compatible server (vLLM, llama-server, a hosted one)."""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace

from pice.core import Curve, Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.engine.openai_http import Client, Connection, Incoming, check_url
from pice.engine.openai_models import Listed, choose_context, choose_model, listed_models, names
from pice.engine.openai_refusal import Server
from pice.engine.openai_wire import (
    OWN_KEYS,
    Dialect,
    Reply,
    chat_body,
    chat_messages,
    estimated_tokens,
    most_tokens,
)
from pice.engine.sse import EventStream
from pice.errors import ConfigError, EngineError, EngineUnavailable, ModelLoadError, PromptTooLong

_TRAILER_S = 1.0
"""How long to wait for a stream's end after its last event, so that its connection can be used again."""


class OpenAIEngine:
    """Generates through `POST {base_url}/chat/completions`.

    `model` "" takes the first the server lists. `context_tokens` None takes what the server says of the model.
    `extra_body` goes into every request as it is: a chat template's switches (`chat_template_kwargs`), or values for
    what a server has beyond its dialect. `first_token_s` also bounds every short call, and keep-alive comments do not
    extend it. A request is sent again at most `max_retries` times, after an exponential back-off or the server's
    `Retry-After`, and only before its first token and not after a time-out (it may still run or wait there). A server
    that asks for more than 30 s is not waited for. `client` is for tests; it is closed with the engine.

    Raises:
        ConfigError: a setting cannot be used.
    """

    def __init__(
        self,
        *,
        base_url: str,
        curve: Curve,
        rng: random.Random,
        model: str = "",
        api_key: str = "",
        context_tokens: int | None = None,
        max_inflight: int = 32,
        connect_s: float = 5.0,
        first_token_s: float = 60.0,
        between_tokens_s: float = 30.0,
        extra_body: Mapping[str, object] | None = None,
        max_retries: int = 2,
        dialect: Dialect = "vllm",
        client: Client | None = None,
    ) -> None:
        check_url(base_url)
        _check_settings(api_key, max_inflight, extra_body or {})
        self._connection = Connection(
            Server(base_url.rstrip("/"), model, api_key=api_key),
            rng=rng,
            max_inflight=max_inflight,
            max_retries=max_retries,
            connect_s=connect_s,
            short_s=first_token_s,
            client=client,
        )
        self._wanted_context_tokens = context_tokens
        self._max_inflight = max_inflight
        self._curve = curve
        self._first_token_s = first_token_s
        self._between_tokens_s = between_tokens_s
        self._extra_body = dict(extra_body or {})
        self._dialect: Dialect = dialect
        self._slots = asyncio.Semaphore(max_inflight)
        self._can_tokenize = dialect == "vllm"
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailable(f"the engine for {self._server.url} has not been started")
        return self._info

    @property
    def _server(self) -> Server:
        return self._connection.server

    async def start(self) -> None:
        """Reaches the server and finds the model.

        Raises:
            ModelLoadError: the server has no such model, or is no OpenAI-compatible server.
            ConfigError: the context length is not known, or set to more than the server's.
            EngineUnavailable: the server cannot be reached or is not ready.
        """
        listed = await self._listed()
        model = choose_model(self._server, listed)
        context_tokens = choose_context(self._server, listed[model], self._wanted_context_tokens)
        self._connection.server = replace(self._server, model=model, context_tokens=context_tokens)
        self._info = EngineInfo(model, context_tokens, self._max_inflight, self._curve)

    async def count_tokens(self, prompt: Prompt) -> int:
        """Exact where the server has vLLM's `/tokenize`, else the estimate of `openai_wire.estimated_tokens`."""
        exact = await self._exact_count(prompt)
        return estimated_tokens(prompt) if exact is None else exact

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        deadline_s: float = math.inf,  # noqa: ARG002  (the server orders what waits)
    ) -> AsyncGenerator[Piece, None]:
        """As the port says. A prompt that is too long is refused before sending where it can be counted exactly;
        elsewhere by the server: `PromptTooLong` if it says the numbers, else `InputError` in its words."""
        body = chat_body(prompt, sampling, model=self.info.model, dialect=self._dialect) | self._extra_body
        async with self._slot():
            await self._refuse_too_long(prompt, sampling.max_tokens)
            first, rest = await self._connection.retried(lambda: self._begun(body, sampling.max_tokens))
            async with aclosing(rest):
                piece: Piece | None = first
                while piece:
                    yield piece
                    self._connection.refuse_closed()
                    piece = await anext(rest, None)

    async def close(self) -> None:
        await self._connection.close()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        async with self._connection.waiting(None):
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    async def _begun(self, body: Mapping[str, object], max_tokens: int) -> tuple[Piece, AsyncGenerator[Piece, None]]:
        """The first piece of a request and the generator of the others."""
        pieces = self._attempt(body, max_tokens)
        try:
            return await anext(pieces), pieces
        except ModelLoadError as error:
            listed = names(self._server, await self._listed())
            raise ModelLoadError(f"{error}; the server lists: {listed}") from error

    async def _attempt(self, body: Mapping[str, object], max_tokens: int) -> AsyncGenerator[Piece, None]:
        """The pieces that one request brings, sent once."""
        url = f"{self._server.url}/chat/completions"
        reply = Reply(self._server, max_tokens=max_tokens)
        deadline = _after(self._first_token_s)
        async with self._connection.sent("POST", url, body, deadline=deadline, max_tokens=max_tokens) as incoming:
            await self._refuse_other_than_stream(incoming, reply, deadline)
            events = EventStream()
            while not reply.done and (block := await incoming.block(deadline)):
                for event in events.feed(block):
                    if piece := reply.read(event):
                        yield piece
                        deadline = _after(self._between_tokens_s)
            yield reply.last()
            with suppress(EngineUnavailable):
                await incoming.block(_after(_TRAILER_S))

    async def _refuse_other_than_stream(self, incoming: Incoming, reply: Reply, deadline: float) -> None:
        """Gateways send errors, or whole completions, with status 200."""
        if incoming.content_type.startswith("text/event-stream") or not incoming.content_type:
            return
        reply.read(await incoming.whole(deadline))
        raise EngineError(
            f"{self._server.url} sent {incoming.content_type}, expected text/event-stream: can it stream?"
        )

    async def _refuse_too_long(self, prompt: Prompt, max_tokens: int) -> None:
        context_tokens = self.info.context_tokens
        if most_tokens(prompt) + max_tokens <= context_tokens:
            return
        exact = await self._exact_count(prompt)
        if exact is not None and exact + max_tokens > context_tokens:
            raise PromptTooLong(
                model=self.info.model,
                num_prompt_tokens=exact,
                max_tokens=max_tokens,
                context_tokens=context_tokens,
            )

    async def _exact_count(self, prompt: Prompt) -> int | None:
        """None where the server cannot say; it is not asked again."""
        if not self._can_tokenize:
            return None
        template = {key: self._extra_body[key] for key in ("chat_template_kwargs",) if key in self._extra_body}
        body = {"model": self.info.model, "messages": chat_messages(prompt), **template}
        try:
            answer = await self._connection.ask("POST", f"{self._server.url.removesuffix('/v1')}/tokenize", body)
            return int(answer["count"])
        except (EngineError, KeyError, TypeError) as error:
            if isinstance(error, EngineUnavailable):
                raise
            self._can_tokenize = False
            return None

    async def _listed(self) -> Listed:
        return listed_models(self._server, await self._connection.ask("GET", f"{self._server.url}/models"))


def _after(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def _check_settings(api_key: str, max_inflight: int, extra_body: Mapping[str, object]) -> None:
    if not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("api_key must be printable ASCII on one line")
    if max_inflight < 1:
        raise ConfigError(f"max_inflight must be >= 1, got {max_inflight}")
    if own := OWN_KEYS & extra_body.keys():
        raise ConfigError(f"extra_body must not set {', '.join(sorted(own))}: the sampling of each request does")
