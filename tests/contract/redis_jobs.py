"""Job stores on one Redis under a prefix of their own, of which nothing is left behind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from pice.jobs.redis import RedisJobs
from pice.redis_client import RedisClient, connect_redis
from tests.contract.redis_stores import delete


@asynccontextmanager
async def redis_jobs(url: str) -> AsyncIterator[tuple[RedisClient, str]]:
    """A client and a prefix, for any number of `RedisJobs`."""
    prefix = f"pice-test-{uuid4().hex}"
    client = await connect_redis(url)
    try:
        yield client, prefix
        await delete(client, prefix)
    finally:
        await client.close()


def jobs_of(client: RedisClient, prefix: str, keep_s: float = 60.0) -> RedisJobs:
    return RedisJobs(client, prefix=prefix, keep_s=keep_s)
