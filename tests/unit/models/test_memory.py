"""What memory a model takes, by its metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import gguf
import pytest

from pice.engine.llama.options import KVType
from pice.errors import ModelLoadError
from pice.models.figures import Figures
from pice.models.gguf_header import Array, Value
from pice.models.memory import KV_TYPES, Memory, estimate, kv_bytes_per_token, kv_layers

BASE: Mapping[str, Value] = {
    "block_count": 4,
    "embedding_length": 512,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
}
"""Heads of 64 elements: 4 layers x 2 heads x (64 + 64) x 2 bytes = 2 KiB a token at f16."""


def figures(values: Mapping[str, Value], architecture: str = "llama") -> Figures:
    named = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return Figures(Path("m.gguf"), {"general.architecture": architecture, **named})


def f16_bytes(values: Mapping[str, Any], architecture: str = "llama") -> int:
    layers = kv_layers(figures({**BASE, **values}, architecture))
    assert not isinstance(layers, str), layers
    return kv_bytes_per_token(layers)["f16"]


def needs(**options: Any) -> Memory:
    given = {"num_shared_tokens": 1000, "num_own_tokens": 100, "sequences": (1, 8)}
    return estimate(figures(BASE), 5000, **{**given, **options})


def array(*values: int) -> Array:
    return Array(len(values), values)


WIDTHS: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "grouped heads": ({}, 2048),
    "as many heads for keys": ({"attention.head_count_kv": None}, 8192),
    "heads by layer": ({"attention.head_count_kv": array(2, 0, 1, 1)}, 1024),
    "stated lengths": ({"attention.key_length": 128, "attention.value_length": 32}, 4 * 2 * 160 * 2),
    "latent attention has no values": (
        {"attention.head_count_kv": 1, "attention.key_length": 576, "attention.key_length_mla": 192},
        4 * 576 * 2,
    ),
    "layers that share": ({"attention.shared_kv_layers": 3}, 512),
    "layers that predict further tokens": ({"nextn_predict_layers": 1}, 1536),
    "more layers without than with": ({"attention.shared_kv_layers": 9}, 0),
    "windows of the same width": ({"attention.sliding_window_pattern": 6}, 2048),
    "windows of another width": (
        {
            "attention.key_length_swa": 32,
            "attention.value_length_swa": 32,
            "attention.sliding_window_pattern": array(1, 1, 1, 0),
        },
        3 * 2 * 64 * 2 + 2 * 128 * 2,
    ),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_kv_of_a_token_is_the_width_of_all_layers(name: str) -> None:
    values, expected = WIDTHS[name]
    assert f16_bytes(values) == expected


UNKNOWN: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "recurrent layers": ("granitehybrid", {"ssm.state_size": 128}, "not only keys and values"),
    "an encoder": ("bert", {"attention.causal": False}, "does not continue text"),
    "a diffusion model": ("llada", {}, "does not continue text"),
    "no heads": ("llama", {"attention.head_count": None}, "does not say how its attention is made"),
    "0 heads": ("llama", {"attention.head_count": 0}, "does not say how its attention is made"),
    "no layers": ("llama", {"block_count": 0}, "does not say how its attention is made"),
    "windows who knows where": (
        "gemma4",
        {"attention.key_length_swa": 32, "attention.sliding_window_pattern": 6},
        "which of its layers see a window",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_memory_that_cannot_be_told_is_not_guessed(name: str) -> None:
    architecture, values, reason = UNKNOWN[name]
    memory = estimate(
        figures({**BASE, **values}, architecture), 7, num_shared_tokens=1, num_own_tokens=1, sequences=(1,), n_ctx=10
    )
    assert reason in memory.unknown
    assert (memory.weight_bytes, memory.kv_bytes_per_token) == (7, {})
    assert memory.needs[0].total_bytes == {}


def test_figures_beyond_any_model_are_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"key_length: expected a whole number from 0 to 4096, got 99999"):
        kv_layers(figures({**BASE, "attention.key_length": 99_999}))


def test_type_whose_blocks_do_not_divide_the_heads_is_left_out() -> None:
    layers = kv_layers(figures({**BASE, "attention.key_length": 80}))
    assert not isinstance(layers, str)
    assert list(kv_bytes_per_token(layers)) == ["f32", "f16"]


def test_types_are_those_of_the_engine_with_ggmls_sizes() -> None:
    assert set(KV_TYPES) == set(get_args(KVType))
    kinds = {name: gguf.GGMLQuantizationType[name.upper()] for name in KV_TYPES}
    assert dict(KV_TYPES) == {name: gguf.GGML_QUANT_SIZES[kind] for name, kind in kinds.items()}


def test_prefix_is_counted_once_and_cells_are_rounded_up() -> None:
    one, eight = needs().needs
    assert (one.num_tokens, one.n_ctx, eight.num_tokens, eight.n_ctx) == (1100, 1280, 1800, 2048)
    assert (eight.kv_bytes["f16"], eight.total_bytes["f16"]) == (2048 * 2048, 2048 * 2048 + 5000)
    assert eight.kv_bytes["q8_0"] == 2048 * 1024 // 32 * 34


@pytest.mark.parametrize(("n_ctx", "room"), [(1000, 0), (1099, 0), (1100, 1), (1900, 9), (5, 0)])
def test_context_has_room_for_what_fits_beside_the_prefix(n_ctx: int, room: int) -> None:
    memory = needs(n_ctx=n_ctx)
    assert memory.room == room
    assert memory.fixed is not None
    assert (memory.fixed.num_sequences, memory.fixed.n_ctx) == (room, -(-n_ctx // 256) * 256)


def test_without_a_context_there_is_no_room_to_tell() -> None:
    memory = needs()
    assert (memory.fixed, memory.room) == (None, None)
