"""What `pice models inspect` says of a file, against what llama.cpp says once it is loaded."""

import ctypes
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from pice.engine.llama import native
from pice.models.figures import Figures
from pice.models.memory import KV_TYPES, estimate
from pice.models.parts import read_model
from pice.models.summary import summarise
from tests.unit.models.made import write_gguf

llama_cpp = native.llama_cpp

N_CTX = 8000
"""Rounded up to 8192 cells: the log's hundredths of a MiB are then less than one byte a token."""
MIB = 1 << 20
_KV_SIZE = re.compile(r"llama_kv_cache: size = +([\d.]+) MiB \( *(\d+) cells")
_WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a"]


@dataclass(frozen=True)
class Shape:
    architecture: str = "llama"
    layers: int = 3
    width: int = 256
    heads: int = 4
    kv_heads: int | tuple[int, ...] = 2
    head_length: int = 64
    more: Mapping[str, Any] | None = None


SHAPES = {
    "grouped heads": Shape(),
    "a head for each": Shape(kv_heads=4),
    "heads longer than the width": Shape(head_length=128),
    "heads by layer": Shape("openelm", kv_heads=(1, 2, 4)),
    "windows": Shape("gemma3", layers=12, more={"attention.sliding_window": 512}),
}


def write(path: Path, shape: Shape) -> Path:
    """A model of that shape, of zeros."""
    kv_heads = list(shape.kv_heads) if isinstance(shape.kv_heads, tuple) else shape.kv_heads
    by_layer = [kv_heads] * shape.layers if isinstance(kv_heads, int) else kv_heads
    heads = shape.heads if isinstance(kv_heads, int) else [shape.heads] * shape.layers
    figures = {
        "block_count": shape.layers,
        "embedding_length": shape.width,
        "feed_forward_length": [32] * shape.layers if isinstance(kv_heads, list) else 32,
        "context_length": 8192,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": shape.head_length,
        "attention.value_length": shape.head_length,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_length,
        **(shape.more or {}),
    }
    vocabulary = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": _WORDS,
        "tokenizer.ggml.scores": [0.0] * len(_WORDS),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1],
    }
    metadata = {f"{shape.architecture}.{key}": value for key, value in figures.items()} | vocabulary
    return write_gguf(path, metadata, tensors(shape, by_layer), architecture=shape.architecture)


def tensors(shape: Shape, kv_heads: list[int]) -> dict[str, tuple[int, ...]]:
    width, length = shape.width, shape.head_length
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(_WORDS), width), "output_norm.weight": (width,)}
    for layer, number in enumerate(kv_heads):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,),
            "attn_output": (width, shape.heads * length),
            "ffn_norm": (width,),
            "ffn_gate": (32, width),
            "ffn_up": (32, width),
            "ffn_down": (width, 32),
        }
        if shape.architecture == "openelm":
            parts["attn_qkv"] = ((shape.heads + 2 * number) * length, width)
        else:
            parts |= {
                "attn_q": (shape.heads * length, width),
                "attn_k": (number * length, width),
                "attn_v": (number * length, width),
            }
        if shape.architecture != "llama":
            parts |= {"attn_q_norm": (length,), "attn_k_norm": (length,)}
        if shape.architecture == "gemma3":
            parts |= {"post_attention_norm": (width,), "post_ffw_norm": (width,)}
        found |= {f"blk.{layer}.{name}.weight": size for name, size in parts.items()}
    return found


@contextmanager
def logged() -> Iterator[list[str]]:
    """What llama.cpp logs meanwhile."""
    said: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda _level, text, _data: said.append(text.decode()))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield said
    finally:
        llama_cpp.llama_log_set(native._log_callback, ctypes.c_void_p(0))


@contextmanager
def loaded(path: Path) -> Iterator[Any]:
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model, native.log.reason()
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def kv_megabytes(model: Any, kv_type: str) -> tuple[str, int] | None:
    """The size of all KV as llama.cpp logs it, and the cells of each layer; None if it makes no such context."""
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_seq_max, parameters.kv_unified = N_CTX, 8, True
    parameters.type_k = parameters.type_v = getattr(llama_cpp, f"GGML_TYPE_{kv_type.upper()}")
    with logged() as said:
        context = llama_cpp.llama_init_from_model(model, parameters)
        if not context:
            return None
        llama_cpp.llama_free(context)
    sizes = [match for line in said if (match := _KV_SIZE.search(line))]
    (cells,) = {int(match[2]) for match in sizes}
    return f"{sum(float(match[1]) for match in sizes):.2f}", cells


@pytest.mark.parametrize("name", SHAPES)
def test_kv_is_what_llama_cpp_allocates(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m.gguf", SHAPES[name])
    files = read_model(path)
    figures = Figures(path, files.first.metadata)
    memory = estimate(figures, 0, num_shared_tokens=0, num_own_tokens=1, sequences=(N_CTX,))
    (need,) = memory.needs
    with loaded(path) as model:
        theirs = {kv_type: kv_megabytes(model, kv_type) for kv_type in KV_TYPES}
    ours = dict.fromkeys(KV_TYPES) | {
        kv_type: (f"{num_bytes / MIB:.2f}", need.n_ctx) for kv_type, num_bytes in need.kv_bytes.items()
    }
    assert ours == theirs


@pytest.mark.parametrize("name", SHAPES)
def test_figures_are_what_llama_cpp_says(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m.gguf", SHAPES[name])
    found = summarise(read_model(path))
    with loaded(path) as model:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        assert found.num_parameters == llama_cpp.llama_model_n_params(model)
        assert sum(found.bytes_by_type.values()) == llama_cpp.llama_model_size(model)
        assert found.num_layers == llama_cpp.llama_model_n_layer(model)
        assert found.embedding_length == llama_cpp.llama_model_n_embd(model)
        assert found.context_tokens == llama_cpp.llama_model_n_ctx_train(model)
        assert found.num_vocabulary == llama_cpp.llama_vocab_n_tokens(vocabulary)
