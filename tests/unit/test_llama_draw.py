"""Which token is drawn, against llama.cpp's samplers on the whole vocabulary."""

import ctypes
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pice.core import Sampling

np = pytest.importorskip("numpy", reason="numpy is not installed")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")

from pice.engine.llama.draw import BLOCK, Drawing, Likeliest, Sampler, nucleus  # noqa: E402  (needs llama_cpp)
from tools.tiny_gguf import write_tiny_gguf  # noqa: E402  (needs gguf)

N_VOCAB = 3001
NUM_STEPS = 40
DRAWN = Sampling(max_tokens=NUM_STEPS, temperature=0.8, seed=5)


def logits_of(num_rows: int, *, seed: int = 0, scale: float = 3.0) -> Any:
    return (np.random.default_rng(seed).standard_normal((num_rows, N_VOCAB)) * scale).astype(np.float32)


@contextmanager
def freed(sampling: Sampling, grammar: str = "", vocab: Any = None, seed: int = 5) -> Iterator[Sampler]:
    sampler = Sampler(vocab, N_VOCAB, sampling, grammar, seed)
    try:
        yield sampler
    finally:
        sampler.free()


def native_chain(sampling: Sampling, seed: int) -> Any:
    """The samplers of `sampling`, each of them given to llama.cpp."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    members = [
        llama_cpp.llama_sampler_init_penalties(
            N_VOCAB,
            sampling.max_tokens,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
    ]
    if sampling.temperature:
        members += [
            llama_cpp.llama_sampler_init_top_k(sampling.top_k),
            llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
            llama_cpp.llama_sampler_init_temp(sampling.temperature),
            llama_cpp.llama_sampler_init_dist(seed),
        ]
    else:
        members.append(llama_cpp.llama_sampler_init_greedy())
    for member in members:
        llama_cpp.llama_sampler_chain_add(chain, member)
    return chain


def drawn_natively(rows: Any, sampling: Sampling, seed: int = 5) -> list[int]:
    chain, tokens = native_chain(sampling, seed), []
    candidates = np.zeros(N_VOCAB, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    for row in rows:
        candidates["id"], candidates["logit"], candidates["p"] = np.arange(N_VOCAB), row, 0
        data = candidates.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data, N_VOCAB, -1, False)
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
        tokens.append(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(chain, tokens[-1])
    llama_cpp.llama_sampler_free(chain)
    return tokens


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repeat_penalty": 1.5},
        {"temperature": 0.0, "presence_penalty": -2.0},
        {},
        {"top_k": 1},
        {"top_k": 5, "top_p": 1.0},
        {"top_k": 2500},
        {"top_k": 0, "top_p": 0.6},
        {"top_k": 0, "top_p": 0.999},
        {"top_k": 0, "top_p": 1.0},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.05},
        {"top_k": 0, "top_p": 0.9, "min_p": 0.2},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.1},
        {"repeat_penalty": 1.3, "top_k": 10},
        {"repeat_penalty": 0.7, "top_k": 10},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"presence_penalty": -1.5, "top_k": 3},
        {"frequency_penalty": 2.0, "top_k": 0, "top_p": 0.7},
        {"frequency_penalty": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.1},
    ],
    ids=str,
)
def test_tokens_are_those_that_llama_cpp_draws_from_the_whole_vocabulary(change: dict[str, Any]) -> None:
    sampling = replace(DRAWN, **change)
    same = np.repeat(logits_of(4), NUM_STEPS // 4, axis=0)
    drawing = Drawing(N_VOCAB)
    with freed(sampling) as sampler:
        ours = [drawing.draw(row[None], [sampler])[0] for row in same]
    assert [choice[0] for choice in ours if choice] == drawn_natively(same, sampling)


def test_rows_of_a_step_are_drawn_each_by_its_own_sampler() -> None:
    rows = logits_of(3)
    with freed(replace(DRAWN, temperature=0.0)) as greedy, freed(DRAWN) as one, freed(DRAWN, seed=9) as other:
        drawn = Drawing(N_VOCAB).draw(rows, [greedy, one, other])
    tokens = [int(rows[0].argmax()), *drawn_natively(rows[1:2], DRAWN), *drawn_natively(rows[2:], DRAWN, seed=9)]
    assert [choice[0] for choice in drawn if choice] == tokens


@pytest.mark.parametrize("offset", [0.0, 59.0, 1000.0, -1000.0])
def test_log_probability_is_that_of_the_whole_vocabulary(offset: float) -> None:
    rows = logits_of(4) + np.float32(offset)
    with freed(DRAWN) as sampler:
        drawn = Drawing(N_VOCAB).draw(rows, [sampler] * 4)
    exact = rows.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) + exact.max(
        axis=1, keepdims=True
    )
    expected = [exact[number, choice[0]] for number, choice in enumerate(drawn) if choice]
    assert [choice[1] for choice in drawn if choice] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_row_that_holds_no_numbers_draws_nothing_and_leaves_the_others_alone(value: float) -> None:
    rows = logits_of(2)
    rows[0, 7] = value
    with freed(DRAWN) as one, freed(DRAWN) as other:
        broken, whole = Drawing(N_VOCAB).draw(rows, [one, other])
    assert broken is None
    assert whole is not None


@pytest.mark.parametrize("n_vocab", [1, BLOCK - 1, 300, N_VOCAB, 32_000])
@pytest.mark.parametrize("num", [1, 40, 700])
def test_likeliest_tokens_are_among_those_taken_once_each(n_vocab: int, num: int) -> None:
    row = (np.random.default_rng(num).standard_normal(n_vocab) * 3).astype(np.float32)
    row[n_vocab // 2 :] = np.round(row[n_vocab // 2 :])
    ids, logits = Likeliest(n_vocab).of(row, num)
    assert len(set(ids.tolist())) == len(ids)
    assert (row[ids] == logits).all()
    assert sorted(logits)[-num:] == sorted(row)[-num:]
    assert len(ids) < n_vocab or num * 2 * BLOCK > n_vocab


@pytest.mark.parametrize("top_p", [1e-6, 0.5, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_nucleus_is_the_fewest_tokens_that_come_to_top_p(top_p: float, scale: float) -> None:
    (row,) = logits_of(1, scale=scale)
    norm = float(np.log(np.exp(row.astype(np.float64)).sum()))
    ids = nucleus(Likeliest(N_VOCAB), row, norm, top_p)
    shares = np.exp(np.sort(row.astype(np.float64))[::-1] - norm)
    num = int(np.searchsorted(np.cumsum(shares), top_p)) + 1
    assert len(ids) == min(num, N_VOCAB)
    assert sorted(row[ids]) == sorted(row)[-len(ids) :]


@pytest.mark.parametrize("sampling", [replace(DRAWN, temperature=0.0), DRAWN], ids=["greedy", "drawn"])
def test_grammar_looks_at_one_token_and_only_if_need_be_at_all(
    sampling: Sampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", seed=1)
    with closing(llama_cpp.Llama(str(tmp_path / "tiny.gguf"), vocab_only=True, verbose=False)) as model:
        vocab = llama_cpp.llama_model_get_vocab(model.model)
        n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        texts = [llama_cpp.llama_vocab_get_text(vocab, token) for token in range(n_vocab)]
        a, b = texts.index(b"a"), texts.index(b"b")
        looked, allowed = list[int](), Drawing._allowed

        def watched(self: Drawing, sampler: Sampler, row: Any, ids: Any) -> Any:
            looked.append(len(ids))
            return allowed(self, sampler, row, ids)

        monkeypatch.setattr(Drawing, "_allowed", watched)
        row = np.full((1, n_vocab), -5.0, np.float32)
        row[0, a], row[0, b] = 20.0, 15.0
        drawing, sampler = Drawing(n_vocab), Sampler(vocab, n_vocab, sampling, 'root ::= "a" "b"', 5)
        first, second = drawing.draw(row, [sampler])[0], drawing.draw(row, [sampler])[0]
        sampler.free()
    assert (first and first[0], second and second[0]) == (a, b)
    assert looked == [1, 1, n_vocab]
