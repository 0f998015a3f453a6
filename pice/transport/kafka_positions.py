"""Where a group stands in a topic."""

import asyncio
from collections.abc import Sequence

from pice.errors import ConfigError, TransportError
from pice.kafka_client import KafkaClient, TopicPartition
from pice.transport.kafka_ledger import Ledger, read_ledger
from pice.transport.kafka_metadata import find_topics

_NUM_LOOKS, _LOOK_EVERY_S = 10, 0.1


async def check_partition(kafka: KafkaClient, topic: str, partition: int) -> None:
    """Returns if the partition is there; what was made a moment ago may not be known to every broker yet.

    Raises:
        ConfigError: the topic or its partition is not there, or this user may not know.
        TransportError: Kafka is away.
    """
    async with kafka.admin() as admin:
        for _ in range(_NUM_LOOKS):
            with kafka.mapped(f"{topic} cannot be read"):
                known = (await find_topics(admin, [topic])).get(topic)
            if known is not None and partition < known.num_partitions:
                return
            await asyncio.sleep(_LOOK_EVERY_S)
    what = "the topic" if known is None else f"its partition {partition}"
    raise ConfigError(f"{topic}: {what} does not exist: run `pice topics create`")


async def read_ledgers(kafka: KafkaClient, topic: str, group: str, partitions: Sequence[int]) -> dict[int, Ledger]:
    """What the group has left of each partition.

    Raises:
        ConfigError: this user has no right to the group.
        TransportError: it cannot be learnt now.
    """
    if not partitions:
        return {}
    wanted = [TopicPartition(topic, partition) for partition in partitions]
    async with kafka.admin() as admin:
        with kafka.mapped(f"group {group} cannot be read"):
            known = await admin.list_consumer_group_offsets(group, partitions=wanted)
    for each in wanted:
        if each not in known:  # Kafka says nothing while it still reads its own books
            raise TransportError(f"group {group}: its position in partition {each.partition} is not known")
    return {it.partition: read_ledger(max(0, known[it].offset), known[it].metadata or "") for it in wanted}
