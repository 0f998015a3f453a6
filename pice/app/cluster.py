"""Settings -> a deployment's brokers, connected; and a pipeline whose nodes run elsewhere."""

import math
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from pice.app.nodes import Ports, new_planner
from pice.app.patience import Patience, patient
from pice.app.topics import brokers_of, check_topic
from pice.config import read_secret
from pice.core import Plan, Request
from pice.kafka_client import KafkaOptions
from pice.node.client import Client
from pice.node.sites import SiteNews
from pice.pipeline import Pipeline
from pice.redis_client import RedisClient, connect_redis
from pice.registry.base import Registry
from pice.registry.redis import RedisRegistry
from pice.settings import KafkaSettings, RedisSettings, Settings
from pice.store.redis import RedisStore
from pice.transport.base import CANDIDATES, REQUESTS
from pice.transport.kafka import KafkaTransport
from pice.transport.kafka_topics import KafkaTopics
from pice.transport.redis import RedisTransport
from pice.transport.routed import RoutedTransport

T = TypeVar("T")

_NEWS_AGE_S = 1.0


@dataclass(frozen=True, slots=True)
class ClusterPorts(Ports):
    """The brokers of a deployment. `redis` is the connection that store, registry and candidates share."""

    registry: Registry
    topics: KafkaTopics
    redis: RedisClient


@asynccontextmanager
async def open_ports(settings: Settings, patience: Patience | None = None) -> AsyncIterator[ClusterPorts]:
    """Connected to Kafka and Redis. With `patience`, as services have, what is away is waited for, at the start and
    later.

    Raises:
        ConfigError: the settings name none, or a broker refuses us; says what to change.
        TransportError: one does not answer, where nothing waits for it.
    """
    kafka, redis = brokers_of(settings)
    limits = settings.limits
    async with AsyncExitStack() as stack:

        async def reached(name: str, connect: Callable[[], Awaitable[T]]) -> T:
            return await (patience.insist(connect, name) if patience else connect())

        client = await reached(
            "redis", lambda: connect_redis(redis.url, password=redis_password(redis), ca_file=redis.ca_file)
        )
        stack.push_async_callback(client.close)
        store = RedisStore(
            client, prefix=redis.prefix, max_open=limits.max_open_requests, record_ttl_s=limits.record_ttl_s
        )
        stack.push_async_callback(store.close)
        await reached("redis", store.start)
        options = kafka_options(kafka, limits.max_message_bytes)
        queue = KafkaTransport(options)
        stack.push_async_callback(queue.close)
        await reached("kafka", queue.start)
        candidates = RedisTransport(
            client,
            prefix=redis.prefix,
            max_messages=redis.max_candidates,
            max_bytes=limits.max_message_bytes,
            patience_s=math.inf if patience else 60.0,
        )
        stack.push_async_callback(candidates.close)
        topics, registry = KafkaTopics(options), RedisRegistry(client, redis.prefix)
        if patience is None:
            yield ClusterPorts(RoutedTransport({CANDIDATES: candidates}, queue), store, registry, topics, client)
            return
        routed = RoutedTransport(
            {CANDIDATES: patient(candidates, "candidates", patience)}, patient(queue, "kafka", patience)
        )
        yield ClusterPorts(routed, patient(store, "redis", patience), registry, topics, client)


@asynccontextmanager
async def in_cluster(settings: Settings) -> AsyncIterator[Pipeline]:
    """A pipeline that asks the services of a deployment. On leaving, what it asked and is not answered is cancelled.

    Raises:
        ConfigError, TransportError: as `open_ports`.
    """
    rng = random.Random(int.from_bytes(os.urandom(16)))
    async with open_ports(settings) as ports:
        await check_topic(settings, ports.topics, REQUESTS)
        planner = new_planner(settings)
        news = SiteNews(ports.store, planner, max_age_s=_NEWS_AGE_S)

        async def plan(request: Request) -> Plan:
            """As a cloud node would; the tokens of the prompt are estimated at four bytes each."""
            await news.refresh()
            return planner.decide(request, sum(len(message.content.encode()) for message in request.messages) // 4)

        client = Client(ports.transport, ports.store)
        try:
            yield Pipeline(settings, client, plan, rng)
        finally:
            await client.close()


def kafka_options(kafka: KafkaSettings, max_bytes: int) -> KafkaOptions:
    """How to reach Kafka; reads the password from its file.

    Raises:
        ConfigError: that cannot be read.
    """
    return KafkaOptions(
        bootstrap_servers=kafka.bootstrap_servers,
        security_protocol=kafka.security_protocol,
        ca_file=kafka.ca_file,
        cert_file=kafka.cert_file,
        cert_key_file=kafka.cert_key_file,
        sasl_mechanism=kafka.sasl_mechanism,
        username=kafka.username,
        password=read_secret(kafka.password, kafka.password_file, "kafka.password_file"),
        prefix=kafka.prefix,
        max_bytes=max_bytes,
    )


def redis_password(redis: RedisSettings) -> str:
    return read_secret(redis.password, redis.password_file, "redis.password_file")
