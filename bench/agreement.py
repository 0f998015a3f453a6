"""Whether a text written in a batch is the text written alone, token for token, and how far its log-probabilities are.

The order of float sums changes with what else is in a batch. Greedy texts of eight segments with a shared prefix are
written one after another and then together, by models of several kinds of weights. `small-f32` with float memory and
plain attention is the case that must agree.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

import typer

from bench.engine_prompts import as_prompt, prompts_for
from bench.engine_run import MODELS, model_file
from bench.engine_work import Asked
from bench.report import PathOption, QuickOption, Report, Table, at_least, at_most, publish
from pice.core import Sampling
from pice.engine.llama.options import LlamaOptions
from pice.engine.llama_cpp import LlamaCppEngine
from pice.loop import run_once

NUM_SEGMENTS = 8
EXACT: dict[str, Any] = {"kv_type": "f32", "flash_attn": "off"}
KINDS: dict[str, dict[str, Any]] = {"small-f32": EXACT, "small-f16": {}, "half-b-q8_0": {}, "half-b-q4_0": {}}
QUICK_KINDS = ("small-f32", "small-f16")
SAME_LOGPROB = 1e-4


@dataclass(frozen=True, slots=True)
class Compared:
    """One segment: tokens written, how many of the first are the same, and the greatest difference of their
    log-probabilities."""

    model: str
    round: int
    segment: int
    num_tokens: int
    num_same: int
    logprob_difference: float


Written = list[tuple[str, float]]


def command(quick: QuickOption = False, path: PathOption = None) -> None:
    """Greedy texts written in a batch against the same texts written alone."""
    names = QUICK_KINDS if quick else tuple(KINDS)
    sampling = Sampling(max_tokens=48 if quick else 96, temperature=0.0)
    compared = run_once(lambda: measure(names, sampling, num_rounds=1 if quick else 3))
    publish(make_report(names, compared, sampling), path, lambda figure: draw(figure, names, compared))


async def measure(names: Sequence[str], sampling: Sampling, *, num_rounds: int) -> list[Compared]:
    compared = []
    for name in names:
        model = model_file(name, MODELS)
        options = LlamaOptions(path=model, n_ctx=4096, n_seq_max=NUM_SEGMENTS, prefix_cache_tokens=0, **KINDS[name])
        engine = LlamaCppEngine(options)
        await engine.start()
        try:
            with prompts_for(model) as prompts:
                for number in range(num_rounds):
                    asked = prompts.segments(NUM_SEGMENTS, prefix=f"prefix {number}", own=f"own {number}")
                    alone = [await write(engine, each, sampling) for each in asked]
                    together = await asyncio.gather(*(write(engine, each, sampling) for each in asked))
                    pairs = zip(alone, together, strict=True)
                    compared += [compare(name, number, index, *pair) for index, pair in enumerate(pairs)]
        finally:
            await engine.close()
    return compared


async def write(engine: LlamaCppEngine, asked: Asked, sampling: Sampling) -> Written:
    """Each token's text and log-probability."""
    written = list[tuple[str, float]]()
    async with aclosing(engine.generate(as_prompt(asked.system, asked.user), sampling)) as pieces:
        async for piece in pieces:
            written += [(piece.text, logprob) for logprob in piece.logprobs]
    return written


def compare(name: str, number: int, index: int, alone: Written, together: Written) -> Compared:
    pairs = list(zip(alone, together, strict=True))
    num_same = next((at for at, (one, other) in enumerate(pairs) if one[0] != other[0]), len(pairs))
    difference = max((abs(one[1] - other[1]) for one, other in pairs[:num_same]), default=0.0)
    return Compared(name, number, index, len(pairs), num_same, difference)


def share_equal(compared: Sequence[Compared], name: str) -> float:
    own = [each.num_same == each.num_tokens for each in compared if each.model == name]
    return sum(own) / len(own)


def difference(compared: Sequence[Compared], name: str) -> float:
    return max(each.logprob_difference for each in compared if each.model == name)


def make_report(names: Sequence[str], compared: Sequence[Compared], sampling: Sampling) -> Report:
    exact = names[0]
    aims = [
        at_least(f"{exact}: share of texts that are equal", share_equal(compared, exact), 1.0),
        at_most(f"{exact}: difference of log-probabilities", difference(compared, exact), SAME_LOGPROB),
    ]
    options = {name: KINDS[name] for name in names}
    load = {"num_segments": NUM_SEGMENTS, "sampling": asdict(sampling), "options": options}
    return Report("agreement", load, [asdict(each) for each in compared], aims, table(names, compared))


def table(names: Sequence[str], compared: Sequence[Compared]) -> Table:
    rows = []
    for name in names:
        own = [each for each in compared if each.model == name]
        first = [each.num_same for each in own if each.num_same < each.num_tokens]
        rows.append(
            [
                name,
                str(len(own)),
                f"{share_equal(compared, name):.2f}",
                str(min(first)) if first else "-",
                f"{difference(compared, name):.1e}",
            ]
        )
    columns = ("model", "texts", "equal", "first difference at token", "log-probabilities differ by at most")
    return Table("A batch of eight against each alone, greedy", columns, rows)


def draw(figure: Any, names: Sequence[str], compared: Sequence[Compared]) -> None:
    axes = figure.subplots()
    axes.bar(list(names), [share_equal(compared, name) for name in names])
    axes.set_ylabel("share of texts that are equal")


if __name__ == "__main__":
    typer.run(command)
