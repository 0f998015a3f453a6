"""The connections behind a client: to one Redis, or to the nodes of a Redis Cluster.

The nodes are asked by clients of one server each. The library's own client of a Cluster repeats commands, drops every
connection after some moves of slots, and asks a node for the keys of each XREAD (redis-py 8.1).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pice.errors import TransportError
from pice.redis_library import BlockingConnectionPool, ConnectionPool, Redis, key_slot, refusals
from pice.redis_lines import ClusterLine, RedisLine, Word

_UNREACHED = (refusals.ConnectionError, refusals.TimeoutError, refusals.ClusterDownError, OSError, RuntimeError)
"""What tells that slots may have other nodes by now; RuntimeError is uvloop's word for a connection that broke."""
_MOST_HOPS = 5
_LEARN_PAUSE_S = 0.25
_KEYLESS = ("INFO", "TIME", "PING", "ECHO")
_NO_HOST = (None, b"", b"?")
"""What a node says that does not know its own host, or was told no name to announce."""
_AFTER_COUNT = ("EVAL", "EVALSHA")

Address = tuple[str, int]
T = TypeVar("T")


class Servers(ABC):
    """Replies come as Redis sends them, whatever the version of its client."""

    name: str

    @abstractmethod
    def server(self, words: Sequence[Word]) -> Address:
        """Where a command goes, as far as is known."""

    @abstractmethod
    async def replies(self, server: Address, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """The reply of that server to each, sent together, or what it raised. Raises where nothing is known of any."""

    @abstractmethod
    def line(self) -> RedisLine:
        """A connection of its own, one that was used before if there is any. Outlives `close`."""

    @abstractmethod
    async def close(self) -> None: ...


class OneServer(Servers):
    """Lines that were closed are kept for who asks next, as many as there were at once: to connect costs more than a
    request's events."""

    def __init__(self, connection: type[Any], options: Mapping[str, Any], num_connections: int) -> None:
        """`connection` and its `options` as a pool of the library reads them from a URL; at most `num_connections` for
        what is said together."""
        self.host, self.port = str(options.get("host", "")), int(options.get("port", 6379))
        self.name = f"Redis at {self.host}:{self.port}"
        self._connection, self._options, self._num_connections = connection, options, num_connections
        pool = BlockingConnectionPool(
            connection_class=connection,
            max_connections=num_connections,
            timeout=options.get("socket_timeout"),
            **options,
        )
        self._redis = Redis.from_pool(pool)
        self._lines = ConnectionPool(connection_class=connection, **options)
        self._is_closed = False

    def at(self, host: str, port: int) -> "OneServer":
        """Another server that is reached in the same way."""
        return OneServer(self._connection, {**self._options, "host": host, "port": port}, self._num_connections)

    def server(self, words: Sequence[Word]) -> Address:  # noqa: ARG002 - there is one
        return self.host, self.port

    async def replies(self, server: Address, commands: Sequence[Sequence[Word]]) -> list[Any]:  # noqa: ARG002
        return await self.exchange(commands)

    async def exchange(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """As `replies`."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.response_callbacks.clear()
        for words in commands:
            pipeline.execute_command(*words)
        return await pipeline.execute(raise_on_error=False)

    def line(self) -> RedisLine:
        redis = Redis(connection_pool=self._lines, single_connection_client=True)
        redis.response_callbacks.clear()
        return RedisLine(redis, self.name, self._hang_up)

    async def _hang_up(self) -> None:
        """Once this is closed, its lines are not kept for others."""
        if self._is_closed:
            await self._lines.disconnect(inuse_connections=False)

    async def close(self) -> None:
        self._is_closed = True
        await self._hang_up()
        await self._redis.aclose()


class ClusterServers(Servers):
    """Each command goes to the node that has its key, and where that says so, on to another. When one does not answer,
    the nodes are asked anew who has which slot."""

    def __init__(self, first: OneServer) -> None:
        """`first` is a node of it, and is closed with it."""
        self.name = f"the Redis Cluster at {first.host}:{first.port}"
        self._first = first
        self._nodes: dict[Address, OneServer] = {(first.host, first.port): first}
        self._owners: dict[int, Address] = {}
        self._learning: asyncio.Task[None] | None = None
        self._is_closed = False

    async def learn(self) -> None:
        """Asks the nodes, one after another, who has which slot.

        Raises:
            what the last of them did, where none tells.
        """
        error: Exception = refusals.ConnectionError("no node tells who has which slot")
        for node in list(self._nodes.values()):
            try:
                (reply,) = await node.exchange([("CLUSTER", "SLOTS")])
            except (refusals.RedisError, OSError, RuntimeError) as raised:
                error = raised
                continue
            if isinstance(reply, Exception):
                error = reply
            elif reply:
                self._owners = dict(_owners(reply, node))
                return
        raise error

    async def infos(self) -> list[bytes]:
        """What each node that has slots says of itself. Raises as the library does."""
        found = []
        for address in dict.fromkeys(self._owners.values()):
            (reply,) = await self._node(address).exchange([("INFO",)])
            if isinstance(reply, Exception):
                raise reply
            found.append(reply)
        return found

    def server(self, words: Sequence[Word]) -> Address:
        return self._owner(_key(words))

    async def replies(self, server: Address, commands: Sequence[Sequence[Word]]) -> list[Any]:
        replies = await self._exchange(server, commands)
        return await asyncio.gather(*map(self._followed, commands, replies))

    async def _followed(self, words: Sequence[Word], reply: Any) -> Any:
        """The reply of the node to which the others refer; they have not done it."""
        for _ in range(_MOST_HOPS):
            if isinstance(reply, refusals.MovedError):
                (reply,) = await self._exchange(self._moved(reply), [words])
            elif isinstance(reply, refusals.AskError):
                _, reply = await self._exchange(self._named(reply), [("ASKING",), words])
            else:
                break
        return reply

    async def _exchange(self, address: Address, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """Of one node, or what kept it from replying, once for each."""
        try:
            replies = await self._node(address).exchange(commands)
        except Exception as error:  # noqa: BLE001 - whoever said something is told, whatever it is
            replies = [error] * len(commands)
        if any(isinstance(reply, _UNREACHED) for reply in replies):
            self._learn_soon(address)
            if self._learning:  # what waits for that node may have another by then
                await asyncio.wait({self._learning}, timeout=_LEARN_PAUSE_S)
        return replies

    def _moved(self, moved: refusals.AskError) -> Address:
        """Notes who has a slot now."""
        self._owners[moved.slot_id] = self._named(moved)
        return self._owners[moved.slot_id]

    def _named(self, reply: refusals.AskError) -> Address:
        """The node that a reply names; without a host it is on that of the one that said so."""
        host = self._owner_of(reply.slot_id)[0] if reply.host.encode() in _NO_HOST else reply.host
        return host, reply.port

    def _owner(self, key: Word | None) -> Address:
        return next(iter(self._nodes)) if key is None else self._owner_of(slot_of(key))

    def _owner_of(self, slot: int) -> Address:
        return self._owners.get(slot, (self._first.host, self._first.port))

    def _node(self, address: Address) -> OneServer:
        if address not in self._nodes:
            self._nodes[address] = self._first.at(*address)
        return self._nodes[address]

    def _learn_soon(self, failed: Address) -> None:
        """Asks who has which slot, the one that failed last; one question at a time, and none soon after one that none
        answered."""
        if self._is_closed:
            return
        if failed in self._nodes:
            self._nodes[failed] = self._nodes.pop(failed)
        if self._learning is None:
            self._learning = asyncio.get_running_loop().create_task(self._learn())

    async def _learn(self) -> None:
        try:
            await self.learn()
        except (refusals.RedisError, OSError, RuntimeError):
            await asyncio.sleep(_LEARN_PAUSE_S)
        finally:
            self._learning = None

    def line(self) -> RedisLine:
        return ClusterLine(self)

    async def on_line(self, key: Word, call: Callable[[RedisLine], Awaitable[T]]) -> T:
        """What `call` returns of a line to the node that has `key`; raises as that does."""
        address, asking = self._owner(key), False
        for _ in range(_MOST_HOPS):
            node = self._node(address)
            line = node.line()
            try:
                if asking:
                    await line.call("ASKING")
                return await call(line)
            except TransportError as error:
                cause = error.__cause__
                if not isinstance(cause, refusals.AskError):
                    if isinstance(cause, _UNREACHED):
                        self._learn_soon(address)
                    raise
                moved = isinstance(cause, refusals.MovedError)
                address, asking = (self._moved(cause), False) if moved else (self._named(cause), True)
            finally:
                await line.close()
                if self._is_closed:
                    await node.close()
        raise TransportError(f"{self.name} cannot serve now: its nodes refer to one another")

    async def close(self) -> None:
        self._is_closed = True
        if learning := self._learning:
            learning.cancel()
            await asyncio.wait({learning})
        await asyncio.gather(*(node.close() for node in list(self._nodes.values())), return_exceptions=True)


def slot_of(key: Word) -> int:
    """The slot of a key in a Cluster: that of its hash tag, if it has one."""
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


def _key(words: Sequence[Word]) -> Word | None:
    """The key by which a command finds its node; none where any may do it."""
    name = str(words[0]).upper()
    if name in _KEYLESS:
        return None
    return words[3] if name in _AFTER_COUNT else words[1]


def _owners(slots: Sequence[Any], asked: OneServer) -> Iterator[tuple[int, Address]]:
    """Of a reply to CLUSTER SLOTS; a node that does not know its own host is where it was asked."""
    for first, last, (host, port, *_), *_ in slots:
        address = (asked.host if host in _NO_HOST else host.decode()), int(port)
        yield from ((slot, address) for slot in range(first, last + 1))
