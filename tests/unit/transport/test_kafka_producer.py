"""When a producer is replaced, over connections that play a part."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from pice.errors import TransportError

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from pice.transport.kafka_producer import KafkaProducer


class Sender:
    """Takes whatever it is given, unless it is `away`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_away = False
        self.stopped = 0
        self._sender = self
        self.sender_task = asyncio.get_running_loop().create_future()

    async def send_and_wait(self, topic: str, payload: bytes, *others: Any, **more: Any) -> None:
        if self.is_away:
            raise TimeoutError
        self.sent.append(payload)

    async def stop(self) -> None:
        self.stopped += 1


class Kafka:
    """Gives out senders; while it is `away` it says that it was `asked`, and refuses once `told` to."""

    def __init__(self) -> None:
        self.senders: list[Sender] = []
        self.is_away = False
        self.asked, self.told = asyncio.Event(), asyncio.Event()
        self.num_asked = 0

    async def producer(self) -> Sender:
        self.num_asked += 1
        if self.is_away:
            self.asked.set()
            await self.told.wait()
            raise TransportError("nobody answers at host:1")
        self.senders.append(Sender())
        return self.senders[-1]

    @contextmanager
    def mapped(self, what: str) -> Generator[None]:
        try:
            yield
        except TimeoutError as error:
            raise TransportError(f"{what}: no answer in time") from error


async def send(producer: KafkaProducer, payload: bytes) -> None:
    await producer.send("t", payload, key=b"k", partition=None, headers={})


@pytest.fixture
async def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
async def producer(kafka: Any) -> KafkaProducer:
    producer = KafkaProducer(kafka)
    await producer.start()
    return producer


async def test_producer_that_got_no_answer_is_replaced_and_stopped(kafka: Kafka, producer: KafkaProducer) -> None:
    kafka.senders[0].is_away = True
    with pytest.raises(TransportError, match="t could not take a message: no answer in time"):
        await send(producer, b"lost")
    await send(producer, b"kept")
    assert [(it.sent, it.stopped) for it in kafka.senders] == [([], 1), ([b"kept"], 0)]


async def test_those_who_wait_for_an_attempt_that_fails_fail_with_it(kafka: Kafka, producer: KafkaProducer) -> None:
    kafka.senders[0].is_away = kafka.is_away = True
    with pytest.raises(TransportError, match="no answer in time"):
        await send(producer, b"lost")
    waiting = [asyncio.ensure_future(send(producer, b"x")) for _ in range(5)]
    async with asyncio.timeout(5):
        await kafka.asked.wait()
        kafka.told.set()
        failed = await asyncio.gather(*waiting, return_exceptions=True)
    assert {str(error) for error in failed} == {"nobody answers at host:1"}
    assert kafka.num_asked == 2
    kafka.is_away = False
    await send(producer, b"kept")
    assert kafka.senders[-1].sent == [b"kept"]


async def test_nothing_is_sent_or_connected_once_closed(kafka: Kafka, producer: KafkaProducer) -> None:
    await producer.stop()
    await producer.stop()
    with pytest.raises(TransportError, match="is closed"):
        await send(producer, b"late")
    assert kafka.num_asked == 1
