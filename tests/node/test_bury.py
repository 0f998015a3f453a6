"""Poison is put aside, with where it came from and why; nothing of that can stop a partition."""

from collections.abc import Mapping

import pytest

from pice.errors import MessageTooLarge, TransportError
from pice.node.bury import bury
from pice.node.telemetry import Telemetry
from pice.transport.base import DEAD, Delivery
from pice.transport.memory import MemoryTransport

TOPIC = "pice.test"
ORIGIN = {"topic": TOPIC.encode(), "partition": b"3", "position": b"42"}


class Toll(Telemetry):
    """Counts what was put aside."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    def buried(self, topic: str) -> None:
        self.topics.append(topic)


@pytest.fixture
def toll() -> Toll:
    return Toll()


def poison(payload: bytes, key: str = "key", headers: Mapping[str, bytes] | None = None) -> Delivery:
    return Delivery(TOPIC, 3, 42, payload, key, headers or {})


async def dead(transport: MemoryTransport) -> Delivery:
    return await (await transport.subscribe(DEAD, group="g")).receive()


async def test_buried_message_is_kept_whole_with_where_it_came_from_and_why(
    toll: Toll, caplog: pytest.LogCaptureFixture
) -> None:
    transport = MemoryTransport()
    await bury(transport, poison(b"\x00", headers={"trace": b"7"}), "it is poison", toll)
    kept = await dead(transport)
    assert (kept.payload, kept.key) == (b"\x00", "key")
    assert kept.headers == {"trace": b"7", "reason": b"it is poison", **ORIGIN}
    assert toll.topics == [TOPIC]
    assert caplog.messages == [f"{TOPIC} 3/42 put aside, whole: it is poison"]


async def test_message_too_large_to_keep_leaves_its_head_and_says_of_how_much(
    toll: Toll, caplog: pytest.LogCaptureFixture
) -> None:
    transport = MemoryTransport(max_bytes=2000)
    payload = bytes(range(256)) * 200_000
    headers = {"request_id": b"r", "traceparent": b"t", "signature": b"s", "stray": b"?"}
    await bury(transport, poison(payload, headers=headers), "it is too long", toll)
    kept = await dead(transport)
    assert (kept.payload, kept.key) == (payload[:1024], "key")
    ours = {"request_id": b"r", "traceparent": b"t", "signature": b"s"}
    assert kept.headers == {**ours, "reason": b"it is too long", "cut": b"51200000", **ORIGIN}
    assert toll.topics == [TOPIC]
    assert caplog.messages == [f"{TOPIC} 3/42 put aside, the first 1024 of its 51200000 bytes: it is too long"]


async def test_message_cannot_claim_what_is_said_of_the_dead(toll: Toll) -> None:
    transport = MemoryTransport()
    claims = dict.fromkeys(("cut", "replayed", "reason", "topic", "partition", "position"), b"0:17")
    await bury(transport, poison(b"x", headers=claims), "it is poison", toll)
    assert (await dead(transport)).headers == {"reason": b"it is poison", **ORIGIN}


class Narrow(MemoryTransport):
    """Bounds a record as Kafka does, key and headers included."""

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        num_bytes = (
            len(payload) + len(key.encode()) + sum(len(it) + len(value) for it, value in (headers or {}).items())
        )
        if num_bytes > 4096:
            raise MessageTooLarge(f"{num_bytes} bytes")
        await super().publish(topic, payload, key=key, partition=partition, headers=headers)


@pytest.mark.parametrize(
    "delivery",
    [
        pytest.param(poison(b"x", headers={"stray": bytes(10_000)}), id="its headers"),
        pytest.param(poison(b"x", headers={"request_id": bytes(10_000)}), id="a header of ours"),
        pytest.param(poison(b"x", key="k" * 10_000), id="its key"),
    ],
)
async def test_message_is_kept_whatever_of_it_is_too_large(delivery: Delivery, toll: Toll) -> None:
    transport = Narrow()
    await bury(transport, delivery, "it is poison", toll)
    kept = await dead(transport)
    assert (kept.payload, kept.headers["reason"], kept.headers["cut"]) == (b"x", b"it is poison", b"1")


async def test_reason_without_end_is_cut(toll: Toll, caplog: pytest.LogCaptureFixture) -> None:
    transport = MemoryTransport()
    await bury(transport, poison(b"x"), "why " * 100_000 + "\ud800", toll)
    assert (await dead(transport)).headers["reason"] == b"why " * 125
    assert len(caplog.messages[0]) < 600


async def test_reason_that_is_no_proper_text_is_kept_as_far_as_it_is(toll: Toll) -> None:
    transport = MemoryTransport()
    await bury(transport, poison(b"x"), "half a \ud800 pair", toll)
    assert (await dead(transport)).headers["reason"] == b"half a ? pair"


@pytest.mark.parametrize(
    ("transport", "payload"),
    [(MemoryTransport(max_messages=0), b"a"), (MemoryTransport(max_bytes=1), b"ab")],
    ids=["no room", "not even for the head"],
)
async def test_poison_that_cannot_be_kept_is_logged_once_and_let_go(
    transport: MemoryTransport, payload: bytes, toll: Toll, caplog: pytest.LogCaptureFixture
) -> None:
    await bury(transport, poison(payload), "it is poison", toll)
    assert [(it.levelname, "it is poison" in it.message) for it in caplog.records] == [("ERROR", True)]
    assert toll.topics == []


class Away(MemoryTransport):
    """Takes nothing for now."""

    async def publish(self, *_: object, **__: object) -> None:
        raise TransportError("the broker is away")


async def test_poison_is_not_let_go_because_the_queue_is_away(toll: Toll, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TransportError, match="away"):
        await bury(Away(), poison(b"x"), "it is poison", toll)
    assert (toll.topics, caplog.messages) == ([], [])
