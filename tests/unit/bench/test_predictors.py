"""Predictors of length and label: what they look at, and that none sees the question it predicts."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bench.predictors import Known, features, labels, lengths, load, suits
from pice.errors import InputError


def known(text: str, words: int, *, suited: bool = True, category: str = "a", other_words: int = 0) -> Known:
    return Known(text, category, suited, words, other_words or words)


def errors(found: object) -> dict[str, float]:
    return {it.predictor: it.error for it in found}  # type: ignore[attr-defined]


def test_numbers_are_alike_and_the_beginning_is_marked() -> None:
    assert features("Add 17 and 4") == features("add 3 and 12")
    assert features("Is it so?") != features("So it is?")


def test_question_is_not_among_those_it_is_predicted_from() -> None:
    """Of two lengths and a third, the median of the others never is the third."""
    found = errors(lengths([known("a", 10), known("b", 10), known("c", 100)]))
    assert found["baseline: median"] == pytest.approx((45 + 45 + 90) / 3)


def test_length_on_a_line_with_another_models_is_predicted_without_error() -> None:
    found = errors(lengths([known("a b", 2 * size, other_words=size) for size in (10, 30, 40, 70)]))
    assert found["another model"] == pytest.approx(0.0, abs=1e-9)


def test_category_of_its_own_predicts_nothing() -> None:
    found = errors(lengths([known("a", 10), known("b", 10), known("c", 30, category="alone")]))
    assert found["category"] == pytest.approx((0 + 0 + 30) / 3)


def test_words_that_go_with_a_label_tell_it() -> None:
    asked = [known(f"how can i improve {word}", 10) for word in ("sleep", "diet", "work", "mood")]
    solved = [known(f"solve the equation {word}", 10, suited=False) for word in ("one", "two", "three", "four")]
    assert errors(labels([*asked, *solved]))["words of the question"] == 0.0
    assert suits([*asked, *solved], features("how can i improve music")) > 0.9
    assert suits([*asked, *solved], features("solve the equation ten")) < 0.1


def test_label_all_have_is_predicted_by_the_baseline() -> None:
    assert errors(labels([known("a", 1), known("b", 1), known("c", 1)]))["baseline: more frequent"] == 0.0


def files(folder: Path, *rows: dict[str, object]) -> tuple[Path, Path]:
    questions, answers = folder / "questions.jsonl", folder / "answers.jsonl"
    questions.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    answers.write_bytes(
        b"\n".join(
            orjson.dumps({"question_id": number, "model": model, "answer": "one two"})
            for number in range(3)
            for model in ("m", "n")
        )
    )
    return questions, answers


ROW = {"question": "Why?", "category": "a", "suits_sketch": 1}


def test_questions_without_both_answers_are_left_out(tmp_path: Path) -> None:
    rows = [{**ROW, "question_id": number} for number in range(5)]
    assert load(*files(tmp_path, *rows), "m", "n") == [replace(known("Why?", 2))] * 3


def test_too_few_answers_are_refused_with_their_number(tmp_path: Path) -> None:
    rows = [{**ROW, "question_id": number} for number in range(2)]
    with pytest.raises(InputError, match=r"three answers .* at least, got 2"):
        load(*files(tmp_path, *rows), "m", "n")


def test_question_without_a_label_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [{**ROW, "question_id": 0}, {"question_id": 1, "question": "Why?", "category": "a"}]
    with pytest.raises(InputError, match=r"line 2.*suits_sketch"):
        load(*files(tmp_path, *rows), "m", "n")
