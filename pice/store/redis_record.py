"""A request's record as the fields of a hash, which `pice.store.redis_scripts` lists."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from pice.core import (
    Answer,
    Candidate,
    Failure,
    Placement,
    Plan,
    Point,
    Record,
    Request,
    Segment,
    SegmentRecord,
    Span,
)
from pice.errors import DecodeError
from pice.message.codec import W, decode, decode_as, encode, pack, unpack
from pice.redis_lines import Word

MAX_BYTES = 64 * 1024 * 1024
"""Longest value that is read back: an outcome holds every candidate's text."""
_NUM_DIGITS = 10
_KINDS = (b"s", b"p", b"c", b"x")
"""Segments, placements, candidates, choices."""
_LONGEST_KEPT = 8192

Fields = Mapping[bytes, bytes]


def site_name(site: str, model: str) -> bytes:
    """A site and a model as a part of a field's name."""
    return pack((site, model))


def sealed_fields(
    sketch: Sequence[Point], num_segments: int, num_prompt_tokens: int, num_output_tokens: int, *, cut: bool
) -> tuple[Word, ...]:
    """Fields and values of a finished sketch."""
    return (
        *("sketch", pack(tuple(encode(point) for point in sketch)), "num_segments", num_segments),
        *("prompt_tokens", num_prompt_tokens, "output_tokens", num_output_tokens, "cut", int(cut)),
    )


def paired(reply: Sequence[bytes]) -> Fields:
    """Fields and values in turn, as Redis sends them, as a map."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


def record_of(fields: Fields) -> Record:
    """The record in these fields.

    Raises:
        DecodeError: another version wrote them, or another program.
    """
    try:
        return _record(fields)
    except (KeyError, ValueError) as error:
        raise DecodeError(f"expected the fields of a request's record, got {len(fields)} fields: {error!r}") from error


def outcome_of(payload: bytes) -> Answer | Failure:
    """How a request ended.

    Raises:
        DecodeError: another version wrote it.
    """
    outcome = decode(payload, max_bytes=MAX_BYTES)
    if not isinstance(outcome, Answer | Failure):
        raise DecodeError(f"expected an answer or a failure, got a {type(outcome).__name__}")
    return outcome


def _value(cls: type[W], payload: bytes) -> W:
    """As `decode_as`. A record is read many times while little of it changes, and all that is in it is frozen: so what
    was read before is taken again."""
    if len(payload) <= _LONGEST_KEPT and isinstance(kept := _kept(payload), cls):
        return kept
    return decode_as(cls, payload, max_bytes=MAX_BYTES)


_kept = lru_cache(maxsize=8192)(decode)


def _record(fields: Fields) -> Record:
    return Record(
        _value(Request, fields[b"request"]),
        opened_s=float(fields[b"opened"]),
        deadline_s=float(fields[b"deadline"]),
        attempt=int(fields[b"attempt"]),
        begun_s=float(fields.get(b"begun", 0)),
        plan=_value(Plan, fields[b"plan"]) if b"plan" in fields else None,
        sketch=_sketch(fields[b"sketch"]) if b"sketch" in fields else (),
        sketch_prompt_tokens=int(fields.get(b"prompt_tokens", 0)),
        sketch_output_tokens=int(fields.get(b"output_tokens", 0)),
        sealed_s=float(fields.get(b"sealed", 0)),
        sketch_cut=fields.get(b"cut") == b"1",
        num_segments=int(fields[b"num_segments"]) if b"num_segments" in fields else None,
        segments=_segments(fields),
        outcome=outcome_of(fields[b"outcome"]) if b"outcome" in fields else None,
    )


def _sketch(payload: bytes) -> tuple[Point, ...]:
    points = unpack(payload)
    if not isinstance(points, tuple):
        raise DecodeError(f"expected the points of a sketch, got a {type(points).__name__}")
    return tuple(_value(Point, point) for point in points)


def _segments(fields: Fields) -> dict[int, SegmentRecord]:
    of = _by_kind(fields)
    segments = {index: SegmentRecord(_value(Segment, value)) for index, value in sorted(of[b"s"])}
    for index, value in sorted(of[b"p"], key=_number):
        segments[index].placements.append(_value(Placement, value[_NUM_DIGITS:]))
    for index, value in sorted(of[b"c"], key=_number):
        candidate = _value(Candidate, value[_NUM_DIGITS:])
        segments[index].candidates[candidate.site, candidate.model] = candidate
    for index, value in of[b"x"]:
        segments[index].choice = _value(Span, value)
    return segments


def _by_kind(fields: Fields) -> dict[bytes, list[tuple[int, bytes]]]:
    """Index and value of each field that belongs to a segment."""
    of: dict[bytes, list[tuple[int, bytes]]] = {kind: [] for kind in _KINDS}
    for name, value in fields.items():
        if name[1:2] == b":" and (found := of.get(name[:1])) is not None:
            found.append((int(name[2:].split(b":", 1)[0]), value))
    return of


def _number(found: tuple[int, bytes]) -> bytes:
    """In which order it was stored."""
    return found[1][:_NUM_DIGITS]
