"""The in-memory transport with the way between the cloud and its sites: half a round trip, and the bytes."""

import asyncio
import math
import random
from collections.abc import Mapping

from pice.core import CLOUD_SITE
from pice.simulation.faults import Faults, FaultyTransport
from pice.transport.base import REQUESTS, segments_topic

_NEAR = (REQUESTS, segments_topic(CLOUD_SITE))


class Links(FaultyTransport):
    """What goes to a site, or comes from one, arrives half of `rtt_s` later, and later by what its bytes take at
    `bits_per_s`; messages do not wait for one another. What stays at the cloud arrives at once."""

    def __init__(self, rtt_s: float, *, bits_per_s: float = math.inf) -> None:
        super().__init__(random.Random(0), Faults())
        self._half_s = rtt_s / 2
        self._s_per_byte = 8 / bits_per_s

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        if topic in _NEAR:
            await super().publish(topic, payload, key=key, partition=partition, headers=headers)
            return
        late_s = self._half_s + len(payload) * self._s_per_byte
        asyncio.get_running_loop().call_later(late_s, self._arrive, topic, payload, key, partition, headers)
