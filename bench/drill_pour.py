"""Puts junk on the brokers, past whatever keeps our own nodes from sending it."""

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer

from bench.drill_junk import Junk
from pice.app.cluster import ClusterPorts
from pice.settings import Settings
from pice.transport.base import CANDIDATES
from pice.transport.redis import RedisTransport

_MOST_BYTES = 64 << 20


async def pour(ports: ClusterPorts, settings: Settings, kafka: str, junk: Sequence[Junk]) -> None:
    """Sends all of it at once, and returns when it is stored."""
    large = [one for one in junk if one.is_large]
    await asyncio.gather(*(_send(ports, one) for one in junk if not one.is_large))
    await _pour_large(ports, settings, kafka, large)


async def _send(ports: ClusterPorts, one: Junk) -> None:
    place = one.place
    await ports.transport.publish(place.topic, one.payload, key=one.key, partition=place.partition, headers=one.headers)


async def _pour_large(ports: ClusterPorts, settings: Settings, kafka: str, junk: Sequence[Junk]) -> None:
    """What a broker takes, since its bound is of the compressed size, and what is no more than a stream's entry."""
    assert settings.redis is not None
    streams = RedisTransport(ports.redis, prefix=settings.redis.prefix, max_bytes=_MOST_BYTES)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, compression_type="gzip", max_request_size=_MOST_BYTES)
    await producer.start()
    try:
        for one in junk:
            if one.place.topic == CANDIDATES:
                await streams.publish(CANDIDATES, one.payload, key=one.key, headers=one.headers)
            else:
                await producer.send_and_wait(
                    one.place.topic,
                    one.payload,
                    key=one.key.encode(),
                    partition=one.place.partition,
                    headers=list(one.headers.items()),
                )
    finally:
        await producer.stop()
