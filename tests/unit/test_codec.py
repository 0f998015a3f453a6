"""Messages survive the wire, and nothing that is no message of ours gets past it."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pice.core import (
    Answer,
    Candidate,
    Event,
    Failure,
    JobLine,
    Message,
    Placement,
    Plan,
    Point,
    Request,
    Sampling,
    Scored,
    Segment,
    Span,
)
from pice.errors import DecodeError, InputError
from pice.message.codec import MAX_ITEMS, TYPES, as_plain, decode, decode_as, encode

SCALARS: Mapping[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20),
    bytes: st.binary(max_size=20),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have."""
    kind, args = get_origin(hint) or hint, get_args(hint)
    if is_dataclass(kind):
        hints = get_type_hints(hint)
        return st.builds(hint, **{field.name: values(hints[field.name]) for field in fields(hint)})
    if kind is Literal:
        return st.sampled_from(args)
    if kind in (Union, UnionType):
        return st.none() | values(args[0])
    if kind is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if kind is Mapping:
        return st.dictionaries(SCALARS[str], values(args[1]), max_size=3)
    return SCALARS[kind]


POINT = Point(index=1, text="weißes Licht besteht aus allen Farben", words=60)
CANDIDATE = Candidate("r1", 1, 2, "jetson", "qwen", "Weil Luft blaues Licht streut.", logprob_mean=-0.5)
SEGMENT = Segment(
    request_id="r1",
    attempt=1,
    index=2,
    kind="expand",
    messages=(Message("user", "Warum ist der Himmel blau?"),),
    sketch=(POINT, Point(2, "光の散乱", 40)),
    points=(POINT,),
    words=60,
    sampling=Sampling(max_tokens=120, stop=("\n\n",)),
    deadline_s=12.5,
)
PLAN = Plan("progressive", "faster", t_cloud_s=4.0)
SPAN = Span(2, "Weil.", "jetson", "qwen", 0.7, candidates=(Scored(CANDIDATE, 0.7, {"length": 0.5}, ("cut",)),))
ANSWER = Answer("r1", "Weil.", "progressive", "stop", 1, PLAN, sketch=(POINT,), spans=(SPAN,), degraded=(2,))
SAMPLES = (
    SEGMENT,
    CANDIDATE,
    PLAN,
    SPAN,
    Request("r1", (Message("user", "Warum?"),), mode="edge"),
    Event("r1", "answered", 3.5, answer=ANSWER),
    Failure("r1", "deadline_exceeded", "120 s are over"),
    Placement("jetson", "qwen", 1.0, 2.5),
    JobLine("job_1", 3, b"{\xff}\n"),
)

# What older readers rely on: tags, and the order of fields; new ones go last.
SCHEMA = {
    "request": "request_id messages sampling timeout_s mode stream",
    "segment": "request_id attempt index kind messages sketch points words sampling deadline_s site model stream",
    "candidate": "request_id attempt index site model text finish_reason num_prompt_tokens num_cached_tokens"
    " num_output_tokens logprob_mean logprob_min queue_s service_s error",
    "event": "request_id kind at_s attempt index text site model confidence points plan answer failure",
    "answer": "request_id text mode finish_reason attempt plan sketch spans degraded usage times",
    "failure": "request_id code message retriable",
    "site": "site pool partition models at_s rtt_s draining token",
    "plan": "mode reason t_cloud_s t_progressive_s t_edge_s sketch_words segment_words max_segments candidates",
    "point": "index text words",
    "placement": "site model placed_s expected_s reason",
    "span": "index text site model confidence finish_reason degraded points placements candidates chosen_s",
    "job_line": "job_id number raw",
}


def body_of(message: Any) -> dict[str, Any]:
    body: dict[str, Any] = msgpack.unpackb(encode(message))
    return body


def changed(message: Any, /, **changes: object) -> bytes:
    packed: bytes = msgpack.packb(body_of(message) | changes)
    return packed


def with_terms(terms: object) -> bytes:
    return changed(SPAN, candidates=[{"candidate": body_of(CANDIDATE), "confidence": 1, "terms": terms}])


@pytest.mark.parametrize("tag", SCHEMA)
def test_schema_keeps_its_tags_and_the_order_of_its_fields(tag: str) -> None:
    names = " ".join(field.name for field in fields(TYPES[tag]))
    assert f"{names} ".startswith(f"{SCHEMA[tag]} ")


def test_schema_pins_every_tag() -> None:
    assert SCHEMA.keys() == TYPES.keys()


@pytest.mark.parametrize("tag", TYPES)
@settings(deadline=None)
@given(data=st.data())
def test_message_comes_back_as_it_was_sent(tag: str, data: st.DataObject) -> None:
    message = data.draw(values(TYPES[tag]))
    payload = encode(message)
    assert decode(payload) == message
    assert decode_as(TYPES[tag], payload) == message  # type: ignore[type-var]  # which type is only known here


def test_field_equal_to_its_default_is_left_out() -> None:
    message = Request("r1", (Message("user", "hi"),))
    assert body_of(message) == {
        "v": 1,
        "t": "request",
        "request_id": "r1",
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_message_of_an_older_schema_gets_the_default_of_a_field_it_lacks() -> None:
    body = body_of(CANDIDATE)
    del body["logprob_mean"]
    assert decode_as(Candidate, msgpack.packb(body)).logprob_mean is None


def test_message_of_a_newer_schema_loses_the_field_not_known_here() -> None:
    points = [{"index": 1, "text": "a", "words": 5, "colour": [1, {"x": b"y"}]}]
    payload = changed(SEGMENT, points=points, reserved={"deep": [[[]]]})
    assert decode_as(Segment, payload).points == (Point(1, "a", 5),)


def test_map_that_was_left_out_is_not_shared_between_messages() -> None:
    payload = changed(SPAN, candidates=[{"candidate": body_of(CANDIDATE), "confidence": 1}])
    first, second = (decode_as(Span, payload).candidates[0].terms for _ in range(2))
    assert first == {}
    assert first is not second


def test_of_a_key_given_twice_the_last_stands() -> None:
    twice = msgpack.packb({"code": "a", "CODE": "b"}).replace(b"CODE", b"code")
    payload = msgpack.packb({"v": 1, "t": "failure", "request_id": "r1", "message": "", "x": 0})
    merged = bytes([payload[0] + 1]) + payload[1:-3] + twice[1:]
    assert decode_as(Failure, merged).code == "b"


REFUSED = {
    "empty": (b"", "got 0 bytes"),
    "no map": (msgpack.packb([1, 2]), "expected a msgpack map, got a tuple"),
    "trailing byte": (encode(CANDIDATE) + b"\xc0", "extra data"),
    "key that is a number": (msgpack.packb({1: 2}), "int is not allowed"),
    "key that is bytes": (msgpack.packb({b"v": 1, b"t": "plan"}), "schema version None, known is 1"),
    "no version": (msgpack.packb({"t": "plan"}), "schema version None, known is 1"),
    "later version": (changed(PLAN, v=2), "schema version 2, known is 1"),
    "version that is a bool": (changed(PLAN, v=True), "schema version True"),
    "unknown tag": (changed(PLAN, t="plam"), "unknown tag 'plam', known are request, segment, candidate"),
    "class name as tag": (changed(PLAN, t="Plan"), "unknown tag 'Plan'"),
    "tag that cannot be looked up": (changed(PLAN, t={}), "unknown tag a dict"),
    "missing field": (msgpack.packb({"v": 1, "t": "plan", "mode": "edge"}), "plan message: reason: expected a string"),
    "bool for a number": (
        changed(CANDIDATE, attempt=True),
        "candidate message: attempt: expected an integer, got True",
    ),
    "float for an integer": (changed(CANDIDATE, index=1.0), "index: expected an integer, got 1.0"),
    "bool for a float": (changed(CANDIDATE, queue_s=True), "queue_s: expected a finite number, got True"),
    "nan": (changed(CANDIDATE, logprob_mean=float("nan")), "logprob_mean: expected a finite number, got nan"),
    "infinity": (changed(CANDIDATE, queue_s=float("inf")), "queue_s: expected a finite number, got inf"),
    "nan in a map": (with_terms({"a": float("nan")}), "candidates.terms: expected a finite number"),
    "array for a map of numbers": (with_terms([1]), "candidates.terms: expected a map, got a tuple"),
    "key in a map that is bytes": (with_terms({b"a": 1}), "candidates.terms: expected a string, got a bytes"),
    "bytes for a string": (changed(CANDIDATE, text=b"abc"), "text: expected a string, got a bytes"),
    "null for a string": (changed(CANDIDATE, text=None), "text: expected a string, got None"),
    "string for an array": (changed(SEGMENT, points="abc"), "points: expected an array, got 'abc'"),
    "array for a map": (changed(SEGMENT, sampling=[1]), "sampling: expected a map, got a tuple"),
    "value not among the allowed": (changed(PLAN, mode="fog"), "mode: expected one of cloud, edge, progressive"),
    "wrong deep inside": (
        changed(SEGMENT, messages=[{"role": "user", "content": 7}]),
        "segment message: messages.content: expected a string, got 7",
    ),
    "number of bools for bools": (changed(Failure("r", "c", "m"), retriable=1), "retriable: expected true or false"),
    "not utf-8": (encode(CANDIDATE).replace(b"jetson", b"jets\xff\xff"), "utf-8"),
    "extension type": (changed(CANDIDATE, text=msgpack.ExtType(5, b"x")), "text: expected a string"),
    "array that claims too much": (b"\x81\xa1v\xdd\x7f\xff\xff\xff", "bytes that are none"),
    "array of too many": (msgpack.packb([0] * (MAX_ITEMS + 1)), "bytes that are none"),
    "map of too many": (msgpack.packb({str(key): 0 for key in range(MAX_ITEMS + 1)}), "bytes that are none"),
    "bottomless": (b"\x91" * 100_000 + b"\x90", "bytes that are none"),
    "bottomless map": (b"\x81\xa1v" * 100_000 + b"\x01", "bytes that are none"),
}


@pytest.mark.parametrize(("payload", "says"), REFUSED.values(), ids=REFUSED)
def test_bytes_of_none_of_ours_are_refused(payload: bytes, says: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(payload)
    assert says in str(caught.value)


def test_refusal_shows_no_more_than_the_start_of_a_text() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(changed(PLAN, mode="x" * 5000))
    assert len(str(caught.value)) < 200


def test_message_over_the_cap_is_not_even_unpacked() -> None:
    payload = encode(CANDIDATE)
    assert decode(payload, max_bytes=len(payload)) == CANDIDATE
    with pytest.raises(DecodeError, match=f"at most {len(payload) - 1} bytes, got {len(payload)}"):
        decode(payload, max_bytes=len(payload) - 1)


def test_message_of_another_type_is_refused_where_one_is_wanted() -> None:
    with pytest.raises(DecodeError, match="expected a segment message, got a candidate"):
        decode_as(Segment, encode(CANDIDATE))


UNSENDABLE = {
    "half a surrogate pair": Failure("r1", "x", "\ud800"),
    "more than 64 bits": Request("r1", (), Sampling(seed=2**64)),
    "nan": Candidate("r1", 1, 0, "s", "m", "", logprob_mean=float("nan")),
    "infinity deep inside": Span(0, "", "s", "m", 0, candidates=(Scored(CANDIDATE, 0, {"x": float("inf")}),)),
}


@pytest.mark.parametrize("message", UNSENDABLE.values(), ids=UNSENDABLE)
def test_what_no_reader_would_take_is_not_sent(message: Any) -> None:
    with pytest.raises(InputError, match="cannot be put in a message"):
        encode(message)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_message_cut_anywhere_is_refused(message: Any) -> None:
    payload = encode(message)
    for length in range(len(payload)):
        with pytest.raises(DecodeError):
            decode(payload[:length])


def decodes_or_is_refused(payload: bytes) -> None:
    """Whatever is let through is a sound message: it can be sent on and is the same again."""
    try:
        message = decode(payload)
    except DecodeError:
        return
    assert decode(encode(message)) == message


@settings(deadline=None)
@given(payload=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    decodes_or_is_refused(payload)


@settings(deadline=None)
@given(message=st.sampled_from(SAMPLES), at=st.integers(0, 5000), new=st.binary(min_size=1, max_size=4))
def test_damaged_message_is_a_message_or_refused(message: Any, at: int, new: bytes) -> None:
    payload = bytearray(encode(message))
    at %= len(payload)
    payload[at : at + len(new)] = new
    decodes_or_is_refused(bytes(payload))


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(message=st.sampled_from(SAMPLES), data=st.data())
def test_message_with_a_wrong_value_is_a_message_or_refused(message: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([field.name for field in fields(message)]))
    decodes_or_is_refused(changed(message, **{name: data.draw(JUNK)}))


def test_plain_form_has_every_field_and_is_json() -> None:
    plain = as_plain(ANSWER)
    assert orjson.loads(orjson.dumps(plain)) == plain
    assert plain["sketch"] == [{"index": 1, "text": POINT.text, "words": 60}]
    assert plain["usage"]["num_cloud_output_tokens"] == 0
    assert plain["spans"][0]["candidates"][0]["terms"] == {"length": 0.5}
    assert list(plain) == [field.name for field in fields(Answer)]
