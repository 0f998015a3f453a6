"""The way to a server over HTTP: bounded waits, errors of ours, another try where that is safe."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import httpx

from pice.engine.openai_refusal import Server, TryAgain, refusal
from pice.errors import ConfigError, EngineUnavailable, ModelLoadError

Client = httpx.AsyncClient
T = TypeVar("T")

_FIRST_BACK_OFF_S = 0.5
_LONGEST_BACK_OFF_S = 8.0
_LONGEST_RETRY_AFTER_S = 30.0
_MAX_BODY_BYTES = 4 << 20
_KEEPALIVE_S = 4.0
"""Less than the 5 s after which uvicorn closes an idle connection, so that none is closed while we write to it."""


class Incoming:
    """A response of status 200 whose body is still coming."""

    def __init__(self, connection: "Connection", response: httpx.Response) -> None:
        self.content_type: str = response.headers.get("content-type", "")
        self._connection = connection
        self._blocks = response.aiter_bytes()

    async def block(self, deadline: float) -> bytes:
        """More of the body, b"" at its end."""
        async with self._connection.waiting(deadline):
            return await anext(self._blocks, b"")

    async def whole(self, deadline: float) -> str:
        """The rest of the body as text, cut at 4 MiB."""
        body = b""
        while len(body) < _MAX_BODY_BYTES and (block := await self.block(deadline)):
            body += block
        return body.decode("utf-8", "replace")


class Connection:
    """Requests to one server, until `close`.

    `short_s` bounds each `ask`. `client` is closed with the connection; None makes one.
    """

    def __init__(
        self,
        server: Server,
        *,
        rng: random.Random,
        max_inflight: int,
        max_retries: int,
        connect_s: float,
        short_s: float,
        client: Client | None,
    ) -> None:
        self.server = server
        self._rng = rng
        self._max_retries = max_retries
        self._timeout = httpx.Timeout(None, connect=connect_s)
        self._short_s = short_s
        self._client = client or _new_client(max_inflight)
        self._waits: set[asyncio.Timeout] = set()
        self._closed = False

    async def close(self) -> None:
        """Ends every wait with `EngineUnavailable` and drops all connections."""
        self._closed = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())
        await self._client.aclose()

    def refuse_closed(self) -> None:
        """Raises `EngineUnavailable` after `close`."""
        if self._closed:
            raise EngineUnavailable(f"the engine for {self.server.url} was closed")

    async def ask(self, method: str, url: str, body: Mapping[str, object] | None = None) -> Any:
        """The JSON that a short call brings; tried again where that may help.

        Raises:
            ModelLoadError: nothing is there, or it does not speak JSON.
            InputError, EngineUnavailable, EngineError: as the status says.
        """
        return await self.retried(lambda: self._asked(method, url, body))

    async def retried(self, once: Callable[[], Awaitable[T]]) -> T:
        """What `once` gives, after as many calls as it takes and `max_retries` allows.

        Raises:
            TryAgain: of the last call.
        """
        attempt = 0
        while True:
            try:
                return await once()
            except TryAgain as error:
                await self._back_off(attempt, error)
            attempt += 1

    @asynccontextmanager
    async def sent(
        self, method: str, url: str, body: Mapping[str, object] | None, *, deadline: float, max_tokens: int = 0
    ) -> AsyncGenerator[Incoming, None]:
        """A response of status 200; leaving closes it, which stops a generation. Any other status is raised."""
        content = None if body is None else json.dumps(body).encode()
        request = self._client.build_request(
            method, url, content=content, headers=self._headers(), timeout=self._timeout
        )
        async with self.waiting(deadline):
            response = await self._client.send(request, stream=True)
        async with aclosing(response):
            incoming = Incoming(self, response)
            if response.status_code != 200:
                said = await incoming.whole(deadline)
                pause_s = _retry_after_s(response.headers.get("retry-after", ""))
                raise refusal(self.server, response.status_code, said, max_tokens=max_tokens, retry_after_s=pause_s)
            yield incoming

    async def _asked(self, method: str, url: str, body: Mapping[str, object] | None) -> Any:
        deadline = asyncio.get_running_loop().time() + self._short_s
        async with self.sent(method, url, body, deadline=deadline) as incoming:
            text = await incoming.whole(deadline)
        try:
            return json.loads(text)
        except ValueError as error:
            raise ModelLoadError(f"{url} did not answer in JSON: is base_url right?") from error

    async def _back_off(self, attempt: int, error: TryAgain) -> None:
        """Returns when it is time to try again after failed attempt 0, 1, ...; raises `error` where there is none."""
        delay_s = back_off_s(attempt, self._rng) if error.retry_after_s is None else error.retry_after_s
        if attempt >= self._max_retries or delay_s > _LONGEST_RETRY_AFTER_S:
            raise error
        async with self.waiting(None):
            await asyncio.sleep(delay_s)

    @asynccontextmanager
    async def waiting(self, deadline: float | None) -> AsyncIterator[None]:
        """Bounds one wait, which `close` ends too.

        Raises:
            TryAgain: the server cannot be reached or broke off.
            EngineUnavailable: closed, or the deadline passed.
        """
        self.refuse_closed()
        try:
            async with asyncio.timeout_at(deadline) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError as error:
            self.refuse_closed()
            raise EngineUnavailable(f"{self.server.url} gave no answer or no further token in time") from error
        except httpx.RequestError as error:
            self.refuse_closed()
            said = self.server.quote(f"{type(error).__name__} {error}")
            raise TryAgain(f"{self.server.url} cannot be reached or broke off: {said}") from error

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        return headers | ({"Authorization": f"Bearer {self.server.api_key}"} if self.server.api_key else {})


def back_off_s(attempt: int, rng: random.Random) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: random up to 0.5 s, doubled each time, at most 8 s."""
    return rng.random() * min(_LONGEST_BACK_OFF_S, _FIRST_BACK_OFF_S * 2.0 ** min(attempt, 9))


def check_url(base_url: str) -> None:
    """Raises `ConfigError` for what is no address of a server."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"base_url must be like http://host:8000/v1, got {base_url!r}") from error
    if url.userinfo:
        raise ConfigError("base_url must hold no user or password: set api_key")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"base_url must be like http://host:8000/v1, got {base_url!r}")


def _new_client(max_inflight: int) -> Client:
    limits = httpx.Limits(max_keepalive_connections=max_inflight, keepalive_expiry=_KEEPALIVE_S)
    return Client(limits=limits)


def _retry_after_s(header: str) -> float | None:
    """Seconds the server asks for; None where it gives none or a date."""
    try:
        seconds = float(header)
    except ValueError:
        return None
    return seconds if seconds >= 0 else None
