"""The demo models' making, held to llama.cpp: a model trained for a few steps means the same to both."""

import contextlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

for needed in ("jax", "optax", "tokenizers", "gguf", "llama_cpp"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

import gguf  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402
import orjson  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from pice.core import Prompt  # noqa: E402
from pice.demo.atlas import CONFIG, MODELS  # noqa: E402
from pice.engine.llama.template import ChatTemplate  # noqa: E402
from pice.errors import InputError  # noqa: E402
from tools.demo.export import write_gguf  # noqa: E402
from tools.demo.lessons import Lesson, cloud_lessons, edge_lessons  # noqa: E402
from tools.demo.model import SHAPES, logits  # noqa: E402
from tools.demo.questions_file import document  # noqa: E402
from tools.demo.tokenizer import CHAT_TEMPLATE, encode_lesson, encode_prompt, train_tokenizer  # noqa: E402
from tools.demo.train import Course, State, train  # noqa: E402
from tools.demo.world import SEED  # noqa: E402

COURSE = Course(num_steps=4, num_tokens=512, rate=5e-3, long_every=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> State:
    folder = tmp_path_factory.mktemp("trained")
    tokenizer.save(str(folder / "tokenizer.json"))
    return train("test", folder, COURSE, SEED, lambda *_: None)


def lessons(num: int) -> list[Lesson]:
    streams = (cloud_lessons(random.Random(3)), edge_lessons(random.Random(4), 0))
    return [next(stream) for stream in streams for _ in range(num)]


def reference(path: Path) -> contextlib.closing[llama_cpp.Llama]:
    llama = llama_cpp.Llama(str(path), n_ctx=1024, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    return contextlib.closing(llama)


def own_logits(state: State, tokens: list[int]) -> NDArray[np.float32]:
    row, order = jnp.asarray([tokens]), jnp.arange(len(tokens))[None]
    found: NDArray[np.float32] = np.asarray(logits(state.weights, SHAPES["test"], row, order, jnp.zeros_like(row)))[0]
    return found


def test_exported_model_has_the_trained_ones_logits(tmp_path: Path, trained: State, tokenizer: Tokenizer) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "model", SHAPES["test"], trained.weights, tokenizer, kind="f32")
    with reference(path) as llama:
        for lesson in lessons(4):
            tokens, _ = encode_lesson(tokenizer, lesson)
            llama.n_tokens = 0
            llama.eval(tokens)
            assert np.abs(llama.scores[: len(tokens)] - own_logits(trained, tokens)).max() < 2e-3


def test_llama_cpp_cuts_prompts_and_texts_into_the_same_tokens(
    tmp_path: Path, trained: State, tokenizer: Tokenizer
) -> None:
    path, template = tmp_path / "model.gguf", ChatTemplate(CHAT_TEMPLATE, bos="", eos="")
    write_gguf(path, "model", SHAPES["test"], trained.weights, tokenizer)
    with reference(path) as llama:
        for lesson in lessons(40):
            rendered = template.render(Prompt(lesson.messages))
            assert llama.tokenize(rendered.encode(), add_bos=True, special=True) == encode_prompt(
                tokenizer, lesson.messages
            )
            own = tokenizer.encode(lesson.target).ids
            assert llama.tokenize(lesson.target.encode(), add_bos=False) == own
            assert llama.detokenize(own).decode() == lesson.target


def test_a_run_cut_short_goes_on_as_if_it_had_not_been(tmp_path: Path, tokenizer: Tokenizer, trained: State) -> None:
    """The rate falls over the whole course, so the run is cut by an error, not by a shorter course."""

    class Cut(Exception):
        pass

    def cut(step: int, loss: float, tokens_per_s: float) -> None:
        if step == 2:
            raise Cut

    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Cut):
        train("test", tmp_path, COURSE, SEED, cut, checkpoint_s=0.0)
    resumed: list[int] = []
    again = train("test", tmp_path, COURSE, SEED, lambda step, *_: resumed.append(step))
    assert resumed == [3, 4]
    assert np.array_equal(again.weights["embedding"], trained.weights["embedding"])


def test_seed_writes_the_questions_that_shipped() -> None:
    assert document() == orjson.loads((CONFIG.parent / "questions.json").read_bytes())


@pytest.mark.skipif(not MODELS[0].is_file(), reason="the demo's models are not made")
def test_seed_gives_the_tokenizer_that_shipped(tokenizer: Tokenizer) -> None:
    shipped = gguf.GGUFReader(MODELS[0])
    model = orjson.loads(tokenizer.to_str())["model"]
    own = {
        "tokenizer.ggml.tokens": sorted(model["vocab"], key=model["vocab"].__getitem__),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
    }
    fields = {name: shipped.get_field(name) for name in own}
    assert {name: field.contents() for name, field in fields.items() if field} == own


def test_checkpoint_of_another_course_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    train("test", tmp_path, replace(COURSE, num_steps=2), SEED, lambda *_: None)
    with pytest.raises(InputError, match="give another --out"):
        train("test", tmp_path, replace(COURSE, rate=1e-3), SEED, lambda *_: None)
