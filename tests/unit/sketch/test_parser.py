import pytest

from pice.core import Point
from pice.sketch.parser import Direct, Item, SketchParser


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items]


def test_point_leaves_at_its_newline() -> None:
    parser = SketchParser()
    assert parser.feed("OUTLINE\n- (60) rent, 900 euros") == []
    assert parser.feed("\n") == [Point(0, "rent, 900 euros", 60)]
    assert parser.feed("- (50) food\n- ") == [Point(1, "food", 50)]
    assert parser.finish() == []


@pytest.mark.parametrize(
    "line", ["1. rent", "* rent", "(60) rent", "- rent:", "**1. rent** (60 words)", "### (60) rent"]
)
def test_point_of_any_form_leaves_at_its_newline(line: str) -> None:
    parser = SketchParser()
    parser.feed("OUTLINE\n- (10) first\n")
    assert [item.text.rstrip(":") for item in parser.feed(f"{line}\n")] == ["rent"]


@pytest.mark.parametrize(
    ("text", "released_at"),
    [
        ("Paris is the capital", 2),
        ("Berlin", 3),
        ("Zürich", 1),
        ("The capital", 5),
        ("Sure! Paris", 8),
        ("Sure, why not", 7),
        ("1. Paris", 4),
        ("- Paris", 4),
        ("1969 was", 7),
        ("(1) Paris", 5),
        ("(a) Paris", 3),
        ("- (10)^2", 7),
        ("**Paris**", 4),
        ("```py\n", 5),
        ("Heredity", 5),
        ("好的，北京", 4),
    ],
)
def test_direct_answer_streams_as_soon_as_it_cannot_be_a_sketch(text: str, released_at: int) -> None:
    parser = SketchParser()
    for char in text[: released_at - 1]:
        assert parser.feed(char) == []
        assert parser.kind == "undecided"
    assert parser.feed(text[released_at - 1]) == [Direct(text[:released_at])]
    assert parser.kind == "direct"


@pytest.mark.parametrize(
    "text", ["OUTLINE\n", "- (60) r", "1. [60 words] r", "50 words: r", "**Outline:**\r\n", "（50字）房"]
)
def test_sketch_is_known_at_marker_or_budget(text: str) -> None:
    parser = SketchParser()
    kinds = [(parser.feed(piece), parser.kind) for piece in (text[:-1], text[-1])]
    assert kinds == [([], "undecided"), ([], "sketch")]


def test_announced_line_that_does_not_end_is_a_direct_answer() -> None:
    parser = SketchParser()
    text = "Here is " + "a long story " * 20
    assert "".join(texts([item for char in text for item in parser.feed(char)])) == text


def test_many_announcements_without_a_sketch_are_a_direct_answer() -> None:
    parser = SketchParser()
    text = "Here is more:\n" * 60
    assert "".join(texts(parser.feed(text))) == text
    assert parser.kind == "direct"


def test_text_after_the_decision_is_passed_on_unchanged() -> None:
    parser = SketchParser()
    parser.feed("Yes")
    for text in ("OUTLINE\n- (60) x\n", "<think>", "a\r\n\n", "<"):
        assert parser.feed(text) == [Direct(text)]
    assert parser.feed("") == []
    assert parser.finish() == []


def test_tag_cut_at_the_decision_is_not_lost() -> None:
    parser = SketchParser()
    assert texts(parser.feed("Yes</thi") + parser.feed("nk> no") + parser.finish()) == ["Yes", "</think> no"]


@pytest.mark.parametrize("text", ["", "<think>", "<think>a\nOUTLINE\n- (60) b", "\n \n", "</think>"])
def test_text_without_content_is_a_direct_answer_without_text(text: str) -> None:
    parser = SketchParser()
    assert parser.feed(text) + parser.finish() == []
    assert parser.kind == "direct"


@pytest.mark.parametrize("text", ["OUTLINE", "OUTLINE\n\n", "```\n**Outline:**\n```\n"])
def test_marker_alone_is_a_sketch_without_points(text: str) -> None:
    parser = SketchParser()
    assert parser.feed(text) + parser.finish() == []
    assert parser.kind == "sketch"


def test_thinking_inside_a_sketch_is_dropped() -> None:
    parser = SketchParser()
    items = parser.feed("OUTLINE\n- (60) a\n<think>\n- (1) no\n</thi") + parser.feed("nk>\n- (50) b\n")
    assert items + parser.finish() == [Point(0, "a", 60), Point(1, "b", 50)]


def test_tag_in_the_middle_of_a_point_opens_no_block() -> None:
    parser = SketchParser()
    assert texts(parser.feed("OUTLINE\n- (60) the <think> tag\n- (50) b\n")) == ["the <think> tag", "b"]


def test_stray_closing_tag_keeps_points_that_are_out() -> None:
    parser = SketchParser()
    assert texts(parser.feed("OUTLINE\n- (60) a\n</think>\n- (50) b\n")) == ["a", "b"]


def test_forced_text_is_a_sketch_from_the_start() -> None:
    parser = SketchParser(forced=True)
    assert parser.kind == "sketch"
    assert texts(parser.feed("Rome was founded early\nIt grew\n")) == ["Rome was founded early", "It grew"]


def test_forced_line_that_begins_with_the_word_outline_is_kept() -> None:
    parser = SketchParser(forced=True)
    assert texts(parser.feed("Sketch the scene first\nThen paint\n")) == ["Sketch the scene first", "Then paint"]


def test_words_are_clamped_and_defaults_used() -> None:
    parser = SketchParser(default_words=33, max_words=50)
    points = parser.feed("OUTLINE\n- (0) a\n- (-9) b\n- (51) c\n- d\n- e:\n")
    assert [point.words for point in points if isinstance(point, Point)] == [1, 1, 50, 33, 16]


def test_points_beyond_the_limit_are_in_the_last() -> None:
    parser = SketchParser(max_points=2, max_words=100)
    assert texts(parser.feed("OUTLINE\n- (60) a\n- (60) b\n- (60) c\n")) == ["a"]
    assert parser.finish() == [Point(1, "b; c", 100)]


@pytest.mark.parametrize("line", ["- Outline", "1. Sketch", "- (50) Schema", "### Outline", "Gliederung:"])
def test_marker_word_after_the_first_point_is_content(line: str) -> None:
    parser = SketchParser()
    found = " ".join(texts(parser.feed(f"OUTLINE\n- (60) a\n{line}\n- (40) b\n")))
    assert line.split()[-1].rstrip(":") in found


@pytest.mark.parametrize("line", ["Total: 120 words", "**Word count: 120**", "- Total: ~120"])
def test_sum_of_the_budgets_is_no_point(line: str) -> None:
    parser = SketchParser()
    assert texts(parser.feed(f"OUTLINE\n- (60) a\n{line}\n- Total eclipse\n")) == ["a", "Total eclipse"]


@pytest.mark.parametrize("pattern", ["<think></think>", "(", "(1", "*a", "> ", "1.", "- (60) ab\n", "b\n\n", " ", "`"])
def test_long_hostile_text_is_read_to_its_end(pattern: str) -> None:
    parser = SketchParser(forced=True)
    points = parser.feed("OUTLINE\n- (60) a\n" + pattern * 50_000) + parser.feed("\n- (50) last") + parser.finish()
    assert texts(points)[0] == "a"
    assert texts(points)[-1].endswith("last")


def test_finish_twice_gives_nothing_more() -> None:
    parser = SketchParser()
    parser.feed("OUTLINE\n- (60) a")
    assert len(parser.finish()) == 1
    assert parser.finish() == []


def test_sub_bullets_are_a_point_of_their_own_and_do_not_delay_their_parent() -> None:
    parser = SketchParser()
    assert texts(parser.feed("OUTLINE\n- (60) a\n")) == ["a"]
    assert parser.feed("  - b\n  - c\n") == []
    assert parser.feed("- (60) d\n") == [Point(1, "b; c", 30), Point(2, "d", 60)]


def test_closing_remark_in_an_unknown_language_is_dropped_after_a_blank_line() -> None:
    parser = SketchParser()
    parser.feed("OUTLINE\n- (60) a\n")
    assert parser.feed("\nDaj znać, czy rozwinąć.\n") + parser.finish() == []
