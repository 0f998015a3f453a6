"""The one clock all nodes share: Redis's own, as read from here."""

import asyncio

from pice.redis_client import RedisClient

_READ_EVERY_S = 10.0
_NUM_READINGS = 3


class RedisClock:
    """Redis's time in seconds, off by at most half a round trip to it; never goes back."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._offset_s = 0.0
        self._read_s = float("-inf")
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
            self._offset_s = min([await self._reading() for _ in range(_NUM_READINGS)])[1]
        except BaseException:
            self._read_s = read_s
            raise

    async def _reading(self) -> tuple[float, float]:
        """How long a reading took, and by how much Redis's clock is ahead of the loop's."""
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        seconds, microseconds = await self._client.call("TIME")
        got_s = loop.time()
        return got_s - sent_s, int(seconds) + int(microseconds) / 1e6 - (sent_s + got_s) / 2
