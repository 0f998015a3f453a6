"""Settings -> what an operator does to the queue: topics made and looked at, dead messages listed and replayed."""

from typing import TYPE_CHECKING

from pice.app.packages import cluster_packages
from pice.app.topics import brokers_of, topic_specs
from pice.settings import Settings
from pice.transport.base import CANDIDATES, DEAD

if TYPE_CHECKING:
    from pice.kafka_client import KafkaOptions
    from pice.transport.kafka_dead import DeadMessage as DeadMessage
    from pice.transport.kafka_dead import KafkaDead
    from pice.transport.kafka_topics import KafkaTopics
    from pice.transport.kafka_topics import TopicChange as TopicChange
    from pice.transport.kafka_topics import TopicState as TopicState


async def check_brokers(settings: Settings) -> int:
    """How many topics a deployment has, all of them as they have to be.

    Raises:
        ConfigError, TransportError: a broker refuses us or does not answer, or a topic is not as it has to be.
    """
    with cluster_packages():
        from pice.app.cluster import open_ports
    specs = topic_specs(settings)
    async with open_ports(settings) as ports:
        await ports.topics.check(specs)
    return len(specs)


async def create_topics(settings: Settings) -> "list[TopicChange]":
    """Makes or grows the topics of a deployment.

    Raises:
        ConfigError: the settings name no brokers, or Kafka refuses us.
        TransportError: Kafka does not answer.
    """
    return await _topics(settings).create(topic_specs(settings))


async def describe_topics(settings: Settings) -> "list[TopicState]":
    """What the topics of a deployment are. Raises as `create_topics`."""
    return await _topics(settings).describe(topic_specs(settings))


async def list_dead(settings: Settings, num: int, topic: str | None) -> "list[DeadMessage]":
    """The newest messages that were put aside, oldest first; with `topic` those from there. Raises as
    `create_topics`."""
    return await _dead(settings).newest(num, topic=topic)


async def read_dead(settings: Settings, dead_id: str) -> "DeadMessage":
    """One message that was put aside.

    Raises:
        InputError: there is none with this ID.
    """
    return await _dead(settings).read(dead_id)


async def replay_dead(settings: Settings, dead_id: str) -> "DeadMessage":
    """Publishes one again, where it came from.

    Raises:
        InputError: there is none with this ID, or it cannot be replayed.
    """
    with cluster_packages():
        from pice.app.cluster import open_ports
    known = [CANDIDATES, *(spec.name for spec in topic_specs(settings) if spec.name != DEAD)]
    async with open_ports(settings) as ports:
        return await _dead(settings).replay(dead_id, ports.transport, known)


def _topics(settings: Settings) -> "KafkaTopics":
    options = _options(settings)
    from pice.transport.kafka_topics import KafkaTopics

    return KafkaTopics(options)


def _dead(settings: Settings) -> "KafkaDead":
    options = _options(settings)
    from pice.transport.kafka_dead import KafkaDead

    return KafkaDead(options)


def _options(settings: Settings) -> "KafkaOptions":
    with cluster_packages():
        from pice.app.cluster import kafka_options
    kafka, _ = brokers_of(settings)
    return kafka_options(kafka, settings.limits.max_message_bytes)
