"""Connections to Redis, with its errors as ours. Nothing else imports the `redis` package."""

import asyncio
import hashlib
import re
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions as refusals
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pice.errors import ConfigError, DecodeError, Full, TransportError

OLDEST = (7, 0)
_NUM_EXCHANGES = 4
_MOST_TOGETHER = 128
_TIMEOUT_S = 5.0
_FULL_RETRY_S = 1.0
_NTH = r"""(?:^|caused error: \(?['"]?)"""
"""Where the words of Redis begin: of one command among several its client first says which."""
_IS_AWAY = re.compile(f"{_NTH}(?:LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|UNBLOCKED|BUSY)")
"""How Redis refuses what it may take later."""
_IS_SPENT = re.compile("exhausted the last possible ID|smaller than the target stream top item")
"""Of a stream to which somebody gave the last id there is: it takes nothing until an operator deletes it."""
_MAY_NOT = re.compile(r"NOPERM|NOAUTH|The user executing the script|ACL failure in script")
"""How it refuses this user, within a script too."""
_UNKNOWN = re.compile(f"{_NTH}unknown (?:sub)?command", re.IGNORECASE)

Word = str | bytes | int | float


class Script:
    """A program that Redis runs as one change."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class RedisLine:
    """One connection, for commands that block; made anew after it was lost. Not for two tasks at a time."""

    def __init__(self, redis: Any, address: str) -> None:
        self._redis = redis
        self._address = address
        self._redis.response_callbacks.clear()  # replies as Redis sends them, whatever the version of its client

    async def call(self, *words: Word) -> Any:
        """The reply to a command, in bytes, integers, lists of these and None.

        Raises:
            TransportError: Redis is gone, does not answer or cannot serve now; perhaps it was done.
            Full: Redis has no memory left; it was not done.
            ConfigError: it refuses this user, or does not know the command.
        DecodeError: a key holds something that is not ours.
        """
        with _mapped(self._address):
            return await self._redis.execute_command(*words)

    async def close(self) -> None:
        """May be called twice."""
        await self._redis.aclose()


class _LentLine(RedisLine):
    """One whose connection goes back to those of its client."""

    def __init__(self, redis: Any, address: str, closed: Callable[[], Awaitable[None]]) -> None:
        super().__init__(redis, address)
        self._closed = closed

    async def close(self) -> None:
        await super().close()
        await self._closed()


class RedisClient(RedisLine):
    """Connections to one Redis for all tasks of a loop. Never repeats a command.

    What tasks say at the same time is sent together, and while `_NUM_EXCHANGES` of those are under way the rest gathers
    for the next: a round trip serves many. Commands of different tasks may be done in any order. One that was begun
    is done, whoever is cancelled. Lines that were closed are kept for who asks next, as many as there were at once:
    to connect costs more than a request's events. Store, queue and registry of a process share one; see
    `connect_redis` for what it is given.
    """

    def __init__(self, url: str, *, password: str = "", ca_file: Path | None = None) -> None:
        self._url = url
        self._options = _OPTIONS | _credentials(url, password, ca_file)
        pool = BlockingConnectionPool.from_url(url, max_connections=_NUM_EXCHANGES, timeout=_TIMEOUT_S, **self._options)
        options = pool.connection_kwargs
        super().__init__(Redis.from_pool(pool), f"Redis at {options.get('host', '')}:{options.get('port', 6379)}")
        self._waiting = deque[_Said]()
        self._exchanges = set[asyncio.Task[None]]()
        self._lines = ConnectionPool.from_url(url, **self._options)
        self._is_called = False
        self._is_closed = False

    async def call(self, *words: Word) -> Any:
        """As `RedisLine.call`, from any task; raises TransportError once closed."""
        return await self._say(words)

    async def run(self, script: Script, keys: Sequence[str], words: Sequence[Word]) -> Any:
        """What the script returns; `call` says what is raised."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *words)
        except _Unknown:
            return await self.call("EVAL", script.source, len(keys), *keys, *words)

    async def run_all(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]) -> list[Any]:
        """What the script returns for each of these keys and words, sent together."""
        counted = [(len(keys), *keys, *words) for keys, words in calls]
        try:
            return await self.call_all([("EVALSHA", script.sha, *it) for it in counted])
        except _Unknown:
            return await self.call_all([("EVAL", script.source, *it) for it in counted])

    async def call_all(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """The replies to commands that are said together; raises what the first refused one does, when all are done."""
        replies = await asyncio.gather(*[self._say(words) for words in commands], return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies

    def _say(self, words: Sequence[Word]) -> "asyncio.Future[Any]":
        if self._is_closed:
            raise TransportError(f"the connection to {self._address} is closed")
        loop = asyncio.get_running_loop()
        said = _Said(words, loop.create_future())
        self._waiting.append(said)
        if not self._is_called:
            self._is_called = True
            loop.call_soon(self._send)
        return said.reply

    def _send(self) -> None:
        """Begins an exchange with what has gathered, if one may begin."""
        self._is_called = False
        if self._waiting and len(self._exchanges) < _NUM_EXCHANGES:
            together = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_TOGETHER))]
            exchange = asyncio.get_running_loop().create_task(self._exchange(together))
            self._exchanges.add(exchange)
            exchange.add_done_callback(self._next)

    def _next(self, exchange: "asyncio.Task[None]") -> None:
        self._exchanges.discard(exchange)
        self._send()

    async def _exchange(self, together: "Sequence[_Said]") -> None:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.response_callbacks.clear()
        for said in together:
            pipeline.execute_command(*said.words)
        try:
            replies = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - whoever said something is told, whatever it is
            replies = [error] * len(together)
        for said, reply in zip(together, replies, strict=True):
            self._hand_out(said.reply, reply)

    def _hand_out(self, future: "asyncio.Future[Any]", reply: Any) -> None:
        if future.done():
            return
        if not isinstance(reply, Exception):
            future.set_result(reply)
            return
        try:
            with _mapped(self._address):
                raise reply
        except Exception as error:  # noqa: BLE001 - raised where it was said
            future.set_exception(error)

    def line(self) -> RedisLine:
        """A connection of its own, one that was used before if there is any; whoever asked for it closes it. Outlives
        this client."""
        redis = Redis(connection_pool=self._lines, single_connection_client=True)
        return _LentLine(redis, self._address, self._hang_up)

    async def _hang_up(self) -> None:
        """Once this client is closed, its lines are not kept for others."""
        if self._is_closed:
            await self._lines.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """What was said before is done first."""
        self._is_closed = True
        while self._exchanges or self._waiting:
            self._send()
            await asyncio.gather(*self._exchanges)
        await self._hang_up()
        await super().close()


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """A command, and where its reply goes."""

    words: Sequence[Word]
    reply: "asyncio.Future[Any]"


async def connect_redis(url: str, *, password: str = "", ca_file: Path | None = None) -> RedisClient:
    """A client of the Redis at `redis://[user@]host:port/database` (`rediss:` for TLS), which was asked.

    With TLS one in `ca_file` or of the system must vouch for its certificate. No error shows the password.

    Raises:
        ConfigError: the address, the password, the certificate, or what answers there; says what to change.
        TransportError: nothing answers now.
    """
    try:
        client = RedisClient(url, password=password, ca_file=ca_file)
    except ValueError:  # not shown: it may quote a part of the URL, and so of a password
        raise ConfigError(
            "expected an address like redis://host:6379/0, or rediss: for TLS; a user's name may stand before the "
            "host, with %XX for what is neither letter nor digit"
        ) from None
    try:
        _check(await client.call("INFO"))
    except BaseException:
        await client.close()
        raise
    return client


def _credentials(url: str, password: str, ca_file: Path | None) -> dict[str, Any]:
    """Options beside the URL.

    Raises:
        ConfigError: there is no such file, or nothing to use it for.
    """
    given: dict[str, Any] = {"password": password} if password else {}
    if urlsplit(url).scheme != "rediss":
        if ca_file:
            raise ConfigError(
                "a ca_file is for TLS: expected an address like rediss://host:6379/0, got one without TLS"
            )
        return given
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"the ca_file of Redis must hold certificates (PEM): {ca_file}: {error}") from error
    return given | {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": ca_file and str(ca_file)}


def _check(info: bytes) -> None:
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    _check_version(facts)
    if facts.get("redis_mode") == "cluster":
        raise ConfigError("expected one Redis, with or without replicas, got a node of a Redis Cluster")
    if facts.get("maxmemory", "0") != "0" and (policy := facts.get("maxmemory_policy")) != "noeviction":
        raise ConfigError(
            f"Redis has maxmemory-policy {policy}, so it would throw requests away when it is full: "
            "set maxmemory-policy noeviction"
        )


def _check_version(facts: Mapping[str, str]) -> None:
    version = facts.get("redis_version", "of no version")
    parts = version.split(".")[:2]
    if not all(part.isdigit() for part in parts) or tuple(map(int, parts)) < OLDEST:
        raise ConfigError(f"expected Redis {OLDEST[0]}.{OLDEST[1]} or newer, got {version}: upgrade the server")


class _Unknown(TransportError):
    """The server does not know this script yet."""


@contextmanager
def _mapped(address: str) -> Generator[None]:
    """Turns the errors of Redis into ours; what is left is a bug of ours and goes through.
    A cancellation stands, though asyncio.wait_for, with which connections are made, may lose one before Python 3.12.
    """
    task = asyncio.current_task()
    num_cancelled = task.cancelling() if task else 0
    try:
        yield
        if task and task.cancelling() > num_cancelled:
            raise asyncio.CancelledError
    except (refusals.AuthenticationError, refusals.AuthorizationError, refusals.NoPermissionError) as error:
        raise _refused(address, error) from error
    except refusals.OutOfMemoryError as error:
        raise Full(f"{address} is full: {error}", retry_after_s=_FULL_RETRY_S) from error
    except refusals.NoScriptError as error:
        raise _Unknown(str(error)) from error
    except refusals.ResponseError as error:
        raise _answered(address, error) from None
    except (refusals.ConnectionError, refusals.TimeoutError, refusals.InvalidResponse, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ConfigError(f"{address} shows a certificate we do not trust: {error}: check ca_file") from error
        raise TransportError(f"{address} does not answer: {error}") from error
    except RuntimeError as error:  # uvloop's word for a connection that broke as something was sent
        if "handler is closed" not in str(error):
            raise
        raise TransportError(f"{address} does not answer: the connection broke") from error


def _answered(address: str, error: refusals.ResponseError) -> Exception:
    """What a refusal means; the error itself where it is our own fault."""
    text = str(error)
    if isinstance(error, refusals.ReadOnlyError) or _IS_AWAY.search(text) or _IS_SPENT.search(text):
        return TransportError(f"{address} cannot serve now: {text}")
    if _MAY_NOT.search(text):
        return _refused(address, error)
    if _UNKNOWN.search(text):  # not shown: it quotes what was sent, and that may be a password
        return ConfigError(f"{address} lacks a command: expected Redis {OLDEST[0]}.{OLDEST[1]} or newer, all enabled")
    if "WRONGTYPE" in text:
        return DecodeError(f"{address} has something else under a key of ours; does another program use it? {text}")
    return error


def _refused(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"{address} refuses us: {error}: check user, password and ACL")


_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "retry": Retry(NoBackoff(), 0),
    "socket_timeout": _TIMEOUT_S,
    "socket_connect_timeout": _TIMEOUT_S,
}
