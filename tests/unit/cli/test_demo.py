"""`pice demo`, and what `pice ask --demo` does before any model is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pice.cli import demo
from pice.core import Answer, Plan, Span, Times, Usage
from pice.demo import atlas as shipped
from pice.demo.atlas import KINDS, atlas

Run = Callable[..., Any]
TOWN = atlas().questions[0].text


def test_questions_are_listed_by_kind(pice: Run) -> None:
    lines = pice("demo", "questions", "--kind", "chain").out.splitlines()
    assert lines == [f"chain: {question.text}" for question in atlas().of_kind("chain")]
    assert len(pice("demo", "questions").out.splitlines()) == len(KINDS) * len(lines)


def test_questions_as_json_have_their_answers(pice: Run) -> None:
    entries = json.loads(pice("demo", "questions", "--json").out)
    assert [(entry["id"], entry["answer"]) for entry in entries] == [(one.id, one.answer) for one in atlas().questions]


@pytest.mark.parametrize("question", ["What is the capital of France?", "Is it foggy in Paris?"])
def test_question_outside_the_atlas_is_told_what_the_models_know(pice: Run, question: str) -> None:
    ran = pice("ask", "--demo", question)
    assert ran.code == 2
    assert "320 towns of an imaginary atlas" in ran.err
    assert "--config" in ran.err


def test_no_question_and_no_demo_is_refused(pice: Run) -> None:
    ran = pice("ask")
    assert ran.code == 2
    assert "--demo" in ran.err


@pytest.mark.parametrize("option", [("--json",), ("--mode", "cloud"), ("--seed", "1"), ("--max-tokens", "9")], ids=str)
def test_tour_refuses_options_it_would_not_heed(pice: Run, option: tuple[str, ...]) -> None:
    ran = pice("ask", "--demo", *option)
    assert ran.code == 2
    assert "--set" in ran.err


def test_missing_models_are_named_with_what_to_do(pice: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "MODELS", (tmp_path / "atlas-cloud.gguf",))
    ran = pice("ask", "--demo", TOWN)
    assert ran.code == 2
    assert "atlas-cloud.gguf" in ran.err
    assert "docs/demo-models.md" in ran.err


def test_table_sets_each_answer_beside_the_cloud_models() -> None:
    question = atlas().of_kind("overview")[0]

    def answer(text: str, e2e_s: float, num_edge: int) -> Answer:
        usage = Usage(num_cloud_output_tokens=60, num_edge_output_tokens=num_edge, num_answer_tokens=300)
        times = Times(ttft_s=0.1, e2e_s=e2e_s)
        plan, spans = Plan("progressive", ""), (Span(0, text, "west", "m", 0.9),)
        return Answer("r", text, "progressive", "stop", 0, plan, spans=spans, usage=usage, times=times)

    table = demo._table([demo._Stop(question, answer(question.answer, 0.2, 300), answer("", 0.5, 0))])
    cells = [next(iter(column.cells)) for column in table.columns]
    num = len(question.facts)
    assert cells == ["overview", "progressive", "200 / 500", "100 / 100", "60 / 60", "300", f"{num} / 0 of {num}"]
