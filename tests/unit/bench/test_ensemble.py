"""The ensemble benchmark: its files, what it learns from which questions, and who wins."""

import math
from pathlib import Path

import pytest

from bench.ensemble import SHARES, Draw, draws_of, fitted_shares, length_slope, mean_scores, run_of
from bench.judged import ANSWERS, Judged, load_judged
from pice.errors import InputError

QUESTIONS = '{"question_id": 1, "question": "Why?"}\n{"question_id": 2, "question": "How?"}\n'
ANSWERED = "".join(
    f'{{"question_id": {number}, "model": "{model}", "answer": "{model} answers {number}"}}\n'
    for number in (1, 2)
    for model in ("llama-13b", "big")
)
HEADER = "group,review_file,question_id,score_answer1,score_answer2\n"
SCORED = (
    HEADER
    + "g,review_llama_big,1,-1,-1\ng,review_llama_big,1,4,8\n"
    + "g,review_big_llama-13b,1,9,5\ng,mini_review_big_big,2,6,7\n"
)


def judged_files(
    folder: Path, questions: str = QUESTIONS, answers: str = ANSWERED, scores: str = SCORED
) -> list[Judged]:
    paths = [folder / name for name in ("questions.jsonl", "answers.jsonl", "scores.csv")]
    for path, text in zip(paths, (QUESTIONS, answers, scores), strict=True):
        path.write_text(text, encoding="utf-8")
    return load_judged(*paths)


def test_scores_of_one_answer_are_averaged_by_judge(tmp_path: Path) -> None:
    first, second = judged_files(tmp_path)
    assert first.scores == {"gpt-4": {"llama-13b": 4.5, "big": 8.5}}
    assert second.scores == {"mini": {"big": 6.5}}
    assert first.answers["big"] == "big answers 1"


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        pytest.param(HEADER + "g,review_big_bigger,1,4,8\n", "line 2.*names no two models", id="unknown model"),
        pytest.param(HEADER + "g,review_big_big,1,4,x\n", "line 2", id="no number"),
        pytest.param(HEADER + "g,review_big_big,1,4,11\n", "0 to 10", id="out of range"),
        pytest.param("a,b\n1,2\n", "line 2", id="other columns"),
        pytest.param(HEADER + "g,review_big_big,1,4\n", "line 2", id="too few"),
    ],
)
def test_table_that_is_no_reviews_is_refused_with_its_line(tmp_path: Path, scores: str, says: str) -> None:
    with pytest.raises(InputError, match=rf"scores\.csv.*{says}"):
        judged_files(tmp_path, scores=scores)


@pytest.mark.parametrize("line", ["{", "[]", '{"question_id": 1, "model": "m"}'])
def test_line_that_is_no_answer_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"answers\.jsonl, line 1"):
        judged_files(tmp_path, answers=line)


def test_file_that_is_not_there_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read.*PICE_DATA"):
        load_judged(*[tmp_path / "none.jsonl"] * 3)


def a_draw(question: int, scores: tuple[float, ...], *wanted: int) -> Draw:
    """Of two models; by each share of agreement the model of that number is wanted most."""
    by_share = [tuple(float(at == which) for at in range(2)) for which in wanted]
    return Draw(question, ("a", "b"), (10, 20), scores, scores, by_share[0], by_share)


def test_weights_and_best_model_are_learned_from_the_other_questions() -> None:
    draws = [a_draw(1, (9.0, 1.0), 0, 1), a_draw(2, (2.0, 5.0), 0, 1), a_draw(3, (2.0, 4.0), 0, 1)]
    assert fitted_shares(draws, is_level=False) == {1: 1, 2: 0, 3: 0}
    means = mean_scores(draws, is_level=False)
    assert means[1] == {"a": 2.0, "b": 4.5}
    run = run_of(draws, "judge", 2, is_level=False)
    assert run.scored["oracle"] == pytest.approx(6.0)
    assert run.scored["best single"] == run.scored["fitted"] == pytest.approx((1 + 2 + 2) / 3)
    assert run.scored["longest"] == pytest.approx((1 + 5 + 4) / 3)
    assert run.scored["random"] == pytest.approx((5 + 3.5 + 3) / 3)
    assert run.gain == 0.0


def test_what_a_judge_gives_for_length_alone_is_taken_out() -> None:
    texts = {"short": "word " * 10, "long": "word " * 100}
    scores = {"judge": {"short": 3.0, "long": 3.0 + 2 * math.log(10)}}
    judged = [Judged(number, "Why?", texts, scores) for number in (1, 2)]
    assert length_slope(judged, "judge") == pytest.approx(2.0)
    first = next(draws_of(judged, "judge", 2))
    assert first.level[0] == pytest.approx(first.level[1])
    assert len(first.by_share) == len(SHARES)


@pytest.mark.skipif(not ANSWERS.is_file(), reason="the judged answers are not here (PICE_DATA)")
def test_published_reviews_are_read_whole() -> None:
    judged = load_judged()
    assert len(judged) == 80
    assert {len(each.answers) for each in judged} == {7}
    assert {judge: len(judged[0].scores[judge]) for judge in judged[0].scores} == {"gpt-4": 7, "gpt-3.5-turbo": 5}
