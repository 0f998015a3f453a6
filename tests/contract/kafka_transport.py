"""A transport on a real Kafka, with a topic of its own."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import pytest

from pice.transport.base import Transport
from tests.brokers import kafka_address

TOPIC = "pice.test"
NUM_PARTITIONS = 2
_numbers = count()


@asynccontextmanager
async def kafka_transport(*, max_bytes: int = 1 << 20) -> AsyncIterator[Transport]:
    """Closed at the end, and its topic deleted."""
    pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    from pice.transport.kafka import KafkaTransport

    options = {"bootstrap_servers": kafka_address()}
    prefix = f"t{os.getpid()}-{next(_numbers)}."
    admin = AIOKafkaAdminClient(**options)
    await admin.start()
    await admin.create_topics([NewTopic(prefix + TOPIC, NUM_PARTITIONS, 1)])
    async with asyncio.timeout(10):
        while (await admin.describe_topics([prefix + TOPIC]))[0]["error_code"]:
            continue  # it is made, and not known everywhere yet
    transport = KafkaTransport(options, prefix=prefix, max_bytes=max_bytes)
    await transport.start()
    try:
        yield transport
    finally:
        await transport.close()
        await admin.delete_topics([prefix + TOPIC])
        await admin.close()
