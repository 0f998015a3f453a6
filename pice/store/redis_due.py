"""Requests that a collector shall look at, from the sorted sets of all shards."""

import asyncio
from typing import Any

from pice.errors import TransportError
from pice.redis_client import RedisClient
from pice.redis_lines import RedisLine
from pice.store.redis_clock import RedisClock
from pice.store.redis_keys import RedisKeys, Shard
from pice.store.redis_scripts import TAKE

_LONGEST_WAIT_S = 0.5
_SHORTEST_WAIT_S = 0.001


class RedisDue:
    """Takes what is due, each for a lease. Any number of these may serve one Redis."""

    def __init__(self, client: RedisClient, keys: RedisKeys, clock: RedisClock, *, lease_s: float) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock
        self._lease_s = lease_s
        self._asked: dict[Shard, asyncio.Future[Any]] = {}
        self._idle: list[RedisLine] = []
        self._is_closed = False

    async def take(self, limit: int) -> list[str]:
        """Waits until requests are due and takes them, at most 0.5 s after they were."""
        while True:
            await self._clock.refresh()
            heads = await self._heads()
            taken: list[str] = []
            for _, shard in (head for head in heads if head[0] <= self._clock.now() and len(taken) < limit):
                taken += await self._take(shard, limit - len(taken))
            if taken:
                return taken
            await self._wait(heads[0][0] if heads else None)

    async def _heads(self) -> list[tuple[float, Shard]]:
        """When something is due next, and in which shard; soonest first, shards without any left out. One whose server
        does not answer keeps nothing of the others': it is asked on. Raises where none answers."""
        for shard in self._keys.shards:
            if shard not in self._asked:
                self._asked[shard] = self._client.begin("ZRANGE", shard.due, 0, 0, "WITHSCORES")
        await asyncio.wait(self._asked.values(), timeout=_LONGEST_WAIT_S)
        ended = {shard: self._asked.pop(shard) for shard, asked in list(self._asked.items()) if asked.done()}
        errors = [error for asked in ended.values() if (error := asked.exception())]
        if errors and (len(errors) == len(ended) or not all(isinstance(error, TransportError) for error in errors)):
            raise errors[0]
        replies = {shard: asked.result() for shard, asked in ended.items() if not asked.exception()}
        heads = [(float(reply[1]), shard) for shard, reply in replies.items() if reply]
        return sorted(heads, key=lambda head: head[0])

    async def _take(self, shard: Shard, limit: int) -> list[str]:
        ids = await self._client.run(TAKE, [shard.due], [shard.record(""), self._lease_s, limit])
        return [request_id.decode() for request_id in ids]

    async def _wait(self, next_s: float | None) -> None:
        """Until then, or until someone says that something is due sooner. On a line of its own: what is said together
        with a command that blocks gets its reply as late."""
        left_s = _LONGEST_WAIT_S if next_s is None else next_s - self._clock.now()
        wait_s = min(max(left_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
        line = self._idle.pop() if self._idle else self._client.line()
        try:
            await line.wait([shard.wake for shard in self._keys.shards], wait_s)
        finally:
            self._idle.append(line)
            if self._is_closed:
                await self.close()

    async def close(self) -> None:
        """Gives the lines back that are not waited on, and from now on the others too."""
        self._is_closed = True
        for asked in self._asked.values():
            asked.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        self._asked.clear()
        while self._idle:
            await self._idle.pop().close()
