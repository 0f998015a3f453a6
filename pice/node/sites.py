"""Heartbeats -> planner, not more often than they can have changed."""

import asyncio
import logging

from pice.errors import PiceError
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
        self._seen_s = float("-inf")

    async def refresh(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._seen_s >= self._max_age_s:
            self._seen_s = now_s
            try:
                self._planner.see(await self._store.sites())
            except PiceError as error:
                log.warning("the sites' heartbeats cannot be read: %s", error)
