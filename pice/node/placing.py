"""Segment + placement -> its site's partition, noted in the record before it is published."""

from dataclasses import replace

from pice.core import Event, Placement, Segment
from pice.errors import TransportError
from pice.message.codec import encode
from pice.plan.base import Planner
from pice.store.base import Store
from pice.transport.base import Transport, segments_topic


class Placer:
    """Sends segments to sites. Both the cloud node and the collector place."""

    def __init__(self, transport: Transport, store: Store, planner: Planner) -> None:
        self._transport = transport
        self._store = store
        self._planner = planner

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
        try:
            await self._transport.publish(
                segments_topic(pool), encode(placed), key=segment.request_id, partition=partition
            )
        except TransportError:
            self._planner.withdraw(segment, placement)
            await self._store.unplace(placed, placement)
            raise
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
