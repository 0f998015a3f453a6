"""What the testbed is fed with: published figures of machines, real answers' lengths, real arrivals. From `PICE_DATA`,
whose README names the sources."""

import csv
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, cycle, islice, pairwise
from pathlib import Path

import numpy as np

from bench.judged import ANSWERS, DATA, QUESTIONS, json_lines
from pice.core import Curve
from pice.errors import InputError
from pice.plan.base import TOKENS_PER_WORD
from pice.plan.estimate import prefill_s, step_s
from pice.simulation.lengths import Known, Sketching
from pice.simulation.play import Ask, Model
from pice.simulation.trace import read_trace

SPLITWISE = DATA / "profiles" / "splitwise_perf_medians.csv"
LLAMA_CPP = DATA / "profiles" / "llamacpp_gpu_mac_tokens_per_s.csv"
JETSON = DATA / "profiles" / "jetson_llm_tokens_per_s.csv"
TRACE = DATA / "traces" / "AzureLLMInferenceTrace2023_conv.csv.gz"
ANSWERED_BY = "vicuna-13b"
"""Whose answers' lengths the cloud model's are taken to be."""
SEGMENT_PROMPT_TOKENS, MOST_TOKENS = 300, 4096
"""Of the prompt of a segment, about; and of an answer that no sketch would be sooner with."""
LONGEST_FIT = 2048
"""Prompt tokens up to which the time to first token is taken to be a straight line; beyond, attention shows."""
GPUS, GPU_MODEL = ("3070 8GB", "M2 Ultra 76-Core GPU 192GB"), "8B Q4_K_M"
BOARD, BOARD_PREFILL_PER_S = "Jetson AGX Orin", 633.0
"""The first of its rates; that of its prompts is of a 7B model on a Jetson that its source does not name."""
BATCH_SHAPE = {1: 1.0, 2: 1.15, 4: 1.35, 8: 1.9}
"""How many times longer than alone a step of a small machine takes. Assumed: no published rates of batches were
found."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A small machine as published: tokens per second of one sequence, decoding and reading its prompt."""

    model: str
    decode_per_s: float
    prefill_per_s: float


@dataclass(frozen=True, slots=True)
class Question:
    """One of the questions, with the length of its answer and a person's label."""

    text: str
    num_tokens: int
    suits_sketch: bool


def cloud_model() -> Model:
    """llama2-70b on eight H100-80GB: medians of a decode step at a prompt of 512 tokens, by batch size.

    Raises:
        InputError: the file lacks them.
    """
    rows = [
        row
        for row in _rows(SPLITWISE)
        if (row["model"], row["hardware"], row["tensor_parallel"]) == ("llama2-70b", "h100-80gb", "8")
        and row["token_size"] == "128"
    ]
    steps = {
        int(row["batch_size"]): float(row["token_ms_median"]) / 1000 for row in rows if row["prompt_size"] == "512"
    }
    firsts = {
        int(row["prompt_size"]): float(row["prompt_ms_median"]) / 1000 for row in rows if row["batch_size"] == "1"
    }
    fitted = {size: first_s for size, first_s in firsts.items() if size <= LONGEST_FIT}
    if not steps or len(fitted) < 2:
        raise InputError(
            f"{SPLITWISE}: expected llama2-70b on eight h100-80gb by batch and prompt size, got {len(rows)} rows"
        )
    rate, base_s = np.polyfit(list(fitted), list(fitted.values()), 1)
    sizes = sorted(steps)
    curve = Curve(tuple(sizes), tuple(accumulate((steps[size] for size in sizes), max)), float(rate), float(base_s))
    return Model("llama2-70b", curve, max(sizes))


def site_models(num_sites: int, *, speed: float = 1.0, batching: float = 1.0) -> dict[str, Model]:
    """So many sites, of each machine in turn. `speed` scales all its rates, `batching` what a batch costs beyond one
    sequence alone."""
    models = [_site_model(machine, speed, batching) for machine in machines()]
    return {f"site-{number:04}": model for number, model in enumerate(islice(cycle(models), num_sites))}


def machines() -> list[Machine]:
    """The kinds of sites.

    Raises:
        InputError: the files lack one.
    """
    return [*map(_gpu, GPUS), _board()]


def _gpu(name: str) -> Machine:
    rates = [
        float(row["tokens_per_s"])
        for row in _rows(LLAMA_CPP)
        if (row["section"], row["gpu"], row["model"]) == ("Overview", name, GPU_MODEL)
    ]
    if len(rates) != 2:
        raise InputError(f"{LLAMA_CPP}: expected two rates of {GPU_MODEL} on {name} in Overview, got {len(rates)}")
    return Machine("llama3-8b-q4", *rates)


def _board() -> Machine:
    for row in _rows(JETSON):
        if row["device"] == BOARD:
            return Machine("llama2-7b-int4", float(row["decode_tok_s"]), BOARD_PREFILL_PER_S)
    raise InputError(f"{JETSON}: expected a row of {BOARD}, got none")


def _site_model(machine: Machine, speed: float, batching: float) -> Model:
    alone_s = 1 / (machine.decode_per_s * speed)
    steps = tuple(alone_s * (1 + (factor - 1) * batching) for factor in BATCH_SHAPE.values())
    curve = Curve(tuple(BATCH_SHAPE), steps, 1 / (machine.prefill_per_s * speed), 0.01)
    return Model(machine.model, curve, max(BATCH_SHAPE))


def questions() -> list[Question]:
    """All 80, in order.

    Raises:
        InputError: one has no answer by `ANSWERED_BY`.
    """
    written = json_lines(ANSWERS, ("question_id", "model", "answer"))
    answers = {row["question_id"]: row["answer"] for row in written if row["model"] == ANSWERED_BY}
    return [
        Question(row["question"], _num_tokens(answers, row["question_id"]), bool(row["suits_sketch"]))
        for row in json_lines(QUESTIONS, ("question_id", "question", "suits_sketch"))
    ]


def break_even_tokens(cloud: Model, site: Model, sketching: Sketching, rtt_s: float) -> int:
    """The shortest answer that a sketch and an idle site finish sooner than an idle cloud."""
    point = sketching.words_per_point * TOKENS_PER_WORD
    for num_tokens in range(1, MOST_TOKENS):
        num_points = max(1, round(num_tokens / point))
        at_cloud_s = num_tokens * step_s(cloud.curve, 1)
        batch = min(num_points, site.max_inflight)
        start_s = rtt_s + prefill_s(site.curve, SEGMENT_PROMPT_TOKENS)
        last_s = start_s + num_tokens / num_points * step_s(site.curve, batch)
        if sketching.ratio * at_cloud_s + last_s < at_cloud_s:
            return num_tokens
    return MOST_TOKENS


def asks(known: Sequence[Question], suits: Callable[[Question], bool], num: int, rate: float, seed: int) -> list[Ask]:
    """So many requests at `rate` a second, with the gaps of the trace and the questions in a random order, again and
    again. `suits` says which the cloud model would sketch."""
    rng = random.Random(seed)
    between = _gaps()
    first = rng.randrange(len(between))
    scale = len(between) / (rate * sum(between))
    found, at_s = list[Ask](), 0.0
    for number in range(num):
        if number % len(known) == 0:
            order = rng.sample(known, len(known))
        question = order[number % len(known)]
        found.append(Ask(at_s, question.text, Known(question.num_tokens, suits(question))))
        at_s += between[(first + number) % len(between)] * scale
    return found


@cache
def _gaps() -> Sequence[float]:
    return [later.at_s - sooner.at_s for sooner, later in pairwise(read_trace(TRACE))]


def _num_tokens(answers: Mapping[int, str], number: int) -> int:
    if number not in answers:
        raise InputError(f"{ANSWERS}: expected an answer by {ANSWERED_BY} to question {number}, got none")
    return max(1, math.ceil(len(answers[number].split()) * TOKENS_PER_WORD))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))
