"""A Kafka that ends, stands still and comes back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pice.errors import TransportError
from pice.transport.base import Transport
from tests.contract.kafka_transport import TOPIC, connected
from tests.contract.own_kafka import OwnKafka, own_kafka

NUM = 300


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnKafka]:
    with own_kafka(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka


@pytest.fixture
async def transport(kafka: OwnKafka, tmp_path: Path) -> AsyncIterator[Transport]:
    async with connected(kafka.options(prefix=f"{tmp_path.name}.")) as transport:
        yield transport


async def insist(transport: Transport, payload: bytes) -> None:
    while True:
        try:
            return await transport.publish(TOPIC, payload, key=payload.decode())
        except TransportError:
            continue


async def test_restart_while_messages_flow_loses_none(kafka: OwnKafka, transport: Transport) -> None:
    sent = {str(number).encode() for number in range(NUM)}
    subscription = await transport.subscribe(TOPIC, group="g")
    begun, seen = asyncio.Event(), set[bytes]()

    async def write() -> None:
        for payload in sorted(sent):
            await insist(transport, payload)

    async def read() -> None:
        while seen != sent:
            delivery = await subscription.receive()
            seen.add(delivery.payload)
            await subscription.ack(delivery)
            if len(seen) == NUM // 10:
                begun.set()

    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        tasks.create_task(write())
        await begun.wait()
        await asyncio.to_thread(kafka.program.restart)
    again = await transport.subscribe(TOPIC, group="other", prefetch=2 * NUM)
    async with asyncio.timeout(30):
        kept = set[bytes]()
        while kept != sent:
            kept.add((await again.receive()).payload)


async def test_publishing_to_one_that_stands_still_fails_and_works_when_it_goes_on(
    kafka: OwnKafka, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pice.transport.kafka_producer._SEND_S", 0.5)
    await transport.publish(TOPIC, b"before", partition=0)
    kafka.program.pause()
    try:
        with pytest.raises(TransportError, match="no answer in time"):
            await transport.publish(TOPIC, b"meanwhile", partition=0)
    finally:
        kafka.program.resume()
    await transport.publish(TOPIC, b"after", partition=0)
    subscription = await transport.subscribe(TOPIC, group="g", partition=0)
    async with asyncio.timeout(20):
        seen = [(await subscription.receive()).payload]
        while seen[-1] != b"after":
            seen.append((await subscription.receive()).payload)
    assert seen[0] == b"before"


async def test_messages_for_one_that_is_gone_fail_and_nothing_is_said_of_it_twice(
    kafka: OwnKafka, transport: Transport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for limit in ("pice.transport.kafka_producer._SEND_S", "pice.kafka_client._STOP_S"):
        monkeypatch.setattr(limit, 0.5)
    await transport.publish(TOPIC, b"before", partition=0)
    await asyncio.to_thread(kafka.program.kill)
    with pytest.raises(TransportError, match="no answer in time"):
        await transport.publish(TOPIC, b"lost", partition=0)
    with pytest.raises(TransportError, match=f"Kafka cannot be reached: {kafka.address}: .*Connect"):
        await transport.publish(TOPIC, b"lost too", partition=0)
    await asyncio.to_thread(kafka.program.restart)
    async with asyncio.timeout(60):
        await insist(transport, b"after")
    await transport.close()
    assert [it.getMessage() for it in caplog.records if it.name == "asyncio"] == []


async def test_subscription_closes_in_bounded_time_while_kafka_is_away(
    kafka: OwnKafka, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("pice.transport.kafka_subscription._LAST_COMMIT_S", "pice.kafka_client._STOP_S"):
        monkeypatch.setattr(limit, 0.5)
    subscription = await transport.subscribe(TOPIC, group="g", partition=0)
    await transport.publish(TOPIC, b"x", partition=0)
    async with asyncio.timeout(20):
        delivery = await subscription.receive()
    kafka.program.pause()
    try:
        async with asyncio.timeout(15):
            await subscription.ack(delivery)
            await transport.close()
    finally:
        kafka.program.resume()
