"""Log lines can name the request that they are about."""

import logging
from collections.abc import Iterator

import pytest

from pice.core import Candidate
from pice.errors import EngineError, TransportError
from pice.message.codec import encode
from pice.node import context
from pice.store.memory import MemoryStore
from pice.transport.base import CANDIDATES, REQUESTS
from tests.node.scripted import Script, ScriptedEngine
from tests.node.stage import SEGMENTS, Stage, a_request, time_passes
from tests.node.test_edge import Work

BROKEN = Script("The moon", error=EngineError("out of memory"))


class Lines(logging.Handler):
    """Which request each line was written for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((context.request_id.get(), record.getMessage()))

    def about(self, words: str) -> list[str]:
        return [request_id for request_id, line in self.seen if words in line]


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines, log = Lines(), logging.getLogger("pice.node")
    log.addHandler(lines)
    yield lines
    log.removeHandler(lines)


@pytest.mark.parametrize("topic", [REQUESTS, SEGMENTS, CANDIDATES])
async def test_junk_is_about_the_request_that_its_key_names(stage: Stage, lines: Lines, topic: str) -> None:
    stage.cloud(ScriptedEngine("big", BROKEN))
    stage.edge("paris", ScriptedEngine("small", BROKEN))
    stage.collector()
    for key in ("r", "s"):
        await stage.transport.publish(topic, b"\xc1junk", key=key, partition=0)
        await stage.dead()
    assert lines.about("put aside") == ["r", "s"]


async def test_message_without_a_key_is_about_the_request_that_it_holds(stage: Stage, lines: Lines) -> None:
    stage.cloud(ScriptedEngine("big", BROKEN))
    stage.collector()
    await stage.store.open(a_request("r"))
    await stage.transport.publish(REQUESTS, encode(a_request("r")))
    await stage.failure("r")
    await stage.sealed(("paris", "small"), request_id="s")
    await stage.transport.publish(CANDIDATES, encode(Candidate("s", 1, 0, "mallory", "small", "I was never asked.")))
    await stage.dead()
    assert (lines.about("failed"), lines.about("never given")) == (["r"], ["s"])


async def test_failed_request_is_named(stage: Stage, lines: Lines) -> None:
    stage.cloud(ScriptedEngine("big", BROKEN))
    for name in ("r", "s"):
        await stage.submit(a_request(name))
        await stage.failure(name)
    assert lines.about("failed") == ["r", "s"]


async def test_segments_are_about_their_own_request_though_one_is_begun_by_the_end_of_another(
    stage: Stage, lines: Lines
) -> None:
    work = Work(stage, await stage.transport.subscribe(CANDIDATES, group="collectors"))
    stage.edge("paris", ScriptedEngine("small", BROKEN, max_inflight=1))
    for name in ("r", "s", "t"):
        await work.send(name)
    for _ in range(3):
        await work.receive()
    assert lines.about("failed") == ["r", "s", "t"]


async def test_refused_candidate_is_about_the_request_it_names(stage: Stage, lines: Lines) -> None:
    stage.collector()
    await stage.sealed(("paris", "small"))
    await stage.send(Candidate("r", 1, 0, "mallory", "small", "I was never asked."))
    await stage.dead()
    assert lines.about("never given") == ["r"]


class LostRecords(MemoryStore):
    """Cannot say what it has."""

    async def record(self, request_id: str) -> None:
        raise TransportError("the store is away")


async def test_overdue_request_that_cannot_be_looked_at_is_named(stage: Stage, lines: Lines) -> None:
    stage.store = LostRecords()
    node = stage.collector()
    await stage.submit(a_request(timeout_s=3.0))
    await time_passes(4)
    await node.stop()
    assert set(lines.about("the store is away")) == {"r"}


def test_no_request_is_worked_for_outside() -> None:
    assert context.request_id.get() == ""
