"""Stores on one Redis under a prefix of their own, of which nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

from pice.redis_client import RedisClient, connect_redis
from pice.redis_servers import ClusterServers
from pice.store.redis import RedisStore


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisClient]:
    """A client, closed at the end."""
    client = await connect_redis(url)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def redis_prefix(url: str) -> AsyncIterator[str]:
    """A prefix that nobody else has; its keys are deleted at the end."""
    prefix = f"pice-test-{uuid4().hex}"
    try:
        yield prefix
    finally:
        async with connected(url) as client:
            await delete(client, prefix)


@asynccontextmanager
async def redis_stores(
    url: str, *, max_open: int = 1024, record_ttl_s: float = 600.0, due_lease_s: float = 5.0
) -> AsyncIterator[Callable[[], Awaitable[RedisStore]]]:
    """Makes stores that share all they hold, each with a client of its own."""
    async with AsyncExitStack() as stack:
        prefix = await stack.enter_async_context(redis_prefix(url))

        async def make() -> RedisStore:
            client = await stack.enter_async_context(connected(url))
            store = RedisStore(
                client, prefix=prefix, max_open=max_open, record_ttl_s=record_ttl_s, due_lease_s=due_lease_s
            )
            await store.start()
            stack.push_async_callback(store.close)
            return store

        yield make


async def keys_of(client: RedisClient, pattern: str) -> list[bytes]:
    """The keys that a pattern finds, on whatever node."""
    servers = client._servers
    if isinstance(servers, ClusterServers):
        nodes = [servers._node(address) for address in dict.fromkeys(servers._owners.values())]
        replies = await asyncio.gather(*(node.exchange([("KEYS", pattern)]) for node in nodes))
        return sorted(key for (keys,) in replies for key in keys)
    found: list[bytes] = await client.call("KEYS", pattern)
    return sorted(found)


async def delete(client: RedisClient, prefix: str) -> None:
    """Deletes all keys of a prefix."""
    await client.call_all([("DEL", key) for key in await keys_of(client, f"{prefix}:*")])
