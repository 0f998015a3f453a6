"""Stores on one Redis under a prefix of their own, of which nothing is left behind."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

from pice.redis_client import RedisClient, connect_redis
from pice.store.redis import RedisStore


@asynccontextmanager
async def redis_stores(
    url: str, *, max_open: int = 1024, record_ttl_s: float = 600.0, due_lease_s: float = 5.0
) -> AsyncIterator[Callable[[], Awaitable[RedisStore]]]:
    """Makes stores that share all they hold."""
    prefix = f"pice-test-{uuid4().hex}"
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_clean, url, prefix)

        async def make() -> RedisStore:
            store = await RedisStore.connect(
                url, prefix=prefix, max_open=max_open, record_ttl_s=record_ttl_s, due_lease_s=due_lease_s
            )
            stack.push_async_callback(store.close)
            return store

        yield make


async def keys_of(client: RedisClient, pattern: str) -> list[bytes]:
    """The keys that a pattern finds."""
    found: list[bytes] = await client.call("KEYS", pattern)
    return sorted(found)


async def _clean(url: str, prefix: str) -> None:
    client = await connect_redis(url)
    try:
        if keys := await keys_of(client, f"{prefix}:*"):
            await client.call("DEL", *keys)
    finally:
        await client.close()
