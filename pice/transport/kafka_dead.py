"""What was put aside to `pice.dead`: listed, read and published again (P6)."""

import re
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from pice.errors import ConfigError, InputError, TransportError
from pice.kafka_client import KafkaClient, KafkaOptions, TopicPartition, stop_consumer
from pice.transport.base import DEAD, Transport
from pice.transport.kafka_metadata import find_topics

_PATIENCE_MS = 15_000
_AT_ONCE = 500
_REPLAYED = "replayed"
"""Header of a message that only says that another was replayed: its ID."""
_ADDED = ("reason", "topic", "partition", "position", "cut")
"""Headers of whoever put it aside; the others it had before."""


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """One message, with where it came from and why it is here. `dead_id` is its partition and offset in `pice.dead`;
    `cut` says that only the head of its payload is kept."""

    dead_id: str
    reason: str
    topic: str
    partition: int
    position: int
    key: str
    headers: Mapping[str, bytes]
    payload: bytes
    num_bytes: int
    stored_s: float
    cut: bool = False
    replayed: bool = False


class KafkaDead:
    """Reads without a group, so that looking changes nothing. Each call connects for itself.

    Every call raises `TransportError` where Kafka is away, and `ConfigError` where it refuses this user.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self._kafka = KafkaClient(options)
        self._topic = options.prefix + DEAD

    async def newest(self, num: int, *, topic: str | None = None) -> list[DeadMessage]:
        """The last messages, oldest first, without their payload; with `topic` only those that came from there. Reads
        all that is kept."""
        kept: deque[DeadMessage] = deque(maxlen=num)
        replayed = set()
        async with self._reading() as consumer:
            for partition in await self._partitions():
                async for record in self._records(consumer, partition, 0):
                    if name := _marked(record):
                        replayed.add(name)
                    elif (message := _message(record)) and topic in (None, message.topic):
                        kept.append(replace(message, payload=b""))
        return [replace(message, replayed=message.dead_id in replayed) for message in kept]

    async def read(self, dead_id: str) -> DeadMessage:
        """The message with this ID.

        Raises:
            InputError: there is none, or not any more.
        """
        partition, offset = _parsed(dead_id)
        found, replayed = None, False
        async with self._reading() as consumer:
            if partition in await self._partitions():
                async for record in self._records(consumer, partition, offset):
                    if record.offset == offset and not _marked(record):
                        found = _message(record)
                    replayed = replayed or _marked(record) == dead_id
        if found is None:
            raise InputError(f"{self._topic} has no message {dead_id}, or no more: see `pice dead list`")
        return replace(found, replayed=replayed)

    async def replay(self, dead_id: str, transport: Transport, known: Collection[str]) -> DeadMessage:
        """Publishes the message again, as it was, to the partition it came from, and notes that. `transport` reaches
        the topics in `known`.

        Raises:
            InputError: there is no such message, it was replayed before, is not whole, or came from no such topic.
        """
        message = await self.read(dead_id)
        if message.replayed:
            raise InputError(f"{dead_id} was replayed already: if it failed again, it stands under another ID")
        if message.cut:
            raise InputError(f"{dead_id} was too large to be kept: only its head is left, which cannot be replayed")
        if message.topic not in known:
            raise InputError(f"{dead_id} came from {message.topic!r}, and only {', '.join(sorted(known))} are known")
        await transport.publish(
            message.topic, message.payload, key=message.key, partition=message.partition, headers=message.headers
        )
        await transport.publish(DEAD, b"", partition=_parsed(dead_id)[0], headers={_REPLAYED: dead_id.encode()})
        return message

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Any]:
        consumer = await self._kafka.consumer(None)
        try:
            with self._kafka.mapped(f"{self._topic} cannot be read"):
                yield consumer
        finally:
            await stop_consumer(consumer)

    async def _partitions(self) -> range:
        async with self._kafka.admin() as admin:
            found = await find_topics(admin, [self._topic])
        if not found:
            raise ConfigError(f"{self._topic}: the topic does not exist: run `pice topics create`")
        return range(found[self._topic].num_partitions)

    async def _records(self, consumer: Any, partition: int, first: int) -> AsyncIterator[Any]:
        """The records from `first` on that are there now."""
        place = TopicPartition(self._topic, partition)
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        consumer.seek(place, max(first, (await consumer.beginning_offsets([place]))[place]))
        while await consumer.position(place) < end:
            fetched = await consumer.getmany(place, timeout_ms=_PATIENCE_MS, max_records=_AT_ONCE)
            if not fetched:
                raise TransportError(f"{self._topic}: nothing came for {_PATIENCE_MS / 1000:g} s")
            for record in fetched[place]:
                yield record


def _parsed(dead_id: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d{1,9}:\d{1,18}", dead_id, re.ASCII):
        raise InputError(f"expected an ID like 0:17, as `pice dead list` shows them, got {dead_id!r}")
    partition, offset = dead_id.split(":")
    return int(partition), int(offset)


def _marked(record: Any) -> str:
    """The ID that this record says was replayed, if it is of that kind."""
    return (dict(record.headers).get(_REPLAYED) or b"").decode(errors="replace")


def _message(record: Any) -> DeadMessage:
    headers = {name: value or b"" for name, value in record.headers}
    words = {name: headers.pop(name, b"").decode(errors="replace") for name in _ADDED}
    return DeadMessage(
        f"{record.partition}:{record.offset}",
        words["reason"],
        words["topic"],
        _number(words["partition"]),
        _number(words["position"]),
        record.key.decode(errors="replace") if record.key else "",
        headers,
        record.value or b"",
        len(record.value or b""),
        record.timestamp / 1000,
        bool(words["cut"]),
    )


def _number(word: str) -> int:
    """0 where somebody wrote something else."""
    return int(word) if re.fullmatch(r"\d{1,18}", word, re.ASCII) else 0
