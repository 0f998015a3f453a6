"""What holds for any text at all."""

from hypothesis import given
from hypothesis import strategies as st

from pice.core import Point
from pice.sketch.parser import Direct, SketchParser

FRAGMENTS = st.sampled_from(
    [
        *(
            "OUTLINE",
            "Outline:",
            "**",
            "\n",
            "\r\n",
            "\n\n",
            "- ",
            "* ",
            "1. ",
            "1) ",
            "(1) ",
            "  - ",
            "# ",
            "```",
            "---",
        ),
        *("(60)", "[50 words]", "(-3)", "(٥٠)", "（50字）", "60 words: ", "(", ")", "<think>", "</think>", "<", "</th"),
        *("Sure, ", "Here is", ":", " ", "\t", "rent", "Let me know", "大纲", "九", "é", "\u200f", "\x00", "Total: 60"),
    ]
)
TEXTS = st.one_of(st.text(max_size=80), st.lists(FRAGMENTS, max_size=24).map("".join))
WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyzäöüßéñжяبم好心", min_size=1, max_size=9)


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(TEXTS)
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


def read(pieces: list[str], parser: SketchParser) -> tuple[str, list[Point], str]:
    items = [item for piece in pieces for item in parser.feed(piece)] + parser.finish()
    points = [item for item in items if isinstance(item, Point)]
    return parser.kind, points, "".join(item.text for item in items if isinstance(item, Direct))


@given(cut_texts(), st.booleans())
def test_reading_does_not_depend_on_the_pieces(cut: tuple[str, list[str]], forced: bool) -> None:
    text, pieces = cut
    whole = read([text], SketchParser(forced=forced))
    assert read(pieces, SketchParser(forced=forced)) == whole
    assert read(list(text), SketchParser(forced=forced)) == whole


@given(TEXTS, st.booleans(), st.integers(1, 4), st.integers(1, 90))
def test_points_are_numbered_bounded_and_one_line_each(
    text: str, forced: bool, max_points: int, max_words: int
) -> None:
    kind, points, direct = read([text], SketchParser(forced=forced, max_points=max_points, max_words=max_words))
    assert kind == ("sketch" if forced or points else kind) != "undecided"
    assert not (points and direct)
    assert [point.index for point in points] == list(range(len(points)))
    assert len(points) <= max_points
    assert all(1 <= point.words <= max_words for point in points)
    assert all(point.text.strip() and "\n" not in point.text for point in points)


@given(TEXTS)
def test_direct_answer_is_the_text_itself(text: str) -> None:
    kind, _, direct = read([text], SketchParser())
    if kind == "direct" and "think>" not in text:
        assert text.endswith(direct)
        assert not text.removesuffix(direct).strip()


@given(
    st.lists(st.tuples(st.integers(1, 400), st.lists(WORDS, min_size=1, max_size=6)), min_size=1, max_size=12),
    st.sampled_from(["- ({n}) {t}", "* [{n}] {t}", "{i}. ({n} words) {t}", "{i}) **({n})** {t}", "• {t} ({n} words)"]),
    st.sampled_from(["OUTLINE\n", "**Outline:**\n\n", "Sure, here is the outline:\nOUTLINE\n", "```\n# OUTLINE\n"]),
    st.sampled_from(["", "\n", "\n```\n", "\n\nLet me know!"]),
)
def test_every_word_and_budget_of_a_well_formed_sketch_survives(
    points: list[tuple[int, list[str]]], form: str, before: str, after: str
) -> None:
    lines = [form.format(i=i, n=n, t=" ".join(words)) for i, (n, words) in enumerate(points, start=1)]
    kind, found, _ = read([before + "\n".join(lines) + after], SketchParser())
    assert kind == "sketch"
    assert [(point.words, point.text) for point in found] == [(n, " ".join(words)) for n, words in points]


@given(st.lists(WORDS, min_size=1, max_size=40), st.data())
def test_no_word_is_lost_in_lines_of_any_depth(words: list[str], data: st.DataObject) -> None:
    prefixes = st.sampled_from(["- (30) ", "- ", "  - ", "    ", "1. ", "\t* ", "(40) ", "### "])
    lines = [data.draw(prefixes) + word for word in words]
    _, points, _ = read(["OUTLINE\n- (60) first\n" + "\n".join(lines)], SketchParser(max_points=8))
    found = " ".join(point.text for point in points).replace(";", " ").replace(":", " ").split()
    assert found == ["first", *words]
