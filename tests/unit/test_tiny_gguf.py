"""Models of a given shape with random weights."""

from dataclasses import replace
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")

from tools.tiny_gguf import BENCH_PRESETS, NEVER, PRESETS, Shape, vocabulary, write_tiny_gguf  # noqa: E402  (needs gguf)

NARROW = Shape(
    layers=3, width=64, heads=4, kv_heads=1, ffn=96, vocabulary=2000, quantization="q4_0", repeats_layers=True
)


def written(path: Path, shape: Shape, seed: int = 0) -> dict[str, tuple[tuple[int, ...], bytes, str]]:
    """Shape, data and kind of each tensor in the file."""
    write_tiny_gguf(path, seed=seed, shape=shape)
    return {
        tensor.name: (tuple(map(int, tensor.shape)), tensor.data.tobytes(), tensor.tensor_type.name)
        for tensor in gguf.GGUFReader(path).tensors
    }


def test_tensors_have_the_shape_asked_for(tmp_path: Path) -> None:
    tensors = written(tmp_path / "narrow.gguf", NARROW)
    assert tensors["blk.2.attn_k.weight"][0] == (64, 16)
    assert tensors["blk.2.ffn_down.weight"][0] == (96, 64)
    assert tensors["output.weight"][0] == (64, 2000)


def test_matrices_are_quantised_and_vectors_are_not(tmp_path: Path) -> None:
    for name, (shape, _, kind) in written(tmp_path / "narrow.gguf", NARROW).items():
        assert kind == ("Q4_0" if len(shape) > 1 else "F32"), name


@pytest.mark.parametrize("repeats", [True, False])
def test_layers_have_equal_weights_only_when_asked(tmp_path: Path, *, repeats: bool) -> None:
    tensors = written(tmp_path / "narrow.gguf", replace(NARROW, repeats_layers=repeats))
    assert (tensors["blk.0.ffn_up.weight"][1] == tensors["blk.2.ffn_up.weight"][1]) is repeats


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (written(tmp_path / "narrow.gguf", NARROW, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["output.weight"] != other["output.weight"]


def test_vocabulary_has_the_size_asked_for_and_every_prefix() -> None:
    texts = [text for text, _ in vocabulary(32_000)]
    assert len(texts) == len(set(texts)) == 32_000
    assert {text[:-1] for text in texts if text.startswith("▁") and len(text) > 1} <= set(texts)


def test_vocabulary_is_never_smaller_than_its_words() -> None:
    assert vocabulary(10) == vocabulary()


def test_text_of_a_model_to_measure_with_never_ends() -> None:
    assert {shape.end_bias for shape in BENCH_PRESETS.values()} == {NEVER}
    assert not PRESETS.keys() & BENCH_PRESETS.keys()
