"""Points -> segments: adjacent points merged until each is worth a prefill, and the tokens one may take."""

import math
from collections.abc import Sequence

from pice.core import Point

_SPACELESS = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF)),
    (0x20000, 0x3FFFF),
)
_END_OF_LATIN = 0x24F
_OVERLONG = 1.25
_OVERSHOOT = 1.5
_LAST_SENTENCE = 32


class SegmentBuilder:
    """Groups points into segments while the sketch is still being written.

    A group is complete when its points deserve at least `segment_words` words, so a point of that size leaves at
    once; or when one more would make it overlong, since the longest segment is what an answer waits for. The last of
    `max_segments` groups takes all the rest. Order is kept, every point is in one group.
    """

    def __init__(self, *, segment_words: int, max_segments: int) -> None:
        assert max_segments >= 1
        self._segment_words = segment_words
        self._num_left = max_segments
        self._points: list[Point] = []

    def add(self, point: Point) -> list[tuple[Point, ...]]:
        """The groups that are complete now that `point` is known: none, one or two."""
        groups = []
        words = count_words(self._points)
        if self._points and words + point.words > _OVERLONG * self._segment_words and self._num_left > 1:
            groups.append(self._take())
            words = 0
        self._points.append(point)
        if words + point.words >= self._segment_words and self._num_left > 1:
            groups.append(self._take())
        return groups

    def finish(self) -> list[tuple[Point, ...]]:
        """The points that are left, when the sketch has ended."""
        return [self._take()] if self._points else []

    def _take(self) -> tuple[Point, ...]:
        group, self._points = tuple(self._points), []
        self._num_left -= 1
        return group


def merge_points(points: Sequence[Point], *, max_segments: int) -> list[tuple[Point, ...]]:
    """At most `max_segments` groups of adjacent points, of even length.

    Built from below like a binary tree: the two neighbours that are shortest together become one, the first of
    equals, until few enough are left. For when the whole sketch is known.
    """
    assert max_segments >= 1
    groups: list[tuple[Point, ...]] = [(point,) for point in points]
    while len(groups) > max_segments:
        at = min(range(len(groups) - 1), key=lambda i: count_words(groups[i] + groups[i + 1]))
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return groups


def count_words(points: Sequence[Point]) -> int:
    """The words `points` deserve together."""
    return sum(point.words for point in points)


def token_budget(words: int, *, text_sample: str = "") -> int:
    """Tokens to allow a model that was asked for about `words` words in the language of `text_sample`.

    It may write half as much again as asked, and a last sentence of 32 tokens: to be cut off spoils a segment, while
    tokens allowed and not used cost nothing.
    """
    return math.ceil(max(words, 1) * _tokens_per_word(text_sample) * _OVERSHOOT) + _LAST_SENTENCE


def expected_tokens(words: int, *, text_sample: str = "") -> int:
    """Tokens that about `words` words take in the language of `text_sample`, rather too many than too few.

    Tokens per word are rounded up from what the vocabularies of Llama 2 and 3, Qwen 2 and 3.5, Phi 3 and Gemma 4 take:
    English 1.2-1.4, other Latin 1.4-3.9, other scripts with spaces 1.2-5.3 (Korean in Llama 2: 7.1). In scripts
    without spaces words are characters, of 0.3-1.7 tokens.
    """
    return math.ceil(max(words, 1) * _tokens_per_word(text_sample))


def _tokens_per_word(sample: str) -> float:
    if sample.isascii():
        return 1.5
    codes = [ord(char) for char in sample if char.isalpha()]
    if _share(codes, [code for code in codes if _is_spaceless(code)]) >= 0.3:
        return 1.5
    if _share(codes, [code for code in codes if code > _END_OF_LATIN]) >= 0.3:
        return 4.0
    return 2.5


def _share(codes: Sequence[int], part: Sequence[int]) -> float:
    return len(part) / len(codes) if codes else 0.0


def _is_spaceless(code: int) -> bool:
    return any(first <= code <= last for first, last in _SPACELESS)
