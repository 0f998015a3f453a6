"""What a server said instead of an answer -> the error our callers understand."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pice.errors import EngineError, EngineUnavailable, InputError, ModelLoadError, PiceError, PromptTooLong

MAX_QUOTED_CHARS = 300

_STATUS_OF_TYPE = {
    "BadRequestError": 400,
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "NotFoundError": 404,
    "rate_limit_error": 429,
    "InternalServerError": 500,
    "server_error": 500,
    "overloaded_error": 503,
}

_CONTEXT = re.compile(r"(?:maximum context length is|available context size \()\s*(\d+)")
_NUM_PROMPT = re.compile(
    r"prompt contains (?:at least )?(\d+)|messages resulted in (\d+)|(\d+) in the messages|request \((\d+) tokens\)"
)


class TryAgain(EngineUnavailable):
    """Nothing was generated, and the same request may be sent again, after `retry_after_s` if the server said so."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Server:
    """Who was asked, for messages: what is quoted is shortened and never holds the key."""

    url: str
    model: str
    context_tokens: int = 0
    api_key: str = field(default="", repr=False)

    def quote(self, text: str) -> str:
        """`text` on one line."""
        line = " ".join((text.replace(self.api_key, "***") if self.api_key else text).split())
        return line if len(line) <= MAX_QUOTED_CHARS else line[:MAX_QUOTED_CHARS] + "..."


def refusal(
    server: Server, status: int, body: str, *, max_tokens: int = 0, retry_after_s: float | None = None
) -> PiceError:
    """The error for a reply of this status; `body` may be JSON of any shape or none at all."""
    return _by_status(server, status, _error_in(body), max_tokens, retry_after_s)


def refusal_in_stream(server: Server, chunk: Mapping[str, object], *, max_tokens: int) -> PiceError:
    """The error for a chunk that carries one: by its code where that is a status, else by its type."""
    error = _unwrapped(chunk)
    code = str(error.get("code"))
    status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else _STATUS_OF_TYPE.get(str(error.get("type")))
    if status is None:
        return EngineError(f"{server.url} broke off with an error: {server.quote(_message_of(error))}")
    return _by_status(server, status, error, max_tokens, None)


def _by_status(
    server: Server, status: int, error: Mapping[str, object], max_tokens: int, retry_after_s: float | None
) -> PiceError:
    said = f"{server.url} answered {status}: {server.quote(_message_of(error))}"
    if status in (401, 403):
        return EngineError(f"{server.url} refused access ({status}): set an api_key it accepts for {server.model!r}")
    if status == 404:
        return ModelLoadError(said)
    if status in (408, 409, 429) or status >= 500:
        return TryAgain(said, retry_after_s=retry_after_s)
    if status in (400, 413, 422):
        return _too_long(server, error, max_tokens) or InputError(said)
    return EngineError(f"{said} (expected 200; check base_url)")


def _too_long(server: Server, error: Mapping[str, object], max_tokens: int) -> PromptTooLong | None:
    """The error with its numbers, None where the server does not say how long the prompt was."""
    message = _message_of(error)
    num_prompt_tokens = _number(error.get("n_prompt_tokens"), _NUM_PROMPT, message)
    context_tokens = _number(error.get("n_ctx"), _CONTEXT, message) or server.context_tokens
    if not num_prompt_tokens or num_prompt_tokens + max_tokens <= context_tokens:
        return None
    return PromptTooLong(
        model=server.model,
        num_prompt_tokens=num_prompt_tokens,
        max_tokens=max_tokens,
        context_tokens=context_tokens,
    )


def _number(value: object, pattern: re.Pattern[str], message: str) -> int:
    if isinstance(value, int):
        return value
    found = pattern.search(message)
    return int(next(filter(None, found.groups()))) if found else 0


def _error_in(body: str) -> Mapping[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {"message": body}
    return _unwrapped(value) if isinstance(value, dict) else {"message": body}


def _unwrapped(value: Mapping[str, object]) -> Mapping[str, object]:
    """The error object itself: servers send it bare, under `error`, or put a plain string there."""
    error = value.get("error", value)
    return error if isinstance(error, dict) else {"message": str(error)}


def _message_of(error: Mapping[str, object]) -> str:
    said = error.get("message") or error.get("detail") or error
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
