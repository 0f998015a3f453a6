import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.core import Point
from pice.sketch.segments import SegmentBuilder, count_words, merge_points, token_budget

POINTS = st.lists(st.integers(1, 400), max_size=40).map(
    lambda words: [Point(i, f"p{i}", number) for i, number in enumerate(words)]
)


def points(*words: int) -> list[Point]:
    return [Point(i, f"p{i}", number) for i, number in enumerate(words)]


def build(sketch: list[Point], *, segment_words: int, max_segments: int) -> list[tuple[Point, ...]]:
    builder = SegmentBuilder(segment_words=segment_words, max_segments=max_segments)
    return [*(group for point in sketch for group in builder.add(point)), *builder.finish()]


def sizes(groups: list[tuple[Point, ...]]) -> list[list[int]]:
    return [[point.words for point in group] for group in groups]


def test_group_leaves_when_it_is_long_enough() -> None:
    a, b, c = points(30, 30, 40)
    builder = SegmentBuilder(segment_words=60, max_segments=8)
    assert builder.add(a) == []
    assert builder.add(b) == [(a, b)]
    assert builder.add(c) == []
    assert builder.finish() == [(c,)]
    assert builder.finish() == []


def test_long_point_leaves_at_once_alone() -> None:
    (a,) = points(60)
    assert SegmentBuilder(segment_words=60, max_segments=2).add(a) == [(a,)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((50, 80, 20), [[50], [80], [20]]),
        ((50, 30, 20), [[50], [30, 20]]),
        ((50, 25, 20), [[50, 25], [20]]),
    ],
    ids=["long-one-leaves-too", "next-one-waits", "not-overlong"],
)
def test_group_leaves_short_when_the_next_point_would_make_it_overlong(
    words: tuple[int, ...], expected: list[list[int]]
) -> None:
    assert sizes(build(points(*words), segment_words=60, max_segments=8)) == expected


def test_last_allowed_group_takes_all_the_rest() -> None:
    assert sizes(build(points(60, 60, 60, 60), segment_words=50, max_segments=2)) == [[60], [60, 60, 60]]


def test_one_segment_takes_everything() -> None:
    assert sizes(build(points(60, 60), segment_words=0, max_segments=1)) == [[60, 60]]


@given(POINTS, st.integers(0, 500), st.integers(1, 12))
def test_online_groups_keep_every_point_in_order(sketch: list[Point], segment_words: int, max_segments: int) -> None:
    groups = build(sketch, segment_words=segment_words, max_segments=max_segments)
    assert [point for group in groups for point in group] == sketch
    assert len(groups) <= max_segments
    assert all(groups)
    assert all(count_words(group) <= max(400, 1.25 * segment_words) for group in groups[: max_segments - 1])


@pytest.mark.parametrize(
    ("words", "max_segments", "expected"),
    [
        ((10, 10, 10, 10), 2, [[10, 10], [10, 10]]),
        ((100, 10, 10, 100), 3, [[100], [10, 10], [100]]),
        ((100, 10, 50), 2, [[100], [10, 50]]),
        ((10, 20), 5, [[10], [20]]),
        ((10, 20, 30), 1, [[10, 20, 30]]),
        ((), 3, []),
    ],
)
def test_shortest_neighbours_are_merged_first(
    words: tuple[int, ...], max_segments: int, expected: list[list[int]]
) -> None:
    assert sizes(merge_points(points(*words), max_segments=max_segments)) == expected


@given(POINTS, st.integers(1, 12))
def test_merged_groups_keep_every_point_in_order(sketch: list[Point], max_segments: int) -> None:
    groups = merge_points(sketch, max_segments=max_segments)
    assert [point for group in groups for point in group] == sketch
    assert len(groups) == min(max_segments, len(sketch))


@pytest.mark.parametrize(
    ("sample", "tokens"),
    [
        ("", 167),
        ("Lower rent, 900 euros", 167),
        ("Straßenbahn für alle", 257),
        ("فوائد المشي", 392),
        ("Эрмитаж", 392),
        ("每天快走三十分钟", 167),
        ("AI と 医療", 167),
        ("การออกกำลังกาย", 167),
    ],
)
def test_tokens_for_sixty_words_follow_the_script(sample: str, tokens: int) -> None:
    assert token_budget(60, text_sample=sample) == tokens


def test_token_budget_grows_with_the_words_and_is_never_empty() -> None:
    assert token_budget(0) == token_budget(1) < token_budget(10) < token_budget(400)
