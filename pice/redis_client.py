"""What all tasks of a process say to Redis, sent together; and how that is found to be one we can use."""

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pice.errors import ConfigError, TransportError
from pice.redis_errors import OLDEST, UnknownScript, mapped
from pice.redis_library import ConnectionPool, NoBackoff, Retry
from pice.redis_lines import RedisLine, Word
from pice.redis_servers import Address, ClusterServers, OneServer, Servers

_NUM_EXCHANGES = 4
_MOST_TOGETHER = 128
_TIMEOUT_S = 5.0


class Script:
    """A program that Redis runs as one change."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class RedisClient:
    """Connections to one Redis, or a Redis Cluster, for all tasks of a loop. Never repeats a command that may have been
    done.

    What tasks say at the same time is sent together, and while `_NUM_EXCHANGES` of those are under way the rest gathers
    for the next: a round trip serves many, and a command that blocks keeps all their replies: say those on a `line`.
    Commands of different tasks may be done in any order. One that was begun is done, whoever is cancelled. Store, queue
    and registry of a process share one, which `connect_redis` makes.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._outlets: dict[Address, _Outlet] = {}
        self._is_closed = False

    async def call(self, *words: Word) -> Any:
        """As `RedisLine.call`, from any task; raises TransportError once closed."""
        return await self._say(words)

    def begin(self, *words: Word) -> "asyncio.Future[Any]":
        """As `call`, for a reply that may be waited for with others."""
        return self._say(words)

    async def run(self, script: Script, keys: Sequence[str], words: Sequence[Word]) -> Any:
        """What the script returns; `call` says what is raised."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *words)
        except UnknownScript:
            return await self.call("EVAL", script.source, len(keys), *keys, *words)

    async def run_all(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]) -> list[Any]:
        """What the script returns for each of these keys and words, sent together; raises what the first refused one
        does, when all are done."""
        return _checked(await self.run_each(script, calls))

    async def run_each(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]) -> list[Any]:
        """What the script returns for each of these keys and words, or what it raised, sent together."""
        counted = [(len(keys), *keys, *words) for keys, words in calls]
        replies = await self._replies([("EVALSHA", script.sha, *it) for it in counted])
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, UnknownScript)]
        again = await self._replies([("EVAL", script.source, *counted[at]) for at in unknown])
        for at, reply in zip(unknown, again, strict=True):
            replies[at] = reply
        return replies

    async def call_all(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """The replies to commands that are said together; raises what the first refused one does, when all are done."""
        return _checked(await self._replies(commands))

    async def _replies(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        return await asyncio.gather(*[self._say(words) for words in commands], return_exceptions=True)

    def _say(self, words: Sequence[Word]) -> "asyncio.Future[Any]":
        if self._is_closed:
            raise TransportError(f"the connection to {self._servers.name} is closed")
        said = _Said(words, asyncio.get_running_loop().create_future())
        self._put(said)
        return said.reply

    def _put(self, said: "_Said") -> None:
        server = self._servers.server(said.words)
        if server not in self._outlets:
            self._outlets[server] = _Outlet(self._servers, server, self._put)
        self._outlets[server].put(said)

    def line(self) -> RedisLine:
        """Connections of its own, for commands that block; whoever asked for it closes it. Outlives this client."""
        return self._servers.line()

    async def close(self) -> None:
        """What was said before is done first."""
        self._is_closed = True
        while not all(outlet.is_empty for outlet in self._outlets.values()):
            await asyncio.gather(*(outlet.drain() for outlet in list(self._outlets.values())))
        await self._servers.close()


class _Outlet:
    """What is said to one server; another that does not answer keeps none of it."""

    def __init__(self, servers: Servers, server: Address, elsewhere: "Callable[[_Said], None]") -> None:
        """`elsewhere` takes what has another server by the time it would be sent."""
        self._servers = servers
        self._server = server
        self._elsewhere = elsewhere
        self._waiting = deque[_Said]()
        self._exchanges = set[asyncio.Task[None]]()
        self._is_called = False

    @property
    def is_empty(self) -> bool:
        return not (self._waiting or self._exchanges)

    def put(self, said: "_Said") -> None:
        self._waiting.append(said)
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._send)

    async def drain(self) -> None:
        while not self.is_empty:
            self._send()
            if self._exchanges:
                await asyncio.wait(self._exchanges)

    def _send(self) -> None:
        """Begins an exchange with what has gathered, if one may begin."""
        self._is_called = False
        if len(self._exchanges) >= _NUM_EXCHANGES:
            return
        together = list[_Said]()
        while self._waiting and len(together) < _MOST_TOGETHER:
            said = self._waiting.popleft()
            if self._servers.server(said.words) == self._server:
                together.append(said)
            else:
                self._elsewhere(said)
        if together:
            exchange = asyncio.get_running_loop().create_task(self._exchange(together))
            self._exchanges.add(exchange)
            exchange.add_done_callback(self._next)

    def _next(self, exchange: "asyncio.Task[None]") -> None:
        self._exchanges.discard(exchange)
        self._send()

    async def _exchange(self, together: "Sequence[_Said]") -> None:
        replies: Sequence[Any] = [TransportError(f"the connection to {self._servers.name} is closed")] * len(together)
        try:
            replies = await self._servers.replies(self._server, [said.words for said in together])
        except Exception as error:  # noqa: BLE001 - whoever said something is told, whatever it is
            replies = [error] * len(together)
        finally:
            for said, reply in zip(together, replies, strict=True):
                self._hand_out(said.reply, reply)

    def _hand_out(self, future: "asyncio.Future[Any]", reply: Any) -> None:
        if future.done():
            return
        if not isinstance(reply, Exception):
            future.set_result(reply)
            return
        try:
            with mapped(self._servers.name):
                raise reply
        except Exception as error:  # noqa: BLE001 - raised where it was said
            future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """A command, and where its reply goes."""

    words: Sequence[Word]
    reply: "asyncio.Future[Any]"


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return replies


async def connect_redis(url: str, *, password: str = "", ca_file: Path | None = None) -> RedisClient:
    """A client of the Redis at `redis://[user@]host:port/database` (`rediss:` for TLS), which was asked; of the whole
    Cluster where that is a node of one.

    With TLS one in `ca_file` or of the system must vouch for its certificate. No error shows the password.

    Raises:
        ConfigError: the address, the password, the certificate, or what answers there; says what to change.
        TransportError: nothing answers now.
    """
    options = _OPTIONS | _credentials(url, password, ca_file)
    try:
        read = ConnectionPool.from_url(url, **options)
    except ValueError:  # not shown: it may quote a part of the URL, and so of a password
        raise ConfigError(
            "expected an address like redis://host:6379/0, or rediss: for TLS; a user's name may stand before the "
            "host, with %XX for what is neither letter nor digit"
        ) from None
    first = OneServer(read.connection_class, read.connection_kwargs, _NUM_EXCHANGES)
    client = RedisClient(first)
    try:
        if _check(await client.call("INFO")) == "cluster":
            servers = ClusterServers(first)
            client = RedisClient(servers)
            await _check_nodes(servers)
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


async def _check_nodes(cluster: ClusterServers) -> None:
    """Raises as `_check`, and TransportError."""
    with mapped(cluster.name):
        await cluster.learn()
        infos = await cluster.infos()
    for info in infos:
        _check(info)


def _check(info: bytes) -> str:
    """How the server is run: standalone or cluster.

    Raises:
        ConfigError: it will not do.
    """
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    _check_version(facts)
    mode = facts.get("redis_mode", "standalone")
    if mode == "sentinel":
        raise ConfigError(
            "expected a Redis, got a Sentinel: give an address that leads to the primary, as of a proxy or a service"
        )
    if facts.get("maxmemory", "0") != "0" and (policy := facts.get("maxmemory_policy")) != "noeviction":
        raise ConfigError(
            f"Redis has maxmemory-policy {policy}, so it would throw requests away when it is full: "
            "set maxmemory-policy noeviction"
        )
    return mode


def _check_version(facts: Mapping[str, str]) -> None:
    version = facts.get("redis_version", "of no version")
    parts = version.split(".")[:2]
    if not all(part.isdigit() for part in parts) or tuple(map(int, parts)) < OLDEST:
        raise ConfigError(f"expected Redis {OLDEST[0]}.{OLDEST[1]} or newer, got {version}: upgrade the server")


_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "retry": Retry(NoBackoff(), 0),
    "socket_timeout": _TIMEOUT_S,
    "socket_connect_timeout": _TIMEOUT_S,
}
