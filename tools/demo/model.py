"""A llama: RMS norms, rotary positions, SwiGLU, one matrix for embedding and output. In JAX, for CPU and GPU alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Weights = dict[str, Any]
"""`embedding` (vocabulary, width), `norm` (width,) and `layers`, each with matrices (inputs, outputs)."""

EPSILON = 1e-5
ROPE_BASE = 10_000.0
CONTEXT_TOKENS = 2048
"""What the files say; no lesson is longer than 512 tokens."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`width` and `ffn` are multiples of 32, the block of llama.cpp's quantised types; `width` of `heads` too."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int = 2048

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def num_weights(self) -> int:
        layer = 4 * self.width**2 + 3 * self.width * self.ffn + 2 * self.width
        return self.layers * layer + (self.vocabulary + 1) * self.width


SHAPES: Mapping[str, Shape] = {
    "cloud": Shape(layers=8, width=384, heads=6, ffn=1024),
    "edge-a": Shape(layers=3, width=128, heads=4, ffn=384),
    "edge-b": Shape(layers=4, width=128, heads=4, ffn=384),
    "edge-c": Shape(layers=4, width=160, heads=5, ffn=416),
    "test": Shape(layers=2, width=64, heads=2, ffn=128),
}


def init_weights(shape: Shape, seed: int) -> Weights:
    """Random weights; those that write to the residual stream smaller with depth."""
    rng = np.random.default_rng(seed)

    def matrix(inputs: int, outputs: int, scale: float = 1.0) -> Array:
        return jnp.asarray(rng.normal(0.0, scale / inputs**0.5, (inputs, outputs)), jnp.float32)

    def layer() -> Weights:
        width, ffn, small = shape.width, shape.ffn, (2 * shape.layers) ** -0.5
        return {
            "attention_norm": jnp.ones(width),
            "query": matrix(width, width),
            "key": matrix(width, width),
            "value": matrix(width, width),
            "output": matrix(width, width, small),
            "ffn_norm": jnp.ones(width),
            "gate": matrix(width, ffn),
            "up": matrix(width, ffn),
            "down": matrix(ffn, width, small),
        }

    return {
        "embedding": jnp.asarray(rng.normal(0.0, 0.02, (shape.vocabulary, shape.width)), jnp.float32),
        "norm": jnp.ones(shape.width),
        "layers": [layer() for _ in range(shape.layers)],
    }


def logits(weights: Weights, shape: Shape, tokens: Array, positions: Array, documents: Array) -> Array:
    """Logits (rows, tokens, vocabulary) for `tokens` (rows, tokens); a token sees those before it in its own document.

    `positions` count from where a document begins, `documents` number those of a row; both are like `tokens`.
    """
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    rotation = _rotation(shape, positions)
    order = jnp.arange(tokens.shape[1])
    visible = (documents[:, :, None] == documents[:, None, :]) & (order[:, None] >= order[None, :])
    x = weights["embedding"][tokens.reshape(-1)].astype(dtype)
    for layer in weights["layers"]:
        layer = jax.tree.map(lambda weight: weight.astype(dtype), layer)
        x = x + _attention(layer, shape, _norm(x, layer["attention_norm"]), rotation, visible[:, None])
        x = x + _ffn(layer, _norm(x, layer["ffn_norm"]))
    wide = (_norm(x, weights["norm"]) @ weights["embedding"].astype(dtype).T).astype(jnp.float32)
    return wide.reshape(*tokens.shape, shape.vocabulary)


def _attention(layer: Weights, shape: Shape, x: Array, rotation: tuple[Array, Array], visible: Array) -> Array:
    """For `x` (rows * tokens, width): with one dimension to sum over, the gradient of a matrix copies no input."""
    rows, length = visible.shape[0], visible.shape[-1]

    def heads(name: str) -> Array:
        return (x @ layer[name]).reshape(rows, length, shape.heads, shape.head_width).transpose(0, 2, 1, 3)

    query, key = _rotate(heads("query"), rotation), _rotate(heads("key"), rotation)
    scores = (query @ key.swapaxes(-1, -2)).astype(jnp.float32) * shape.head_width**-0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1).astype(x.dtype)
    mixed = (weights @ heads("value")).transpose(0, 2, 1, 3).reshape(rows * length, shape.width)
    return mixed @ layer["output"]


def _ffn(layer: Weights, x: Array) -> Array:
    return (jax.nn.silu(x @ layer["gate"]) * (x @ layer["up"])) @ layer["down"]


def _norm(x: Array, weight: Array) -> Array:
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + EPSILON)
    return (wide * scale * weight).astype(x.dtype)


def _rotation(shape: Shape, positions: Array) -> tuple[Array, Array]:
    """Cosine and sine (rows, 1, tokens, half a head)."""
    half = shape.head_width // 2
    angles = positions[:, None, :, None] * ROPE_BASE ** (-jnp.arange(half) / half)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """The first half of a head turned against the second; llama.cpp turns neighbours, see `export`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotation
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)
