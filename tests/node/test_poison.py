"""Whatever stands on a topic: it is logged once, put aside, and the next message is served."""

from collections.abc import Mapping
from typing import Any

import msgpack
import pytest

from pice.core import Candidate, Message, Request, Segment
from pice.errors import MessageTooLarge
from pice.message.codec import encode
from pice.transport.base import CANDIDATES, DEAD, REQUESTS, Delivery
from pice.transport.memory import MemoryTransport
from tests.node.scripted import Script, ScriptedEngine
from tests.node.stage import SEGMENTS, Stage, a_request
from tests.node.test_edge import Work

TEXT = "Water rises and falls twice a day, as everybody knows."
MESSAGE = msgpack.unpackb(encode(a_request("stray")))


def changed(**changes: Any) -> bytes:
    packed: bytes = msgpack.packb(MESSAGE | changes)
    return packed


POISON = [
    pytest.param(b"", "0 bytes", id="nothing"),
    pytest.param(b"\xc1" * 40, "40 bytes", id="junk"),
    pytest.param(encode(a_request())[:-3], "bytes that are none", id="cut off"),
    pytest.param(encode(a_request()) + b"\x00", "bytes that are none", id="with more after it"),
    pytest.param(msgpack.packb([1, 2]), "expected a msgpack map", id="no map"),
    pytest.param(changed(t="oracle"), "unknown tag 'oracle'", id="of an unknown tag"),
    pytest.param(changed(v=2), "unknown schema version 2", id="of a newer version"),
    pytest.param(changed(request_id=7), "request_id: expected a string", id="with a field of another type"),
    pytest.param(b"\xdf\xff\xff\xff\xff", "none", id="that claims four billion entries"),
    pytest.param(b"\x81" * 5000, "none", id="of maps in maps"),
]


class Broad(MemoryTransport):
    """Lets messages of any size stand on all topics but that of the dead."""

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        if topic == DEAD and len(payload) > 1 << 20:
            raise MessageTooLarge("too large for the dead")
        await super().publish(topic, payload, key=key, partition=partition, headers=headers)


@pytest.fixture
async def dead_after(stage: Stage, caplog: pytest.LogCaptureFixture) -> "AfterPoison":
    stage.transport = Broad(max_bytes=1 << 30)
    return AfterPoison(stage, caplog)


class AfterPoison:
    """Each kind of node, after a poisoned message: what was put aside, while the next message was served."""

    def __init__(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        self._stage = stage
        self._caplog = caplog

    async def at(self, topic: str, payload: bytes) -> Delivery:
        stage = self._stage
        await stage.transport.publish(topic, payload, key="poisoned", partition=0)
        await {REQUESTS: self._request, SEGMENTS: self._segment, CANDIDATES: self._candidate}[topic]()
        dead = await stage.dead()
        assert stage.transport.num_messages(topic) == 0
        assert stage.transport.num_messages(DEAD) == 1
        assert (dead.key, dead.headers["topic"], dead.headers["position"]) == ("poisoned", topic.encode(), b"0")
        assert (
            len([line for line in self._caplog.messages if f"{topic} 0/0" in line]) == len(self._caplog.messages) == 1
        )
        return dead

    async def _request(self) -> None:
        self._stage.cloud(ScriptedEngine("big", Script(TEXT)), max_inflight=1)
        await self._stage.submit(a_request())
        assert (await self._stage.answer()).text == TEXT

    async def _segment(self) -> None:
        stage = self._stage
        work = Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))
        stage.edge("paris", ScriptedEngine("small", Script(TEXT)), window=1)
        await work.send()
        assert (await work.receive()).text == TEXT

    async def _candidate(self) -> None:
        paris = await self._stage.site("paris")
        self._stage.collector(second_opinion_below=0.0)
        (segment,) = await self._stage.sealed(("paris", "small"))
        await paris.send(segment, TEXT)
        assert (await self._stage.answer()).text == TEXT


TOPICS = [REQUESTS, SEGMENTS, CANDIDATES]


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize(("payload", "reason"), POISON)
async def test_poison_is_put_aside_whole_and_the_next_message_is_served(
    dead_after: AfterPoison, topic: str, payload: bytes, reason: str
) -> None:
    dead = await dead_after.at(topic, payload)
    assert dead.payload == payload
    assert reason in dead.headers["reason"].decode()


@pytest.mark.parametrize("topic", TOPICS)
async def test_message_of_50_mb_leaves_its_head_and_the_next_is_served(dead_after: AfterPoison, topic: str) -> None:
    payload = bytes(50_000_000)
    dead = await dead_after.at(topic, payload)
    assert dead.payload == bytes(1024)
    assert dead.headers["cut"] == b"50000000"
    assert dead.headers["reason"] == b"expected a message of at most 1048576 bytes, got 50000000"


STRAY: dict[str, Candidate | Request] = {
    REQUESTS: Candidate("stray", 1, 0, "paris", "small", TEXT),
    SEGMENTS: Request("stray", (Message("user", "Why?"),)),
    CANDIDATES: Request("stray", (Message("user", "Why?"),)),
}


@pytest.mark.parametrize("topic", TOPICS)
async def test_message_in_the_wrong_place_is_put_aside(dead_after: AfterPoison, topic: str) -> None:
    dead = await dead_after.at(topic, encode(STRAY[topic]))
    assert b"it is in the wrong place" in dead.headers["reason"]


async def test_segment_for_a_site_that_does_not_exist_is_put_aside(dead_after: AfterPoison) -> None:
    segment = Segment("stray", 1, 0, "answer", (), (), (), 10, a_request().sampling, 100.0, "atlantis", "small")
    dead = await dead_after.at(SEGMENTS, encode(segment))
    assert dead.headers["reason"] == b"expected a segment for site paris, got one for 'atlantis'"


class NoRoom(MemoryTransport):
    """Finds every candidate too large."""

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        if topic == CANDIDATES:
            raise MessageTooLarge("too large for a candidate")
        await super().publish(topic, payload, key=key, partition=partition, headers=headers)


@pytest.mark.parametrize("model", ["small", "huge"], ids=["its text", "that there is none"])
async def test_segment_of_which_nothing_can_be_told_is_put_aside(stage: Stage, model: str) -> None:
    stage.transport = NoRoom()
    work = Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))
    stage.edge("paris", ScriptedEngine("small", Script(TEXT)))
    await work.send(model=model)
    assert b"too large for a candidate" in (await stage.dead()).headers["reason"]
    assert work.num_unacked == 0


async def test_candidate_for_a_finished_request_is_dropped_and_the_log_says_of_which(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Any hedge leaves one behind, so it is nothing to put aside."""
    caplog.set_level("INFO", logger="pice.node.collector")
    paris = await stage.site("paris")
    stage.collector(second_opinion_below=0.0)
    (segment,) = await stage.sealed(("paris", "small"))
    await paris.send(segment, TEXT)
    await stage.answer()
    await paris.send(segment, TEXT)
    await paris.send(segment, TEXT)
    await stage.transport.publish(CANDIDATES, b"\xc1")
    await stage.dead()
    assert caplog.messages[:-1] == ["candidate for r/0 attempt 1 came too late from paris"] * 2
    assert (stage.transport.num_messages(CANDIDATES), stage.transport.num_messages(DEAD)) == (0, 1)
