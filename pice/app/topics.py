"""Which brokers a deployment has, and which topics it needs on them."""

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from pice.app.packages import cluster_packages
from pice.app.roles import Roles
from pice.core import CLOUD_SITE
from pice.errors import ConfigError
from pice.settings import KafkaSettings, RedisSettings, Settings
from pice.transport.base import DEAD, JOBS, REQUESTS, segments_topic

if TYPE_CHECKING:
    from pice.transport.kafka_topics import KafkaTopics, TopicSpec

_DAY_S = 86_400.0
_DEAD_S = 14 * _DAY_S
"""Long enough for somebody who was away to look at what failed."""


def brokers_of(settings: Settings) -> tuple[KafkaSettings, RedisSettings]:
    """The tables of both brokers.

    Raises:
        ConfigError: there are none.
    """
    if settings.kafka is None or settings.redis is None:
        raise ConfigError(
            "this needs a deployment: expected the tables [kafka] and [redis] in the configuration, as in "
            "config/cluster.toml; without, all runs in one process: `pice ask` and `pice batch run`"
        )
    return settings.kafka, settings.redis


def topic_specs(settings: Settings) -> "list[TopicSpec]":
    """The topics of a deployment: each pool's has a partition for every configured site. A request's messages are
    of no use after its deadline, at most a day; a job's as long as its results are kept.

    Raises:
        ConfigError: the settings name no brokers.
    """
    with cluster_packages():
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


async def check_topic(settings: Settings, topics: "KafkaTopics", name: str) -> None:
    """Returns if a topic that messages are to be sent to is there.

    Raises:
        ConfigError: it is not; says what to run.
    """
    await topics.check([replace(spec, num_partitions=1) for spec in topic_specs(settings) if spec.name == name])
