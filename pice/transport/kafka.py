"""The queue on Apache Kafka: an idempotent producer, consumers that commit what is finished.

A message without key or partition goes to partition 0. Kafka bounds a topic by its retention; how much may be open at
once is the store's to say, so nothing here raises `Full`.
"""

from collections.abc import Mapping

from pice.errors import MessageTooLarge
from pice.kafka_client import KafkaClient, KafkaOptions
from pice.transport.base import Subscription
from pice.transport.kafka_logs import hush
from pice.transport.kafka_producer import KafkaProducer
from pice.transport.kafka_subscription import KafkaSubscription


class KafkaTransport:
    """See `pice.transport.base.Transport`. `start` before use; topics are there already, with their partitions.

    A reader of topic T is in Kafka's group `T.GROUP`, and one of partition P alone in `T.GROUP.P`, which it reads by
    assignment, so that no rebalance ever moves it. So rights may be given by the beginning of a group's name.

    Raises:
        ConfigError: a file of a certificate cannot be used; and by any call: Kafka refuses this user.
    """

    def __init__(self, options: KafkaOptions) -> None:
        hush()
        self._kafka = KafkaClient(options)
        self._prefix = options.prefix
        self._max_bytes = options.max_bytes
        self._producer = KafkaProducer(self._kafka)
        self._subscriptions: set[KafkaSubscription] = set()

    async def start(self) -> None:
        """Connects; may be called again where it failed.

        Raises:
            ConfigError: Kafka refuses us or is too old; says what to change.
            TransportError: no broker answers.
        """
        await self._producer.start()

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
        await self._producer.send(
            self._prefix + topic,
            payload,
            key=key.encode(errors="replace") if key else None,
            partition=0 if partition is None and not key else partition,
            headers=headers or {},
        )

    async def subscribe(
        self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64
    ) -> Subscription:
        subscription = KafkaSubscription(
            self._kafka, topic, group, partition=partition, prefetch=prefetch, forget=self._subscriptions.discard
        )
        await subscription.start()
        self._subscriptions.add(subscription)
        return subscription

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            await subscription.close()
        await self._producer.stop()
