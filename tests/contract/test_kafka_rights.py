"""Who one is, and what one may do: a real Kafka with users, and the rights that docs/security.md gives them."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pice.errors import ConfigError, TransportError
from pice.transport.base import DEAD, JOBS, REQUESTS, Delivery, Subscription, segments_topic
from tests.contract.own_kafka import OwnKafka, own_kafka
from tools.brokers.kafka_server import ADMIN

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from pice.kafka_client import KafkaOptions
from pice.transport.kafka import KafkaTransport
from pice.transport.kafka_dead import KafkaDead
from pice.transport.kafka_topics import KafkaTopics, TopicSpec

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
CLIENT, CLOUD, SITE, COLLECTOR, OPERATOR = (
    "pice-client",
    "pice-cloud",
    "pice-site-paris",
    "pice-collector",
    "pice-operator",
)
USERS = {name: f"{name}-secret" for name in (ADMIN, CLIENT, CLOUD, SITE, COLLECTOR, OPERATOR)}
OURS, THEIRS, CLOUDS = (segments_topic(pool) for pool in ("main", "other", "cloud"))
SPECS = [TopicSpec(topic, 1, 3600.0) for topic in (REQUESTS, JOBS, DEAD, OURS, THEIRS, CLOUDS)]


def rules() -> list[str]:
    """The rights on the page, each as one line."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^\$ALLOW (.*)$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnKafka]:
    """With all topics, made by the operator. Others are made by whoever looks for them, as brokers do if not told."""
    settings = {"auto.create.topics.enable": "true"}
    with own_kafka(tmp_path_factory.mktemp("kafka"), USERS, settings=settings) as kafka:
        asyncio.run(_set_up(kafka))
        yield kafka


async def _set_up(kafka: OwnKafka) -> None:
    await kafka.allow(*rules())
    await KafkaTopics(kafka.options(OPERATOR)).create(SPECS)


@asynccontextmanager
async def connected(options: KafkaOptions) -> AsyncIterator[KafkaTransport]:
    transport = KafkaTransport(options)
    try:
        await transport.start()
        yield transport
    finally:
        await transport.close()


async def finished(subscription: Subscription) -> Delivery:
    """The next delivery, acknowledged and committed."""
    async with asyncio.timeout(20):
        delivery = await subscription.receive()
        await subscription.ack(delivery)
    await subscription.close()
    return delivery


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_wrong_password_is_refused_and_the_right_one_is_not(kafka: OwnKafka, mechanism: str) -> None:
    async with connected(kafka.options(SITE, sasl_mechanism=mechanism)):
        pass
    with pytest.raises(ConfigError, match=r"check kafka\.username and kafka\.password") as refused:
        async with connected(kafka.options(SITE, sasl_mechanism=mechanism, password="guessed")):
            pass
    assert "guessed" not in str(refused.value)


async def test_mechanism_that_the_broker_has_not_is_refused(kafka: OwnKafka) -> None:
    with pytest.raises(ConfigError, match=r"set kafka\.sasl_mechanism"):
        async with connected(kafka.options(SITE, sasl_mechanism="SCRAM-SHA-256")):
            pass


async def test_who_gives_no_name_is_told_what_may_be_wrong(kafka: OwnKafka) -> None:
    with pytest.raises(TransportError, match=r"kafka\.security_protocol does not fit"):
        async with connected(kafka.options()):
            pass


async def test_request_goes_from_client_to_cloud_to_site(kafka: OwnKafka) -> None:
    async with connected(kafka.options(CLIENT)) as client:
        await client.publish(REQUESTS, b"request", key="r1")
        await client.publish(JOBS, b"line", key="j1")
    async with connected(kafka.options(CLOUD)) as cloud:
        assert (await finished(await cloud.subscribe(REQUESTS, group="cloud"))).payload == b"request"
        await cloud.publish(OURS, b"segment", partition=0)
        await cloud.publish(CLOUDS, b"own", partition=0)
        assert (await finished(await cloud.subscribe(CLOUDS, group="edge", partition=0))).payload == b"own"
        await cloud.publish(DEAD, b"poison")
    async with connected(kafka.options(SITE)) as site:
        assert (await finished(await site.subscribe(OURS, group="edge", partition=0))).payload == b"segment"
        await site.publish(DEAD, b"poison")
    async with connected(kafka.options(COLLECTOR)) as collector:
        assert (await finished(await collector.subscribe(JOBS, group="jobs"))).payload == b"line"
        for topic in (OURS, THEIRS, CLOUDS, REQUESTS, DEAD):
            await collector.publish(topic, b"again", partition=0)


async def test_operator_looks_at_topics_and_at_the_dead_and_replays_them(kafka: OwnKafka) -> None:
    options = kafka.options(OPERATOR)
    await KafkaTopics(options).check(SPECS)
    states = await KafkaTopics(options).describe(SPECS)
    assert [state.faults for state in states] == [()] * len(SPECS)
    assert all(state.max_bytes for state in states)
    dead = KafkaDead(options)
    async with connected(kafka.options(CLOUD)) as cloud, connected(options) as operator:
        headers = {"topic": OURS.encode(), "partition": b"0"}
        await cloud.publish(DEAD, b"poison", headers=headers)
        (message,) = await dead.newest(1)
        await dead.replay(message.dead_id, operator, [OURS])
    assert (await dead.read(message.dead_id)).replayed


async def test_looking_for_a_topic_does_not_make_it(kafka: OwnKafka) -> None:
    topics = KafkaTopics(kafka.options(OPERATOR))
    for _ in range(2):
        (state,) = await topics.describe([TopicSpec("pice.nowhere", 1, 3600.0)])
        assert state.num_partitions == 0


@pytest.mark.parametrize(
    ("user", "topics"),
    [
        (CLOUD, {REQUESTS, DEAD, OURS, THEIRS, CLOUDS}),
        (COLLECTOR, {REQUESTS, JOBS, DEAD, OURS, THEIRS, CLOUDS}),
        (SITE, {OURS, DEAD}),
    ],
)
async def test_service_may_check_the_topics_it_uses(kafka: OwnKafka, user: str, topics: set[str]) -> None:
    """Those of `pice.app.admin.used_topics`."""
    await KafkaTopics(kafka.options(user)).check([spec for spec in SPECS if spec.name in topics])


async def test_site_may_not_read_another_pool_or_what_is_not_a_sites(kafka: OwnKafka) -> None:
    async with connected(kafka.options(SITE)) as site:
        for topic in (THEIRS, CLOUDS, REQUESTS, JOBS):
            with pytest.raises(ConfigError, match=r"right to the topic.*docs/security\.md"):
                await site.subscribe(topic, group="edge", partition=0)


async def test_site_may_not_write_segments_or_requests(kafka: OwnKafka) -> None:
    async with connected(kafka.options(SITE)) as site:
        for topic in (OURS, THEIRS, REQUESTS):
            with pytest.raises(ConfigError, match="right to the topic"):
                await site.publish(topic, b"forged", partition=0)


async def test_client_may_read_nothing(kafka: OwnKafka) -> None:
    async with connected(kafka.options(CLIENT)) as client:
        for topic in (OURS, DEAD):
            with pytest.raises(ConfigError, match="right to the topic"):
                await client.subscribe(topic, group="x", partition=0)
        with pytest.raises(ConfigError, match="right to the group"):
            await client.subscribe(REQUESTS, group="cloud", partition=0)


async def test_member_without_a_right_to_its_group_is_told_when_it_receives(kafka: OwnKafka) -> None:
    async with connected(kafka.options(SITE)) as site:
        subscription = await site.subscribe(OURS, group="others")
        async with asyncio.timeout(20):
            with pytest.raises(ConfigError, match="right to the group"):
                await subscription.receive()


async def test_topic_is_grown_only_by_who_may(kafka: OwnKafka) -> None:
    await KafkaTopics(kafka.options(SITE)).ensure_partition(OURS, 0)
    with pytest.raises(ConfigError, match=r"needs a partition 1 and could not be grown.*right to the topic"):
        await KafkaTopics(kafka.options(SITE)).ensure_partition(OURS, 1)
    await KafkaTopics(kafka.options(OPERATOR)).ensure_partition(OURS, 1)
    await KafkaTopics(kafka.options(SITE)).ensure_partition(OURS, 1)


async def test_settings_that_one_may_not_see_are_no_fault(kafka: OwnKafka) -> None:
    options = replace(kafka.options(SITE), max_bytes=1 << 22)
    await KafkaTopics(options).check([TopicSpec(OURS, 1, 3600.0)])
