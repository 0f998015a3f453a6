"""The sites' heartbeats in Redis: one key for each, so that a site need not be able to write for another."""

import logging

from pice.core import SiteState
from pice.errors import DecodeError
from pice.message.codec import decode_as, encode
from pice.redis_client import RedisClient
from pice.store.redis_keys import RedisKeys
from pice.store.redis_scripts import HEARTBEAT, SITES

log = logging.getLogger(__name__)


class RedisSites:
    """See `pice.store.base.Store.heartbeat`. A site whose heartbeat cannot be read counts as silent."""

    def __init__(self, client: RedisClient, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys
        self._unreadable: set[str] = set()

    async def heartbeat(self, state: SiteState, ttl_s: float) -> None:
        keys = (self._keys.state(state.site), self._keys.beating)
        await self._client.run(HEARTBEAT, keys, (state.site, encode(state), state.token, ttl_s))

    async def alive(self) -> list[SiteState]:
        found = await self._client.run(SITES, (self._keys.beating,), (self._keys.state(""),))
        states = (self._read(name.decode(errors="replace"), payload) for name, payload in found)
        return sorted((state for state in states if state), key=lambda state: state.site)

    def _read(self, name: str, payload: bytes) -> SiteState | None:
        """The site's own heartbeat; what is none is told once."""
        try:
            state = decode_as(SiteState, payload)
            if state.site != name:
                raise DecodeError(f"expected the heartbeat of site {name!a}, got one of {state.site!a}")
        except DecodeError as error:
            if name not in self._unreadable:
                log.warning("site %a is taken for silent: %s", name, error)
            self._unreadable.add(name)
            return None
        self._unreadable.discard(name)
        return state
