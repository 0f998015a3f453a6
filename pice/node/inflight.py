"""The deliveries a node is working on, so that news of unwanted work can end them (P4, P8, P11)."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from pice.errors import DecodeError, TransportError
from pice.store.base import Store, Unwanted
from pice.transport.base import Delivery, Subscription

log = logging.getLogger(__name__)

_REST_S = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """One delivery's identity; `index` is -1 for a whole request. `drop` ends what is being done about it."""

    request_id: str
    attempt: int
    index: int
    delivery: Delivery
    drop: Callable[[], object]


class InFlight:
    """Deliveries in hand, by request."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._work: dict[str, list[Work]] = {}

    def add(self, work: Work) -> None:
        """Adding it again changes nothing."""
        held = self._work.setdefault(work.request_id, [])
        if work not in held:
            held.append(work)

    def remove(self, work: Work) -> bool:
        """Before its delivery is acknowledged or given back, since news may come meanwhile; False if it was gone."""
        held = self._work.get(work.request_id, [])
        if work not in held:
            return False
        held.remove(work)
        if not held:
            del self._work[work.request_id]
        return True

    async def watch(self, store: Store) -> None:
        """Drops and acknowledges what is no longer wanted, as the news of it comes; runs until cancelled. News that
        cannot be read is missed, and left to `sweep`."""
        notices = store.notices()
        try:
            while True:
                try:
                    news = await notices.receive()
                except (TransportError, DecodeError) as error:
                    log.warning("news of unwanted work is missed: %s", error)
                    await asyncio.sleep(_REST_S)
                    continue
                for work in self._unwanted(news):
                    await self._drop(work)
        finally:
            await notices.close()

    async def sweep(self, store: Store, *, every_s: float) -> None:
        """Asks the store again and again whether all this is still wanted, since news may be lost; runs until
        cancelled. What the store cannot tell now is asked the next time."""
        while True:
            await asyncio.sleep(every_s)
            for work in [work for held in self._work.values() for work in held]:
                try:
                    wanted = await store.wanted(work.request_id, work.attempt, work.index)
                except TransportError as error:
                    log.warning("it cannot be asked what is still wanted: %s", error)
                    break
                if not wanted:
                    await self._drop(work)

    async def _drop(self, work: Work) -> None:
        if self.remove(work):
            work.drop()
            await self._subscription.ack(work.delivery)

    def _unwanted(self, news: Unwanted) -> list[Work]:
        return [
            work
            for work in self._work.get(news.request_id, ())
            if work.attempt <= news.attempt and news.index in (None, work.index)
        ]
