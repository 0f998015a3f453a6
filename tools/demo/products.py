"""A JAX function with its matrix products made by something else than XLA: on a CPU with AMX, oneMKL's in bfloat16.

XLA's own products on a CPU are of 32 bits and know nothing of AMX. Here factors are rounded to bfloat16 and sums are of
32 bits, as on a GPU. Only products of two matrices change; those of whole stacks of them, as in attention, do not.
"""

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Literal

from pice.errors import ConfigError

Multiply = Callable[[Array, Array, bool, bool], Array]
"""Two matrices of 32 bits, and of each whether it lies there transposed, to their product."""

NAME = "pice_multiply"
SOURCE = Path(__file__).with_name("products.cc")
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
WITHOUT_THREADS = 1
"""oneMKL's number for that of its layers; the threads are XLA's."""


def with_products(function: Callable[..., Any], multiply: Multiply) -> Callable[..., Any]:
    """The same function, for use under `jax.jit`, with its products of two matrices made by `multiply`."""

    def wrapped(*arguments: Any) -> Any:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _run(traced, jax.tree.leaves(arguments), multiply)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return wrapped


def bf16_products() -> Multiply:
    """oneMKL's, in bfloat16.

    Raises:
        ConfigError: there is no AMX, oneMKL or C++ compiler; says which.
    """
    _register()

    def multiply(a: Array, b: Array, turn_a: bool, turn_b: bool) -> Array:
        shape = jax.ShapeDtypeStruct((a.shape[int(turn_a)], b.shape[int(not turn_b)]), jnp.float32)
        product: Array = jax.ffi.ffi_call(NAME, shape)(
            a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), turn_a=turn_a, turn_b=turn_b
        )
        return product

    return multiply


def _run(program: Any, arguments: Sequence[Any], multiply: Multiply) -> list[Any]:
    """The results of a program, one equation after another."""
    inner = program.jaxpr
    values = dict(zip([*inner.constvars, *inner.invars], [*program.consts, *arguments], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in inner.eqns:
        results = _results(equation, [value(atom) for atom in equation.invars], multiply)
        values.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in inner.outvars]


def _results(equation: Any, inputs: list[Any], multiply: Multiply) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        product = _product(params["dimension_numbers"], *inputs, multiply)
        if product is not None:
            return [product]
    if name in CALLS:
        return _run(params.get("jaxpr") or params["call_jaxpr"], inputs, multiply)
    if name == "scan":
        return _scan(params, inputs, multiply)
    results = equation.primitive.bind(*inputs, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def _scan(params: dict[str, Any], inputs: list[Any], multiply: Multiply) -> list[Any]:
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry, each = inputs[:num_consts], inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]

    def step(carry: list[Any], each: list[Any]) -> tuple[list[Any], list[Any]]:
        results = _run(params["jaxpr"], [*consts, *carry, *each], multiply)
        return results[:num_carry], results[num_carry:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    ended, stacked = jax.lax.scan(step, carry, each, **options)
    return [*ended, *stacked]


def _product(dimensions: Any, a: Array, b: Array, multiply: Multiply) -> Array | None:
    """The product of two matrices, or of a stack of one each; None for any other."""
    (sum_a, sum_b), (stack_a, stack_b) = dimensions
    if a.dtype != jnp.float32 or b.dtype != jnp.float32 or len(sum_a) != 1:
        return None
    if a.ndim == b.ndim == 2 and not stack_a:
        return multiply(a, b, sum_a[0] == 0, sum_b[0] == 1)
    if a.ndim == b.ndim == 3 and stack_a == stack_b == (0,) and a.shape[0] == 1:
        return multiply(a[0], b[0], sum_a[0] == 1, sum_b[0] == 2)[None]
    return None


@cache
def _register() -> None:
    mkl, ours = ctypes.CDLL(str(_mkl())), ctypes.CDLL(str(built()))
    mkl.MKL_Set_Threading_Layer(WITHOUT_THREADS)
    use(ours, mkl.cblas_gemm_bf16bf16f32)


def use(library: ctypes.CDLL, function: Any) -> None:
    """Lets the `built` library make its products by a function like oneMKL's `cblas_gemm_bf16bf16f32`."""
    library.use_product(ctypes.cast(function, ctypes.c_void_p))
    jax.ffi.register_ffi_target(NAME, jax.ffi.pycapsule(library.multiply), platform="cpu")


def _mkl() -> Path:
    if " amx_bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        raise ConfigError("products in bfloat16 are for processors with AMX, and this one has none")
    try:
        files = metadata.files("mkl") or ()
    except metadata.PackageNotFoundError:
        files = ()
    found = next((file for file in files if file.name.startswith("libmkl_rt.so")), None)
    if found is None:
        raise ConfigError("products in bfloat16 need oneMKL: pip install mkl")
    return Path(str(found.locate())).resolve()


def built() -> Path:
    """The library of `SOURCE`, compiled the first time.

    Raises:
        ConfigError: there is no C++ compiler, or it refuses.
    """
    version = sha256(SOURCE.read_bytes() + metadata.version("jaxlib").encode()).hexdigest()[:16]
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pice"
    library = cache_folder / f"products-{version}.so"
    if library.exists():
        return library
    cache_folder.mkdir(parents=True, exist_ok=True)
    part = library.with_suffix(f".{os.getpid()}")
    include = f"-I{jax.ffi.include_dir()}"
    command = [
        os.environ.get("CXX", "c++"),
        "-O2",
        "-std=c++17",
        "-shared",
        "-fPIC",
        include,
        str(SOURCE),
        "-o",
        str(part),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ConfigError(f"products in bfloat16 need a C++ compiler, and {command[0]} is not there") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"{SOURCE.name} does not compile: {error.stderr[-500:]}") from error
    part.replace(library)
    return library
