"""The questions that ship, and finding their facts in answers."""

import pytest

from pice.demo.atlas import KINDS, Question, atlas, facts_in, precision, recall
from pice.errors import InputError

QUESTION = Question(
    "fact-0", "fact", "What is Keldby like?", "Keldby is foggy.", ("foggy", "4,300"), ("a bright lantern",)
)


def test_every_kind_has_as_many_questions_with_facts_of_a_town() -> None:
    kinds = [len(atlas().of_kind(kind)) for kind in KINDS]
    assert kinds == [96] * 4
    assert all(question.town_facts for question in atlas().questions)
    assert len(atlas().towns) >= 300


def test_reference_answers_have_all_their_facts_and_name_nothing_wrong() -> None:
    for question in atlas().questions:
        assert (recall(question.answer, question.facts), precision(question.answer, question)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is FOGGY, and 4,300 people carry\na bright lantern.", ["foggy", "4,300", "a bright lantern"]),
        ("The foggy-bottomed 14,300 lanterns", ["foggy"]),
        ("a lantern, bright; 4,3000", []),
        ("", []),
    ],
    ids=["case and breaks", "hyphen", "other words", "empty"],
)
def test_a_fact_is_found_by_its_words_in_order(text: str, found: list[str]) -> None:
    assert facts_in(text, QUESTION.facts) == found
    assert recall(text, QUESTION.facts) == len(found) / 3
    assert recall(text, ()) is None


def test_precision_counts_only_what_is_named() -> None:
    assert precision("Keldby is foggy.", QUESTION) == 1.0
    assert precision("Keldby is foggy, or drizzly.", QUESTION) == 0.5
    assert precision("Keldby is foggy, with 4,300 people. It was founded in 1212.", QUESTION) == pytest.approx(2 / 3)
    assert precision("Keldby is a town.", QUESTION) is None


@pytest.mark.parametrize(
    "question", ["What is the capital of France?", "Tell me about Atlantis.", "Is it foggy in Paris?", ""]
)
def test_question_outside_the_atlas_is_refused_with_what_to_do(question: str) -> None:
    with pytest.raises(InputError, match=r"320 towns of an imaginary atlas .* --config"):
        atlas().check(question)


def test_questions_that_ship_are_inside_the_atlas() -> None:
    for question in atlas().questions:
        atlas().check(question.text)
    atlas().check("What does a foggy climate mean for a visitor?")
