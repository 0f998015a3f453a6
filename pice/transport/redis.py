"""The queue on Redis Streams: one stream per shard of a topic, one shard per partition."""

import os
import socket
from collections.abc import Mapping, Sequence
from zlib import crc32

from pice.errors import ConfigError, Full, MessageTooLarge
from pice.redis_client import RedisClient
from pice.transport.base import Subscription
from pice.transport.redis_member import Keys, Member, fields
from pice.transport.redis_scripts import PUBLISH
from pice.transport.redis_subscription import RedisSubscription

_FULL_RETRY_S = 1.0


class RedisTransport:
    """Streams `PREFIX:{NN}:stream:TOPIC`, NN by the key's CRC-32; messages without a key go to shard 0.

    A message is deleted once every group has acknowledged it, so memory holds what is still to do, at most
    `max_messages` in a topic; each shard has an equal part of them. A group begins with the oldest message kept. What
    a consumer holds is handed back when it closes, and taken over when its heartbeat of `alive_s` has lapsed, never
    while it lives. `redis` stays open.
    """

    def __init__(
        self,
        redis: RedisClient,
        *,
        prefix: str = "pice",
        num_shards: int = 16,
        max_messages: int = 65_536,
        max_bytes: int = 1 << 20,
        alive_s: float = 10.0,
        patience_s: float = 60.0,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._num_shards = num_shards
        self._shard_messages = max(1, max_messages // num_shards)
        self._max_bytes = max_bytes
        self._alive_s = alive_s
        self._patience_s = patience_s
        self._subscriptions: set[RedisSubscription] = set()

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        if len(payload) > self._max_bytes:
            raise MessageTooLarge(f"{topic} takes messages of up to {self._max_bytes} bytes, got {len(payload)}")
        (shard,) = self._shards(topic, crc32(key.encode()) % self._num_shards if partition is None else partition)
        keys = Keys(self._prefix, topic)
        names = [keys.of(shard, kind) for kind in ("stream", "asleep", "bell")]
        stored = await self._redis.run(PUBLISH, names, [self._shard_messages, *fields(payload, key, headers or {})])
        if stored is None:
            full = f"shard {shard} of {topic} holds its limit of {self._shard_messages} messages"
            raise Full(full, retry_after_s=_FULL_RETRY_S)

    async def subscribe(
        self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64
    ) -> Subscription:
        number = await self._redis.call("INCR", f"{self._prefix}:consumers")
        consumer = f"{socket.gethostname()}.{os.getpid()}.{number}"
        keys, shards = Keys(self._prefix, topic), self._shards(topic, partition)
        member = Member(self._redis, keys, group, consumer, shards, alive_s=self._alive_s)
        await member.join()
        subscription = RedisSubscription(
            member,
            self._redis.line(),
            prefetch=prefetch,
            patience_s=self._patience_s,
            forget=self._subscriptions.discard,
        )
        self._subscriptions.add(subscription)
        return subscription

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            await subscription.close()

    def _shards(self, topic: str, partition: int | None) -> Sequence[int]:
        if partition is None:
            return range(self._num_shards)
        if not 0 <= partition < self._num_shards:
            raise ConfigError(f"{topic} has partitions 0 to {self._num_shards - 1}, got {partition}")
        return [partition]
