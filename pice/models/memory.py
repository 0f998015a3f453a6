"""What memory a model takes: weights, and the cells that keep keys and values (KV).

Left out: llama.cpp's compute buffers (from some MiB to about 1 GiB; they grow with n_ubatch, the vocabulary and the
width), the repacked copy of Q4_0 weights that a CPU makes beside a mapped file, and what a process takes anyway.

The bytes of KV are those of llama.cpp's KV buffer as `pice.engine.llama.model` makes it: unified, keys and values of
one type, as many cells for sliding-window layers as for the others, flash attention on (without it, values of layers
that differ in width are padded to the widest).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pice.models.figures import Figures
from pice.models.gguf_header import Array

N_CTX_STEP = 256
"""llama.cpp rounds the cells of a context up to a multiple of this."""
MAX_LAYERS = 512
MAX_WIDTH = 1 << 20
MAX_HEADS = 1024
MAX_HEAD_LENGTH = 4096

KV_TYPES: Mapping[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
}
"""Elements and bytes of a block. Blocks lie within a head."""

_OTHER_MEMORY = ("ssm.", "wkv.", "kda.", "shortconv.", "attention.indexer.")
_NO_MEMORY = ("dream", "llada", "llada-moe", "rnd1", "t5", "t5encoder")


@dataclass(frozen=True, slots=True)
class Layer:
    """How wide the keys and values of one token are: heads, and elements of a key's and of a value's head."""

    num_kv_heads: int
    lengths: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Need:
    """What `num_sequences` take at once. `kv_bytes` and `total_bytes` (with the weights) are by KV type."""

    num_sequences: int
    num_tokens: int
    n_ctx: int
    kv_bytes: dict[str, int]
    total_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Memory:
    """`kv_bytes_per_token` is by KV type, without types whose blocks do not fit the heads, and empty where
    `unknown` says why nothing can be said. `room` is how many sequences fit `fixed`, the need of a given n_ctx."""

    weight_bytes: int
    kv_bytes_per_token: dict[str, int]
    unknown: str
    num_shared_tokens: int
    num_own_tokens: int
    needs: tuple[Need, ...]
    fixed: Need | None = None
    room: int | None = None


def kv_layers(figures: Figures) -> tuple[Layer, ...] | str:
    """The layers that keep keys and values, or why they cannot be told from the metadata.

    As llama.cpp reads it (`llama-hparams.cpp`, `llama-kv-cache.cpp`): a layer has no KV of its own where it shares
    that of another or only serves to predict further tokens, and no values where attention is latent (MLA).

    Raises:
        ModelLoadError: a figure is of the wrong kind or out of range.
    """
    if figures.has_any(*(figures.of_model(part) for part in _OTHER_MEMORY)):
        return "its memory is not only keys and values"
    if figures.architecture in _NO_MEMORY or figures.number(figures.of_model("attention.causal")) == 0:
        return "it does not continue text token by token"
    num_all = figures.integer(figures.of_model("block_count"), most=MAX_LAYERS)
    width = figures.integer(figures.of_model("embedding_length"), most=MAX_WIDTH)
    heads = num_all and figures.per_layer(figures.of_model("attention.head_count"), num_all, most=MAX_HEADS)
    if not num_all or not width or not heads or not heads[0]:
        return "the file does not say how its attention is made"
    kv_heads = figures.per_layer(figures.of_model("attention.head_count_kv"), num_all, most=MAX_HEADS) or heads
    everywhere, in_window = _head_lengths(figures, width // heads[0])
    windowed = (0,) * num_all
    if everywhere != in_window:
        key = figures.of_model("attention.sliding_window_pattern")
        if not isinstance(figures.values.get(key), Array):
            return "the file does not say which of its layers see a window"
        windowed = figures.per_layer(key, num_all, most=1) or windowed
    layers = [Layer(*each) for each in zip(kv_heads, (in_window if it else everywhere for it in windowed), strict=True)]
    return tuple(layers[: max(0, num_all - _num_without(figures))])


def kv_bytes_per_token(layers: Sequence[Layer]) -> dict[str, int]:
    """Bytes by KV type; a type whose blocks do not divide every head is not there."""
    found = {}
    for name, (elements, num_bytes) in KV_TYPES.items():
        if not any(length % elements for each in layers for length in each.lengths):
            width = sum(each.num_kv_heads * sum(each.lengths) for each in layers)
            found[name] = width // elements * num_bytes
    return found


def estimate(
    figures: Figures,
    weight_bytes: int,
    *,
    num_shared_tokens: int,
    num_own_tokens: int,
    sequences: Sequence[int],
    n_ctx: int | None = None,
) -> Memory:
    """Memory for each number of sequences that share a prefix (held once) and have tokens of their own.

    Raises:
        ModelLoadError: a figure is of the wrong kind or out of range.
    """
    layers = kv_layers(figures)
    unknown = layers if isinstance(layers, str) else ""
    per_token = {} if isinstance(layers, str) else kv_bytes_per_token(layers)

    def need(number: int, num_tokens: int) -> Need:
        cells = -(-num_tokens // N_CTX_STEP) * N_CTX_STEP
        kv = {name: cells * num_bytes for name, num_bytes in per_token.items()}
        return Need(number, num_tokens, cells, kv, {name: weight_bytes + each for name, each in kv.items()})

    needs = tuple(need(number, num_shared_tokens + number * num_own_tokens) for number in sequences)
    room = None if n_ctx is None else max(0, (n_ctx - num_shared_tokens) // num_own_tokens)
    fixed = None if n_ctx is None or room is None else need(room, n_ctx)
    return Memory(weight_bytes, per_token, unknown, num_shared_tokens, num_own_tokens, needs, fixed, room)


def _head_lengths(figures: Figures, usual: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Lengths of a key and a value head, in layers that see all and in those that see a window."""

    def length(key: str, otherwise: int) -> int:
        found = figures.integer(figures.of_model(f"attention.{key}"), most=MAX_HEAD_LENGTH)
        return otherwise if found is None else found

    key, value = length("key_length", usual), length("value_length", usual)
    latent = figures.has_any(figures.of_model("attention.key_length_mla"))
    in_window = (length("key_length_swa", key), 0 if latent else length("value_length_swa", value))
    return (key, 0 if latent else value), in_window


def _num_without(figures: Figures) -> int:
    """How many of the last layers have no KV of their own."""
    keys = ("nextn_predict_layers", "attention.shared_kv_layers")
    return max(figures.integer(figures.of_model(key), most=MAX_LAYERS) or 0 for key in keys)
