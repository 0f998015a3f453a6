"""Messages of one request can be found by their headers, and told from one another."""

import re
from types import SimpleNamespace

import pytest

from pice.message.trace import headers

TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01")


def ids(request_id: str, *parts: str | int) -> tuple[bytes, bytes]:
    """Trace id and span id."""
    _, trace_id, span_id, _ = headers(request_id, *parts)["traceparent"].split(b"-")
    return trace_id, span_id


def test_headers_are_the_requests_id_and_hashes_of_it() -> None:
    """printf r-1 | sha256sum, and of r-1, pice.candidates, 1 and 2 with zero bytes between."""
    assert headers("r-1", "pice.candidates", 1, 2) == {
        "request_id": b"r-1",
        "traceparent": b"00-a5fa777a3dc67268caea6eea038ba141-f9adf491100bc1a6-01",
    }


@pytest.mark.parametrize("request_id", ["r-1", "", "wo ist\nder Mond", "月", "x" * 10_000])
def test_any_request_id_gives_a_traceparent_of_w3c(request_id: str) -> None:
    found = headers(request_id, "pice.requests")
    assert TRACEPARENT.fullmatch(found["traceparent"])
    assert found["request_id"].decode() == request_id


def test_messages_of_a_request_share_its_trace_and_differ_in_their_span() -> None:
    seen = [ids("r", *parts) for parts in [(), ("a",), ("a", 1), ("a", 2), ("a", 1, 2), ("a1",), ("a", 12)]]
    assert len({trace_id for trace_id, _ in seen}) == 1
    assert len({span_id for _, span_id in seen}) == len(seen)
    assert ids("r", "a", 1) == ids("r", "a", 1)


def test_requests_have_traces_and_spans_of_their_own() -> None:
    assert not {*ids("r", "a")} & {*ids("s", "a")}


def test_no_id_is_all_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros:
        def __init__(self, name: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr("pice.message.trace.hashlib", SimpleNamespace(sha256=Zeros))
    assert headers("r")["traceparent"] == b"00-" + b"1".rjust(32, b"0") + b"-" + b"1".rjust(16, b"0") + b"-01"
