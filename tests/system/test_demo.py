"""The models that ship, through the whole path: real inference, and answers that are right."""

import asyncio
import json
from collections.abc import Mapping
from statistics import fmean

import pytest

import pice
from pice.core import Answer
from pice.demo.atlas import CONFIG, GREEDY, KINDS, MODELS, Kind, Question, atlas, precision, recall
from tests.system import command

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

if missing := [path.name for path in MODELS if not path.is_file()]:
    pytest.skip(f"the demo's models are not made: {', '.join(missing)}", allow_module_level=True)

NUM_ASKED = 4
Asked = Mapping[Question, Answer]


@pytest.fixture(scope="module")
def asked() -> Asked:
    """The last questions of each kind, all at once, as the planner wants them."""
    questions = [question for kind in KINDS for question in last_of(kind)]

    async def answers() -> list[Answer]:
        async with pice.open(CONFIG) as pipeline:
            return await asyncio.gather(*(pipeline.ask(question.text, sampling=GREEDY) for question in questions))

    return dict(zip(questions, asyncio.run(answers()), strict=True))


def last_of(kind: Kind) -> list[Question]:
    return atlas().of_kind(kind)[-NUM_ASKED:]


def test_answers_have_the_facts_of_the_towns(asked: Asked) -> None:
    assert fmean(recall(answer.text, question.facts) or 0.0 for question, answer in asked.items()) >= 0.9
    assert fmean(precision(answer.text, question) or 0.0 for question, answer in asked.items()) >= 0.9


def test_long_answers_are_sketched_and_the_others_are_not(asked: Asked) -> None:
    modes = {question.id: answer.mode for question, answer in asked.items()}
    sketched = {name for name, mode in modes.items() if mode == "progressive"}
    assert sketched == {question.id for kind in ("overview", "comparison") for question in last_of(kind)}


def test_edge_models_write_the_segments_and_the_cloud_model_little(asked: Asked) -> None:
    for question in last_of("overview"):
        answer = asked[question]
        assert len(answer.spans) == 6
        assert {span.site for span in answer.spans} <= {"north", "west", "south"}
        assert answer.usage.num_cloud_output_tokens < 0.35 * answer.usage.num_answer_tokens


def test_tour_compares_three_kinds_with_the_cloud_model_alone() -> None:
    ran = command.pice("ask", "--demo")
    assert (ran.code, ran.err) == (0, "")
    rows = [
        line
        for line in ran.out.splitlines()
        if " / " in line and line.lstrip("│ ").startswith(("over", "fact", "chain"))
    ]
    assert [row.split()[1:4:2] for row in rows] == [["overview", "progressive"], ["fact", "cloud"], ["chain", "cloud"]]


def test_one_question_is_answered_by_the_same_models() -> None:
    question = last_of("fact")[0]
    ran = command.pice("ask", "--demo", "--json", question.text)
    assert ran.code == 0
    record = json.loads(ran.out)
    assert recall(record["text"], question.town_facts) == 1.0
    assert record["spans"][0]["model"] == "atlas-cloud"
