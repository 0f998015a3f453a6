"""The registry of a single process: the reference for every other."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pice.errors import ConfigError, InputError
from pice.registry.base import Hold, RegisteredSite, in_another_pool, is_held


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


@dataclass(slots=True)
class _Site:
    pool: str
    partition: int
    draining: bool = False
    holder: str = ""
    until_s: float = 0.0


class MemoryRegistry:
    """See `pice.registry.base.Registry`. `now` is its clock, the running loop's if none is given."""

    def __init__(self, now: Callable[[], float] = _loop_time) -> None:
        self._now = now
        self._sites: dict[str, _Site] = {}
        self._tokens: dict[str, int] = {}

    async def register(self, name: str, pool: str) -> int:
        if (site := self._sites.get(name)) is None:
            taken = {other.partition for other in self._sites.values() if other.pool == pool}
            site = self._sites[name] = _Site(pool, min(set(range(len(taken) + 1)) - taken))
        if site.pool != pool:
            raise ConfigError(in_another_pool(name, site.pool, pool))
        return site.partition

    async def acquire(self, name: str, holder: str, *, lease_s: float) -> int | None:
        site = self._sites.get(name)
        if site is None or (self._is_held(site) and site.holder != holder):
            return None
        site.holder, site.until_s = holder, self._now() + lease_s
        self._tokens[name] = self._tokens.get(name, 0) + 1
        return self._tokens[name]

    async def renew(self, name: str, token: int, *, lease_s: float) -> Hold:
        if (site := self._held_with(name, token)) is None:
            return "lost"
        site.until_s = self._now() + lease_s
        return "draining" if site.draining else "held"

    async def release(self, name: str, token: int) -> None:
        if site := self._held_with(name, token):
            site.holder = ""

    async def drain(self, name: str, *, draining: bool) -> bool:
        if site := self._sites.get(name):
            site.draining = draining
        return site is not None

    async def remove(self, name: str) -> bool:
        site = self._sites.get(name)
        if site and self._is_held(site):
            raise InputError(is_held(name, site.holder))
        return self._sites.pop(name, None) is not None

    async def sites(self) -> list[RegisteredSite]:
        return [self._shown(name, site) for name, site in sorted(self._sites.items())]

    def _is_held(self, site: _Site) -> bool:
        return bool(site.holder) and site.until_s > self._now()

    def _held_with(self, name: str, token: int) -> _Site | None:
        """The site, if `token` is the latest and was not given back."""
        site = self._sites.get(name)
        return site if site and site.holder and self._tokens[name] == token else None

    def _shown(self, name: str, site: _Site) -> RegisteredSite:
        holder = site.holder if self._is_held(site) else ""
        left_s = site.until_s - self._now() if holder else 0.0
        return RegisteredSite(name, site.pool, site.partition, site.draining, holder, self._tokens.get(name, 0), left_s)
