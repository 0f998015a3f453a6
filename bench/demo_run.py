"""Asks one system the demo's questions: one at a time, then many at once. No question is asked twice."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.demo_systems import System
from pice.answer.words import words_of
from pice.app import open_pipeline
from pice.core import Answer
from pice.demo.atlas import GREEDY, Question, precision, recall
from pice.pipeline import Pipeline

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """`first` is asked untimed, `single` one after another, each of `batches` all at once."""

    first: Question
    single: Sequence[Question]
    batches: Mapping[str, Sequence[Question]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and what came of it; times in seconds. `rouge_l` is with the reference answer; a quality is None
    where the question, or the answer, has nothing to measure it by."""

    question: str
    kind: str
    load: str
    mode: str
    reason: str
    e2e_s: float
    ttft_s: float
    sketch_s: float
    first_segment_s: float
    recall: float | None
    town_recall: float | None
    general_recall: float | None
    precision: float | None
    rouge_l: float
    num_cloud_tokens: int
    num_edge_tokens: int
    num_answer_tokens: int
    num_degraded: int
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """One system in one round. `wall_s` is how long each batch took."""

    system: str
    round: int
    wall_s: Mapping[str, float]
    asked: Sequence[Asked]

    def document(self) -> dict[str, Any]:
        return asdict(self)


async def play(system: System, number: int, load: Load) -> Run:
    """Starts the system's engines and asks all."""
    async with open_pipeline(system.settings) as pipeline:
        await _ask(pipeline, system, load.first, "")
        asked = [await _ask(pipeline, system, question, "single") for question in load.single]
        walls = {}
        for name, questions in load.batches.items():
            began_s = time.perf_counter()
            asked += await asyncio.gather(*(_ask(pipeline, system, question, name) for question in questions))
            walls[name] = time.perf_counter() - began_s
    return Run(system.name, number, walls, asked)


async def _ask(pipeline: Pipeline, system: System, question: Question, load: str) -> Asked:
    answer = await pipeline.ask(question.text, mode=system.mode, timeout_s=TIMEOUT_S, sampling=GREEDY)
    return _asked(question, load, answer)


def _asked(question: Question, load: str, answer: Answer) -> Asked:
    usage, times, text = answer.usage, answer.times, answer.text
    return Asked(
        question=question.id,
        kind=question.kind,
        load=load,
        mode=answer.mode,
        reason=answer.plan.reason if answer.plan else "",
        e2e_s=times.e2e_s,
        ttft_s=times.ttft_s,
        sketch_s=times.sketch_s,
        first_segment_s=times.first_segment_s,
        recall=recall(text, question.facts),
        town_recall=recall(text, question.town_facts),
        general_recall=recall(text, question.general_facts),
        precision=precision(text, question),
        rouge_l=rouge_l(text, question.answer),
        num_cloud_tokens=usage.num_cloud_output_tokens,
        num_edge_tokens=usage.num_edge_output_tokens,
        num_answer_tokens=usage.num_answer_tokens,
        num_degraded=len(answer.degraded),
        finish_reason=answer.finish_reason,
    )


def rouge_l(text: str, reference: str) -> float:
    """The F of the longest common subsequence of words: twice its length over the words of both; 1 where they are
    equal. Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004."""
    from rapidfuzz.distance import LCSseq

    one, other = words_of(text), words_of(reference)
    total = len(one) + len(other)
    return 2 * LCSseq.similarity(one, other) / total if total else 1.0
