"""Chat completion chunks -> pieces; prompts -> what is posted; a server's words -> errors."""

import json
from dataclasses import replace

import pytest

from pice.core import Message, Prompt, Sampling
from pice.engine.base import Piece
from pice.engine.openai_models import choose_context, choose_model, listed_models
from pice.engine.openai_refusal import Server, refusal
from pice.engine.openai_wire import Reply, chat_body, estimated_tokens, most_tokens
from pice.errors import (
    ConfigError,
    EngineError,
    EngineUnavailable,
    InputError,
    ModelLoadError,
    PiceError,
    PromptTooLong,
    UnsupportedParameter,
)

SERVER = Server("http://host:8000/v1", "tiny", 1024, api_key="sk-secret")
PROMPT = Prompt((Message("user", "Hello"),))


def chunk(content: str | None = "", *logprobs: object, finish: str | None = None, **delta: object) -> str:
    tokens = [{"token": "x", "logprob": logprob} for logprob in logprobs]
    said = {"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish}
    return json.dumps({"choices": [said | {"logprobs": {"content": tokens}}]})


def usage(num_prompt: int, num_output: int, **more: object) -> str:
    return json.dumps({"choices": [], "usage": {"prompt_tokens": num_prompt, "completion_tokens": num_output, **more}})


def read(*events: str) -> list[Piece]:
    reply = Reply(SERVER, max_tokens=8)
    pieces = [piece for event in events if (piece := reply.read(event))]
    return [*pieces, reply.last()]


def test_chunk_with_several_tokens_is_one_piece_that_counts_them_all() -> None:
    first, _ = read(chunk("a b", -0.5, -0.25), chunk(finish="stop"))
    assert first == Piece("a b", 2, (-0.5, -0.25))


def test_tokens_without_text_are_counted() -> None:
    first, last = read(chunk("", -1.5), chunk(finish="length"), usage(3, 1))
    assert first == Piece("", 1, (-1.5,))
    assert last == Piece("", 0, (), "length", 3, 0)


def test_usage_counts_what_the_chunks_left_out() -> None:
    *_, last = read(chunk("a", -0.5), chunk("b"), chunk(finish="stop"), usage(7, 5))
    assert (last.num_tokens, last.num_prompt_tokens) == (4, 7)


def test_usage_below_the_count_takes_nothing_away() -> None:
    assert read(chunk("a", -0.5, -0.5, finish="stop"), usage(7, 1))[-1].num_tokens == 0


def test_cached_prompt_tokens_are_reported() -> None:
    assert read(chunk("a", finish="stop"), usage(7, 1, prompt_tokens_details={"cached_tokens": 6}))[-1] == Piece(
        "", 1, (), "stop", 7, 6
    )


def test_missing_usage_leaves_the_totals_at_nothing() -> None:
    assert read(chunk("a", -0.5), chunk(finish="stop"), "[DONE]")[-1] == Piece("", 0, (), "stop", 0, 0)


@pytest.mark.parametrize("unknown", [-9999.0, float("-inf"), float("nan"), None], ids=str)
def test_piece_with_an_unknown_log_probability_has_none(unknown: float | None) -> None:
    assert read(chunk("ab", -0.5, unknown), chunk(finish="stop"))[0] == Piece("ab", 2, ())


def test_log_probability_a_rounding_error_above_zero_is_zero() -> None:
    assert read(chunk("a", 1e-7, finish="stop"))[0].logprobs == (0.0,)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_tokens_but_no_text(field: str) -> None:
    first, second, _ = read(chunk(None, -0.5, -0.5, **{field: "hm"}), chunk("So", -0.1), chunk(finish="stop"))
    assert first == Piece("", 2, (-0.5, -0.5))
    assert second.text == "So"


def test_half_a_surrogate_pair_does_not_reach_the_text() -> None:
    assert (
        read(r'{"choices": [{"index": 0, "delta": {"content": "a\ud83d"}, "finish_reason": "stop"}]}')[0].text == "a?"
    )


def test_other_choices_are_skipped() -> None:
    assert read('{"choices": [{"index": 1, "delta": {"content": "b"}}]}', chunk("a", finish="stop"))[0].text == "a"


@pytest.mark.parametrize("events", [[], [chunk("a", -0.5)], [chunk("a", -0.5), "[DONE]"]], ids=["none", "text", "done"])
def test_stream_that_ends_before_its_text_is_cut_off(events: list[str]) -> None:
    with pytest.raises(EngineUnavailable, match="cut the stream off"):
        read(*events)


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "abort"])
def test_other_finish_reasons_fail_by_name(reason: str) -> None:
    with pytest.raises(EngineError, match=reason) as failed:
        read(chunk("a", finish=reason))
    assert not failed.value.retriable


@pytest.mark.parametrize(
    "event",
    ["", "{", "[1]", "7", '{"choices": 3}', '{"choices": [{"delta": "x"}]}', "[" * 100_000, chunk("a", "x")],
    ids=["empty", "cut", "list", "number", "no choices", "no delta", "deep", "logprob"],
)
def test_what_is_no_chunk_is_an_engine_error_with_a_short_quote(event: str) -> None:
    with pytest.raises(EngineError, match="no chat completion chunk") as failed:
        read(event)
    assert len(str(failed.value)) < 500


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "boom", "code": 400}, InputError),
        ({"message": "boom", "code": "400"}, InputError),
        ({"message": "boom", "type": "invalid_request_error", "code": None}, InputError),
        ({"message": "boom", "code": 404}, ModelLoadError),
        ({"message": "boom", "type": "InternalServerError", "code": 500}, EngineUnavailable),
        ({"message": "boom", "type": "server_error", "code": "engine_dead"}, EngineUnavailable),
        ({"message": "boom", "type": "rate_limit_error", "code": "queue_full"}, EngineUnavailable),
        ({"message": "boom", "type": "odd"}, EngineError),
        ("boom", EngineError),
    ],
    ids=str,
)
def test_error_inside_the_stream_is_mapped_by_code_or_type(error: object, kind: type[PiceError]) -> None:
    with pytest.raises(kind, match="boom") as failed:
        read(chunk("a", -0.5), json.dumps({"error": error}))
    assert failed.value.retriable == (kind is EngineUnavailable)


def test_bare_error_object_in_the_stream_is_an_error_and_a_null_one_is_not() -> None:
    with pytest.raises(InputError, match="too hot"):
        read('{"object": "error", "message": "too hot", "code": 400}')
    assert read('{"error": null, "choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}')[0].text == "a"


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, '{"error": {"message": "too hot", "code": 400}}', InputError, "too hot"),
        (422, '{"detail": [{"loc": ["body"], "msg": "field required"}]}', InputError, "field required"),
        (413, "too large", InputError, "too large"),
        (401, '{"error": {"message": "bad key sk-secret"}}', EngineError, "set an api_key"),
        (403, "", EngineError, "refused access"),
        (404, '{"detail": "Not Found"}', ModelLoadError, "Not Found"),
        (408, "", EngineUnavailable, "408"),
        (409, "", EngineUnavailable, "409"),
        (429, '{"error": "slow down"}', EngineUnavailable, "slow down"),
        (500, '{"message": "flat", "object": "error"}', EngineUnavailable, "flat"),
        (502, "<html>\n<h1>Bad Gateway</h1>" + "x" * 9000, EngineUnavailable, "<html> <h1>Bad Gateway"),
        (307, "", EngineError, "check base_url"),
        (500, "leaks sk-secret", EngineUnavailable, r"leaks \*\*\*"),
        (500, "[" * 100_000, EngineUnavailable, "500"),
        (500, '{"error": {"code": 5}}', EngineUnavailable, "code"),
    ],
)
def test_status_decides_the_error_and_the_server_is_quoted(
    status: int, body: str, kind: type[PiceError], words: str
) -> None:
    error = refusal(SERVER, status, body)
    with pytest.raises(kind, match=words):
        raise error
    assert error.retriable == (kind is EngineUnavailable)
    assert "sk-secret" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("error", "num_prompt_tokens", "context_tokens"),
    [
        (
            "This model's maximum context length is 900 tokens, but your prompt contains at least 851 input tokens",
            851,
            900,
        ),
        (
            "This model's maximum context length is 900 tokens. However, your messages resulted in 1200 tokens.",
            1200,
            900,
        ),
        (
            "maximum context length is 900 tokens, however you asked for 1050 (1000 in the messages, 50 in the rest)",
            1000,
            900,
        ),
        ("request (2000 tokens) exceeds the available context size (1024 tokens), try increasing it", 2000, 1024),
    ],
    ids=["vllm", "openai", "older", "llama-server"],
)
def test_prompt_too_long_carries_the_numbers_the_server_says(
    error: str, num_prompt_tokens: int, context_tokens: int
) -> None:
    refused = refusal(SERVER, 400, json.dumps({"error": {"message": error, "code": 400}}), max_tokens=50)
    assert isinstance(refused, PromptTooLong)
    assert (refused.num_prompt_tokens, refused.context_tokens) == (num_prompt_tokens, context_tokens)
    assert refused.max_tokens == 50


def test_prompt_too_long_by_fields_of_the_error() -> None:
    error = {"type": "exceed_context_size_error", "message": "too large", "n_prompt_tokens": 1500, "n_ctx": 1400}
    refused = refusal(SERVER, 400, json.dumps({"error": error}), max_tokens=1)
    assert isinstance(refused, PromptTooLong)
    assert (refused.num_prompt_tokens, refused.context_tokens) == (1500, 1400)


def test_refusal_that_does_not_say_how_long_the_prompt_was_keeps_the_servers_words() -> None:
    refused = refusal(SERVER, 400, "max_tokens=5000 cannot be greater than max_model_len=1024", max_tokens=5000)
    assert isinstance(refused, InputError)
    assert not isinstance(refused, PromptTooLong)
    assert "max_model_len=1024" in str(refused)


EXTREME = Sampling(5, 0.5, 0.25, 7, 0.125, 1.5, 0.75, -0.75, 11, ("X", "Y"))


def test_every_parameter_is_posted_for_vllm() -> None:
    body = chat_body(replace(PROMPT, grammar='root ::= "a"'), EXTREME, model="tiny", dialect="vllm")
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.75,
        "frequency_penalty": -0.75,
        "seed": 11,
        "stop": ["X", "Y"],
        "logprobs": True,
        "top_logprobs": 0,
        "structured_outputs": {"grammar": 'root ::= "a"'},
    }


def test_openai_dialect_posts_nothing_outside_the_specification() -> None:
    body = chat_body(PROMPT, Sampling(top_k=0), model="tiny", dialect="openai")
    assert not body.keys() & {"top_k", "min_p", "repetition_penalty", "structured_outputs"}
    assert (body["logprobs"], body["top_logprobs"]) == (True, 1)


@pytest.mark.parametrize(
    ("param", "prompt", "sampling"),
    [
        ("top_k", PROMPT, Sampling(top_k=40)),
        ("min_p", PROMPT, Sampling(top_k=0, min_p=0.1)),
        ("repeat_penalty", PROMPT, Sampling(top_k=0, repeat_penalty=1.1)),
        ("grammar", replace(PROMPT, grammar="root ::= [a-z]"), Sampling(top_k=0)),
    ],
    ids=["top_k", "min_p", "repeat_penalty", "grammar"],
)
def test_openai_dialect_refuses_what_it_cannot_say(param: str, prompt: Prompt, sampling: Sampling) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        chat_body(prompt, sampling, model="tiny", dialect="openai")
    assert refused.value.param == param


def test_greedy_decoding_needs_no_truncation_so_any_is_taken() -> None:
    assert chat_body(PROMPT, Sampling(temperature=0, top_k=40, min_p=0.1), model="tiny", dialect="openai")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repeat_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -2.5},
        {"stop": ("a", "")},
    ],
    ids=str,
)
def test_parameter_out_of_range_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"sampling.{next(iter(wrong))} must be"):
        chat_body(PROMPT, replace(Sampling(), **wrong), model="tiny", dialect="vllm")  # type: ignore[arg-type]


def test_prompt_tokens_are_bounded_by_bytes_and_estimated_at_half_of_them() -> None:
    prompt = Prompt((Message("system", "a" * 101), Message("user", "河流")))
    assert most_tokens(prompt) == 107 + 256 + 2 * 16
    assert estimated_tokens(prompt) == 54 + 256 + 2 * 16


def test_model_is_the_one_asked_for_or_the_first_listed() -> None:
    listed = listed_models(SERVER, {"data": [{"id": "large"}, {"id": "tiny"}]})
    assert choose_model(SERVER, listed) == "tiny"
    assert choose_model(replace(SERVER, model=""), listed) == "large"


@pytest.mark.parametrize("answer", [None, [], "x", {"data": None}, {"data": [{}]}], ids=str)
def test_answer_that_lists_no_models_says_what_base_url_should_be(answer: object) -> None:
    with pytest.raises(ModelLoadError, match="base_url must be"):
        listed_models(SERVER, answer)


def test_missing_model_names_those_listed() -> None:
    with pytest.raises(ModelLoadError, match="no model 'tiny'; it lists: a, b"):
        choose_model(SERVER, listed_models(SERVER, {"data": [{"id": "a"}, {"id": "b"}]}))
    with pytest.raises(ModelLoadError, match="it lists: none"):
        choose_model(replace(SERVER, model=""), listed_models(SERVER, {"data": []}))


@pytest.mark.parametrize(
    ("entry", "wanted", "context_tokens"),
    [
        ({"max_model_len": 1024}, None, 1024),
        ({"meta": {"n_ctx": 2048, "n_ctx_train": 32768}}, None, 2048),
        ({"meta": None}, 512, 512),
        ({"max_model_len": 1024}, 512, 512),
    ],
    ids=["vllm", "llama-server", "set", "set lower"],
)
def test_context_is_the_servers_or_the_lower_one_that_is_set(
    entry: dict[str, object], wanted: int | None, context_tokens: int
) -> None:
    assert choose_context(SERVER, {"id": "tiny", **entry}, wanted) == context_tokens


@pytest.mark.parametrize(
    ("entry", "wanted", "words"),
    [({}, None, "set context_tokens"), ({"max_model_len": 1024}, 2048, "at most")],
    ids=["unknown", "more than the server has"],
)
def test_context_that_cannot_be_is_a_config_error(entry: dict[str, object], wanted: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_context(SERVER, {"id": "tiny", **entry}, wanted)


def test_key_is_in_no_repr() -> None:
    assert "sk-secret" not in repr(SERVER)
