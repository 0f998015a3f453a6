"""`pice.dead` on a real Kafka: listed, read, replayed once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from pice.errors import ConfigError, InputError
from pice.transport.base import DEAD, Delivery
from tests.contract.kafka_transport import TOPIC, connected, kafka_options, topics_deleted

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from pice.transport.kafka import KafkaTransport
from pice.transport.kafka_dead import KafkaDead
from pice.transport.kafka_topics import KafkaTopics, TopicSpec


@dataclass(frozen=True)
class Morgue:
    dead: KafkaDead
    transport: KafkaTransport

    async def bury(self, payload: bytes, reason: str = "why not", topic: str = TOPIC, **others: bytes) -> None:
        """As nodes do."""
        headers = {"request_id": b"r1", "reason": reason.encode(), "topic": topic.encode()}
        headers |= {"partition": b"1", "position": b"42"} | others
        await self.transport.publish(DEAD, payload, key="r1", headers=headers)


@pytest.fixture
async def morgue() -> AsyncIterator[Morgue]:
    options = kafka_options()
    async with topics_deleted(options), connected(options) as transport:
        await KafkaTopics(options).create([TopicSpec(DEAD, 1, 3600.0)])
        yield Morgue(KafkaDead(options), transport)


async def test_newest_are_listed_with_where_they_came_from_and_why(morgue: Morgue) -> None:
    assert await morgue.dead.newest(10) == []
    await morgue.bury(b"\xff", "no message")
    await morgue.bury(b"b", topic="elsewhere")
    await morgue.bury(b"c")
    first, _, last = await morgue.dead.newest(10)
    assert (first.dead_id, first.reason, first.topic, first.partition, first.position) == (
        "0:0",
        "no message",
        TOPIC,
        1,
        42,
    )
    assert (first.num_bytes, first.payload, first.key, first.headers) == (1, b"", "r1", {"request_id": b"r1"})
    assert 0 <= last.stored_s - first.stored_s < 60
    assert [it.dead_id for it in await morgue.dead.newest(2)] == ["0:1", "0:2"]
    assert [it.dead_id for it in await morgue.dead.newest(10, topic=TOPIC)] == ["0:0", "0:2"]


async def test_topic_that_is_not_there_is_not_taken_for_an_empty_one() -> None:
    with pytest.raises(ConfigError, match="does not exist: run `pice topics create`"):
        await KafkaDead(kafka_options()).newest(1)


async def test_message_is_read_by_its_id(morgue: Morgue) -> None:
    await morgue.bury(b"a")
    await morgue.bury(b"b")
    assert (await morgue.dead.read("0:1")).payload == b"b"


async def test_id_of_nothing_is_refused(morgue: Morgue) -> None:
    await morgue.bury(b"a")
    for dead_id in ("0:7", "5:0"):
        with pytest.raises(InputError, match=f"has no message {dead_id}, or no more"):
            await morgue.dead.read(dead_id)
    for dead_id in ("7", "../x", "0:-1", "1e3:0", "٣:0", ""):
        with pytest.raises(InputError, match="expected an ID like 0:17"):
            await morgue.dead.read(dead_id)


async def test_replayed_message_comes_again_as_it_was_and_only_once(morgue: Morgue) -> None:
    await morgue.bury(b"\x00raw")
    before = await morgue.dead.read("0:0")
    replayed = await morgue.dead.replay("0:0", morgue.transport, [TOPIC])
    subscription = await morgue.transport.subscribe(TOPIC, group="g", partition=1)
    async with asyncio.timeout(20):
        delivery = await subscription.receive()
    assert delivery == Delivery(TOPIC, 1, 0, b"\x00raw", "r1", {"request_id": b"r1"})
    assert not before.replayed
    assert replayed.dead_id == "0:0"
    with pytest.raises(InputError, match="0:0 was replayed already"):
        await morgue.dead.replay("0:0", morgue.transport, [TOPIC])
    (listed,) = await morgue.dead.newest(10)
    assert (listed.dead_id, listed.replayed) == ("0:0", True)
    with pytest.raises(InputError, match="no message"):
        await morgue.dead.read("0:1")  # the note of the replay


async def test_message_of_which_only_the_head_is_kept_is_not_replayed(morgue: Morgue) -> None:
    await morgue.bury(b"head", cut=b"5000000")
    with pytest.raises(InputError, match="only its head is left"):
        await morgue.dead.replay("0:0", morgue.transport, [TOPIC])


async def test_message_is_replayed_to_known_topics_alone(morgue: Morgue) -> None:
    await morgue.bury(b"x", topic="__consumer_offsets")
    with pytest.raises(InputError, match=f"came from '__consumer_offsets', and only {TOPIC} are known"):
        await morgue.dead.replay("0:0", morgue.transport, [TOPIC])


async def test_junk_that_was_written_to_the_dead_themselves_is_listed(morgue: Morgue) -> None:
    await morgue.transport.publish(DEAD, b"", headers={"partition": b"\xff", "position": b"-1", "topic": b"\xff"})
    (junk,) = await morgue.dead.newest(10)
    assert (junk.topic, junk.partition, junk.position, junk.reason) == ("\ufffd", 0, 0, "")
