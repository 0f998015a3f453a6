"""What goes between an engine's process and its parent comes out as it went in, and nothing else gets through."""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.core import Curve, Message, Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.engine.llama.options import LlamaOptions
from pice.engine.process_link import Link
from pice.engine.process_wire import (
    MAX_ANSWER_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_TEXT_CHARS,
    Ask,
    Cancel,
    Failed,
    Fault,
    Load,
    Ready,
    Said,
    Side,
    error_of,
    fault_of,
    packed,
    said,
    unpacked,
)
from pice.engine.process_wire import Message as WireMessage
from pice.errors import (
    ConfigError,
    DecodeError,
    EngineError,
    EngineUnavailable,
    InputError,
    ModelLoadError,
    NoSite,
    PiceError,
    PromptTooLong,
    UnsupportedParameter,
)
from pice.message.codec import MAX_ITEMS, pack

PROMPT = Prompt((Message("system", "Kürze."), Message("user", "光")), kind="expand", words=30, grammar="root ::= [a-z]")
SAMPLING = Sampling(max_tokens=9, temperature=0.0, seed=2**32 - 2, stop=("\n\n", "."))
LAST = Piece(" end", 2, (-0.1, -2.5e-7), "length", num_prompt_tokens=9, num_cached_tokens=8, queue_s=0.25)
MESSAGES: list[tuple[Side, WireMessage]] = [
    ("process", Load(LlamaOptions(Path("a/\udcff.gguf"), n_ctx=64, chat_template="chatml", curve=Curve((1,), (0.5,))))),
    ("process", Ask(1, PROMPT, SAMPLING, within_s=-0.5)),
    ("process", Ask(2**40, PROMPT)),
    ("process", Cancel(3)),
    ("parent", Ready(EngineInfo("m", 4096, 8, Curve((1, 8), (0.1, 0.2), 0.01, 0.5)))),
    ("parent", Failed(Fault("model_unusable", "no"))),
    ("parent", Said(4, LAST)),
    ("parent", Said(5, num_tokens=0)),
    ("parent", Said(6, fault=Fault("invalid_request", "no"))),
]
IDS = [type(message).__name__ for _, message in MESSAGES]


@pytest.mark.parametrize(("side", "message"), MESSAGES, ids=IDS)
def test_message_comes_out_as_it_went_in(side: Side, message: WireMessage) -> None:
    assert unpacked(packed(message), side) == message


@pytest.mark.parametrize(("side", "message"), MESSAGES, ids=IDS)
def test_message_for_one_side_is_none_for_the_other(side: Side, message: WireMessage) -> None:
    with pytest.raises(DecodeError, match="expected"):
        unpacked(packed(message), "parent" if side == "process" else "process")


ERRORS: list[PiceError] = [
    ConfigError("wrong"),
    InputError("wrong"),
    EngineError("wrong"),
    ModelLoadError("wrong"),
    EngineUnavailable("wrong"),
    UnsupportedParameter("top_k", "wrong"),
    PromptTooLong(model="m", num_prompt_tokens=7, max_tokens=8, context_tokens=9),
]


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_error_of_an_engine_comes_out_as_itself(error: PiceError) -> None:
    message = unpacked(packed(Said(1, fault=fault_of(error))), "parent")
    assert isinstance(message, Said)
    again = message.answer
    assert isinstance(again, PiceError)
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_error_that_no_engine_should_raise_is_an_engine_error() -> None:
    assert type(error_of(fault_of(NoSite("none")))) is EngineError


def test_message_of_an_error_that_is_no_text_is_sent_as_far_as_it_is() -> None:
    assert packed(Failed(fault_of(ModelLoadError("a/\udcff.gguf: no"))))


NONSENSE = {
    "no msgpack": b"\xc1",
    "cut off": packed(Said(4, LAST))[:-1],
    "two values": packed(Said(4, LAST)) * 2,
    "no array": pack({"said": 1}),
    "no fields": pack(("said",)),
    "unknown tag": pack(("sudo", {})),
    "tag that is no text": pack(((), {})),
    "fields that are no map": pack(("said", (1, 2))),
    "no call": pack(("said", {"num_tokens": 1})),
    "call of a wrong type": pack(("said", {"call_id": "1", "num_tokens": 1})),
    "truth for a number": pack(("said", {"call_id": 1, "num_tokens": True})),
    "unknown finish reason": pack(("said", {"call_id": 1, "piece": {"text": "", "finish_reason": "boom"}})),
    "text in a log-probability": pack(("said", {"call_id": 1, "piece": {"text": "", "logprobs": ("0",)}})),
    "a pickle": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "more items than there may be": b"\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("payload", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_by_the_parent(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        unpacked(payload, "parent")


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda tag, body: pack((tag, body)),
        st.sampled_from(["said", "ready"]),
        st.recursive(
            st.none() | st.integers(0, 9) | st.text(max_size=3),
            lambda inner: st.dictionaries(
                st.sampled_from(["call_id", "piece", "fault", "info", "text", "logprobs", "curve"]), inner, max_size=4
            ),
        ),
    )
)
def test_whatever_comes_only_a_decode_error_is_raised(payload: bytes) -> None:
    try:
        message = unpacked(payload, "parent")
    except DecodeError:
        return
    assert isinstance(message, Ready | Failed | Said)


@pytest.mark.parametrize("message", [Said(1), Said(1, fault=Fault("queue_full", "no"))], ids=["nothing", "no error"])
def test_what_says_nothing_is_refused(message: Said) -> None:
    with pytest.raises(DecodeError):
        _ = message.answer


def test_piece_of_very_many_tokens_is_sent_in_parts_that_add_up() -> None:
    num_tokens = 2 * MAX_ITEMS + 7
    piece = replace(LAST, num_tokens=num_tokens, logprobs=tuple(-0.5 * i for i in range(num_tokens)))
    messages = [unpacked(packed(message), "parent") for message in said(1, piece)]
    parts = [message.piece for message in messages if isinstance(message, Said) and message.piece]
    assert len(parts) == 3
    assert [part.finish_reason for part in parts] == [None, None, "length"]
    assert sum(part.num_tokens for part in parts) == num_tokens
    assert all(part.num_tokens == len(part.logprobs) for part in parts)
    assert sum((part.logprobs for part in parts), ()) == piece.logprobs
    assert "".join(part.text for part in parts) == piece.text


def test_longest_texts_are_sent_in_parts_that_the_parent_reads() -> None:
    text = "\U0001f600" * (5 * MAX_TEXT_CHARS + 1)
    piece = replace(LAST, text=text, num_tokens=4 * MAX_ITEMS, logprobs=(-0.1,) * 4 * MAX_ITEMS)
    parts = list(said(1, piece))
    assert "".join(part.piece.text for part in parts if part.piece) == text
    messages: list[WireMessage] = [*parts, Failed(fault_of(ModelLoadError(text)))]
    assert all(len(packed(message)) <= MAX_ANSWER_BYTES for message in messages)


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("messages", lambda num: Ask(1, Prompt((Message("user", "a"),) * num), SAMPLING)),
        ("messages", lambda num: Ask(1, Prompt((Message("user", "a"),) * num))),
        ("stop", lambda num: Ask(1, PROMPT, replace(SAMPLING, stop=("a",) * num))),
    ],
    ids=["messages", "messages to count", "stop strings"],
)
def test_longest_array_is_read_and_a_longer_one_is_not_sent(name: str, ask: Callable[[int], Ask]) -> None:
    assert unpacked(packed(ask(MAX_ITEMS)), "process") == ask(MAX_ITEMS)
    with pytest.raises(InputError, match=f"^{name}: expected at most {MAX_ITEMS}, got {MAX_ITEMS + 1}$"):
        packed(ask(MAX_ITEMS + 1))


@pytest.mark.parametrize(
    "ask",
    [
        Ask(1, PROMPT, Sampling(temperature=float("nan"))),
        Ask(1, PROMPT, Sampling(seed=2**64)),
        Ask(1, PROMPT, within_s=float("inf")),
    ],
    ids=["nan", "66 bits", "inf"],
)
def test_what_has_no_place_in_a_message_is_refused(ask: Ask) -> None:
    with pytest.raises(InputError, match="cannot be"):
        packed(ask)


class _Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def linked(side: Side = "parent") -> tuple[Link, _Wire, list[WireMessage]]:
    taken: list[WireMessage] = []
    link, wire = Link(side, taken.append, lambda: None), _Wire()
    link.connection_made(wire)
    return link, wire, taken


async def test_all_that_is_sent_in_one_turn_of_the_loop_leaves_in_one_write_and_comes_out_whole() -> None:
    link, wire, taken = linked()
    messages = [Said(number, Piece("x" * number)) for number in range(8)]
    for message in messages:
        link.send(packed(message))
    await asyncio.sleep(0)
    (written,) = wire.written
    for chunk in (written, *(written[at : at + 3] for at in range(0, len(written), 3))):
        link.data_received(chunk)
    assert taken == messages * 2


async def test_what_is_sent_when_the_other_end_is_gone_is_dropped() -> None:
    link, wire, _ = linked()
    link.send(packed(Cancel(1)))
    link.close()
    await asyncio.sleep(0)
    assert wire.written == []


@pytest.mark.parametrize(("side", "most"), [("parent", MAX_ANSWER_BYTES), ("process", MAX_MESSAGE_BYTES)])
def test_length_that_no_message_has_ends_the_connection_before_it_is_waited_for(side: Side, most: int) -> None:
    link, wire, taken = linked(side)
    link.data_received(struct.pack("!I", most))
    assert not wire.closed
    link, wire, taken = linked(side)
    link.data_received(struct.pack("!I", most + 1))
    assert wire.closed
    assert "at most" in link.problem
    assert not taken
