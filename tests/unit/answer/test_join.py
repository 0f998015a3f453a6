"""Spans written apart read as one text, and nothing of them is lost."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pice.answer.join import join_spans
from pice.answer.words import words_of
from pice.core import FinishReason, Point, Span

POINT = Point(0, "Rayleigh scattering in air", 40)


def a_span(text: str, *points: Point, finish_reason: FinishReason = "stop", degraded: bool = False) -> Span:
    return Span(0, text, "a", "m", 0.5, finish_reason=finish_reason, points=points, degraded=degraded)


def joined(*texts: str) -> str:
    return join_spans([a_span(text, POINT) for text in texts])


@pytest.mark.parametrize(
    ("texts", "result"),
    [
        pytest.param(("One.", "Two."), "One.\n\nTwo.", id="paragraphs"),
        pytest.param((" One.\n", "\n\nTwo. \n"), "One.\n\nTwo.", id="space around them goes"),
        pytest.param(("One.\n\n  Inner.", "Two."), "One.\n\n  Inner.\n\nTwo.", id="space inside stays"),
        pytest.param(("- one", "- two\n- three"), "- one\n- two\n- three", id="items of one list"),
        pytest.param(("Intro:\n1. one", "2. two"), "Intro:\n1. one\n2. two", id="numbered items"),
        pytest.param(("- one", "Two."), "- one\n\nTwo.", id="item and paragraph"),
        pytest.param(("One.", "", "Two."), "One.\n\nTwo.", id="an empty span"),
        pytest.param(("", "Two."), "Two.", id="an empty first span"),
        pytest.param((), "", id="no spans"),
    ],
)
def test_spans_are_put_together(texts: Sequence[str], result: str) -> None:
    assert joined(*texts) == result


@pytest.mark.parametrize(
    ("texts", "result"),
    [
        pytest.param(
            ("Air is clear. The sky is blue.", "The sky is blue. So is the sea."),
            "Air is clear. The sky is blue.\n\nSo is the sea.",
            id="a sentence",
        ),
        pytest.param(
            ("One here. The sky is blue. It is.", "the sky is blue! It is. Next."),
            "One here. The sky is blue. It is.\n\nNext.",
            id="two sentences, another case and other marks",
        ),
        pytest.param(
            ('He said: "The sky is blue."', '"The sky is blue." That is all.'),
            'He said: "The sky is blue."\n\nThat is all.',
            id="a quoted sentence",
        ),
        pytest.param(
            ("The sky is blue.", 'The sky is blue. "Why?" one asks.'),
            'The sky is blue.\n\n"Why?" one asks.',
            id="and then a quotation",
        ),
        pytest.param(("First, the sky is blue", "The sky is blue."), "First, the sky is blue", id="all of a span"),
        pytest.param(
            ("The sky is blue.", "The sky is blue\n\nand so on."), "The sky is blue.\n\nand so on.", id="a line"
        ),
        pytest.param(("だから空は青い。", "空は青い。海も青い。"), "だから空は青い。\n\n海も青い。", id="japanese"),
        pytest.param(
            ("The sky is blue.", "The sky is blue. The sky is blue."),
            "The sky is blue.\n\nThe sky is blue.",
            id="once only",
        ),
    ],
)
def test_sentence_repeated_at_a_joint_is_dropped(texts: Sequence[str], result: str) -> None:
    assert joined(*texts) == result


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(
            ("It pays in the long run.", "In the long run, costs fall."), id="words taken up again on purpose"
        ),
        pytest.param(("It is blue.", "Is blue. Really."), id="too few words"),
        pytest.param(("The sky is blue. Yes.", "The sky is blue. No."), id="not at the joint"),
        pytest.param(("The sky is blue 3.", "The sky is blue 3.5 times."), id="number that goes on"),
    ],
)
def test_what_is_no_repeat_stays(texts: Sequence[str]) -> None:
    assert joined(*texts) == "\n\n".join(texts)


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        pytest.param("for air scatters blue", "air scatters blue light.", "for air scatters blue light.", id="words"),
        pytest.param("because air", "scatters blue light.", "because air scatters blue light.", id="goes on"),
        pytest.param("because air", "Blue light is short.", "because air\n\nBlue light is short.", id="begins anew"),
        pytest.param("It is blue.", "light is short.", "It is blue.\n\nlight is short.", id="a sentence ended there"),
        pytest.param("なぜなら光の散", "光の散乱である。", "なぜなら光の散乱である。", id="within a word"),
    ],
)
def test_span_cut_within_a_sentence_is_continued(first: str, second: str, result: str) -> None:
    assert join_spans([a_span(first, POINT, finish_reason="length"), a_span(second, POINT)]) == result


REST = "Air scatters blue light more than red."
INTRODUCTIONS = {
    "sure": f"Sure, here is the expanded point:\n\n{REST}",
    "certainly": f"Certainly! Here's a paragraph about it: {REST}",
    "sure alone": f"Sure! {REST}",
    "here is": f"Here is the expanded text for point 1:\n{REST}",
    "heading": f"## Rayleigh scattering in air\n\n{REST}",
    "bold heading": f"**Rayleigh Scattering in Air:**\n{REST}",
    "numbered heading": f"1. Rayleigh scattering in air\n{REST}",
    "introduction and heading": f"Of course! Here is the text:\n\n**Rayleigh scattering in air**\n\n{REST}",
}
NO_INTRODUCTIONS = {
    "sure within": f"Sure, the sky is blue. {REST}",
    "sure of something": f"Sure signs are these: {REST}",
    "here are": f"Here are the effects:\n- one\n{REST}",
    "okay later": f"{REST}\nOkay, here is the catch: none.",
    "heading of its own": f"## Why it is so\n\n{REST}",
    "heading that says more": f"## Rayleigh scattering in air and water\n\n{REST}",
    "sentence with it": f"Rayleigh scattering in air is strong. {REST}",
    "item": f"- Rayleigh scattering in air\n- {REST}",
    "nothing else": POINT.text,
}


@pytest.mark.parametrize("text", INTRODUCTIONS.values(), ids=INTRODUCTIONS)
def test_what_only_introduces_a_span_is_dropped(text: str) -> None:
    assert joined("Before it.", text) == f"Before it.\n\n{REST}"


@pytest.mark.parametrize("text", NO_INTRODUCTIONS.values(), ids=NO_INTRODUCTIONS)
def test_what_belongs_to_a_span_stays(text: str) -> None:
    assert joined("Before it.", text) == f"Before it.\n\n{text}"


@pytest.mark.parametrize("text", INTRODUCTIONS.values(), ids=INTRODUCTIONS)
def test_whole_answer_keeps_its_introduction(text: str) -> None:
    assert join_spans([a_span(text)]) == text


def test_each_heading_of_a_span_of_several_points_is_dropped() -> None:
    points = (POINT, Point(1, "Sunset", 20))
    text = "1. Rayleigh scattering in air\nIt is blue.\n\n2. Sunset\nIt is red."
    assert join_spans([a_span(text, *points)]) == "It is blue.\n\nIt is red."


def test_words_of_the_sketch_that_stand_in_are_no_heading() -> None:
    other = Point(1, "Sunset", 20)
    span = a_span(f"{POINT.text}\n{other.text}", POINT, other, degraded=True)
    assert join_spans([a_span("Before it.", POINT), span]) == f"Before it.\n\n{POINT.text}\n{other.text}"


TEXTS = st.text(alphabet="ab .,-\n光", max_size=40) | st.lists(st.sampled_from(["the", "sky", "is.", "Blue"])).map(
    " ".join
)
SPANS = st.lists(st.builds(a_span, TEXTS, finish_reason=st.sampled_from(("stop", "length"))), max_size=5)


@settings(deadline=None)
@given(spans=SPANS)
def test_every_span_stands_in_the_text_word_for_word(spans: list[Span]) -> None:
    words = words_of(join_spans(spans))
    for span in spans:
        own = words_of(span.text)
        assert any(words[at : at + len(own)] == own for at in range(len(words) + 1))


@settings(deadline=None)
@given(spans=SPANS)
def test_text_of_the_first_spans_is_how_the_text_of_all_begins(spans: list[Span]) -> None:
    whole = join_spans(spans)
    assert all(whole.startswith(join_spans(spans[:count])) for count in range(len(spans)))


@settings(deadline=None)
@given(span=st.builds(a_span, st.text(max_size=60)))
def test_single_span_is_left_alone(span: Span) -> None:
    assert join_spans([span]) == span.text.strip()
