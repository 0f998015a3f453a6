"""Messages as bytes: a msgpack map with the schema version `v`, a tag `t` and the fields of one of the nouns.

Tags are chosen here and never follow a class name; names of fields are part of the wire, and `tests/unit/test_codec.py`
pins both. To change the schema add a field, last and with a default: a reader that lacks it skips it, a reader that
has it fills it in. Anything else takes a new `VERSION`. A field equal to its default is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import msgpack

from pice.core import (
    Answer,
    Candidate,
    Event,
    Failure,
    JobLine,
    Placement,
    Plan,
    Point,
    Request,
    Segment,
    SiteState,
    Span,
)
from pice.errors import DecodeError, InputError
from pice.message.fields import Mismatch, Read, reader, shown, writer

VERSION = 1
MAX_BYTES = 1024 * 1024
"""Longest message that `decode` looks at unless told otherwise; room for about 150,000 words."""
MAX_ITEMS = 4096
"""Longest array and largest map in a message: msgpack makes room for what a header claims before it reads on."""

Wire = Request | Segment | Candidate | Event | Answer | Failure | SiteState | Plan | Point | Placement | Span | JobLine
W = TypeVar("W", Request, Segment, Candidate, Event, Answer, Failure, SiteState, Plan, Point, Placement, Span, JobLine)

TYPES: Mapping[str, type[Wire]] = {
    "request": Request,
    "segment": Segment,
    "candidate": Candidate,
    "event": Event,
    "answer": Answer,
    "failure": Failure,
    "site": SiteState,
    "plan": Plan,
    "point": Point,
    "placement": Placement,
    "span": Span,
    "job_line": JobLine,
}
TAGS: Mapping[type[Wire], str] = {cls: tag for tag, cls in TYPES.items()}


_WRITE: Mapping[type[Wire], Callable[[Any], dict[str, object]]] = {cls: writer(cls) for cls in TAGS}
_READ: Mapping[str, Read] = {tag: reader(cls) for tag, cls in TYPES.items()}


def encode(message: Wire) -> bytes:
    """The bytes of a message.

    Raises:
        InputError: a text with half a surrogate pair, a number that is not finite or takes more than 64 bits.
    """
    cls = type(message)
    try:
        body = _WRITE[cls](message)
        return cast("bytes", msgpack.packb({"v": VERSION, "t": TAGS[cls], **body}))
    except (ValueError, OverflowError) as error:
        raise InputError(f"this {TAGS[cls]} cannot be put in a message: {error}") from error


def decode(payload: bytes, *, max_bytes: int = MAX_BYTES) -> Wire:
    """The message in these bytes. Fields it does not know are skipped; of a key given twice the last stands.

    Raises:
        DecodeError: these are no bytes of ours. Nothing else is raised, whatever they are.
    """
    body = _unpack(payload, max_bytes)
    tag = _tag(body)
    try:
        return cast("Wire", _READ[tag](body))
    except Mismatch as error:
        raise DecodeError(f"{tag} message: {error}") from error


def decode_as(cls: type[W], payload: bytes, *, max_bytes: int = MAX_BYTES) -> W:
    """`decode`, where only one type of message will do.

    Raises:
        DecodeError: as `decode`, or it is a message of another type.
    """
    message = decode(payload, max_bytes=max_bytes)
    if type(message) is not cls:
        raise DecodeError(f"expected a {TAGS[cls]} message, got a {TAGS[type(message)]}: it is in the wrong place")
    return message


def pack(value: object) -> bytes:
    """Plain values (None, booleans, numbers, texts, bytes, tuples and maps of these) as bytes, with no version or tag.

    Raises:
        InputError: a text with half a surrogate pair, or a number that takes more than 64 bits.
    """
    try:
        return cast("bytes", msgpack.packb(value))
    except (ValueError, OverflowError) as error:
        raise InputError(f"this cannot be put in a message: {error}") from error


def unpack(payload: bytes) -> object:
    """What was packed; arrays come as tuples. No array or map has more than `MAX_ITEMS`.

    Raises:
        DecodeError: these bytes are not one packed value. Nothing else is raised, whatever they are.
    """
    try:
        return msgpack.unpackb(payload, use_list=False, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS)
    except ValueError as error:
        raise DecodeError(f"expected one msgpack value, got {len(payload)} bytes that are none: {error}") from error


def as_plain(value: Any) -> dict[str, Any]:
    """A dataclass as dicts, lists and scalars, every field of it, ready for JSON."""
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return as_plain(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return dict(value) if isinstance(value, Mapping) else value


def _unpack(payload: bytes, max_bytes: int) -> dict[Any, object]:
    if len(payload) > max_bytes:
        raise DecodeError(f"expected a message of at most {max_bytes} bytes, got {len(payload)}")
    body = unpack(payload)
    if type(body) is not dict:
        raise DecodeError(f"expected a msgpack map, got {shown(body)}")
    return body


def _tag(body: dict[Any, object]) -> str:
    version, tag = body.get("v"), body.get("t")
    if type(version) is not int or version != VERSION:
        raise DecodeError(f"unknown schema version {shown(version)}, known is {VERSION}: upgrade the older side")
    if type(tag) is not str or tag not in TYPES:
        raise DecodeError(f"unknown tag {shown(tag)}, known are {', '.join(TYPES)}")
    return tag
