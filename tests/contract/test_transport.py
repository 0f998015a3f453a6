"""What every transport promises; adapters are parameters of the `transport` fixture."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pice.errors import Full, MessageTooLarge, TransportError
from pice.transport.base import Delivery, Subscription, Transport
from pice.transport.memory import MemoryTransport
from tests.brokers import redis_url
from tests.contract.kafka_transport import TOPIC, kafka_transport
from tests.contract.own_cluster import redis_cluster_url
from tests.contract.redis_transports import redis_transport

OWNS = "a group hands out partitions, not messages, and a member keeps its partitions while it waits for nothing"


@pytest.fixture(params=["memory", "kafka", "redis", "redis-cluster"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    if request.param == "kafka":
        async with kafka_transport(max_bytes=1000) as transport:
            if why := request.node.get_closest_marker("not_on_kafka"):
                pytest.skip(f"not on Kafka: {why.args[0]}")
            yield transport
        return
    if request.param.startswith("redis"):
        url = redis_cluster_url() if request.param == "redis-cluster" else redis_url()
        async with redis_transport(url, max_messages=100, max_bytes=1000) as transport:
            yield transport
        return
    memory = MemoryTransport(max_messages=100, max_bytes=1000)
    yield memory
    await memory.close()


async def receive(subscription: Subscription, count: int) -> list[Delivery]:
    async with asyncio.timeout(5):
        return [await subscription.receive() for _ in range(count)]


async def publish(transport: Transport, *payloads: bytes, partition: int | None = None) -> None:
    for payload in payloads:
        await transport.publish(TOPIC, payload, partition=partition)


async def is_idle(subscription: Subscription) -> bool:
    """Whether a receive would wait: it is still waiting after everything ready has run."""
    waiting = asyncio.ensure_future(subscription.receive())
    for _ in range(5):
        await asyncio.sleep(0)
    if waiting.done():
        return False
    waiting.cancel()
    return True


async def test_messages_published_before_any_subscriber_are_delivered_in_order(transport: Transport) -> None:
    await publish(transport, b"a", b"b", b"c")
    subscription = await transport.subscribe(TOPIC, group="g")
    assert [delivery.payload for delivery in await receive(subscription, 3)] == [b"a", b"b", b"c"]


async def test_waiting_receiver_gets_what_is_published_later(transport: Transport) -> None:
    subscription = await transport.subscribe(TOPIC, group="g")
    waiting = asyncio.ensure_future(receive(subscription, 1))
    await asyncio.sleep(0)
    await transport.publish(TOPIC, b"later", key="k", headers={"h": b"1"})
    (delivery,) = await waiting
    assert (delivery.payload, delivery.key, delivery.headers, delivery.num_deliveries) == (
        b"later",
        "k",
        {"h": b"1"},
        1,
    )


@pytest.mark.not_on_kafka(OWNS)
async def test_every_group_gets_every_message_and_its_members_share(transport: Transport) -> None:
    one, two = [await transport.subscribe(TOPIC, group="shared") for _ in range(2)]
    other = await transport.subscribe(TOPIC, group="other")
    await publish(transport, b"a", b"b")
    shared = [(await receive(one, 1))[0].payload, (await receive(two, 1))[0].payload]
    assert sorted(shared) == [b"a", b"b"]
    assert [delivery.payload for delivery in await receive(other, 2)] == [b"a", b"b"]


async def test_assigned_partition_is_read_alone(transport: Transport) -> None:
    await publish(transport, b"zero", partition=0)
    await publish(transport, b"one", partition=1)
    subscription = await transport.subscribe(TOPIC, group="g", partition=1)
    (delivery,) = await receive(subscription, 1)
    assert (delivery.payload, delivery.partition) == (b"one", 1)
    assert await is_idle(subscription)


async def test_unacknowledged_delivery_of_a_closed_subscriber_goes_to_another(transport: Transport) -> None:
    await publish(transport, b"a", b"b")
    first = await transport.subscribe(TOPIC, group="g")
    kept, lost = await receive(first, 2)
    await first.ack(kept)
    await first.close()
    second = await transport.subscribe(TOPIC, group="g")
    (again,) = await receive(second, 1)
    assert (again.payload, again.num_deliveries) == (lost.payload, 2)
    await second.ack(again)
    assert await is_idle(second)


async def test_released_delivery_comes_again(transport: Transport) -> None:
    await publish(transport, b"a")
    subscription = await transport.subscribe(TOPIC, group="g")
    (delivery,) = await receive(subscription, 1)
    await subscription.release(delivery, delay_s=0.01)
    (again,) = await receive(subscription, 1)
    assert (again.payload, again.position, again.num_deliveries) == (b"a", delivery.position, 2)


async def test_released_delivery_with_a_delay_survives_its_subscriber(transport: Transport) -> None:
    await publish(transport, b"a")
    first = await transport.subscribe(TOPIC, group="g")
    (delivery,) = await receive(first, 1)
    await first.release(delivery, delay_s=0.01)
    await first.close()
    second = await transport.subscribe(TOPIC, group="g")
    assert [d.payload for d in await receive(second, 1)] == [b"a"]


async def test_prefetch_bounds_what_is_outstanding(transport: Transport) -> None:
    await publish(transport, b"a", b"b", b"c")
    subscription = await transport.subscribe(TOPIC, group="g", prefetch=2)
    first, _ = await receive(subscription, 2)
    assert await is_idle(subscription)
    await subscription.ack(first)
    assert [delivery.payload for delivery in await receive(subscription, 1)] == [b"c"]


@pytest.mark.not_on_kafka(OWNS)
async def test_delivery_that_a_full_member_cannot_take_goes_to_an_idle_one(transport: Transport) -> None:
    full = await transport.subscribe(TOPIC, group="g", prefetch=1)
    await publish(transport, b"a")
    await receive(full, 1)
    idle = await transport.subscribe(TOPIC, group="g")
    waiting = [asyncio.ensure_future(member.receive()) for member in (full, idle)]
    await asyncio.sleep(0)
    await publish(transport, b"b")
    async with asyncio.timeout(5):
        assert (await waiting[1]).payload == b"b"
    waiting[0].cancel()


async def test_acknowledging_twice_changes_nothing(transport: Transport) -> None:
    await publish(transport, b"a", b"b")
    subscription = await transport.subscribe(TOPIC, group="g", prefetch=1)
    (delivery,) = await receive(subscription, 1)
    await subscription.ack(delivery)
    await subscription.ack(delivery)
    (second,) = await receive(subscription, 1)
    assert second.payload == b"b"
    assert await is_idle(subscription)


@pytest.mark.not_on_kafka(OWNS)
async def test_cancelled_receive_loses_nothing(transport: Transport) -> None:
    one, two = [await transport.subscribe(TOPIC, group="g") for _ in range(2)]
    leaving, staying = asyncio.ensure_future(one.receive()), asyncio.ensure_future(two.receive())
    await asyncio.sleep(0)
    await publish(transport, b"a")
    leaving.cancel()
    async with asyncio.timeout(5):
        assert (await staying).payload == b"a"


@pytest.mark.not_on_kafka(OWNS)
@pytest.mark.parametrize("leaves_by", ["cancelling", "closing"])
async def test_delivery_that_woke_a_leaving_member_goes_to_one_that_can_take_it(
    transport: Transport, leaves_by: str
) -> None:
    leaver = await transport.subscribe(TOPIC, group="g")
    elsewhere = await transport.subscribe(TOPIC, group="g", partition=1)
    stayer = await transport.subscribe(TOPIC, group="g")
    leaving, waiting, staying = (asyncio.ensure_future(member.receive()) for member in (leaver, elsewhere, stayer))
    await asyncio.sleep(0)
    await publish(transport, b"a", partition=0)
    if leaves_by == "closing":
        await leaver.close()
    else:
        leaving.cancel()
    async with asyncio.timeout(5):
        assert (await staying).payload == b"a"
    waiting.cancel()
    await asyncio.gather(leaving, waiting, return_exceptions=True)


async def test_closed_subscription_ends_a_waiting_receive(transport: Transport) -> None:
    subscription = await transport.subscribe(TOPIC, group="g")
    waiting = asyncio.ensure_future(subscription.receive())
    await asyncio.sleep(0)
    await subscription.close()
    await subscription.close()
    with pytest.raises(TransportError):
        async with asyncio.timeout(5):
            await waiting


async def test_too_large_message_is_refused_and_stops_nothing(transport: Transport) -> None:
    with pytest.raises(MessageTooLarge, match="1000 bytes, got 1001"):
        await publish(transport, b"x" * 1001)
    await publish(transport, b"x" * 1000)
    subscription = await transport.subscribe(TOPIC, group="g")
    assert len((await receive(subscription, 1))[0].payload) == 1000


@pytest.mark.not_on_kafka("retention bounds a topic, and open requests are bounded by the store")
async def test_full_topic_refuses_and_takes_again_when_acknowledged(transport: Transport) -> None:
    await publish(transport, *[b"x"] * 100)
    with pytest.raises(Full) as refused:
        await publish(transport, b"y")
    assert refused.value.retry_after_s > 0
    subscription = await transport.subscribe(TOPIC, group="g")
    (delivery,) = await receive(subscription, 1)
    await subscription.ack(delivery)
    await publish(transport, b"y")
