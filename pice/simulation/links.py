"""The in-memory transport with the way between the cloud and its sites: half a round trip, and the bytes."""

import asyncio
import math
import random
from collections.abc import Mapping

from pice.core import CLOUD_SITE, Candidate
from pice.message.codec import decode_as
from pice.simulation.faults import Faults, FaultyTransport
from pice.transport.base import CANDIDATES, REQUESTS, segments_topic

_NEAR = (REQUESTS, segments_topic(CLOUD_SITE))


class Links(FaultyTransport):
    """What goes to a site, or comes from one, arrives half of its round trip later, and later by what its bytes take at
    `bits_per_s`; messages do not wait for one another. What stays at the cloud arrives at once. `rtts_s` are those of
    the sites, in the order of their partitions."""

    def __init__(self, rtts_s: Mapping[str, float], *, bits_per_s: float = math.inf) -> None:
        super().__init__(random.Random(0), Faults())
        self._rtts_s = rtts_s
        self._by_partition = tuple(rtts_s.values())
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
        late_s = self._rtt_s(topic, payload, partition) / 2 + len(payload) * self._s_per_byte
        asyncio.get_running_loop().call_later(late_s, self._arrive, topic, payload, key, partition, headers)

    def _rtt_s(self, topic: str, payload: bytes, partition: int | None) -> float:
        if topic == CANDIDATES:
            return self._rtts_s.get(decode_as(Candidate, payload).site, 0.0)
        return self._by_partition[partition or 0]
