import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.answer.limit import within_limit
from pice.core import Span


def span(index: int, text: str) -> Span:
    return Span(index, text, "paris", "m", 0.5)


SPANS = [span(0, "One two. Three four."), span(1, "Five six. Seven eight nine."), span(2, "Ten.")]


def test_answer_within_its_limit_is_left_alone() -> None:
    assert within_limit(SPANS, [5, 7, 2], 14) == tuple(SPANS)


@pytest.mark.parametrize(
    ("max_tokens", "texts"),
    [
        (13, ["One two. Three four.", "Five six. Seven eight nine."]),
        (9, ["One two. Three four.", "Five six."]),
        (6, ["One two. Three four."]),
        (4, ["One two."]),
        (2, ["One"]),
        (0, []),
    ],
    ids=["last-left-out", "cut-at-sentence", "nothing-of-a-word", "first-cut", "cut-at-word", "nothing"],
)
def test_longer_answer_ends_where_its_limit_does(max_tokens: int, texts: list[str]) -> None:
    kept = within_limit(SPANS, [5, 7, 2], max_tokens)
    assert [one.text for one in kept] == texts
    cut = [one for one, whole in zip(kept, SPANS, strict=False) if one.text != whole.text]
    assert all(one.finish_reason == "length" for one in cut)


@given(st.lists(st.tuples(st.text(max_size=60), st.integers(0, 40)), max_size=6), st.integers(0, 200))
def test_what_is_kept_is_how_the_answer_begins(parts: list[tuple[str, int]], max_tokens: int) -> None:
    spans = [span(index, text) for index, (text, _) in enumerate(parts)]
    kept = within_limit(spans, [size for _, size in parts], max_tokens)
    assert all(whole.text.startswith(one.text) for one, whole in zip(kept, spans, strict=False))
    assert [one.text for one in kept[:-1]] == [one.text for one in spans[: len(kept)]][: len(kept) - 1 if kept else 0]
