import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.batch.format import (
    LINE_START,
    MAX_LINE_BYTES,
    BatchItem,
    Written,
    failure_line,
    read_back,
    read_line,
    request_id_of,
    success_line,
)
from pice.core import Answer, Message, Plan, Sampling, Span, Times, Usage
from pice.errors import (
    Cancelled,
    DeadlineExceeded,
    DecodeError,
    EngineUnavailable,
    InputError,
    MessageTooLarge,
    Overloaded,
    PiceError,
    PromptTooLong,
    RequestFailed,
    UnsupportedParameter,
)

ASK = {"role": "user", "content": "Why is the sky blue?"}


def line(body: dict[str, Any] | None = None, /, **changes: Any) -> bytes:
    whole = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [ASK]} | (body or {}),
    } | changes
    return json.dumps({key: value for key, value in whole.items() if value != "absent"}).encode()


def answer(**changes: Any) -> Answer:
    fields: dict[str, Any] = {
        "request_id": "req_1",
        "text": "Because.",
        "mode": "progressive",
        "finish_reason": "stop",
        "attempt": 1,
        "plan": Plan("progressive", "faster"),
    }
    return Answer(**fields | changes)


def test_line_becomes_a_request_with_every_parameter() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "Yes?", "refusal": None, "tool_calls": None, "annotations": []},
        ASK,
    ]
    body = {
        "messages": messages,
        "max_completion_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "seed": 11,
        "stop": ["x", "y"],
        "pice": {"mode": "edge", "timeout_s": 3},
    }
    request = read_line(line(body), 1).item().request("req_1", timeout_s=60.0)
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", "One\ntwo"),
        Message("assistant", "Yes?"),
        Message("user", "Why is the sky blue?"),
    )
    assert request.sampling == Sampling(7, 0.0, 0.5, 3, 0.1, 1.1, -0.5, 0.5, 11, ("x", "y"))
    assert (request.mode, request.timeout_s) == ("edge", 3.0)


def test_line_that_says_little_gets_the_defaults() -> None:
    item = read_line(line({"temperature": None, "stop": None, "pice": None}), 4).item()
    assert item == BatchItem("a", 4, "m", (Message("user", ASK["content"]),), Sampling())
    request = item.request("req_1", timeout_s=60.0)
    assert (request.timeout_s, request.mode) == (60.0, None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"max_tokens": 5}, {"max_tokens": 5}, id="max_tokens"),
        pytest.param({"max_tokens": 5, "max_completion_tokens": 5}, {"max_tokens": 5}, id="both limits, equal"),
        pytest.param({"top_k": -1}, {"top_k": 0}, id="top_k off in vLLM's way"),
        pytest.param({"stop": "x"}, {"stop": ("x",)}, id="stop as a string"),
        pytest.param({"seed": 2**32 - 2}, {"seed": 2**32 - 2}, id="largest seed"),
        pytest.param({"seed": 2**32}, {"seed": 1}, id="seed of more than 32 bits"),
        pytest.param({"seed": -1}, {"seed": 2**32 - 2}, id="seed below 0"),
        pytest.param({"n": 1, "stream": False, "logprobs": False, "tools": []}, {}, id="asks for nothing"),
        pytest.param({"response_format": {"type": "text"}, "tool_choice": "none"}, {}, id="text and no tools"),
        pytest.param({"user": "u", "metadata": {"k": "v"}, "store": True, "service_tier": "auto"}, {}, id="harmless"),
    ],
)
def test_parameter_is_mapped_or_accepted(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_line(line(body), 1).item().sampling == Sampling(**expected)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"logprobs": 0}, "logprobs"),
        ({"stream": 0}, "stream"),
        ({"top_logprobs": False}, "top_logprobs"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"pice": {"order": "arrival"}}, "pice.order"),
        ({"messages": [{**ASK, "name": "Ann"}]}, "messages[0].name"),
        ({"messages": [ASK, {"role": "user", "content": [{"type": "image_url"}]}]}, "messages[1].content"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parameter_that_cannot_be_honoured_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameter, match=r"^line 9: body\.") as caught:
        read_line(line(body), 9).item()
    assert caught.value.param == param
    assert param in str(caught.value)


def test_refused_part_is_told_what_a_part_looks_like() -> None:
    with pytest.raises(UnsupportedParameter, match=re.escape('parts like {"type": "text", "text": "..."}, got image')):
        read_line(line({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), 9).item()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"custom_id": "absent"}, "custom_id is required"),
        ({"custom_id": ""}, "custom_id: String should have at least 1 character, got ''"),
        ({"custom_id": 5}, "custom_id: Input should be a valid string, got 5"),
        ({"method": "GET"}, "method: Input should be 'POST', got 'GET'"),
        ({"url": "/v1/embeddings"}, "url: Input should be '/v1/chat/completions', got '/v1/embeddings'"),
        ({"body": []}, "body: "),
        ({"body": {"messages": [ASK]}}, "body.model is required"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_line_is_refused_with_its_number(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_line(line(**changes), 9).item()
    assert str(caught.value).startswith(f"line 9: {message}")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2, got 3"),
        ({"temperature": True}, "temperature: Input should be a valid number, got True"),
        ({"top_p": 0}, "top_p: Input should be greater than 0, got 0"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1, got 0"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens: must equal max_tokens"),
        ({"max_tokens": 1024, "max_completion_tokens": 5}, "max_completion_tokens: must equal max_tokens"),
        ({"seed": 2**64}, "seed: Input should be"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop: List should have at most 4 items"),
        ({"stop": [""]}, "stop[0]: String should have at least 1 character"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages: must ask"),
        ({"messages": [ASK, {"role": "assistant", "content": "x"}]}, "messages: must ask"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages: must have text in every message of role user"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: Input should be 'system'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is required"),
        ({"pice": {"timeout_s": 0}}, "pice.timeout_s: Input should be greater than 0, got 0"),
        ({"pice": {"mode": "fast"}}, "pice.mode: Input should be 'cloud', 'edge' or 'progressive', got 'fast'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_value_out_of_range_is_refused_with_what_was_expected(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_line(line(body), 9).item()
    assert str(caught.value).startswith(f"line 9: body.{message}")
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b"7", b'"text"', b'{"custom_id": "\xff"}', b'{"custom_id": "\\ud800"}', b"{" + b" " * MAX_LINE_BYTES],
    ids=["torn", "list", "number", "string", "no UTF-8", "half a character", "too long"],
)
def test_line_that_is_no_object_is_refused_and_known_by_its_number(raw: bytes) -> None:
    with pytest.raises(InputError, match=r"^line 3: must be "):
        read_line(raw, 3).item()
    assert read_line(raw, 3).key == 3


def test_shown_value_is_cut_so_that_a_message_stays_short() -> None:
    with pytest.raises(InputError) as caught:
        read_line(line(method="x" * 10_000), 1).item()
    assert len(str(caught.value)) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "model", "messages", "max_tokens", "stop", "n", "stream", "tools", "seed", "temperature", "logit_bias", "pice",
    "response_format", "metadata", "max_completion_tokens",
]  # fmt: skip


@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), custom_id=JSON)
def test_any_json_is_parsed_or_refused_as_bad_input(body: dict[str, Any], custom_id: Any) -> None:
    raw = line(body, custom_id=custom_id)
    key = read_line(raw, 2).key
    try:
        item = read_line(raw, 2).item()
    except InputError:
        return
    assert item.custom_id == key


@given(raw=st.binary(max_size=40))
def test_any_bytes_are_refused_as_bad_input(raw: bytes) -> None:
    with pytest.raises(InputError):
        read_line(raw, 1).item()
    with pytest.raises(DecodeError):
        read_back(raw)


def test_answer_is_written_as_a_chat_completion_with_its_provenance() -> None:
    item = read_line(line({"model": "pice-large"}), 1).item()
    spans = (Span(0, "Because.", "lyon", "qwen", 0.75), Span(1, "", "oslo", "phi", 0.0, "length", degraded=True))
    usage = Usage(10, 4, 30, 9, 2, 12)
    got = json.loads(
        success_line(item, answer(spans=spans, degraded=(1,), usage=usage, times=Times(ttft_s=0.5)), created=1_700)
    )
    assert got["custom_id"] == "a"
    assert got["error"] is None
    assert (got["response"]["status_code"], got["response"]["request_id"]) == (200, "req_1")
    body = got["response"]["body"]
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 1_700, "pice-large")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Because.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 12,
        "total_tokens": 22,
        "pice": {
            "cloud_prompt": 10,
            "cloud_completion": 4,
            "edge_prompt": 30,
            "edge_completion": 9,
            "discarded_candidates": 2,
        },
    }
    assert (body["pice"]["mode"], body["pice"]["degraded"]) == ("progressive", [1])
    assert [(part["site"], part["model"], part["degraded"]) for part in body["pice"]["segments"]] == [
        ("lyon", "qwen", False),
        ("oslo", "phi", True),
    ]
    assert body["pice"]["times"]["ttft_s"] == 0.5


def test_prompt_tokens_are_the_edge_models_where_no_cloud_model_read_the_prompt() -> None:
    usage = Usage(num_edge_prompt_tokens=30, num_answer_tokens=5)
    got = json.loads(success_line(read_line(line(), 1).item(), answer(usage=usage), created=0))
    assert got["response"]["body"]["usage"]["prompt_tokens"] == 30


@pytest.mark.parametrize(
    ("error", "status", "error_type", "code"),
    [
        (InputError("x"), 400, "invalid_request_error", "invalid_request"),
        (UnsupportedParameter("n", "x"), 400, "invalid_request_error", "unsupported_parameter"),
        (
            PromptTooLong(model="m", num_prompt_tokens=9, max_tokens=1, context_tokens=8),
            400,
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (MessageTooLarge("x"), 413, "invalid_request_error", "message_too_large"),
        (Overloaded("x", retry_after_s=1.0), 429, "rate_limit_error", "queue_full"),
        (EngineUnavailable("x"), 503, "server_error", "engine_unavailable"),
        (DeadlineExceeded("x"), 504, "server_error", "deadline_exceeded"),
        (
            RequestFailed("x", failure_code="context_length_exceeded"),
            400,
            "invalid_request_error",
            "context_length_exceeded",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failure_has_the_status_and_error_body_of_an_http_server(
    error: PiceError, status: int, error_type: str, code: str
) -> None:
    got = json.loads(failure_line("a", error, request_id="req_1"))
    assert got["error"] is None
    assert (got["response"]["status_code"], got["response"]["request_id"]) == (status, "req_1")
    param = "n" if isinstance(error, UnsupportedParameter) else None
    assert got["response"]["body"] == {
        "error": {"message": str(error), "type": error_type, "param": param, "code": code}
    }


@pytest.mark.parametrize("error", [Cancelled("gone"), RequestFailed("gone"), PiceError("gone")], ids=lambda e: e.code)
def test_failure_that_is_not_http_like_has_no_response(error: PiceError) -> None:
    got = json.loads(failure_line("a", error, request_id="req_1"))
    assert (got["response"], got["error"]) == (None, {"code": error.code, "message": "gone"})


KEYS = st.integers(1, 2**40) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(key=KEYS, text=st.text(st.characters(exclude_categories=["Cs"])), answered=st.booleans())
def test_written_line_is_one_line_that_reads_back(key: str | int, text: str, answered: bool) -> None:
    if answered and isinstance(key, str):
        raw = success_line(read_line(line(custom_id=key), 1).item(), answer(text=text), created=0)
        expected = Written(key, answered=True)
    else:
        raw = failure_line(key, InputError(text), request_id="req_1")
        expected = Written(key, answered=False)
    assert raw.startswith(LINE_START)
    assert raw.index(b"\n") == len(raw) - 1
    assert read_back(raw) == expected


def test_line_number_and_custom_id_of_the_same_text_are_not_confused() -> None:
    by_number, by_id = (json.loads(failure_line(key, InputError("x"), request_id="r")) for key in (7, "7"))
    assert (by_number["custom_id"], by_number["line"]) == (None, 7)
    assert by_id["custom_id"] == "7"
    assert by_number["id"] != by_id["id"]


def test_request_ids_repeat_only_for_the_same_run_line_and_try() -> None:
    ids = [
        request_id_of("run1", "a"),
        request_id_of("run2", "a"),
        request_id_of("run1", "b"),
        request_id_of("run1", "a", 1),
    ]
    assert len(set(ids)) == 4
    assert request_id_of("run1", "a") == ids[0]
