"""Trains one of the demo models, or goes on from its last checkpoint.

    python -m tools.demo.train cloud

Runs on whatever JAX finds, CPU or GPU. A run can be ended at any moment and started again with the same arguments: what
it learns from next depends only on the seed and the number of the step.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tokenizers import Tokenizer

from pice.errors import InputError
from tools.demo.model import SHAPES, Shape, Weights, init_weights, logits
from tools.demo.products import Multiply, bf16_products, with_products
from tools.demo.rows import LONG_ROW, SHORT_ROW, Rows, draw_rows
from tools.demo.tokenizer import load_tokenizer, train_tokenizer
from tools.demo.world import SEED

FOLDER = Path("models/demo")
NUM_WARMUP = 40
DECAY_SHARE = 0.3
CHECKPOINT_S = 120.0


@dataclass(frozen=True, slots=True)
class Course:
    """How one model is trained. A step learns from `num_tokens` tokens, every `long_every`th in long rows."""

    num_steps: int
    num_tokens: int
    rate: float
    long_every: int
    decay: float = 0.05

    def row_tokens(self, step: int) -> int:
        return LONG_ROW if step % self.long_every == 0 else SHORT_ROW


_EDGE = Course(num_steps=9000, num_tokens=1280, rate=0.01, long_every=6)
COURSES = {
    "cloud": Course(num_steps=2600, num_tokens=4096, rate=0.008, long_every=3),
    "edge-a": _EDGE,
    "edge-b": _EDGE,
    "edge-c": _EDGE,
}


@dataclass(slots=True)
class State:
    """All that a run goes on from."""

    step: int
    weights: Weights
    optimizer: Any


def optimizer(course: Course) -> optax.GradientTransformation:
    """Muon for the layers' matrices and Adam for the rest, at a constant rate after a warm-up, which falls to nothing
    over the last part. With AdamW alone an edge model was at a loss of 3.3 where Muon had brought it to 1.3."""
    num_decay = max(1, round(course.num_steps * DECAY_SHARE))
    warmup = min(NUM_WARMUP, course.num_steps - num_decay)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, course.rate, warmup),
            optax.constant_schedule(course.rate),
            optax.linear_schedule(course.rate, 0.0, num_decay),
        ],
        [warmup, course.num_steps - num_decay],
    )
    rule = optax.contrib.muon(
        schedule,
        adam_b2=0.98,
        weight_decay=course.decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_muon_takes,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


def _muon_takes(weights: Weights) -> Weights:
    """The layers' matrices; the embedding and the norms are Adam's."""
    matrix = optax.contrib.MuonDimensionNumbers()
    layers = [{name: None if name.endswith("norm") else matrix for name in layer} for layer in weights["layers"]]
    return {"embedding": None, "norm": None, "layers": layers}


def begin(model: str, course: Course, seed: int) -> State:
    weights = init_weights(SHAPES[model], seed)
    return State(0, weights, optimizer(course).init(weights))


def make_step(
    shape: Shape, course: Course, multiply: Multiply | None = None
) -> Callable[..., tuple[Weights, Any, Array]]:
    """One step of training, compiled: weights, optimizer state and rows -> new ones and the mean loss in nats.
    The matrix products are XLA's, or made by `multiply`."""
    rule = optimizer(course)

    def loss(
        weights: Weights, tokens: Array, targets: Array, counts: Array, documents: Array, positions: Array
    ) -> Array:
        predicted = jax.nn.log_softmax(logits(weights, shape, tokens, positions, documents))
        chosen = jnp.take_along_axis(predicted, targets[..., None], axis=-1)[..., 0]
        return -(chosen * counts).sum() / counts.sum()

    def step(weights: Weights, state: Any, *rows: Array) -> tuple[Weights, Any, Array]:
        value, gradient = jax.value_and_grad(loss)(weights, *rows)
        updates, state = rule.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, value

    return jax.jit(with_products(step, multiply) if multiply else step, donate_argnums=(0, 1))


def lot_of(model: str, course: Course, seed: int, tokenizer: Tokenizer) -> str:
    """What a checkpoint must have been made with to be gone on from: shape, seed, lessons as this tokenizer cuts them,
    and the course but for its length, which only decides when the rate begins to fall."""
    first = _draw(model, course, seed, tokenizer, 0)
    digest = sha256(first.tokens.tobytes() + first.targets.tobytes()).hexdigest()[:16]
    return f"{SHAPES[model]} {replace(course, num_steps=0)} seed {seed} lessons {digest}"


def _draw(model: str, course: Course, seed: int, tokenizer: Tokenizer, step: int) -> Rows:
    row_tokens = course.row_tokens(step)
    lot = f"{model} {seed} {step}"
    return draw_rows(model, tokenizer, lot, num_tokens=course.num_tokens, row_tokens=row_tokens)


def save_state(path: Path, state: State, lot: str) -> None:
    """Writes the checkpoint beside its place and moves it there, so that one is always whole."""
    leaves = jax.tree.leaves((state.weights, state.optimizer))
    written = path.with_suffix(".part.npz")
    np.savez(written, step=state.step, lot=lot, **{f"leaf{at}": np.asarray(leaf) for at, leaf in enumerate(leaves)})
    written.replace(path)


def load_state(path: Path, like: State, lot: str) -> State:
    """The checkpoint in the file, in the form of `like`.

    Raises:
        InputError: it was made with something else than `lot` says.
    """
    with np.load(path) as stored:
        if str(stored["lot"]) != lot:
            raise InputError(f"{path}: expected a checkpoint of {lot}, got one of {stored['lot']}: give another --out")
        like_leaves, form = jax.tree.flatten((like.weights, like.optimizer))
        leaves = [jnp.asarray(stored[f"leaf{at}"], leaf.dtype) for at, leaf in enumerate(like_leaves)]
        weights, rule = jax.tree.unflatten(form, leaves)
        return State(int(stored["step"]), weights, rule)


def train(
    model: str,
    folder: Path,
    course: Course,
    seed: int,
    report: Callable[[int, float, float], None],
    *,
    checkpoint_s: float = CHECKPOINT_S,
    multiply: Multiply | None = None,
) -> State:
    """Trains until the course is over, from the checkpoint in `folder` if there is one. Rows are drawn a step ahead.
    `report` gets each step's number, its loss in nats and its tokens per second."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder)
    checkpoint, lot = folder / f"{model}.npz", lot_of(model, course, seed, tokenizer)
    state = begin(model, course, seed)
    if checkpoint.exists():
        state = load_state(checkpoint, state, lot)
    step = make_step(SHAPES[model], course, multiply)
    saved_s = time.monotonic()

    draw = partial(_draw, model, course, seed, tokenizer)
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(draw, state.step)
        while state.step < course.num_steps:
            began_s = time.monotonic()
            rows = coming.result()
            coming = ahead.submit(draw, state.step + 1)
            state.weights, state.optimizer, loss = step(state.weights, state.optimizer, *_arrays(rows))
            state.step += 1
            value = float(loss)
            if state.step == course.num_steps or time.monotonic() - saved_s >= checkpoint_s:
                save_state(checkpoint, state, lot)
                saved_s = time.monotonic()
            report(state.step, value, rows.tokens.size / (time.monotonic() - began_s))
    return state


def _tokenizer(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    if not path.exists():
        written = path.with_suffix(f".{os.getpid()}")
        train_tokenizer().save(str(written))
        written.replace(path)
    return load_tokenizer(path)


def _arrays(rows: Rows) -> tuple[Array, ...]:
    arrays = (rows.tokens, rows.targets, rows.counts, rows.documents, rows.positions)
    return tuple(jnp.asarray(array) for array in arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one of the demo models.")
    parser.add_argument("model", choices=sorted(COURSES))
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of checkpoints and models")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--steps", type=int, choices=range(2, 1_000_000), metavar="N", help="steps of training; else the model's own"
    )
    parser.add_argument(
        "--bf16", action="store_true", help="matrix products in bfloat16 by oneMKL, on a CPU with AMX (pip install mkl)"
    )
    args = parser.parse_args()
    course = COURSES[args.model]
    if args.steps is not None:
        course = replace(course, num_steps=args.steps)

    def report(step: int, loss: float, tokens_per_s: float) -> None:
        if step % 10 == 0 or step == course.num_steps:
            print(json.dumps({"step": step, "loss": round(loss, 4), "tokens_per_s": round(tokens_per_s)}), flush=True)

    multiply = bf16_products() if args.bf16 else None
    train(args.model, args.out, course, args.seed, report, multiply=multiply)


if __name__ == "__main__":
    sys.exit(main())
