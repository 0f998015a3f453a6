"""Connections to Redis for one task each, which may wait on them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from pice.redis_errors import mapped

Word = str | bytes | int | float
T = TypeVar("T")
_CANCEL_EVERY_S = 0.05


class RedisLine:
    """One connection, for commands that block; made anew after it was lost. Not for two tasks at a time."""

    def __init__(self, redis: Any, address: str, closed: Callable[[], Awaitable[None]]) -> None:
        """`closed` is told when it is not needed any more; may be told twice."""
        self._redis = redis
        self._address = address
        self._closed = closed

    async def call(self, *words: Word) -> Any:
        """The reply to a command, in bytes, integers, lists of these and None.

        Raises:
            TransportError: Redis is gone, does not answer or cannot serve now; perhaps it was done.
            Full: Redis has no memory left; it was not done.
            ConfigError: it refuses this user, or does not know the command.
            DecodeError: a key holds something that is not ours.
        """
        with mapped(self._address):
            return await self._redis.execute_command(*words)

    async def read(self, after: Mapping[str, Word], *, count: int, wait_s: float) -> dict[str, Any]:
        """Up to `count` entries of each of these streams that has any after the id beside it, as Redis sends them.
        Waits for the first, where `wait_s` is above 0. Raises as `call`."""
        block = ("BLOCK", max(1, int(wait_s * 1000))) if wait_s > 0 else ()
        reply = await self.call("XREAD", "COUNT", count, *block, "STREAMS", *after, *after.values())
        return {name.decode(): entries for name, entries in reply or ()}

    async def wait(self, lists: Sequence[str], wait_s: float) -> bool:
        """Whether a token was taken from one of the lists; waits for one, but no longer than `wait_s`. Raises as
        `call`."""
        return await self.call("BLPOP", *lists, f"{wait_s:.3f}") is not None

    async def close(self) -> None:
        """May be called twice."""
        await self._redis.aclose()
        await self._closed()


class Nodes(Protocol):
    """What a line to a Cluster needs of it."""

    async def on_line(self, key: Word, call: Callable[[RedisLine], Awaitable[T]]) -> T: ...


class ClusterLine(RedisLine):
    """A connection for each key that is waited on, since one command may name keys of one slot only. What was waited
    for and did not come is waited for on, and found by the next call that asks for it."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._waits: dict[str, asyncio.Task[Any]] = {}

    async def call(self, *words: Word) -> Any:
        return await self._nodes.on_line(words[1], lambda line: line.call(*words))

    async def read(self, after: Mapping[str, Word], *, count: int, wait_s: float) -> dict[str, Any]:
        begin = {name: partial(self._read, name, after[name], count, wait_s) for name in after}
        if wait_s <= 0 or len(after) == 1:
            found = await asyncio.gather(*(read() for read in begin.values()))
        else:
            found = await self._first(begin, wait_s)
        return {name: entries for each in found for name, entries in each.items()}

    async def wait(self, lists: Sequence[str], wait_s: float) -> bool:
        return bool(await self._first({name: partial(self._wait, name, wait_s) for name in lists}, wait_s))

    async def _read(self, name: str, after: Word, count: int, wait_s: float) -> dict[str, Any]:
        return await self._nodes.on_line(name, lambda line: line.read({name: after}, count=count, wait_s=wait_s))

    async def _wait(self, name: str, wait_s: float) -> bool:
        return await self._nodes.on_line(name, lambda line: line.wait([name], wait_s))

    async def _first(self, begin: Mapping[str, Callable[[], Coroutine[Any, Any, Any]]], wait_s: float) -> list[Any]:
        """What came first, if anything did within `wait_s`. Raises what one raised where nothing else came."""
        clock = asyncio.get_running_loop()
        until_s = clock.time() + wait_s
        while True:
            for name in begin.keys() - self._waits.keys():
                self._waits[name] = asyncio.create_task(begin[name]())
            left_s = max(0.0, until_s - clock.time())
            await asyncio.wait(self._waits.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            ended = [self._waits.pop(name) for name in list(self._waits) if self._waits[name].done()]
            errors = [error for task in ended if (error := task.exception())]
            found = [result for task in ended if task.exception() is None and (result := task.result())]
            if errors and not found:
                raise errors[0]
            if found or clock.time() >= until_s:
                return found

    async def close(self) -> None:
        """A cancellation that came as a connection was made may be lost, so it is said until it is heard."""
        waits = set(self._waits.values())
        self._waits.clear()
        while waits:
            for wait in waits:
                wait.cancel()
            ended, waits = await asyncio.wait(waits, timeout=_CANCEL_EVERY_S)
            for wait in ended:
                if not wait.cancelled():
                    wait.exception()
