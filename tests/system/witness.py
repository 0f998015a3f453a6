"""Kafka and Redis as others see them: by kcat, redis-cli and Kafka's own protocol, and by nothing of PICE."""

import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.brokers import kafka_address, redis_url
from tools.brokers.errors import NoBrokers
from tools.brokers.program import found

_DEADLINE_S = 30.0
_DELETE = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end"


@dataclass(frozen=True)
class Position:
    """How far a partition was read, by the group that is furthest, and where it ends."""

    committed: int
    end: int


def messages(topic: str) -> list[tuple[int, bytes]]:
    """Partition and payload of all that stands in a topic."""
    out = _said(
        "kcat",
        "kcat",
        "-b",
        kafka_address(),
        "-C",
        "-t",
        topic,
        "-o",
        "beginning",
        "-e",
        "-q",
        "-D",
        "",
        "-f",
        "%p %S\n%s",
    )
    read = []
    while out:
        head, _, out = out.partition(b"\n")
        partition, size = map(int, head.split())
        read.append((partition, out[:size]))
        out = out[size:]
    return read


def redis(*words: str) -> list[str]:
    """The lines of Redis's reply."""
    return _said("redis-cli", "redis-tools", "-u", redis_url(), *words).decode(errors="replace").splitlines()


def delete_keys(pattern: str) -> None:
    redis("EVAL", _DELETE, "0", pattern)


async def positions(prefix: str) -> dict[tuple[str, int], Position]:
    """By topic and partition, of all topics and groups that begin with `prefix`."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_address())
    await consumer.start()
    try:
        async with _admin() as admin:
            committed: dict[TopicPartition, int] = defaultdict(int)
            for group, *_ in await admin.list_consumer_groups():
                if group.startswith(prefix):
                    for partition, left in (await admin.list_consumer_group_offsets(group)).items():
                        committed[partition] = max(committed[partition], left.offset)
            topics = [topic for topic in await admin.list_topics() if topic.startswith(prefix)]
            described = await admin.describe_topics(topics) if topics else []
        known = [TopicPartition(it["topic"], part["partition"]) for it in described for part in it["partitions"]]
        ends = await consumer.end_offsets(known)
        return {(it.topic, it.partition): Position(committed[it], end) for it, end in ends.items()}
    finally:
        await consumer.stop()


async def publish(topic: str, partition: int, payloads: Iterable[bytes]) -> None:
    """Writes messages as anyone could who is let in."""
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(bootstrap_servers=kafka_address())
    await producer.start()
    try:
        for payload in payloads:
            await producer.send_and_wait(topic, payload, partition=partition)
    finally:
        await producer.stop()


async def delete_topics(prefix: str) -> None:
    """All whose names begin with `prefix`."""
    async with _admin() as admin:
        if topics := [topic for topic in await admin.list_topics() if topic.startswith(prefix)]:
            await admin.delete_topics(topics)


@asynccontextmanager
async def _admin() -> AsyncIterator[Any]:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_address())
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


def _said(program: str, package: str, *words: str) -> bytes:
    try:
        command = [found(program, package), *words]
    except NoBrokers as error:
        pytest.skip(str(error))
    return subprocess.run(command, check=True, capture_output=True, timeout=_DEADLINE_S).stdout
