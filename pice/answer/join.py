"""Texts written apart, put together as if by one hand."""

import re
from collections.abc import Sequence
from itertools import islice

from pice.answer.words import WORD, words_of
from pice.core import Point, Span

_NEAR_WORDS, _NEAR_CHARS = 60, 1000
"""How far to both sides of a joint a repeat is looked for."""
_FEW_WORDS = 3
"""Fewer words in common are chance."""

_CLOSING = r"[\"'”’»)\]*_）」』】]*"
_STOP = r"[.!?…।॥؟۔]"
_FULL_STOP = r"[。！？]"
_ENDED = re.compile(rf"(?:{_STOP}|{_FULL_STOP}){_CLOSING}\s*\Z")
_REST_OF_SENTENCE = re.compile(
    rf"{_CLOSING}(?:{_FULL_STOP}+{_CLOSING}\s*|{_STOP}+{_CLOSING}(?:\s+|\Z)|[^\S\n]*(?:\n\s*|\Z))"
)
_BULLET = re.compile(r"\s*[-*+•]\s")
_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s")
_NUMBER = re.compile(r"\A\W*(?:\d{1,3}[.):]\s)?")
_YES = r"(?:sure|certainly|of course|absolutely|okay|ok)\b"
_PREAMBLE = re.compile(
    rf"{_YES}[^\n:]{{0,30}}\bhere(?: is|['’]s| are)\b[^\n:]{{0,160}}:\s+"
    r"|here(?: is|['’]s) [^\n:]{0,80}\b(?:expan\w+|paragraph|point|section|text|version|answer)\b[^\n:]{0,80}:"
    r"[^\S\n]*\n\s*"
    rf"|{_YES}!\s+",
    re.IGNORECASE,
)


def join_spans(spans: Sequence[Span]) -> str:
    """The text of the whole answer, in the order given; that of the first spans is how that of all begins.

    Spans are paragraphs of their own, but items of one list are not parted, nor the halves of a sentence that was cut.
    What a span repeats of the end of what is before it (sentences, or after a cut words) is dropped, and so is what
    only introduces it: "Sure, here is ...:" and headings that say its points again. All else stays as it was written.
    """
    joined, cut = "", False
    for span in spans:
        body = _body(span)
        joined = _join(joined, body, cut=cut) if joined else body
        cut = span.finish_reason == "length" and not _ENDED.search(joined)
    return joined


def _body(span: Span) -> str:
    text = span.text.strip()
    if not span.points:
        return text
    body = _PREAMBLE.sub("", text, count=1) if _PREAMBLE.match(text) else text
    return _without_headings(body, span.points) or text


def _without_headings(text: str, points: Sequence[Point]) -> str:
    headings = [words_of(point.text) for point in points]
    lines = text.split("\n")
    return "\n".join(line for line in lines if not _is_one_of(line, headings)).strip()


def _is_one_of(line: str, headings: Sequence[list[str]]) -> bool:
    if not line or _BULLET.match(line):
        return False
    return words_of(_NUMBER.sub("", line)) in headings


def _join(before: str, text: str, *, cut: bool) -> str:
    end = _end_of_repeat(before, text)
    if end and (rest := _REST_OF_SENTENCE.match(text, end)):
        text = text[rest.end() :]
    elif end and cut:
        return before + text[end:]
    return before + _between(before, text, cut=cut) + text if text else before


def _end_of_repeat(before: str, text: str) -> int:
    """Where in `text` its longest beginning ends with which `before` ends, word by word; 0 without one."""
    near = before[-_NEAR_CHARS:].casefold()
    beginning = WORD.findall(text[:_NEAR_CHARS].casefold())[:_NEAR_WORDS]
    if len(beginning) < _FEW_WORDS or not all(word in near for word in beginning[:_FEW_WORDS]):
        return 0
    ending = WORD.findall(near)[-_NEAR_WORDS:]
    for start, word in enumerate(ending[: 1 - _FEW_WORDS]):
        size = len(ending) - start
        if word == beginning[0] and ending[start:] == beginning[:size]:
            return next(islice(WORD.finditer(text), size - 1, None)).end()
    return 0


def _between(before: str, text: str, *, cut: bool) -> str:
    if cut and text[0].islower():
        return " "
    last_line = before[before.rfind("\n") + 1 :]
    return "\n" if _ITEM.match(last_line) and _ITEM.match(text) else "\n\n"
