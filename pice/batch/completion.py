"""The body of a chat completion response: an answer with what it cost and where it came from, or an error."""

import hashlib
from dataclasses import asdict
from typing import Any

from pice.core import Answer, Span, Usage
from pice.errors import PiceError, RequestFailed, UnsupportedParameter

_STATUS = {
    "invalid_request": 400,
    "unsupported_parameter": 400,
    "context_length_exceeded": 400,
    "message_too_large": 413,
    "queue_full": 429,
    "engine_error": 502,
    "model_unusable": 503,
    "engine_unavailable": 503,
    "edge_unavailable": 503,
    "deadline_exceeded": 504,
}


def completion(answer: Answer, *, model: str, created: int) -> dict[str, Any]:
    """A `chat.completion` with `usage.pice` and `pice` beside the standard keys.

    `model` is the name the user asked for; `created` the wall time in whole seconds.
    """
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return {
        "id": f"chatcmpl-{hashlib.sha256(answer.request_id.encode()).hexdigest()[:24]}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
        "usage": _usage(answer.usage),
        "pice": _provenance(answer),
    }


def code_of(error: PiceError) -> str:
    """The stable name of what went wrong: of the cause, where the request failed elsewhere."""
    return error.failure_code if isinstance(error, RequestFailed) else error.code


def status_of(error: PiceError) -> int | None:
    """The HTTP status a server would answer with; None where the failure is not of that kind."""
    return _STATUS.get(code_of(error))


def error_body(error: PiceError, status: int) -> dict[str, Any]:
    """`{"error": ...}` with all four keys of the OpenAI format."""
    param = error.param if isinstance(error, UnsupportedParameter) else None
    return {"error": {"message": str(error), "type": _error_type(status), "param": param, "code": code_of(error)}}


def _error_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _usage(usage: Usage) -> dict[str, Any]:
    """`prompt_tokens` as the model that began the answer read them; `completion_tokens` of the delivered text."""
    num_prompt_tokens = usage.num_cloud_prompt_tokens or usage.num_edge_prompt_tokens
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": usage.num_answer_tokens,
        "total_tokens": num_prompt_tokens + usage.num_answer_tokens,
        "pice": {
            "cloud_prompt": usage.num_cloud_prompt_tokens,
            "cloud_completion": usage.num_cloud_output_tokens,
            "edge_prompt": usage.num_edge_prompt_tokens,
            "edge_completion": usage.num_edge_output_tokens,
            "discarded_candidates": usage.num_discarded_tokens,
        },
    }


def _provenance(answer: Answer) -> dict[str, Any]:
    return {
        "mode": answer.mode,
        "reason": answer.plan.reason,
        "attempt": answer.attempt,
        "degraded": answer.degraded,
        "segments": [_segment(span) for span in answer.spans],
        "times": asdict(answer.times),
    }


def _segment(span: Span) -> dict[str, Any]:
    return {
        "index": span.index,
        "site": span.site,
        "model": span.model,
        "confidence": span.confidence,
        "finish_reason": span.finish_reason,
        "degraded": span.degraded,
    }
