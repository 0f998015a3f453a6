"""An answer that lacks something is found out."""

from dataclasses import replace

import pytest

from bench.complete import Incomplete, complaint, require_complete
from pice.core import Answer, Plan, Point, Span

POINTS = tuple(Point(index, f"point {index}", 40) for index in range(3))
WHOLE = Answer(
    "r0",
    "One, two.\n\nThree.",
    "progressive",
    "stop",
    1,
    Plan("progressive", ""),
    sketch=POINTS,
    spans=(
        Span(0, "One, two.", "lyon", "small", 0.7, points=POINTS[:2]),
        Span(1, "Three.", "oslo", "small", 0.7, points=POINTS[2:]),
    ),
)


def test_whole_answer_is_not_complained_of() -> None:
    assert complaint(WHOLE, 3) == ""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (replace(WHOLE, mode="cloud"), "mode cloud"),
        (replace(WHOLE, finish_reason="length"), "finish_reason length"),
        (replace(WHOLE, degraded=(1,)), "degraded"),
        (replace(WHOLE, spans=WHOLE.spans[:1]), "expected 3 points"),
        (replace(WHOLE, spans=(*WHOLE.spans, WHOLE.spans[1])), "expected 3 points"),
        (replace(WHOLE, text="One, two."), "lacks segments [1]"),
        (replace(WHOLE, spans=(WHOLE.spans[0], replace(WHOLE.spans[1], text=""))), "lacks segments [1]"),
    ],
    ids=["mode", "cut", "degraded", "segment lost", "segment twice", "text lost", "segment empty"],
)
def test_what_an_answer_lacks_is_named(answer: Answer, said: str) -> None:
    assert said in complaint(answer, 3)


def test_missing_and_repeated_answers_are_refused() -> None:
    require_complete([WHOLE, replace(WHOLE, request_id="r1")], 3, 2)
    with pytest.raises(Incomplete, match="expected 2 answers, got 1"):
        require_complete([WHOLE, WHOLE], 3, 2)
    with pytest.raises(Incomplete, match="1 of 2 answers are not whole; r1: mode edge"):
        require_complete([WHOLE, replace(WHOLE, request_id="r1", mode="edge")], 3, 2)
