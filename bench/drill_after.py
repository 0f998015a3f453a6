"""What is left on the brokers when all is over, seen by their own protocols."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from pice.redis_client import RedisClient
from pice.transport.base import CANDIDATES, DEAD

_READ_WITHIN_S = 30.0


async def lag(address: str) -> dict[str, int]:
    """Messages that are not finished, by group, topic and partition, those without any left out. A partition that no
    group has read counts wholly; nobody reads `pice.dead`."""
    async with _kafka(address) as (admin, consumer):
        committed: dict[TopicPartition, tuple[str, int]] = {}
        for group, *_ in await admin.list_consumer_groups():
            for partition, left in (await admin.list_consumer_group_offsets(group)).items():
                committed[partition] = max(committed.get(partition, ("", 0)), (group, left.offset), key=_offset)
        ends = await _ends(admin, consumer)
    left_over = {at: (committed.get(at, ("nobody", 0)), end) for at, end in ends.items() if at.topic != DEAD}
    return {
        f"{group} {at.topic}/{at.partition}": end - offset
        for at, ((group, offset), end) in left_over.items()
        if end > offset
    }


def _offset(known: tuple[str, int]) -> int:
    return known[1]


async def until_no_lag(address: str, within_s: float) -> dict[str, int]:
    """The lag once there is none, or what it is then."""
    until_s = asyncio.get_running_loop().time() + within_s
    while True:
        found = await lag(address)
        if not found or asyncio.get_running_loop().time() > until_s:
            return found
        await asyncio.sleep(0.5)


async def dead_keys(address: str) -> list[str]:
    """The key of every message on `pice.dead`."""
    keys: list[str] = []
    async with _kafka(address) as (admin, consumer), asyncio.timeout(_READ_WITHIN_S):
        ends = {at: end for at, end in (await _ends(admin, consumer)).items() if at.topic == DEAD}
        consumer.assign(list(ends))
        await consumer.seek_to_beginning()
        while any([await consumer.position(at) < end for at, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                keys += [(record.key or b"").decode(errors="replace") for record in records]
    return keys


async def request_keys(redis: RedisClient, prefix: str) -> list[str]:
    """The keys of Redis that belong to single requests, and sets that still name some."""
    found: list[str] = []
    for kind in ("record", "events"):
        found += await _scan(redis, f"{prefix}:*:{kind}:*")
    for name in [*await _scan(redis, f"{prefix}:*:due"), f"{prefix}:open"]:
        if num := await redis.call("ZCARD", name):
            found.append(f"{name} names {num}")
    return sorted(found)


async def num_waiting(redis: RedisClient, prefix: str) -> int:
    """Candidates that no collector has finished."""
    streams = await _scan(redis, f"{prefix}:*:stream:{CANDIDATES}")
    return sum([int(await redis.call("XLEN", name)) for name in streams])


async def _scan(redis: RedisClient, pattern: str) -> list[str]:
    found, cursor = set[str](), b""
    while cursor != b"0":
        cursor, names = await redis.call("SCAN", cursor or 0, "MATCH", pattern, "COUNT", 1000)
        found |= {name.decode() for name in names}
    return sorted(found)


@asynccontextmanager
async def _kafka(address: str) -> AsyncIterator[tuple[Any, Any]]:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    consumer = AIOKafkaConsumer(bootstrap_servers=address, max_partition_fetch_bytes=16 << 20)
    try:
        await admin.start()
        await consumer.start()
        yield admin, consumer
    finally:
        await consumer.stop()
        await admin.close()


async def _ends(admin: Any, consumer: Any) -> dict[TopicPartition, int]:
    topics = [topic for topic in await admin.list_topics() if not topic.startswith("__")]
    described = await admin.describe_topics(topics)
    known = [TopicPartition(it["topic"], part["partition"]) for it in described for part in it["partitions"]]
    ends: dict[TopicPartition, int] = await consumer.end_offsets(known)
    return ends
