"""Matrix products that something else than XLA makes: the same program, and the same sums where they are as exact."""

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

for needed in ("jax", "optax", "tokenizers"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax import Array  # noqa: E402

from pice.errors import ConfigError  # noqa: E402
from tools.demo import products  # noqa: E402
from tools.demo.model import SHAPES, init_weights  # noqa: E402
from tools.demo.products import SOURCE, built, use, with_products  # noqa: E402
from tools.demo.train import Course, make_step, optimizer  # noqa: E402

SHAPE, COURSE = SHAPES["test"], Course(num_steps=4, num_tokens=512, rate=5e-3, long_every=2)
NUM_STEPS = 3
"""The first has a rate of 0."""
TRANSPOSED = 112


def plain(a: Array, b: Array, turn_a: bool, turn_b: bool) -> Array:
    return (a.T if turn_a else a) @ (b.T if turn_b else b)


def rows() -> tuple[Array, ...]:
    tokens = jnp.arange(64).reshape(2, 32)
    order = jnp.tile(jnp.arange(32), (2, 1))
    return tokens, tokens + 1, jnp.ones((2, 32)), jnp.zeros((2, 32), int), order


def learned(step: Callable[..., Any]) -> tuple[Any, float]:
    weights = init_weights(SHAPE, 0)
    state, loss = optimizer(COURSE).init(weights), jnp.zeros(())
    for _ in range(NUM_STEPS):
        weights, state, loss = step(weights, state, *rows())
    return weights, float(loss)


def test_step_learns_the_same_with_products_made_elsewhere() -> None:
    num_made = 0

    def counted(a: Array, b: Array, turn_a: bool, turn_b: bool) -> Array:
        nonlocal num_made
        num_made += 1
        return plain(a, b, turn_a, turn_b)

    usual, usual_loss = learned(make_step(SHAPE, COURSE))
    other, other_loss = learned(make_step(SHAPE, COURSE, counted))
    assert other_loss == pytest.approx(usual_loss, rel=1e-5)
    changed = jax.tree.map(jnp.subtract, usual, init_weights(SHAPE, 0))
    apart = jax.tree.map(jnp.subtract, usual, other)
    assert optax.tree.norm(changed) > 0
    assert optax.tree.norm(apart) < 1e-3 * optax.tree.norm(changed)
    forward_and_back = 3 * (7 * SHAPE.layers + 1)
    orthogonalising = 3 * 7 * SHAPE.layers
    assert num_made >= forward_and_back + orthogonalising - 1


def test_stacks_of_matrices_are_left_to_xla() -> None:
    def refused(*_: Any) -> Array:
        raise AssertionError

    stack = jnp.ones((2, 3, 4))
    made = jax.jit(with_products(lambda x: x @ x.swapaxes(1, 2), refused))(stack)
    assert np.array_equal(made, stack @ stack.swapaxes(1, 2))


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("num_rows", [1, 31, 200])
def test_compiled_product_hands_out_its_rows_whole(monkeypatch: pytest.MonkeyPatch, num_rows: int) -> None:
    """With a product in numpy in the place of oneMKL's."""
    monkeypatch.setattr(products, "_register", lambda: use(ctypes.CDLL(str(built())), PRODUCT))
    multiply = products.bf16_products()
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((num_rows, 24), (24, 40)))
    rounded = [matrix.astype(jnp.bfloat16).astype(jnp.float32) for matrix in (left, right)]
    for turn_a in (False, True):
        for turn_b in (False, True):
            a, b = left.T if turn_a else left, right.T if turn_b else right
            made = jax.jit(lambda a, b, ta=turn_a, tb=turn_b: multiply(a, b, ta, tb))(a, b)
            assert np.allclose(made, rounded[0] @ rounded[1], atol=1e-4)


def test_processor_without_amx_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags: sse avx512f")
    products._register.cache_clear()
    with pytest.raises(ConfigError, match="AMX"):
        products.bf16_products()


def test_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler"):
        built()


def test_source_that_does_not_compile_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / SOURCE.name
    broken.write_text("nonsense", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(products, "SOURCE", broken)
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    with pytest.raises(ConfigError, match=r"products\.cc does not compile: .*nonsense"):
        built()


def _product(
    _layout: int,
    turn_a: int,
    turn_b: int,
    rows: int,
    columns: int,
    depth: int,
    _alpha: float,
    a: int,
    stride_a: int,
    b: int,
    stride_b: int,
    _beta: float,
    c: int,
    stride_c: int,
) -> None:
    first = _matrix(a, rows, depth, stride_a, turn_a)
    second = _matrix(b, depth, columns, stride_b, turn_b)
    out = np.ctypeslib.as_array(ctypes.cast(c, ctypes.POINTER(ctypes.c_float)), (rows, stride_c))
    out[:] = first @ second


def _matrix(address: int, rows: int, columns: int, stride: int, turn: int) -> Any:
    """bfloat16 is the upper half of a float; the last row may be the end of memory."""
    if turn == TRANSPOSED:
        return _matrix(address, columns, rows, stride, 0).T
    size = (rows - 1) * stride + columns
    words = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint16)), (size,))
    padded = np.zeros(rows * stride, np.uint32)
    padded[: words.size] = words
    return (padded << 16).view(np.float32).reshape(rows, stride)[:, :columns]


_NUMBER, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
PRODUCT = ctypes.CFUNCTYPE(
    None, *[_NUMBER] * 6, _FLOAT, _POINTER, _NUMBER, _POINTER, _NUMBER, _FLOAT, _POINTER, _NUMBER
)(_product)
