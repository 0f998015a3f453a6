"""Messages to Kafka, by one idempotent producer that is made anew when it is of no more use."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pice.errors import TransportError
from pice.kafka_client import KafkaClient, is_out_of_step, stop_producer

_SEND_S = 10.0
_NUM_LOOKS = 2
"""The first may join a look that began before the partition was made."""


class KafkaProducer:
    """`start` before use; again where that failed. Safe to call from any task of one event loop.

    Kafka counts the messages of a producer, and refuses all that follow one it could not take or has forgotten; and a
    producer that cannot send keeps its messages for ever, for Kafka to get when they were given up long ago. In both
    cases it is replaced, once what it still holds has been sent or has failed.
    """

    def __init__(self, kafka: KafkaClient) -> None:
        self._kafka = kafka
        self._producer: Any = None
        self._useless: Any = None
        self._why = "Kafka cannot be reached"
        self._closed = False
        self._renewing = asyncio.Lock()

    async def start(self) -> None:
        """Connects.

        Raises:
            ConfigError, TransportError: as `KafkaClient.check`.
        """
        self._producer = await self._kafka.producer()

    async def send(
        self, topic: str, payload: bytes, *, key: bytes | None, partition: int | None, headers: Mapping[str, bytes]
    ) -> None:
        """Returns once all copies in step have it; what was not taken within 10 s has failed. Cancelling may leave it
        to be sent.

        Raises:
            ConfigError: this user may not write there.
            MessageTooLarge: the broker takes none so large.
            TransportError: it may not be stored, or there is no such topic or partition.
        """
        producer = await self._useful()
        with self._kafka.mapped(f"{topic} could not take a message"):
            try:
                async with asyncio.timeout(_SEND_S):
                    if partition is not None:
                        await self._find(producer, topic, partition)
                    await producer.send_and_wait(topic, payload, key, partition, headers=list(headers.items()))
            except Exception as error:
                if isinstance(error, TimeoutError) or is_out_of_step(producer, error):
                    self._useless = producer
                raise

    async def stop(self) -> None:
        """Sends what it holds, in bounded time. May be called twice."""
        self._closed = True
        if self._producer is not None:
            await stop_producer(self._producer)

    async def _useful(self) -> Any:
        """Who waited for another's attempt to replace the producer, and in vain, does not try once more."""
        has_waited = self._renewing.locked()
        async with self._renewing:
            if self._closed:
                raise TransportError("the connection to Kafka is closed")
            if self._producer is self._useless:
                if has_waited:
                    raise TransportError(self._why)
                await self._renew()
            return self._producer

    async def _renew(self) -> None:
        await stop_producer(self._producer)
        try:
            self._producer = await self._kafka.producer()
        except TransportError as error:
            self._why = str(error)
            raise

    async def _find(self, producer: Any, topic: str, partition: int) -> None:
        """Looks for a partition that was added since this producer last looked."""
        known = await producer.partitions_for(topic)
        for _ in range(_NUM_LOOKS):
            if partition in known:
                return
            await producer.client.force_metadata_update()
            known = await producer.partitions_for(topic)
        if partition not in known:
            raise TransportError(f"{topic} has no partition {partition}, only {len(known)}: run `pice topics create`")
