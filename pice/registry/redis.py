"""The registry in Redis: a hash for each site, one for each pool, and a set of all names."""

from typing import Any

from pice.errors import ConfigError, InputError
from pice.redis_client import RedisClient, Script
from pice.redis_lines import Word
from pice.registry.base import Hold, RegisteredSite, in_another_pool, is_held
from pice.registry.redis_scripts import ACQUIRE, DRAIN, REGISTER, RELEASE, REMOVE, RENEW, SITES


class RedisRegistry:
    """See `pice.registry.base.Registry`. Leases are timed by Redis's own clock; they outlast its restart if it keeps
    what it has confirmed. All keys begin with `PREFIX:{sites}`; `client` stays open."""

    def __init__(self, client: RedisClient, prefix: str = "pice") -> None:
        self._client = client
        self._tag = f"{prefix}:{{sites}}"
        self._names = f"{self._tag}:names"

    async def register(self, name: str, pool: str) -> int:
        keys = (self._site(name), self._pool(pool), self._names)
        known, partition = await self._client.run(REGISTER, keys, (name, pool))
        if (known_pool := known.decode(errors="replace")) != pool:
            raise ConfigError(in_another_pool(name, known_pool, pool))
        return int(partition)

    async def acquire(self, name: str, holder: str, *, lease_s: float) -> int | None:
        token = await self._run(ACQUIRE, name, holder, lease_s)
        return int(token) if token else None

    async def renew(self, name: str, token: int, *, lease_s: float) -> Hold:
        hold: bytes = await self._run(RENEW, name, token, lease_s)
        return "lost" if hold == b"lost" else "draining" if hold == b"draining" else "held"

    async def release(self, name: str, token: int) -> None:
        await self._run(RELEASE, name, token)

    async def drain(self, name: str, *, draining: bool) -> bool:
        return bool(await self._run(DRAIN, name, int(draining)))

    async def remove(self, name: str) -> bool:
        removed, holder = await self._client.run(REMOVE, (self._site(name), self._names), (name, self._pool("")))
        if holder:
            raise InputError(is_held(name, holder.decode(errors="replace")))
        return bool(removed)

    async def sites(self) -> list[RegisteredSite]:
        found = await self._client.run(SITES, (self._names,), (self._site(""),))
        return sorted((_shown(*site) for site in found), key=lambda site: site.name)

    async def _run(self, script: Script, name: str, *words: Word) -> Any:
        return await self._client.run(script, (self._site(name),), words)

    def _site(self, name: str) -> str:
        """Hash of a site: pool, partition, draining, holder, until, lease, token."""
        return f"{self._tag}:site:{name}"

    def _pool(self, pool: str) -> str:
        """Hash of a pool: the site of each partition."""
        return f"{self._tag}:pool:{pool}"


def _shown(
    name: bytes, pool: bytes, partition: bytes, draining: bytes | None, holder: bytes, token: bytes, left: bytes
) -> RegisteredSite:
    words = [word.decode(errors="replace") for word in (name, pool, holder)]
    return RegisteredSite(words[0], words[1], int(partition), draining == b"1", words[2], int(token), float(left))
