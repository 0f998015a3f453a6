"""Settings -> what an operator does to the queue: topics made and looked at, dead messages listed and replayed."""

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from pice.app.packages import cluster_packages
from pice.app.roles import Roles
from pice.core import CLOUD_SITE
from pice.settings import Settings
from pice.transport.base import CANDIDATES, DEAD, JOBS, REQUESTS, segments_topic

if TYPE_CHECKING:
    from pice.kafka_client import KafkaOptions
    from pice.transport.kafka_dead import DeadMessage as DeadMessage
    from pice.transport.kafka_dead import KafkaDead
    from pice.transport.kafka_topics import KafkaTopics, TopicSpec
    from pice.transport.kafka_topics import TopicChange as TopicChange
    from pice.transport.kafka_topics import TopicState as TopicState

_DAY_S = 86_400.0
_DEAD_S = 14 * _DAY_S
"""Long enough for somebody who was away to look at what failed."""


def topic_specs(settings: Settings) -> "list[TopicSpec]":
    """The topics of a deployment: each pool's has a partition for every configured site. A request's messages are
    of no use after its deadline, at most a day; a job's as long as its results are kept.

    Raises:
        ConfigError: the settings name no brokers.
    """
    with cluster_packages():
        from pice.app.cluster import brokers_of
        from pice.transport.kafka_topics import TopicSpec
    kafka, _ = brokers_of(settings)
    pools = Counter(site.pool for site in settings.sites.values()) | Counter({CLOUD_SITE: 1})
    wanted = [
        (REQUESTS, kafka.num_partitions, _DAY_S),
        (JOBS, kafka.num_partitions, settings.jobs.keep_s),
        (DEAD, 1, _DEAD_S),
        *((segments_topic(pool), num_sites, _DAY_S) for pool, num_sites in sorted(pools.items())),
    ]
    return [TopicSpec(*it, kafka.replication_factor) for it in wanted]


def used_topics(settings: Settings, roles: Roles) -> "list[TopicSpec]":
    """What services in these roles cannot do without, for `KafkaTopics.check`: any number of partitions will do, since
    a site makes sure of its own.

    Raises:
        ConfigError: the settings name no brokers.
    """
    segments = {segments_topic(CLOUD_SITE), *(segments_topic(site.pool) for site in settings.sites.values())}
    names = {DEAD, *(segments_topic(settings.sites[name].pool) for name in roles.sites)}
    if roles.cloud or roles.collector:
        names |= {REQUESTS, *segments}
    if roles.collector:
        names.add(JOBS)
    return [replace(spec, num_partitions=1) for spec in topic_specs(settings) if spec.name in names]


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
        from pice.app.cluster import brokers_of, kafka_options
    kafka, _ = brokers_of(settings)
    return kafka_options(kafka, settings.limits.max_message_bytes)
