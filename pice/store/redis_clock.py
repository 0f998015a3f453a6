"""The one clock all nodes share: Redis's own, as read from here."""

import asyncio
import logging
import math

from pice.redis_client import RedisClient

log = logging.getLogger(__name__)

_READ_EVERY_S = 10.0
_NUM_READINGS = 3
_JUMP_S = 1.0


class RedisClock:
    """Redis's time in seconds, off by at most half a round trip to it. Goes back only when that clock was set back by
    more than a second: to stand still until it has caught up would be worse."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._offset_s = 0.0
        self._read_s = -math.inf
        self._latest_s = 0.0

    def now(self) -> float:
        """Redis's time, once it was read."""
        self._latest_s = max(self._latest_s, asyncio.get_running_loop().time() + self._offset_s)
        return self._latest_s

    async def refresh(self) -> None:
        """Reads the time again if that was long ago: two hosts' clocks drift apart."""
        read_s, now_s = self._read_s, asyncio.get_running_loop().time()
        if now_s - read_s < _READ_EVERY_S:
            return
        self._read_s = now_s  # others need not read it meanwhile
        try:
            offset_s = min([await self._reading() for _ in range(_NUM_READINGS)])[1]
        except BaseException:
            self._read_s = read_s
            raise
        by_s = offset_s - self._offset_s
        if read_s > -math.inf and abs(by_s) > _JUMP_S:
            log.warning("the clock of Redis was set by %+.1f s: deadlines of open requests are off by as much", by_s)
            self._latest_s = 0.0
        self._offset_s = offset_s

    async def _reading(self) -> tuple[float, float]:
        """How long a reading took, and by how much Redis's clock is ahead of the loop's."""
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        seconds, microseconds = await self._client.call("TIME")
        got_s = loop.time()
        return got_s - sent_s, int(seconds) + int(microseconds) / 1e6 - (sent_s + got_s) / 2
