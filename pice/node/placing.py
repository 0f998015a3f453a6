"""Segment + placement -> its site's partition, noted in the record before it is published."""

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
    """Sends segments to sites. Both the cloud node and the collector place."""

    def __init__(self, transport: Transport, store: Store, planner: Planner, telemetry: Telemetry = SILENT) -> None:
        self._transport = transport
        self._store = store
        self._planner = planner
        self._telemetry = telemetry

    async def send(self, segment: Segment, placement: Placement) -> bool:
        """False when the store would not have it: fenced, closed, chosen, or placed there already.

        Raises:
            TransportError: it could not be published; the record says nothing of it.
        """
        placed = replace(segment, site=placement.site, model=placement.model)
        if not await self._store.place(placed, placement):
            self._planner.withdraw(segment, placement)
            return False
        pool, partition = self._planner.address(placement.site)
        topic = segments_topic(pool)
        trace = headers(placed.request_id, topic, placed.attempt, placed.index, placed.site, placed.model)
        try:
            await self._transport.publish(
                topic, encode(placed), key=placed.request_id, partition=partition, headers=trace
            )
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
