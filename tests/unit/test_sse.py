"""The event-stream parser: what is an event, and that no cut changes it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.engine.sse import EventStream
from pice.errors import EngineError

RECORDED = Path(os.environ.get("PICE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "vllm_wire"
STREAMS = sorted(path.name for path in RECORDED.glob("*stream*.body.txt"))


def parse(*blocks: bytes) -> list[str]:
    stream = EventStream()
    return [event for block in blocks for event in stream.feed(block)]


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
        (b"data: a\r\rdata: b\r\r", ["a", "b"]),
        (b": ping\n\n: ping\n\ndata: a\n\n", ["a"]),
        (b"data: a\n: ping\ndata: b\n\n", ["a\nb"]),
        (b"event: x\nid: 7\nretry: 3\nother\ndata:a\n\n", ["a"]),
        (b"data:  a\n\n", [" a"]),
        (b"data\n\n", [""]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"event: x\n\n\n\ndata: a\n\n", ["a"]),
        (b"data: a\n\ndata: b", ["a"]),
        (b"data: a\n\ndata: b\n", ["a"]),
        (b"data: \xff\n\n", ["\ufffd"]),
        ("data: 河\u2028流\x85\n\n".encode(), ["河\u2028流\x85"]),
    ],
    ids=[
        "lf", "crlf", "cr", "comments between", "comment inside", "other fields", "one space is dropped", "no colon",
        "byte order mark", "event without data", "unfinished line", "unfinished event", "no utf-8", "other line ends",
    ],
)  # fmt: skip
def test_events_are_told_apart_by_the_rules_of_the_format(raw: bytes, events: list[str]) -> None:
    assert parse(raw) == events
    assert parse(*(raw[i : i + 1] for i in range(len(raw)))) == events


@given(
    lines=st.lists(st.sampled_from(["", "data: 河流", "data:é", ": x", "id: 1"]), max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=20),
)
def test_cuts_anywhere_change_nothing(lines: list[str], end: str, sizes: list[int]) -> None:
    raw = "".join(line + end for line in lines).encode()
    blocks, rest = [], raw
    for size in sizes:
        blocks.append(rest[:size])
        rest = rest[size:]
    assert parse(*blocks, rest) == parse("\n".join([*lines, ""]).encode())


@pytest.mark.skipif(not STREAMS, reason="the recordings of vLLM are not here (PICE_DATA)")
@pytest.mark.parametrize("name", STREAMS)
def test_recording_cut_in_two_at_every_byte_gives_the_same_events(name: str) -> None:
    raw = (RECORDED / name).read_bytes()
    events = [line.removeprefix("data: ") for line in raw.decode().splitlines() if line]
    for cut in range(len(raw) + 1):
        assert parse(raw[:cut], raw[cut:]) == events


@pytest.mark.parametrize(
    "blocks",
    [[b"data: " + b"x" * 100], [b"x" * 40] * 3, [b"data: " + b"x" * 30 + b"\n"] * 3],
    ids=["long line", "long line in parts", "many lines"],
)
def test_event_past_the_bound_is_refused(blocks: list[bytes]) -> None:
    stream = EventStream(max_event_bytes=64)
    with pytest.raises(EngineError, match="larger than 64 bytes"):
        list(map(stream.feed, blocks))


def test_bound_is_for_each_event_not_for_the_stream() -> None:
    stream = EventStream(max_event_bytes=64)
    assert sum(len(stream.feed(b"data: " + b"x" * 30 + b"\n\n")) for _ in range(100)) == 100
