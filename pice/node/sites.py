"""Heartbeats -> planner, not more often than they can have changed."""

import asyncio
import logging
import math

from pice.errors import DecodeError, TransportError
from pice.plan.base import Planner
from pice.store.base import Store

log = logging.getLogger(__name__)


class SiteNews:
    """Shows the planner the sites' heartbeats when the last look is older than `max_age_s`. Where they cannot be read
    it goes on with what it saw last."""

    def __init__(self, store: Store, planner: Planner, *, max_age_s: float) -> None:
        self._store = store
        self._planner = planner
        self._max_age_s = max_age_s
        self._seen_s = -math.inf
        self._looking = asyncio.Lock()

    async def refresh(self) -> None:
        """One look serves all who ask meanwhile; the first is waited for, during later ones the old news will do."""
        if self._is_fresh() or (self._looking.locked() and self._seen_s > -math.inf):
            return
        async with self._looking:
            if not self._is_fresh():
                looked_s = asyncio.get_running_loop().time()
                await self._look()
                self._seen_s = looked_s

    async def _look(self) -> None:
        try:
            self._planner.see(await self._store.sites())
        except (TransportError, DecodeError) as error:
            log.warning("the sites' heartbeats cannot be read: %s", error)

    def _is_fresh(self) -> bool:
        return asyncio.get_running_loop().time() - self._seen_s < self._max_age_s
