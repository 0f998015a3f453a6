"""A transport on a real Kafka, with a topic of its own."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.brokers import kafka_address

if TYPE_CHECKING:
    from pice.kafka_client import KafkaOptions
    from pice.transport.kafka import KafkaTransport

TOPIC = "pice.test"
NUM_PARTITIONS = 2
_numbers = count()


def kafka_options(address: str = "", *, max_bytes: int = 1 << 20) -> "KafkaOptions":
    """Of the broker that tests share, or the one at `address`, with a prefix that nothing else has."""
    pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")
    from pice.kafka_client import KafkaOptions

    prefix = f"t{os.getpid()}-{next(_numbers)}."
    return KafkaOptions(address or kafka_address(), prefix=prefix, max_bytes=max_bytes)


@asynccontextmanager
async def topics_deleted(options: "KafkaOptions") -> AsyncIterator[None]:
    """At the end no topic is left whose name begins with the prefix."""
    from pice.kafka_client import KafkaClient

    try:
        yield
    finally:
        async with KafkaClient(options).admin() as admin:
            await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(options.prefix)])


@asynccontextmanager
async def kafka_transport(*, max_bytes: int = 1 << 20) -> AsyncIterator["KafkaTransport"]:
    """Closed at the end, and its topic deleted."""
    options = kafka_options(max_bytes=max_bytes)
    async with topics_deleted(options), connected(options) as transport:
        yield transport


@asynccontextmanager
async def connected(options: "KafkaOptions") -> AsyncIterator["KafkaTransport"]:
    """With the topic of tests, made where it is missing; closed at the end."""
    from pice.transport.kafka import KafkaTransport
    from pice.transport.kafka_topics import KafkaTopics, TopicSpec

    await KafkaTopics(options).create([TopicSpec(TOPIC, NUM_PARTITIONS, 3600.0)])
    transport = KafkaTransport(options)
    await transport.start()
    try:
        yield transport
    finally:
        await transport.close()
