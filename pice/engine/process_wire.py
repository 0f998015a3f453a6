"""What an engine's process and its parent say to each other, as msgpack.

A model file is not trusted, so neither is the process that reads it: nothing is unpickled, and the parent checks every
field.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from pice.core import Curve, Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.engine.llama.options import LlamaOptions
from pice.errors import (
    ConfigError,
    DecodeError,
    EngineError,
    EngineUnavailable,
    InputError,
    ModelLoadError,
    PiceError,
    PromptTooLong,
    UnsupportedParameter,
)
from pice.message.codec import MAX_ITEMS, as_plain, pack, unpack
from pice.message.fields import Mismatch, reader, shown, writer

MAX_MESSAGE_BYTES = 64 << 20
"""Longest that is sent, and that the process reads: several times a prompt that fills the largest context."""
MAX_ANSWER_BYTES = 1 << 20
"""Longest that the parent reads: a few bytes may stand for an object of a hundred."""
MAX_TEXT_CHARS = 1 << 16
"""Of a text that the process sends in one message, so that four bytes for each of them are no more than that."""

Answer = Piece | int | PiceError


@dataclass(frozen=True, slots=True)
class Load:
    """To the process, first of all: the model it is for."""

    options: LlamaOptions


@dataclass(frozen=True, slots=True)
class Ask:
    """To the process: the text of a prompt, or without `sampling` the number of its tokens.

    `within_s` is its deadline, counted from when this is read; None is none.
    """

    call_id: int
    prompt: Prompt
    sampling: Sampling | None = None
    within_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the process: nobody waits for this call any more."""

    call_id: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An error: its code and message, and what else an error of that code knows."""

    code: str
    message: str
    model: str = ""
    num_prompt_tokens: int = 0
    max_tokens: int = 0
    context_tokens: int = 0
    param: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """To the parent: the model is loaded."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Failed:
    """To the parent: the model cannot be loaded."""

    fault: Fault


@dataclass(frozen=True, slots=True)
class Said:
    """To the parent: something of a call. One of the rest is set."""

    call_id: int
    piece: Piece | None = None
    num_tokens: int | None = None
    fault: Fault | None = None

    @property
    def answer(self) -> Answer:
        """Raises `DecodeError` where there is none, or one that is no known error."""
        if self.fault is not None:
            return error_of(self.fault)
        answer = self.num_tokens if self.piece is None else self.piece
        if answer is None:
            raise DecodeError("said: expected a piece, a number of tokens or an error, got nothing")
        return answer


Message = Load | Ask | Cancel | Ready | Failed | Said
Side = Literal["process", "parent"]

_PLAIN_ERRORS: Mapping[str, type[PiceError]] = {
    cls.code: cls for cls in (ConfigError, InputError, EngineError, ModelLoadError, EngineUnavailable)
}


def fault_of(error: PiceError) -> Fault:
    """An error as it is sent; one that no engine should raise becomes an `EngineError`."""
    known = {*_PLAIN_ERRORS, PromptTooLong.code, UnsupportedParameter.code}
    details = {name: value for name, value in vars(error).items() if name in Fault.__slots__}
    message = str(error)[:MAX_TEXT_CHARS].encode(errors="replace").decode()
    return Fault(error.code if error.code in known else EngineError.code, message, **details)


def error_of(fault: Fault) -> PiceError:
    """The error that was sent.

    Raises:
        DecodeError: there is none of that code.
    """
    if fault.code == PromptTooLong.code:
        return PromptTooLong(
            model=fault.model,
            num_prompt_tokens=fault.num_prompt_tokens,
            max_tokens=fault.max_tokens,
            context_tokens=fault.context_tokens,
        )
    if fault.code == UnsupportedParameter.code:
        return UnsupportedParameter(fault.param, fault.message)
    if fault.code not in _PLAIN_ERRORS:
        raise DecodeError(f"unknown error code {shown(fault.code)}")
    return _PLAIN_ERRORS[fault.code](fault.message)


def said(call_id: int, piece: Piece) -> Iterator[Said]:
    """A piece as messages: several, of about equal parts, where it holds very many tokens or very much text."""
    num_parts = max(math.ceil(len(piece.logprobs) / MAX_ITEMS), math.ceil(len(piece.text) / MAX_TEXT_CHARS))
    for num_left in range(num_parts, 1, -1):
        tokens, chars = math.ceil(piece.num_tokens / num_left), math.ceil(len(piece.text) / num_left)
        yield Said(call_id, Piece(piece.text[:chars], tokens, piece.logprobs[:tokens]))
        text, logprobs = piece.text[chars:], piece.logprobs[tokens:]
        piece = replace(piece, text=text, num_tokens=piece.num_tokens - tokens, logprobs=logprobs)
    yield Said(call_id, piece)


def _write_load(message: Load) -> dict[str, object]:
    return {**as_plain(message.options), "path": os.fsencode(message.options.path)}


def _write_ask(message: Ask) -> dict[str, object]:
    """Refuses arrays that the process would not read."""
    arrays = {"messages": message.prompt.messages, "stop": message.sampling.stop if message.sampling else ()}
    for name, items in arrays.items():
        if len(items) > MAX_ITEMS:
            raise InputError(f"{name}: expected at most {MAX_ITEMS}, got {len(items)}")
    return _write_checked_ask(message)


def _read_load(body: Any) -> Load:
    """Unchecked: a process trusts its parent."""
    return Load(LlamaOptions(**{**body, "path": Path(os.fsdecode(body["path"])), "curve": _read_curve(body["curve"])}))


_read_curve = reader(Curve)
_write_checked_ask = writer(Ask)
_TAGS: Mapping[type[Message], str] = {
    Load: "load",
    Ask: "ask",
    Cancel: "cancel",
    Ready: "ready",
    Failed: "failed",
    Said: "said",
}
_WRITE: Mapping[type[Message], Callable[[Any], dict[str, object]]] = {
    **{cls: writer(cls) for cls in _TAGS if cls not in (Load, Ask)},
    Load: _write_load,
    Ask: _write_ask,
}
_READ: Mapping[Side, Mapping[str, Callable[[object], Any]]] = {
    "process": {"load": _read_load, "ask": reader(Ask), "cancel": reader(Cancel)},
    "parent": {"ready": reader(Ready), "failed": reader(Failed), "said": reader(Said)},
}


def packed(message: Message) -> bytes:
    """A message as it is sent.

    Raises:
        InputError: it is too long, has too many messages or stop strings, or holds half a surrogate pair or a number
            without end.
    """
    cls = type(message)
    try:
        payload = pack((_TAGS[cls], _WRITE[cls](message)))
    except ValueError as error:
        raise InputError(f"this cannot be given to an engine: {error}") from error
    if len(payload) > MAX_MESSAGE_BYTES:
        raise InputError(f"expected a prompt of at most {MAX_MESSAGE_BYTES} bytes, got {len(payload)}: shorten it")
    return payload


def unpacked(payload: bytes, side: Side) -> Message:
    """The message in these bytes, as `side` reads it.

    Raises:
        DecodeError: none of ours, or none for that side. Nothing else is raised on the parent's side.
    """
    body, known = unpack(payload), _READ[side]
    if not (isinstance(body, tuple) and len(body) == 2 and isinstance(body[0], str) and body[0] in known):
        raise DecodeError(f"expected {' or '.join(known)} and its fields, got {shown(body)}")
    try:
        return cast("Message", known[body[0]](body[1]))
    except Mismatch as error:
        raise DecodeError(f"{body[0]}: {error}") from error
