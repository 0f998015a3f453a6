"""The chat completion format: a prompt -> the JSON to post; the events that come back -> pieces."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from pice.core import FinishReason, Prompt, Sampling
from pice.engine.base import Piece
from pice.engine.openai_refusal import Server, TryAgain, refusal_in_stream
from pice.errors import EngineError, InputError, UnsupportedParameter

Dialect = Literal["vllm", "openai"]

OWN_KEYS = frozenset(
    {
        "model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "temperature",
        "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop",
        "logprobs", "top_logprobs", "structured_outputs",
    }
)  # fmt: skip
"""What a prompt and its sampling decide; nothing else may set these."""

NO_LOGPROB = -9999.0
"""What servers write for a log-probability of minus infinity, or for one they do not know."""

_BYTES_PER_TOKEN = 2
_MESSAGE_TOKENS = 16
_TEMPLATE_TOKENS = 256


def most_tokens(prompt: Prompt) -> int:
    """More prompt tokens than any byte-level vocabulary makes: one for each byte, and room for the template."""
    return _num_bytes(prompt) + _num_template_tokens(prompt)


def estimated_tokens(prompt: Prompt) -> int:
    """Prompt tokens at two UTF-8 bytes for each, plus 16 for each message and 256 for what a template adds.

    An upper bound for prose in any language and for code; long numbers or random characters can pass it.
    """
    return -(-_num_bytes(prompt) // _BYTES_PER_TOKEN) + _num_template_tokens(prompt)


def _num_bytes(prompt: Prompt) -> int:
    return sum(len(message.content.encode("utf-8", "replace")) for message in prompt.messages)


def _num_template_tokens(prompt: Prompt) -> int:
    return _TEMPLATE_TOKENS + _MESSAGE_TOKENS * len(prompt.messages)


def chat_messages(prompt: Prompt) -> list[dict[str, str]]:
    """The messages as the format spells them."""
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def chat_body(prompt: Prompt, sampling: Sampling, *, model: str, dialect: Dialect) -> dict[str, object]:
    """What to post: every sampling parameter explicitly, since a server's defaults may come with its model.

    `dialect` "openai" keeps to the public specification; there a log-probability is asked for with one alternative,
    because llama-server takes 0 for none at all.

    Raises:
        InputError: a parameter is out of range, or there is no message.
        UnsupportedParameter: one that changes the text has no place in the dialect.
    """
    _check_ranges(prompt, sampling)
    body: dict[str, object] = {
        "model": model,
        "messages": chat_messages(prompt),
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "logprobs": True,
        "top_logprobs": 0 if dialect == "vllm" else 1,
    }
    if dialect == "openai":
        _check_neutral(prompt, sampling)
        return body
    body |= {"top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": sampling.repeat_penalty}
    return body | ({"structured_outputs": {"grammar": prompt.grammar}} if prompt.grammar else {})


def _check_ranges(prompt: Prompt, sampling: Sampling) -> None:
    if not prompt.messages:
        raise InputError("the prompt has no messages: give at least one")
    rules = (
        ("max_tokens", sampling.max_tokens >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature < math.inf, "0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("top_k", sampling.top_k >= 0, "0 (off) or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "from 0 to 1"),
        ("repeat_penalty", 0 < sampling.repeat_penalty < math.inf, "above 0"),
        ("presence_penalty", -2 <= sampling.presence_penalty <= 2, "from -2 to 2"),
        ("frequency_penalty", -2 <= sampling.frequency_penalty <= 2, "from -2 to 2"),
        ("stop", "" not in sampling.stop, "strings that are not empty"),
    )
    for name, holds, expected in rules:
        if not holds:
            raise InputError(f"sampling.{name} must be {expected}, got {getattr(sampling, name)!r}")


def _check_neutral(prompt: Prompt, sampling: Sampling) -> None:
    """Greedy decoding needs neither `top_k` nor `min_p`: the likeliest token passes both."""
    greedy = sampling.temperature == 0
    rules = (
        ("top_k", greedy or sampling.top_k == 0, "0"),
        ("min_p", greedy or sampling.min_p == 0, "0"),
        ("repeat_penalty", sampling.repeat_penalty == 1, "1"),
        ("grammar", not prompt.grammar, "empty"),
    )
    for name, holds, neutral in rules:
        if not holds:
            raise UnsupportedParameter(
                name,
                f"{name} is not part of the OpenAI format, so this server cannot be told it: make it {neutral}, "
                'or set the engine\'s dialect to "vllm" if the server is vLLM',
            )


class Reply:
    """One streamed chat completion, read event by event.

    Tokens are counted by their log-probabilities, since one chunk may carry several and a chunk may carry none; what
    the usage at the end counts beyond them is added to the last piece. Where a server sends neither, the count is 0.
    Reasoning (`delta.reasoning`) counts as tokens and is not text.
    """

    def __init__(self, server: Server, *, max_tokens: int) -> None:
        self.done = False
        self._server = server
        self._max_tokens = max_tokens
        self._finish_reason: FinishReason | None = None
        self._num_tokens = 0
        self._usage = (0, 0, 0)

    def read(self, event: str) -> Piece | None:
        """The text and tokens of one event, None where it has none.

        Raises:
            InputError, EngineUnavailable, EngineError: the event says so, or is not of the format.
        """
        if event.startswith("[DONE]"):
            self.done = True
            return None
        try:
            return self._read(json.loads(event))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise EngineError(
                f"{self._server.url} sent what is no chat completion chunk: {self._server.quote(event)}"
            ) from error

    def last(self) -> Piece:
        """The piece that ends the text, once the stream has ended.

        Raises:
            EngineUnavailable: the stream ended before the text did.
        """
        if self._finish_reason is None:
            raise TryAgain(f"{self._server.url} cut the stream off before its text was finished")
        num_prompt_tokens, num_cached_tokens, num_output_tokens = self._usage
        return Piece(
            text="",
            num_tokens=max(0, num_output_tokens - self._num_tokens),
            finish_reason=self._finish_reason,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
        )

    def _read(self, chunk: Mapping[str, Any]) -> Piece | None:
        if chunk.get("error") or chunk.get("object") == "error":
            raise refusal_in_stream(self._server, chunk, max_tokens=self._max_tokens)
        if usage := chunk.get("usage"):
            self._usage = _read_usage(usage)
        choice = next((choice for choice in chunk.get("choices") or () if choice.get("index", 0) == 0), None)
        return self._read_choice(choice) if choice else None

    def _read_choice(self, choice: Mapping[str, Any]) -> Piece | None:
        self._finish_reason = self._read_finish(choice.get("finish_reason")) or self._finish_reason
        text = (choice.get("delta") or {}).get("content") or ""
        logprobs = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or ()]
        self._num_tokens += len(logprobs)
        if not text and not logprobs:
            return None
        return Piece(_whole_characters(text), len(logprobs), _known(logprobs))

    def _read_finish(self, reason: str | None) -> FinishReason | None:
        match reason:
            case None | "stop" | "length":
                return reason
        raise EngineError(f"{self._server.url} ended the text for the reason {reason!r}, expected 'stop' or 'length'")


def _read_usage(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    """Prompt tokens, those of them that were cached, output tokens."""
    details = usage.get("prompt_tokens_details") or {}
    return (
        int(usage.get("prompt_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


def _known(logprobs: list[float | None]) -> tuple[float, ...]:
    """All of them, or none where one is unknown: a mean over -9999 would say nothing of the text."""
    known = [min(float(logprob), 0.0) for logprob in logprobs if logprob is not None and NO_LOGPROB < logprob < 1]
    return tuple(known) if len(known) == len(logprobs) else ()


def _whole_characters(text: str) -> str:
    """`text` with halves of surrogate pairs, which JSON can spell and UTF-8 cannot, replaced by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
