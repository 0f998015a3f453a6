"""Several queues as one."""

import asyncio

import pytest

from pice.errors import TransportError
from pice.transport.memory import MemoryTransport
from pice.transport.routed import RoutedTransport


async def test_topic_goes_where_it_belongs_and_all_others_elsewhere() -> None:
    special, others = MemoryTransport(), MemoryTransport()
    routed = RoutedTransport({"a": special}, others)
    await routed.publish("a", b"1", key="k", partition=2, headers={"h": b"v"})
    await routed.publish("b", b"2")
    assert (special.num_messages("a"), special.num_messages("b")) == (1, 0)
    assert (others.num_messages("a"), others.num_messages("b")) == (0, 1)
    subscription = await routed.subscribe("a", group="g", partition=2, prefetch=1)
    async with asyncio.timeout(5):
        delivery = await subscription.receive()
    assert (delivery.payload, delivery.key, delivery.partition, delivery.headers) == (b"1", "k", 2, {"h": b"v"})


async def test_closing_closes_all() -> None:
    special, others = MemoryTransport(), MemoryTransport()
    routed = RoutedTransport({"a": special}, others)
    subscriptions = [await routed.subscribe(topic, group="g") for topic in ("a", "b")]
    await routed.close()
    await routed.close()
    for subscription in subscriptions:
        with pytest.raises(TransportError, match="is closed"):
            await subscription.receive()
