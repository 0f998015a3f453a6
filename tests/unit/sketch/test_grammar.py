"""The grammar of a sketch, under llama.cpp's own reading of it."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("gguf")
llama = pytest.importorskip("llama_cpp")

from pice.core import Message  # noqa: E402  (after the skips)
from pice.sketch.prompts import load_prompts  # noqa: E402  (after the skips)
from tools.tiny_gguf import write_tiny_gguf  # noqa: E402  (needs gguf)

END, FIRST_BYTE = 2, 3
ONE = "OUTLINE\n- (5) a\n"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("grammar") / "tiny.gguf"
    write_tiny_gguf(path, seed=0)
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), parameters)
    yield llama.llama_model_get_vocab(model)
    llama.llama_model_free(model)


def accepts(vocabulary: Any, text: str) -> bool:
    """Whether a model held to the grammar, with three points at most, could write exactly `text`."""
    question = [Message("user", "Why walk?")]
    prompt = load_prompts("default").sketch(question, sketch_words=80, max_points=3, constrained=True)
    sampler = llama.llama_sampler_init_grammar(vocabulary, prompt.grammar.encode(), b"root")
    assert sampler
    try:
        return all(_draw(sampler, token) for token in [*(FIRST_BYTE + byte for byte in text.encode()), END])
    finally:
        llama.llama_sampler_free(sampler)


def _draw(sampler: Any, token: int) -> bool:
    data = (llama.llama_token_data * 1)(llama.llama_token_data(token, 1.0, 0.0))
    llama.llama_sampler_apply(sampler, ctypes.byref(llama.llama_token_data_array(data, 1, -1, False)))
    allowed: bool = data[0].logit == 1.0
    if allowed and token != END:
        llama.llama_sampler_accept(sampler, token)
    return allowed


@pytest.mark.parametrize(
    "text",
    ["OUTLINE\n- (60) rent, 900 €\n- (5) a\n", "OUTLINE\n- (5) a\n- (99) 房租\n- (10) (b) - c\n"],
    ids=["two", "three"],
)
def test_sketch_of_the_prompts_form_is_accepted(vocabulary: Any, text: str) -> None:
    assert accepts(vocabulary, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "OUTLINE", "OUTLINE\n", "outline\n- (5) a\n", "Sure\n", "OUTLINE\n\n- (5) a\n", "OUTLINE\n- (5) a"),
        *(ONE + "- (0) a\n", ONE + "- (100) a\n", ONE + "- () a\n", ONE + "- (5) \n", ONE + "- a\n", ONE),
        *(ONE + "- (5) a\n\n", ONE + "- (5) a\n" * 3, ONE + f"- (5) {'a' * 161}\n"),
    ],
)
def test_anything_else_is_refused(vocabulary: Any, text: str) -> None:
    assert not accepts(vocabulary, text)
