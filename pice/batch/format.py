"""Lines of the OpenAI Batch format: what is asked, one request per line, and what became of it."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from pice.batch.body import UNSUPPORTED, Body, Strict
from pice.batch.completion import code_of, completion, error_body, status_of
from pice.core import Answer, Message, Mode, Request, Sampling
from pice.errors import DecodeError, InputError, PiceError, UnsupportedParameter

Key = str | int
"""What a line is known by: its custom_id, or its number where it has none that can be used."""

MAX_LINE_BYTES = 16 << 20
LINE_START = b'{"id":"batch_req_'
"""How every line written here begins."""


class _Line(Strict):
    custom_id: str = Field(min_length=1)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: Body


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One line of the input. `model` is the name to echo; `timeout_s` None leaves it to the batch."""

    custom_id: str
    line_number: int
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    mode: Mode | None = None
    timeout_s: float | None = None

    def request(self, request_id: str, *, timeout_s: float) -> Request:
        """The request to make of it; `timeout_s` serves where the line names none."""
        return Request(request_id, self.messages, self.sampling, self.timeout_s or timeout_s, self.mode)


@dataclass(frozen=True, slots=True)
class Written:
    """A line of the output, read back."""

    key: Key
    answered: bool


@dataclass(frozen=True, slots=True)
class InputLine:
    """A line of the input, known by its key but not yet checked. `content` is its JSON, or says why it has none."""

    number: int
    key: Key
    content: dict[str, Any] | InputError

    def item(self) -> BatchItem:
        """The request on this line.

        Raises:
            InputError: says the line, the field, what was expected and what came.
            UnsupportedParameter: PICE cannot do what `param` asks for.
        """
        if isinstance(self.content, InputError):
            raise self.content
        try:
            line = _Line.model_validate(self.content)
        except ValidationError as error:
            raise _refusal(error.errors(include_url=False)[0], f"line {self.number}") from None
        body = line.body
        messages = tuple(turn.message() for turn in body.messages)
        return BatchItem(
            line.custom_id, self.number, body.model, messages, body.sampling(), body.pice.mode, body.pice.timeout_s
        )


def read_line(raw: bytes, number: int) -> InputLine:
    """The line as it came, valid or not."""
    if len(raw) > MAX_LINE_BYTES:
        fault = f"line {number}: must be at most {MAX_LINE_BYTES} bytes long, got more"
        return InputLine(number, number, InputError(fault))
    try:
        content = _object(raw)
    except ValueError as error:
        return InputLine(number, number, InputError(f"line {number}: must be one JSON object in UTF-8: {error}"))
    custom_id = content.get("custom_id")
    return InputLine(number, custom_id if isinstance(custom_id, str) and custom_id else number, content)


def success_line(item: BatchItem, answer: Answer, *, created: int) -> bytes:
    """The output line of an answered request. `created` is the wall time in whole seconds."""
    body = completion(answer, model=item.model, created=created)
    return _line(item.custom_id, {"status_code": 200, "request_id": answer.request_id, "body": body}, None)


def failure_line(key: Key, error: PiceError, *, request_id: str) -> bytes:
    """The output line of a request that has no answer: an HTTP status with an error body where one fits."""
    status = status_of(error)
    if status is None:
        return _line(key, None, {"code": code_of(error), "message": str(error)})
    response = {"status_code": status, "request_id": request_id, "body": error_body(error, status)}
    return _line(key, response, None)


def read_back(raw: bytes) -> Written:
    """What a line of an output file says.

    Raises:
        DecodeError: it is no line of ours, or not a whole one.
    """
    try:
        line = _object(raw)
        response = line["response"]
        key = line["line"] if line["custom_id"] is None else line["custom_id"]
        answered = response is not None and response["status_code"] == 200
    except (ValueError, KeyError, TypeError) as error:
        raise DecodeError(f"expected a line of a batch output, got {_shown(raw)}") from error
    if not isinstance(key, str | int):
        raise DecodeError(f"expected a custom_id that is a string, got {_shown(key)}")
    return Written(key, answered)


def request_id_of(run_id: str, key: Key, attempt: int = 0) -> str:
    """An id for one try at one line in one run: the same arguments give the same id, others another."""
    return f"req_{_digest(run_id, key, attempt)}"


def name_of(key: Key) -> str:
    """A text that no other key has."""
    return f"id:{key}" if isinstance(key, str) else f"line:{key}"


def _object(raw: bytes) -> dict[str, Any]:
    value = orjson.loads(raw)
    if isinstance(value, dict):
        return value
    raise ValueError(f"it is of type {type(value).__name__}")


def _refusal(fault: ErrorDetails, where: str) -> InputError:
    path = _path(fault["loc"])
    if fault["type"] == "missing":
        return InputError(f"{where}: {path} is required")
    if fault["type"] == "extra_forbidden":
        words = f"is set to {_shown(fault['input'])}, which PICE cannot honour: leave it out"
        return UnsupportedParameter(path.removeprefix("body."), f"{where}: {path} {words}")
    message = f"{where}: {path}: {fault['msg']}{_came(fault['input'])}"
    if fault["type"] == UNSUPPORTED:
        return UnsupportedParameter(path.removeprefix("body."), message)
    return InputError(message)


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _came(value: object) -> str:
    """What came, unless it is a structure whose `repr` would say less than the message does."""
    return "" if isinstance(value, list | dict | tuple) else f", got {_shown(value)}"


def _shown(value: object) -> str:
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(key: Key, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    line: dict[str, Any] = {"id": f"batch_req_{_digest(key)}", "custom_id": key if isinstance(key, str) else None}
    if isinstance(key, int):
        line["line"] = key
    return orjson.dumps(line | {"response": response, "error": error}, option=orjson.OPT_APPEND_NEWLINE)


def _digest(*parts: Key) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
