"""Transports on one Redis under a prefix of their own, of which nothing is left behind."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import pytest

from pice.transport.base import Transport


@asynccontextmanager
async def redis_transport(url: str, *, max_messages: int, max_bytes: int) -> AsyncIterator[Transport]:
    """Holds up to `max_messages` in each of its 16 shards. Closed at the end, and its keys deleted."""
    pytest.importorskip("redis", reason="redis is not installed: pip install 'pice[cluster]'")
    from pice.redis_client import connect_redis
    from pice.transport.redis import RedisTransport
    from tests.contract.redis_stores import delete

    prefix = f"pice-test-{uuid4().hex}"
    async with AsyncExitStack() as stack:
        client = await connect_redis(url)
        stack.push_async_callback(client.close)
        transport = RedisTransport(client, prefix=prefix, max_messages=16 * max_messages, max_bytes=max_bytes)
        try:
            yield transport
        finally:
            await transport.close()
            await delete(client, prefix)
