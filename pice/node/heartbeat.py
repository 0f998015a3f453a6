"""A site says again and again that it lives."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from pice.core import ModelState, SiteState
from pice.errors import TransportError
from pice.store.base import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Who a site is: its name, the pool whose topic it reads, its partition there and the round trip to it."""

    site: str
    pool: str
    partition: int
    rtt_s: float = 0.0


class Heartbeat:
    """Tells the store who the site is, how busy (`busy`), and whether it takes more.

    `every_s` is how often, `ttl_s` for how long it is believed. It takes no more while it is `draining` or `leaving`.
    """

    def __init__(
        self,
        address: Address,
        store: Store,
        busy: Callable[[], tuple[ModelState, ...]],
        *,
        every_s: float,
        ttl_s: float,
        token: int = 0,
    ) -> None:
        self._address = address
        self._store = store
        self._busy = busy
        self._every_s = every_s
        self._ttl_s = ttl_s
        self._token = token
        self._changed = asyncio.Event()
        self._draining = False
        self.leaving = False

    def set_draining(self, draining: bool) -> None:
        """Said by the next heartbeat, which comes at once."""
        if draining != self._draining:
            self._draining = draining
            self._changed.set()

    async def send(self) -> None:
        """One heartbeat.

        Raises:
            TransportError: the store was not told.
        """
        address = self._address
        state = SiteState(
            address.site,
            address.pool,
            address.partition,
            self._busy(),
            self._store.now(),
            address.rtt_s,
            self._draining or self.leaving,
            self._token,
        )
        await self._store.heartbeat(state, ttl_s=self._ttl_s)

    async def send_if_possible(self) -> None:
        try:
            await self.send()
        except TransportError as error:
            log.warning("site %s cannot say that it lives: %s", self._address.site, error)

    async def run(self) -> None:
        """Heartbeats until cancelled, the first after `every_s`. One that fails is logged: the next may not."""
        while True:
            try:
                async with asyncio.timeout(self._every_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            await self.send_if_possible()
