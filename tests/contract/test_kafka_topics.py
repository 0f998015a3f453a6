"""Topics on a real Kafka: made, grown, described and checked."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from pice.errors import ConfigError
from tests.contract.kafka_transport import kafka_options, topics_deleted

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from pice.kafka_client import KafkaOptions
from pice.transport.kafka import KafkaTransport
from pice.transport.kafka_topics import KafkaTopics, TopicSpec


def specs(**num_partitions: int) -> list[TopicSpec]:
    return [TopicSpec(name, num, 7200.0) for name, num in num_partitions.items()]


@pytest.fixture
async def options() -> AsyncIterator[KafkaOptions]:
    options = kafka_options()
    async with topics_deleted(options):
        yield options


async def test_topics_are_made_and_grown_and_making_them_again_changes_nothing(options: KafkaOptions) -> None:
    topics = KafkaTopics(options)
    for wanted, changes in [
        (specs(a=2, b=1), [(0, 2), (0, 1)]),
        (specs(a=2, b=3), [(2, 2), (1, 3)]),
        (specs(a=1, b=3), [(2, 2), (3, 3)]),
    ]:
        assert [(it.before, it.after) for it in await topics.create(wanted)] == changes
        await topics.check(wanted)
    assert [state.num_partitions for state in await topics.describe(specs(a=1, b=1))] == [2, 3]


async def test_two_who_make_the_same_topics_at_once_both_succeed(options: KafkaOptions) -> None:
    topics = KafkaTopics(options)
    for wanted in (specs(a=1, b=2), specs(a=4, b=2)):
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(topics.create(wanted))
        await topics.check(wanted)


async def test_topic_that_is_made_keeps_messages_as_long_and_as_large_as_it_must(options: KafkaOptions) -> None:
    topics = KafkaTopics(replace(options, max_bytes=100_000))
    await topics.create(specs(a=1))
    (state,) = await topics.describe(specs(a=1))
    assert (state.retention_s, state.max_bytes, state.num_copies) == (7200.0, 100_000 + 65_536, 1)
    assert state.faults == ()


async def test_what_is_missing_or_too_small_is_found_and_refused(options: KafkaOptions) -> None:
    await KafkaTopics(replace(options, max_bytes=1000)).create(specs(small=1))
    topics, wanted = KafkaTopics(options), specs(small=3, missing=1)
    small, missing = await topics.describe(wanted)
    assert missing.faults == ("is missing: run `pice topics create`",)
    assert missing.num_partitions == 0
    assert [fault.split(":")[0] for fault in small.faults] == [
        "has 1 partitions, 3 are needed",
        "takes messages of up to 66536 bytes, but ours may have 1114112",
    ]
    with pytest.raises(ConfigError, match=rf"(?s){options.prefix}small: has 1 .*small: takes .*missing: is missing"):
        await topics.check(wanted)


async def test_partition_of_a_topic_that_is_not_there_is_refused(options: KafkaOptions) -> None:
    with pytest.raises(ConfigError, match="does not exist: run `pice topics create`"):
        await KafkaTopics(options).ensure_partition("nowhere", 0)


async def test_partition_is_ensured_by_growing_no_more_than_needed(options: KafkaOptions) -> None:
    topics = KafkaTopics(options)
    await topics.create(specs(a=1))
    for partition, num in [(0, 1), (2, 3), (1, 3)]:
        await topics.ensure_partition("a", partition)
        assert [state.num_partitions for state in await topics.describe(specs(a=1))] == [num]


async def test_lag_of_each_group_is_what_it_has_not_finished(options: KafkaOptions) -> None:
    from pice.transport.kafka_topics import KafkaTopics

    topics, transport = KafkaTopics(options), KafkaTransport(options)
    await topics.create(specs(a=2, ab=1))
    await transport.start()
    try:
        for number in range(5):
            await transport.publish("a", str(number).encode(), partition=1)
        whole, one = await transport.subscribe("a", group="all"), await transport.subscribe("a", group="p", partition=1)
        async with asyncio.timeout(20):
            for _ in range(5):
                await whole.ack(await whole.receive())
            for _ in range(2):
                await one.ack(await one.receive())
    finally:
        await transport.close()
    a, ab = await topics.describe(specs(a=1, ab=1))
    assert a.lag == {f"{options.prefix}a.all": 0, f"{options.prefix}a.p.1": 3}
    assert ab.lag == {}
