"""What only Kafka has: positions, partitions that change hands, records that outlive those who read them."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from pice.errors import TransportError
from pice.transport.base import Delivery, Subscription, Transport
from tests.brokers import kafka_address
from tests.contract.kafka_transport import TOPIC, kafka_transport

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with kafka_transport() as transport:
        yield transport


async def receive(subscription: Subscription, count: int) -> list[Delivery]:
    async with asyncio.timeout(20):
        return [await subscription.receive() for _ in range(count)]


async def publish(transport: Transport, num: int, *, partition: int = 0) -> None:
    for number in range(num):
        await transport.publish(TOPIC, str(number).encode(), partition=partition)


async def test_what_is_finished_out_of_order_is_not_delivered_again(transport: Transport) -> None:
    await publish(transport, 5)
    first = await transport.subscribe(TOPIC, group="g", partition=0)
    deliveries = await receive(first, 5)
    for at in (1, 3, 4):
        await first.ack(deliveries[at])
    await first.close()
    second = await transport.subscribe(TOPIC, group="g", partition=0)
    again = await receive(second, 2)
    assert [(each.position, each.num_deliveries) for each in again] == [(0, 2), (2, 2)]


async def test_times_a_message_was_begun_are_counted_over_its_readers(transport: Transport) -> None:
    await publish(transport, 1)
    counted = []
    for _ in range(3):
        subscription = await transport.subscribe(TOPIC, group="g", partition=0)
        counted.append((await receive(subscription, 1))[0].num_deliveries)
        await subscription.close()
    assert counted == [1, 2, 3]


async def test_partition_of_a_member_that_leaves_goes_to_the_other(transport: Transport) -> None:
    leaver = await transport.subscribe(TOPIC, group="g")
    await publish(transport, 1, partition=0)
    await publish(transport, 1, partition=1)
    held = await receive(leaver, 2)
    await leaver.ack(held[0])
    stayer = await transport.subscribe(TOPIC, group="g")
    waiting = asyncio.ensure_future(receive(stayer, 1))
    await leaver.close()
    (taken,) = await waiting
    assert (taken.partition, taken.payload) == (held[1].partition, held[1].payload)


async def test_groups_on_one_partition_keep_positions_of_their_own(transport: Transport) -> None:
    await publish(transport, 2)
    one = await transport.subscribe(TOPIC, group="one", partition=0)
    for delivery in await receive(one, 2):
        await one.ack(delivery)
    other = await transport.subscribe(TOPIC, group="other", partition=0)
    assert [each.position for each in await receive(other, 2)] == [0, 1]


async def test_messages_of_one_key_share_a_partition(transport: Transport) -> None:
    for number in range(6):
        await transport.publish(TOPIC, b"x", key=f"request-{number % 2}")
    subscription = await transport.subscribe(TOPIC, group="g")
    found = {(each.key, each.partition) for each in await receive(subscription, 6)}
    assert len(found) == len({key for key, _ in found}) == 2


async def test_commit_that_failed_is_made_again(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiokafka.errors import KafkaError

    await publish(transport, 2)
    subscription: Any = await transport.subscribe(TOPIC, group="g", partition=0)
    real, committed = subscription._consumer.commit, asyncio.Event()
    failures = iter([KafkaError("not now")] * 2)

    async def commit(offsets: Any) -> None:
        if error := next(failures, None):
            raise error
        await real(offsets)
        if [each.offset for each in offsets.values()] == [1]:
            committed.set()

    monkeypatch.setattr(subscription._consumer, "commit", commit)
    first, _ = await receive(subscription, 2)
    await subscription.ack(first)
    async with asyncio.timeout(10):
        await committed.wait()


async def test_member_that_may_not_read_its_group_says_so(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiokafka.errors import GroupAuthorizationFailedError

    from pice.transport.kafka import KafkaSubscription

    async def take_over(self: KafkaSubscription, partitions: Iterable[int]) -> None:
        raise GroupAuthorizationFailedError

    monkeypatch.setattr(KafkaSubscription, "take_over", take_over)
    for partition in (None, 0):
        subscription = await transport.subscribe(TOPIC, group="g", partition=partition)
        with pytest.raises(TransportError, match="cannot be read"):
            await receive(subscription, 1)


async def test_member_that_cannot_learn_what_is_left_tries_again(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiokafka.errors import GroupCoordinatorNotAvailableError

    from pice.transport.kafka import KafkaSubscription

    real, failures = KafkaSubscription.take_over, iter([GroupCoordinatorNotAvailableError()])

    async def take_over(self: KafkaSubscription, partitions: Iterable[int]) -> None:
        if error := next(failures, None):
            raise error
        await real(self, partitions)

    monkeypatch.setattr(KafkaSubscription, "take_over", take_over)
    await publish(transport, 1)
    subscription = await transport.subscribe(TOPIC, group="g")
    assert [each.payload for each in await receive(subscription, 1)] == [b"0"]


@pytest.mark.parametrize(("topic", "partition"), [("pice.nowhere", None), ("pice.nowhere", 0), (TOPIC, 7)])
async def test_topic_or_partition_that_is_not_there_is_refused(
    transport: Transport, topic: str, partition: int | None
) -> None:
    with pytest.raises(TransportError, match="does not exist"):
        await transport.subscribe(topic, group="g", partition=partition)


async def test_broker_that_is_not_there_is_named() -> None:
    from pice.transport.kafka import KafkaTransport

    kafka_address()
    transport = KafkaTransport({"bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(TransportError, match=r"Kafka cannot be reached: .*127\.0\.0\.1"):
        await transport.start()
    await transport.close()
