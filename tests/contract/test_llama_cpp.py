"""`LlamaCppEngine` against the real llama.cpp, on tiny models with random weights."""

import asyncio
import contextlib
import math
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pice.core import Message, Prompt, Role, Sampling
from pice.engine.base import Piece
from pice.engine.llama.options import LlamaOptions
from pice.engine.llama.pace import Pace
from pice.engine.llama.template import ChatTemplate
from pice.engine.llama_cpp import LlamaCppEngine
from pice.errors import ConfigError, EngineError, EngineUnavailable, InputError, ModelLoadError, PromptTooLong

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")

from pice.engine.llama import model as llama_model  # noqa: E402  (needs llama_cpp)
from tools.tiny_gguf import CHATML, NEVER, PRESETS, WORDS, write_tiny_gguf  # noqa: E402  (needs gguf)

DEADLINE_S = 60.0
EXACT: dict[str, Any] = {"kv_type": "f32", "flash_attn": "off"}
"""Whole floats in memory and plain attention: then what else is in a batch moves a logit by 1e-6, not 1e-3."""
ENDLESS = replace(PRESETS["edge"], end_bias=NEVER)
GREEDY = Sampling(max_tokens=40, temperature=0.0)
DRAWN = Sampling(max_tokens=40, temperature=1.0, seed=3)
LONG = Sampling(max_tokens=1500, temperature=0.0)


def asking(text: str = "Explain how the ocean warms the land.", grammar: str = "") -> Prompt:
    return Prompt(messages=(Message("system", "Be brief and clear."), Message("user", text)), grammar=grammar)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `endless.gguf`, whose text never ends by itself, and `eager.gguf`, whose text soon does."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_gguf(folder / "endless.gguf", seed=1, shape=ENDLESS)
    write_tiny_gguf(folder / "eager.gguf", seed=1, shape=replace(ENDLESS, end_bias=9.0, quantization="q8_0"))
    return folder


@asynccontextmanager
async def started(path: Path, **settings: Any) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(LlamaOptions(**{"path": path, "n_threads": 1, **settings}))
    try:
        async with asyncio.timeout(DEADLINE_S):
            await engine.start()
        yield engine
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await engine.close()


@pytest.fixture
async def engine(models: Path) -> AsyncIterator[LlamaCppEngine]:
    async with started(models / "endless.gguf", n_seq_max=4, **EXACT) as engine:
        yield engine


async def generate(engine: LlamaCppEngine, prompt: Prompt, sampling: Sampling = GREEDY) -> list[Piece]:
    async with asyncio.timeout(DEADLINE_S):
        return [piece async for piece in engine.generate(prompt, sampling)]


async def begin(engine: LlamaCppEngine, sampling: Sampling = LONG) -> AsyncGenerator[Piece, None]:
    """A generation that has given its first piece."""
    pieces = engine.generate(asking(), sampling)
    async with asyncio.timeout(DEADLINE_S):
        await anext(pieces)
    return pieces


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def logprobs(pieces: list[Piece]) -> list[float]:
    return [logprob for piece in pieces for logprob in piece.logprobs]


Decode = Callable[[Any, Sequence[Any]], bool]


def watch_decode(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Decode], Decode]) -> None:
    monkeypatch.setattr(llama_model.Model, "decode", wrap(llama_model.Model.decode))


async def test_generations_decoded_together_write_what_each_writes_alone(engine: LlamaCppEngine) -> None:
    prompts = [asking(f"Explain {thing}. " * (number + 1)) for number, thing in enumerate(("rain", "wind", "soil"))]
    alone = [await generate(engine, prompt) for prompt in prompts * 2]
    together = await asyncio.gather(*(generate(engine, prompt) for prompt in prompts * 2))
    assert [text(pieces) for pieces in together] == [text(pieces) for pieces in alone]
    assert len({text(pieces) for pieces in alone}) == 3
    for one, other in zip(together, alone, strict=True):
        assert logprobs(one) == pytest.approx(logprobs(other), abs=1e-4)


@pytest.mark.parametrize("prefix_cache_tokens", [0, 1000], ids=["no cache", "cache"])
async def test_common_prefix_is_evaluated_once_and_changes_no_text(models: Path, prefix_cache_tokens: int) -> None:
    prompts = [asking("Explain the water cycle. " * 20 + word) for word in ("now", "here", "again", "now")]
    async with started(models / "endless.gguf", prefix_cache_tokens=prefix_cache_tokens, **EXACT) as engine:
        alone = [await generate(engine, prompt) for prompt in prompts]
    async with started(models / "endless.gguf", prefix_cache_tokens=prefix_cache_tokens, **EXACT) as engine:
        together = await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))
    assert [text(pieces) for pieces in together] == [text(pieces) for pieces in alone]
    num_cached = [pieces[-1].num_cached_tokens for pieces in together]
    assert num_cached[0] == 0
    assert min(num_cached[1:]) > 100
    assert num_cached[3] == together[3][-1].num_prompt_tokens - 1, "the same prompt: all but one token"
    one_by_one = [pieces[-1].num_cached_tokens for pieces in alone]
    assert one_by_one == (num_cached if prefix_cache_tokens else [0] * 4)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
async def test_log_probabilities_are_the_models_own(engine: LlamaCppEngine, models: Path, sampling: Sampling) -> None:
    import numpy as np

    pieces = await generate(engine, asking(), sampling)
    with contextlib.closing(
        llama_cpp.Llama(
            str(models / "endless.gguf"), n_ctx=512, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0
        )
    ) as reference:
        head = ChatTemplate(CHATML, bos="", eos="").render(asking())
        tokens = reference.tokenize((head + text(pieces)).encode(), add_bos=True, special=True)
        num_prompt_tokens = pieces[-1].num_prompt_tokens
        assert await engine.count_tokens(asking()) == num_prompt_tokens == len(tokens) - sampling.max_tokens
        reference.eval(tokens)
        logits = reference.scores[num_prompt_tokens - 1 : len(tokens) - 1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = expected[np.arange(sampling.max_tokens), tokens[num_prompt_tokens:]]
    assert logprobs(pieces) == pytest.approx(chosen.tolist(), abs=1e-4)


async def test_seed_repeats_a_text_and_another_seed_changes_it(engine: LlamaCppEngine) -> None:
    texts = [text(await generate(engine, asking(), replace(DRAWN, seed=seed))) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


async def test_generations_without_a_seed_differ_and_repeat_with_the_engines_seed(models: Path) -> None:
    runs = []
    for _ in range(2):
        async with started(models / "endless.gguf", seed=11) as engine:
            runs.append([text(await generate(engine, asking(), replace(DRAWN, seed=None))) for _ in range(2)])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


@pytest.mark.parametrize(
    "change",
    [
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"temperature": 1e-6},
        {"temperature": 1e-6, "top_k": 0},
        {"grammar": r"root ::= [\x00-\U0010FFFF]*"},
    ],
    ids=str,
)
async def test_each_setting_that_leaves_one_token_writes_the_likeliest(
    engine: LlamaCppEngine, change: dict[str, Any]
) -> None:
    greedy = text(await generate(engine, asking()))
    sampling = GREEDY if "grammar" in change else replace(DRAWN, **change)
    assert text(await generate(engine, asking(grammar=change.get("grammar", "")), sampling)) == greedy


@pytest.mark.parametrize(
    "penalty", [{"repeat_penalty": 1e6}, {"presence_penalty": 1e3}, {"frequency_penalty": 1e3}], ids=str
)
async def test_penalties_keep_words_from_coming_back(engine: LlamaCppEngine, penalty: dict[str, Any]) -> None:
    plain = text(await generate(engine, asking())).split()
    assert len(set(plain)) < len(plain)
    words = text(await generate(engine, asking(), replace(GREEDY, **penalty))).split()
    assert len(set(words)) == len(words)


async def test_end_of_text_token_ends_the_generation_as_stopped(models: Path) -> None:
    async with started(models / "eager.gguf") as engine:
        pieces = await generate(engine, asking(), replace(DRAWN, max_tokens=200))
    assert pieces[-1].finish_reason == "stop"
    assert sum(piece.num_tokens for piece in pieces) == len(logprobs(pieces)) < 200
    assert "<" not in text(pieces)


async def test_stop_string_across_tokens_ends_the_text_before_it(engine: LlamaCppEngine) -> None:
    whole = text(await generate(engine, asking()))
    words = whole.split()
    stop = f"{words[4][-2:]} {words[5]} {words[6][:2]}"
    pieces = await generate(engine, asking(), replace(GREEDY, stop=("never", stop)))
    assert text(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert sum(piece.num_tokens for piece in pieces) < GREEDY.max_tokens


async def test_text_held_for_a_stop_string_that_does_not_come_is_given_in_the_end(engine: LlamaCppEngine) -> None:
    whole = text(await generate(engine, asking()))
    pieces = await generate(engine, asking(), replace(GREEDY, stop=(whole[-8:] + "!", whole[10:20] + "!")))
    assert text(pieces) == whole
    assert pieces[-1].finish_reason == "length"
    assert sum(piece.num_tokens for piece in pieces) == GREEDY.max_tokens


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
async def test_grammar_is_kept_to_and_characters_come_whole(engine: LlamaCppEngine, sampling: Sampling) -> None:
    pieces = await generate(engine, asking(grammar='root ::= "é€😀" ("yes" | "no") "!"'), sampling)
    assert text(pieces) in ("é€😀yes!", "é€😀no!")
    assert pieces[-1].finish_reason == "stop"
    assert [(piece.text, piece.num_tokens) for piece in pieces[:3]] == [("é", 2), ("€", 3), ("😀", 4)]


async def test_character_cut_by_the_token_limit_is_left_out(engine: LlamaCppEngine) -> None:
    pieces = await generate(engine, asking(grammar='root ::= "é€"'), replace(GREEDY, max_tokens=4))
    assert (text(pieces), pieces[-1].finish_reason) == ("é", "length")


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, top_k=0)], ids=["greedy", "drawn", "no top_k"])
async def test_grammar_that_leaves_no_token_fails_its_generation_alone(
    engine: LlamaCppEngine, sampling: Sampling
) -> None:
    other = await begin(engine, replace(LONG, max_tokens=100))
    with pytest.raises(EngineError, match="no token"):
        await generate(engine, asking(grammar="root ::= <[999999]>"), sampling)
    assert len([piece async for piece in other]) == 99


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 2**31},
        {"min_p": float("nan")},
        {"repeat_penalty": 0.0},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"frequency_penalty": 1e39},
        {"repeat_penalty": 1e-46},
        {"seed": -1},
        {"seed": 2**32 - 1},
        {"seed": 1.5},
        {"max_tokens": 1.5},
        {"max_tokens": "9"},
        {"top_k": True},
        {"temperature": "hot"},
        {"min_p": None},
        {"stop": "abc"},
        {"stop": (1,)},
        {"stop": ("a", "")},
        {"stop": tuple("abcdefghijklmnopq")},
        {"stop": ("a" * 257,)},
        {"grammar": "root ::= ("},
        {"grammar": 'start ::= "a"'},
        {"grammar": 'root ::= root "a"'},
        {"grammar": 'root ::= "a"{5,2}'},
    ],
    ids=str,
)
async def test_what_llama_cpp_would_die_of_is_refused_and_others_go_on(
    engine: LlamaCppEngine, change: dict[str, Any]
) -> None:
    other = await begin(engine, replace(LONG, max_tokens=50))
    grammar = change.pop("grammar", "")
    with pytest.raises(InputError, match=next(iter(change), "grammar")):
        await generate(engine, asking(grammar=grammar), replace(DRAWN, **change))
    assert len([piece async for piece in other]) == 49


async def test_prompt_that_does_not_fit_is_refused_with_its_numbers(models: Path) -> None:
    async with started(models / "endless.gguf", n_ctx=300) as engine:
        num_prompt_tokens = await engine.count_tokens(asking())
        with pytest.raises(PromptTooLong) as refused:
            await generate(engine, asking(), replace(GREEDY, max_tokens=301 - num_prompt_tokens))
        fits = await generate(engine, asking(), replace(GREEDY, max_tokens=300 - num_prompt_tokens))
        with pytest.raises(PromptTooLong, match=f"the prompt has {num_prompt_tokens} tokens"):
            await generate(engine, asking(), replace(GREEDY, max_tokens=100_000))
    assert (refused.value.num_prompt_tokens, refused.value.context_tokens) == (num_prompt_tokens, 300)
    assert sum(piece.num_tokens for piece in fits) == 300 - num_prompt_tokens


@pytest.mark.parametrize(("role", "not_called"), [("user", "tokens"), ("system", "tokens"), ("assistant", "_tokenise")])
async def test_prompt_far_too_long_is_refused_before_it_is_made_tokens(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, role: Role, not_called: str
) -> None:
    """What an assistant said a template may leave out, so that is known when it has not."""

    def refuse(*_: object) -> list[int]:
        raise AssertionError("no need to count")

    monkeypatch.setattr(f"pice.engine.llama.vocabulary.Vocabulary.{not_called}", refuse)
    prompt = Prompt((Message(role, "never \n" * 100_000), Message("user", "why?")))
    with pytest.raises(PromptTooLong) as refused:
        await generate(engine, prompt)
    assert refused.value.num_prompt_tokens > 4096


async def test_context_is_bounded_by_the_model_and_by_the_default(models: Path, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "long.gguf", seed=1, shape=replace(ENDLESS, context_tokens=20_000))
    found = []
    for path, n_ctx in (
        (models / "endless.gguf", None),
        (models / "endless.gguf", 6000),
        (tmp_path / "long.gguf", None),
    ):
        async with started(path, n_ctx=n_ctx) as engine:
            found.append(engine.info.context_tokens)
    assert found == [4096, 4096, 8192]


async def test_more_generations_than_sequences_all_finish(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []

    def wrap(decode: Decode) -> Decode:
        def counted(self: Any, chunks: Sequence[Any]) -> bool:
            widths.append(len(chunks))
            return decode(self, chunks)

        return counted

    watch_decode(monkeypatch, wrap)
    all_pieces = await asyncio.gather(*(generate(engine, asking(f"Explain {number}.")) for number in range(11)))
    assert [sum(piece.num_tokens for piece in pieces) for pieces in all_pieces] == [GREEDY.max_tokens] * 11
    assert max(widths) == engine.info.max_inflight == 4


async def test_memory_budget_delays_generations_instead_of_failing_them(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses, widths = [], []

    def wrap(decode: Decode) -> Decode:
        def counted(self: Any, chunks: Sequence[Any]) -> bool:
            widths.append(len(chunks))
            statuses.append(decode(self, chunks))
            return statuses[-1]

        return counted

    watch_decode(monkeypatch, wrap)
    sampling = replace(GREEDY, max_tokens=150)
    async with started(models / "endless.gguf", n_ctx=512, n_seq_max=8, **EXACT) as engine:
        prompts = [asking(f"{number} is a number. Explain it in a few words.") for number in range(7)]
        alone = [text(await generate(engine, prompt, sampling)) for prompt in prompts]
        assert set(widths) == {1}
        together = await asyncio.gather(*(generate(engine, prompt, sampling) for prompt in prompts))
    assert [text(pieces) for pieces in together] == alone
    assert all(statuses)
    assert 2 <= max(widths) < 7


async def test_sequence_put_back_for_want_of_memory_writes_the_same_text(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [asking("Explain the wind."), asking("Describe the soil of an island.")]
    alone = [await generate(engine, prompt) for prompt in prompts]
    short_at = {10, 20}
    num_pairs = 0

    def wrap(decode: Decode) -> Decode:
        def short(self: Any, chunks: Sequence[Any]) -> bool:
            nonlocal num_pairs
            num_pairs += len(chunks) == 2
            if num_pairs in short_at and len(chunks) == 2:
                short_at.discard(num_pairs)
                return False
            return decode(self, chunks)

        return short

    watch_decode(monkeypatch, wrap)
    together = await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))
    assert 10 not in short_at
    assert [text(pieces) for pieces in together] == [text(pieces) for pieces in alone]
    assert logprobs(together[1]) == pytest.approx(logprobs(alone[1]), abs=1e-4)
    short = replace(GREEDY, max_tokens=2)
    afterwards = await asyncio.gather(*(generate(engine, Prompt((Message("user", "Go"),)), short) for _ in range(4)))
    assert [len(pieces) for pieces in afterwards] == [2] * 4


async def test_context_that_fails_is_made_anew_and_its_generations_go_on(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [asking("Explain the wind."), asking("Describe the soil of an island.")]
    alone = [await generate(engine, prompt) for prompt in prompts]
    fails_at = [10, 150]

    def wrap(decode: Decode) -> Decode:
        def failing(self: Any, chunks: Sequence[Any]) -> bool:
            fails_at[:] = [number - 1 for number in fails_at]
            if 0 in fails_at:
                raise EngineError("the device was lost")
            return decode(self, chunks)

        return failing

    watch_decode(monkeypatch, wrap)
    for _ in range(5):
        together = await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))
        assert [text(pieces) for pieces in together] == [text(pieces) for pieces in alone]
        assert logprobs(together[1]) == pytest.approx(logprobs(alone[1]), abs=1e-4)
    assert max(fails_at) < 0
    assert caplog.text.count("the device was lost") == 2


async def test_generation_whose_steps_keep_failing_fails_and_the_others_finish(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_steps = 0

    def wrap(decode: Decode) -> Decode:
        def failing(self: Any, chunks: Sequence[Any]) -> bool:
            nonlocal num_steps
            num_steps += 1
            if num_steps % 5 == 0 and any(chunk.sequence.max_tokens == 77 for chunk in chunks):
                raise EngineError("no memory for this one")
            return decode(self, chunks)

        return failing

    watch_decode(monkeypatch, wrap)
    with pytest.raises(EngineError, match="no memory for this one"):
        await generate(engine, asking(), replace(GREEDY, max_tokens=77))
    assert len(await generate(engine, asking())) == GREEDY.max_tokens


async def test_call_that_cannot_be_begun_leaves_the_others_alone(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = await begin(engine, replace(LONG, max_tokens=50))

    def fail(*_of: object) -> None:
        raise RecursionError("too deep")

    with monkeypatch.context() as patched:
        patched.setattr(llama_model.Model, "sampler", fail)
        with pytest.raises(EngineError, match="too deep"):
            await generate(engine, asking())
    assert len([piece async for piece in other]) == 49
    assert "cannot be begun" in caplog.text


async def test_small_context_holds_as_many_sequences_as_it_may(models: Path) -> None:
    async with started(models / "endless.gguf", n_ctx=64, n_seq_max=2) as engine:
        prompt = Prompt((Message("user", "Go"),))
        assert len(await generate(engine, prompt, replace(GREEDY, max_tokens=3))) == 3


async def test_context_that_fails_again_at_once_ends_the_engine(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, _chunks: object) -> bool:
        raise EngineError("the device was lost")

    monkeypatch.setattr(llama_model.Model, "decode", fail)
    with pytest.raises(EngineError, match="the device was lost"):
        await generate(engine, asking())
    with pytest.raises(EngineError, match="the device was lost"):
        await generate(engine, asking())


async def test_generation_that_waited_says_for_how_long(models: Path) -> None:
    async with started(models / "endless.gguf", n_seq_max=1) as engine:
        both = await asyncio.gather(generate(engine, asking()), generate(engine, asking()))
    waited = [pieces[-1].queue_s for pieces in both]
    assert 0 <= waited[0] < waited[1]
    assert not any(piece.queue_s for pieces in both for piece in pieces[:-1])


async def test_earliest_deadline_begins_first(models: Path) -> None:
    ended = list[str]()
    now_s = asyncio.get_running_loop().time()

    async with started(models / "endless.gguf", n_seq_max=1) as engine:

        async def ask(name: str, deadline_s: float) -> None:
            pieces = engine.generate(asking(name), GREEDY, deadline_s=deadline_s)
            async for _ in pieces:
                pass
            ended.append(name)

        running = await begin(engine)
        asked = [
            asyncio.create_task(ask(*of)) for of in (("late", now_s + 99), ("never", math.inf), ("soon", now_s + 9))
        ]
        await asyncio.sleep(0)
        await running.aclose()
        await asyncio.gather(*asked)
    assert ended == ["soon", "late", "never"]


async def test_threads_are_changed_between_steps_and_the_text_stays_the_same(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Restless(Pace):
        def observe(self, num_tokens: int, step_s: float, at_s: float) -> None:
            assert num_tokens == 1
            assert 0 < step_s < at_s
            self.rung = 1 - self.rung

    async with started(models / "endless.gguf") as engine:
        alone = await generate(engine, asking())
    used = list[int]()
    set_threads = llama_model.Model.set_threads

    def watched(self: Any, num_threads: int) -> None:
        used.append(num_threads)
        set_threads(self, num_threads)

    monkeypatch.setattr(llama_model.Model, "set_threads", watched)
    monkeypatch.setattr("pice.engine.llama_cpp.Pace", Restless)
    async with started(models / "endless.gguf", n_threads=2) as engine:
        again = await generate(engine, asking())
    assert used == [1, 2] * (len(used) // 2) + [1] * (len(used) % 2)
    assert len(used) == GREEDY.max_tokens - 1
    assert (text(again), logprobs(again)) == (text(alone), logprobs(alone))


async def test_smallest_batch_holds_a_token_of_each_sequence(models: Path) -> None:
    async with started(models / "endless.gguf", n_seq_max=8, n_batch=8, n_ubatch=8) as engine:
        all_pieces = await asyncio.gather(*(generate(engine, asking(str(number))) for number in range(8)))
    assert [len(pieces) for pieces in all_pieces] == [GREEDY.max_tokens] * 8


async def test_generation_alone_that_finds_no_memory_fails_and_the_next_one_runs(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(llama_model.Model, "decode", lambda _self, _chunks: False)
        with pytest.raises(EngineError, match="memory"):
            await generate(engine, asking())
    assert len(await generate(engine, asking())) == GREEDY.max_tokens


@pytest.mark.parametrize("how", ["aclose", "cancel"])
async def test_generation_given_up_frees_its_slot_within_a_step(
    models: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    gate = threading.Event()
    num_steps = 0

    def wrap(decode: Decode) -> Decode:
        def gated(self: Any, chunks: Sequence[Any]) -> bool:
            nonlocal num_steps
            num_steps += 1
            assert num_steps < 3 or gate.wait(DEADLINE_S)
            return decode(self, chunks)

        return gated

    watch_decode(monkeypatch, wrap)
    async with started(models / "endless.gguf", n_seq_max=1) as engine:
        running = await begin(engine)
        given_up_waiting = asyncio.create_task(generate(engine, asking(), LONG))
        waiting = asyncio.create_task(generate(engine, asking()))
        await cancel(given_up_waiting)
        if how == "aclose":
            await running.aclose()
        else:
            await cancel(asyncio.create_task(exhaust(running)))
        gate.set()
        assert len(await waiting) == GREEDY.max_tokens
    assert num_steps <= 3 + GREEDY.max_tokens


async def exhaust(pieces: AsyncGenerator[Piece, None]) -> None:
    async for _ in pieces:
        pass


async def cancel(task: "asyncio.Task[Any]") -> None:
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_generation_given_up_leaves_the_others_text_alone(engine: LlamaCppEngine) -> None:
    sampling = replace(GREEDY, max_tokens=300)
    alone = text(await generate(engine, asking("Explain rain."), sampling))
    other = asyncio.create_task(generate(engine, asking("Explain rain."), sampling))
    for _ in range(6):
        await (await begin(engine)).aclose()
    assert text(await other) == alone


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "an empty file"),
        (b"GG", "expected a GGUF"),
        (b"PK\x03\x04 no model", "expected a GGUF"),
        (b"GGUF\x03\x00\x00\x00 no model", "GGUF|gguf"),
    ],
    ids=["missing", "empty", "two bytes", "another format", "junk after the magic"],
)
async def test_file_that_is_no_model_is_refused_with_the_reason(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    engine = LlamaCppEngine(LlamaOptions(path=path))
    with pytest.raises(ModelLoadError, match=reason) as refused:
        await engine.start()
    assert str(path) in str(refused.value)
    with pytest.raises(ModelLoadError):
        await generate(engine, asking())
    await engine.close()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.999])
async def test_model_cut_off_anywhere_is_refused(models: Path, tmp_path: Path, share: float) -> None:
    data = (models / "endless.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelLoadError, match=r"corrupted or incomplete|failed to read"):
        async with started(path):
            pass


async def test_pipe_or_folder_in_place_of_a_model_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, what in ((tmp_path / "pipe.gguf", "something else than a file"), (tmp_path, "a folder")):
        with pytest.raises(ModelLoadError, match=what):
            async with started(path):
                pass


async def test_model_trained_for_no_context_is_refused(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "none.gguf", seed=1, shape=replace(ENDLESS, context_tokens=0))
    with pytest.raises(ModelLoadError, match="trained for 1 token or more, got 0"):
        async with started(tmp_path / "none.gguf"):
            pass


async def test_model_of_an_unknown_architecture_is_refused_by_name(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "unknown.gguf"
    path.write_bytes(
        (models / "endless.gguf")
        .read_bytes()
        .replace(b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00liama", 1)
    )
    with pytest.raises(ModelLoadError, match="liama"):
        async with started(path):
            pass


async def test_encoder_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "llama_model_has_encoder", lambda _model: True)
    with pytest.raises(ModelLoadError, match="encoder"):
        async with started(models / "endless.gguf"):
            pass


@pytest.mark.parametrize("preset", sorted(PRESETS))
async def test_model_written_by_command_loads_and_writes_words(tmp_path: Path, preset: str) -> None:
    tool = Path(__file__).parents[2] / "tools" / "tiny_gguf.py"
    path = tmp_path / f"{preset}.gguf"
    command: list[str | Path] = [sys.executable, tool, "--preset", preset, "--seed", "5", path]
    await asyncio.to_thread(lambda: subprocess.run(command, check=True, capture_output=True))
    async with started(path) as engine:
        assert engine.info.model == preset
        words = text(await generate(engine, asking(), DRAWN)).replace(",", " ").replace(".", " ").split()
    assert words
    assert set(words) <= set(WORDS.split())


async def test_chat_template_is_chosen_by_name(models: Path) -> None:
    async with started(models / "endless.gguf", chat_template="chatml") as engine:
        assert len(await generate(engine, asking())) == GREEDY.max_tokens
    with pytest.raises(ConfigError, match="tool_use"):
        async with started(models / "endless.gguf", chat_template="tool_use"):
            pass


async def test_close_ends_running_and_waiting_generations_as_unavailable(models: Path) -> None:
    async with started(models / "endless.gguf", n_seq_max=2) as engine:
        running = [await begin(engine) for _ in range(2)]
        waiting = asyncio.create_task(generate(engine, asking()))
        await asyncio.sleep(0)
        await asyncio.gather(engine.close(), engine.close())
        for pieces in (*map(exhaust, running), waiting):
            with pytest.raises(EngineUnavailable):
                await pieces
        with pytest.raises(EngineUnavailable):
            await engine.count_tokens(asking())
    assert not owners()


def owners() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("llama.cpp")]


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_start_given_up_while_loading_leaves_nothing_behind(
    models: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    loading, closing = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(_path: Path) -> None:
        loop.call_soon_threadsafe(loading.set)
        assert closing.wait(DEADLINE_S)

    monkeypatch.setattr(llama_model, "_check_file", wait)
    engine = LlamaCppEngine(LlamaOptions(path=models / "endless.gguf", n_threads=1))
    start = asyncio.create_task(engine.start())
    await loading.wait()
    if how == "cancel":
        await cancel(start)
    close = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    closing.set()
    if how == "close":
        with pytest.raises(EngineUnavailable, match="closed while loading"):
            await start
    await close
    with pytest.raises(EngineUnavailable, match="closed while loading"):
        await generate(engine, asking())
    assert not owners()


async def test_engine_not_started_or_closed_before_refuses_to_work(models: Path) -> None:
    engine = LlamaCppEngine(LlamaOptions(path=models / "endless.gguf"))
    with pytest.raises(EngineUnavailable, match="not started"):
        await generate(engine, asking())
    await engine.close()
    with pytest.raises(EngineError, match="started once"):
        await engine.start()


async def test_failure_of_the_owner_fails_every_call_and_says_so(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = [await begin(engine) for _ in range(2)]

    def fail(_self: Any, _samplers: object) -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(llama_model.Model, "draw", fail)
    for pieces in running:
        with pytest.raises(EngineError, match="the sky fell"):
            await exhaust(pieces)
    with pytest.raises(EngineError, match="the sky fell"):
        await generate(engine, asking())
    assert "the sky fell" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"n_seq_max": 0},
        {"n_seq_max": 8, "n_batch": 7},
        {"n_ctx": 0},
        {"n_threads": 0},
        {"n_threads": 100_000},
        {"kv_type": "bogus"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=list(settings)[-1]):
        LlamaOptions(path=Path("model.gguf"), **settings)  # type: ignore[arg-type]  # a table of different types


async def test_library_that_is_not_installed_is_named_with_the_command_that_installs_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pice.engine.llama.model", None)
    monkeypatch.delattr("pice.engine.llama.model", raising=False)
    engine = LlamaCppEngine(LlamaOptions(path=models / "endless.gguf"))
    with pytest.raises(ConfigError, match=r"pip install \"pice\[llama\]\""):
        await engine.start()
    await engine.close()


def test_importing_the_engine_does_not_need_the_library() -> None:
    source = "import sys, pice.engine.llama_cpp; sys.exit('llama_cpp' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
