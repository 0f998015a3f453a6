"""What only Kafka has: positions, partitions that change hands, records that outlive those who read them."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import count
from typing import Any

import pytest

from pice.errors import ConfigError, MessageTooLarge, TransportError
from pice.transport.base import Delivery, Subscription, Transport
from tests.contract.kafka_transport import (
    NUM_PARTITIONS,
    TOPIC,
    connected,
    kafka_options,
    kafka_transport,
    topics_deleted,
)

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.record.util import calc_crc32c

from pice.transport.kafka_subscription import KafkaSubscription
from pice.transport.kafka_topics import KafkaTopics


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


@pytest.mark.parametrize("acknowledged", ["before it comes back", "after it came back"])
async def test_what_is_acknowledged_while_a_partition_goes_and_comes_back_is_finished(
    transport: Transport, acknowledged: str
) -> None:
    await publish(transport, 2)
    subscription = await transport.subscribe(TOPIC, group="g", prefetch=1)
    assert isinstance(subscription, KafkaSubscription)
    (first,) = await receive(subscription, 1)
    await subscription.give_up([first.partition])
    if acknowledged.startswith("before"):
        await subscription.ack(first)
    await subscription.settle([first.partition])
    subscription.begin()
    if acknowledged.startswith("after"):
        await subscription.ack(first)
    assert [each.payload for each in await receive(subscription, 1)] == [b"1"]


async def test_first_of_several_that_is_acknowledged_late_is_finished_and_counts_as_read(transport: Transport) -> None:
    """Of two in hand as a partition goes and comes back, the first is acknowledged only then."""
    await publish(transport, 2)
    subscription = await transport.subscribe(TOPIC, group="g")
    assert isinstance(subscription, KafkaSubscription)
    first, _ = await receive(subscription, 2)
    await subscription.give_up([first.partition])
    await subscription.settle([first.partition])
    subscription.begin()
    await subscription.ack(first)
    await subscription._try_to_commit()
    (second,) = await receive(subscription, 1)
    assert (second.payload, second.num_deliveries) == (b"1", 2)
    await subscription.ack(second)
    assert subscription._ledgers[first.partition].position() == 2


async def test_what_is_acknowledged_while_the_last_commit_is_made_is_finished(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(transport, 2)
    subscription = await transport.subscribe(TOPIC, group="g", prefetch=1)
    assert isinstance(subscription, KafkaSubscription)
    (first,) = await receive(subscription, 1)
    commit = subscription._try_to_commit

    async def late(**options: Any) -> bool:
        is_done = await commit(**options)
        await subscription.ack(first)
        return is_done

    monkeypatch.setattr(subscription, "_try_to_commit", late)
    await subscription.give_up([first.partition])
    monkeypatch.undo()
    await subscription.settle([first.partition])
    subscription.begin()
    assert [each.payload for each in await receive(subscription, 1)] == [b"1"]


async def test_what_is_put_back_while_a_partition_goes_and_comes_back_is_not_finished(transport: Transport) -> None:
    await publish(transport, 1)
    subscription = await transport.subscribe(TOPIC, group="g", prefetch=1)
    assert isinstance(subscription, KafkaSubscription)
    (first,) = await receive(subscription, 1)
    await subscription.give_up([first.partition])
    await subscription.release(first)
    await subscription.ack(first)
    await subscription.settle([first.partition])
    subscription.begin()
    assert [each.num_deliveries for each in await receive(subscription, 1)] == [2]


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


async def test_one_commit_takes_what_was_finished_meanwhile_and_closing_waits_for_none(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pice.transport.kafka_subscription._COMMIT_EVERY_S", 60.0)
    subscription: Any = await transport.subscribe(TOPIC, group="g", partition=0)
    real, commits, committed = subscription._consumer.commit, list[int](), asyncio.Event()

    async def commit(offsets: Any) -> None:
        await real(offsets)
        commits.extend(each.offset for each in offsets.values())
        committed.set()

    monkeypatch.setattr(subscription._consumer, "commit", commit)
    for _ in range(5):
        await publish(transport, 1)
        (delivery,) = await receive(subscription, 1)
        async with asyncio.timeout(10):
            await committed.wait()
        await subscription.ack(delivery)
    assert commits == [0]
    async with asyncio.timeout(10):
        await subscription.close()
    assert commits == [0, 5]


async def test_member_that_may_not_read_its_group_says_so(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take_over(self: KafkaSubscription, partitions: Iterable[int]) -> None:
        raise ConfigError("not for you")

    monkeypatch.setattr(KafkaSubscription, "take_over", take_over)
    subscription = await transport.subscribe(TOPIC, group="g")
    with pytest.raises(ConfigError, match="not for you"):
        await receive(subscription, 1)
    with pytest.raises(ConfigError, match="not for you"):
        await transport.subscribe(TOPIC, group="g", partition=0)


async def test_member_that_cannot_learn_what_is_left_tries_again(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Kafka reads its own books after a start, it answers with nothing at all."""
    real, calls = AIOKafkaAdminClient.list_consumer_group_offsets, count()

    async def offsets(self: AIOKafkaAdminClient, *args: Any, **kwargs: Any) -> Any:
        return await real(self, *args, **kwargs) if next(calls) else {}

    monkeypatch.setattr(AIOKafkaAdminClient, "list_consumer_group_offsets", offsets)
    await publish(transport, 1)
    subscription = await transport.subscribe(TOPIC, group="g")
    assert [each.payload for each in await receive(subscription, 1)] == [b"0"]


async def test_partition_whose_position_is_not_known_is_not_read(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def offsets(self: AIOKafkaAdminClient, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return {}

    monkeypatch.setattr(AIOKafkaAdminClient, "list_consumer_group_offsets", offsets)
    monkeypatch.setattr("pice.transport.kafka_subscription._TAKE_S", 0.1)
    with pytest.raises(TransportError, match=r"group .*g\.1 cannot be read: no answer in time"):
        await transport.subscribe(TOPIC, group="g", partition=1)


async def test_what_the_former_reader_still_commits_is_not_passed_over(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that is cut off, but lives, finishes what it has while another takes over."""
    await publish(transport, 3)
    former: Any = await transport.subscribe(TOPIC, group="g", partition=0)
    deliveries = await receive(former, 3)
    real = KafkaSubscription.take_over

    async def take_over(self: KafkaSubscription, partitions: list[int]) -> None:
        await real(self, partitions)
        for delivery in deliveries:
            await former.ack(delivery)
        await former._try_to_commit()

    with monkeypatch.context() as patched:
        patched.setattr(KafkaSubscription, "take_over", take_over)
        later = await transport.subscribe(TOPIC, group="g", partition=0)
    await publish(transport, 1)
    for delivery in await receive(later, 4):
        await later.ack(delivery)
    await former.close()
    await later.close()
    last = await transport.subscribe(TOPIC, group="g", partition=0)
    await transport.publish(TOPIC, b"last", partition=0)
    assert [each.payload for each in await receive(last, 1)] == [b"last"]


@pytest.mark.parametrize(("topic", "partition"), [("pice.nowhere", None), ("pice.nowhere", 0), (TOPIC, 7)])
async def test_topic_or_partition_that_is_not_there_is_refused(
    transport: Transport, topic: str, partition: int | None
) -> None:
    with pytest.raises(ConfigError, match="does not exist: run `pice topics create`"):
        await transport.subscribe(topic, group="g", partition=partition)


async def test_partition_that_was_added_is_found_by_a_producer_that_was_there_before() -> None:
    options = kafka_options()
    async with topics_deleted(options), connected(options) as transport:
        await publish(transport, 1)
        await KafkaTopics(options).ensure_partition(TOPIC, NUM_PARTITIONS)
        await transport.publish(TOPIC, b"there", partition=NUM_PARTITIONS)
        subscription = await transport.subscribe(TOPIC, group="g", partition=NUM_PARTITIONS)
        assert [each.payload for each in await receive(subscription, 1)] == [b"there"]
        with pytest.raises(TransportError, match=f"has no partition 9, only {NUM_PARTITIONS + 1}"):
            await transport.publish(TOPIC, b"nowhere", partition=9)


async def test_producer_is_of_use_after_a_message_that_the_broker_would_not_take() -> None:
    options = kafka_options()
    admin = AIOKafkaAdminClient(bootstrap_servers=options.bootstrap_servers)
    await admin.start()
    small = {"max.message.bytes": "2000"}
    await admin.create_topics([NewTopic(options.prefix + TOPIC, NUM_PARTITIONS, 1, topic_configs=small)])
    await admin.close()
    async with topics_deleted(options), connected(options) as transport:
        await publish(transport, 1)
        with pytest.raises(MessageTooLarge, match="the broker's limit is lower than ours"):
            await transport.publish(TOPIC, bytes(5000), partition=0)
        await transport.publish(TOPIC, b"after", partition=0)
        subscription = await transport.subscribe(TOPIC, group="g")
        assert [each.payload for each in await receive(subscription, 2)] == [b"0", b"after"]


async def test_headers_without_a_value_are_read_as_empty(transport: Transport) -> None:
    headers: Any = {"junk": None, "kept": b"x"}
    await transport.publish(TOPIC, b"", partition=0, headers=headers)
    subscription = await transport.subscribe(TOPIC, group="g")
    assert [each.headers for each in await receive(subscription, 1)] == [{"junk": b"", "kept": b"x"}]


@pytest.mark.parametrize("partition", [None, 0])
async def test_records_before_one_that_cannot_be_read_come_once_and_in_order(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, partition: int | None
) -> None:
    """Also those that came in one reply with it."""
    with monkeypatch.context() as patched:
        for payload in (b"0", b"1", b"2", b"junk", b"4", b"5"):
            if payload == b"junk":
                patched.setattr(MessageBatch, "get_data_buffer", _spoiled(MessageBatch.get_data_buffer))
            await transport.publish(TOPIC, payload, partition=0, headers={"name": b""} if payload == b"junk" else None)
            patched.undo()
    subscription = await transport.subscribe(TOPIC, group="g", partition=partition)
    assert [each.position for each in await receive(subscription, 5)] == [0, 1, 2, 4, 5]
    await subscription.close()


async def test_no_more_is_in_hand_than_was_asked_for(transport: Transport) -> None:
    await publish(transport, 8)
    subscription = await transport.subscribe(TOPIC, group="g", partition=0, prefetch=3)
    held = await receive(subscription, 3)
    waiting = asyncio.ensure_future(subscription.receive())
    other = await transport.subscribe(TOPIC, group="h", partition=0)
    await receive(other, 8)
    assert not waiting.done(), "all have come, and are not handed out"
    await subscription.ack(held[1])
    async with asyncio.timeout(10):
        assert (await waiting).position == 3


def _spoiled(real: Callable[[MessageBatch], bytes]) -> Callable[[MessageBatch], bytes]:
    """Names of headers that are no text, which the broker takes from whoever writes by another client."""

    def spoiled(self: MessageBatch) -> bytes:
        record = bytes(real(self)).replace(b"name", b"\xff" * 4)
        return record[:17] + struct.pack(">I", calc_crc32c(record[21:])) + record[21:]

    return spoiled


@pytest.mark.parametrize("partition", [None, 0])
async def test_record_that_cannot_be_read_is_passed_over_and_stops_nothing(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, partition: int | None
) -> None:
    await publish(transport, 1)
    with monkeypatch.context() as patched:
        patched.setattr(MessageBatch, "get_data_buffer", _spoiled(MessageBatch.get_data_buffer))
        await transport.publish(TOPIC, b"junk", partition=0, headers={"name": b""})
    await transport.publish(TOPIC, b"after", partition=0)
    subscription = await transport.subscribe(TOPIC, group="g", partition=partition)
    deliveries = await receive(subscription, 2)
    assert [(each.position, each.payload) for each in deliveries] == [(0, b"0"), (2, b"after")]
    for delivery in deliveries:
        await subscription.ack(delivery)
    await subscription.close()
    await transport.publish(TOPIC, b"last", partition=0)
    again = await transport.subscribe(TOPIC, group="g", partition=partition)
    assert [each.payload for each in await receive(again, 1)] == [b"last"]
