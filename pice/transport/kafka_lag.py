"""How far the groups of a Kafka have come."""

from collections.abc import Mapping
from typing import Any

from pice.kafka_client import KafkaClient, TopicPartition, stop_consumer


async def lags(kafka: KafkaClient, num_partitions: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """For each topic, and each group that this user may see and that begins with its name: how many messages come
    after what the group has committed. Partitions of which it has committed nothing do not count.

    Raises:
        ConfigError, TransportError: as `KafkaClient.check`.
    """
    tops = await _tops(kafka, num_partitions)
    behind: dict[str, dict[str, int]] = {topic: {} for topic in num_partitions}
    async with kafka.admin() as admin:
        with kafka.mapped("groups cannot be looked at"):
            for group, _ in sorted(await admin.list_consumer_groups()):
                topic = _topic_of(group, num_partitions)
                if topic is not None:
                    known = await admin.list_consumer_group_offsets(group)
                    behind[topic][group] = sum(
                        top - known[each].offset for each, top in tops.items() if each.topic == topic and each in known
                    )
    return behind


def _topic_of(group: str, topics: Mapping[str, int]) -> str | None:
    """The longest name that the group's begins with."""
    return max((topic for topic in topics if group.startswith(f"{topic}.")), key=len, default=None)


async def _tops(kafka: KafkaClient, num_partitions: Mapping[str, int]) -> dict[Any, int]:
    """The position of the next message in each partition."""
    partitions = [TopicPartition(topic, number) for topic, num in num_partitions.items() for number in range(num)]
    consumer = await kafka.consumer(None)
    try:
        with kafka.mapped("topics cannot be looked at"):
            tops: dict[Any, int] = await consumer.end_offsets(partitions) if partitions else {}
            return tops
    finally:
        await stop_consumer(consumer)
