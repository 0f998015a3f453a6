"""Headers by which a request can be followed through topics and processes."""

import hashlib
from collections.abc import Mapping

REQUEST_ID = "request_id"
TRACEPARENT = "traceparent"


def headers(request_id: str, *parts: str | int) -> Mapping[str, bytes]:
    """The request's id, and a `traceparent` of W3C Trace Context (https://www.w3.org/TR/trace-context/).

    All messages of a request share one trace id. `parts` tell a message from the others of its request, and give it its
    span id; a repeated message has the same. Nothing needs to be kept for that: both ids are hashes.
    """
    trace_id = _hashed(request_id.encode(), num_bytes=16)
    span_id = _hashed("\0".join([request_id, *map(str, parts)]).encode(), num_bytes=8)
    return {REQUEST_ID: request_id.encode(), TRACEPARENT: f"00-{trace_id}-{span_id}-01".encode()}


def _hashed(name: bytes, *, num_bytes: int) -> str:
    """Hex digits of the first bytes of a name's SHA-256; never all zero, which would be no id."""
    number = int.from_bytes(hashlib.sha256(name).digest()[:num_bytes], "big")
    return f"{number or 1:0{2 * num_bytes}x}"
