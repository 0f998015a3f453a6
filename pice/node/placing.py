"""Segment + placement -> its site's partition, noted in the record before it is published."""

import asyncio
from dataclasses import replace

from pice.core import Event, Placement, Segment
from pice.errors import TransportError
from pice.message.codec import encode
from pice.message.trace import headers
from pice.node.telemetry import SILENT, Telemetry
from pice.plan.base import Planner
from pice.store.base import Store
from pice.transport.base import Transport, segments_topic


class Placer:
    """Sends segments to sites. Both the cloud node and the collector place. With `within_s` a queue that has not taken
    a segment by then is not waited for."""

    def __init__(
        self,
        transport: Transport,
        store: Store,
        planner: Planner,
        telemetry: Telemetry = SILENT,
        *,
        within_s: float | None = None,
    ) -> None:
        self._transport = transport
        self._store = store
        self._planner = planner
        self._telemetry = telemetry
        self._within_s = within_s

    async def send(self, segment: Segment, placement: Placement) -> bool:
        """False when the store would not have it: fenced, closed, chosen, or placed there already.

        Raises:
            TransportError: it could not be published, and the record says nothing of it; or it was not within the time
                for that, and stays placed, since it may come yet.
        """
        placed = replace(segment, site=placement.site, model=placement.model)
        if not await self._store.place(placed, placement):
            self._planner.withdraw(segment, placement)
            return False
        pool, partition = self._planner.address(placement.site)
        topic = segments_topic(pool)
        trace = headers(placed.request_id, topic, placed.attempt, placed.index, placed.site, placed.model)
        try:
            async with asyncio.timeout(self._within_s):
                await self._transport.publish(
                    topic, encode(placed), key=placed.request_id, partition=partition, headers=trace
                )
        except TimeoutError as error:
            raise TransportError(f"{topic} has not taken a segment within {self._within_s:g} s") from error
        except TransportError:
            self._planner.withdraw(segment, placement)
            await self._store.unplace(placed, placement)
            raise
        self._telemetry.placed(placement)
        await self._store.emit(_released(placed, placement))
        return True


def _released(segment: Segment, placement: Placement) -> Event:
    return Event(
        segment.request_id,
        "segment_released",
        placement.placed_s,
        segment.attempt,
        segment.index,
        text=placement.reason,
        site=placement.site,
        model=placement.model,
        points=segment.points,
    )
