"""Sketch text -> points, one pass, while it is being written.

    text -> lexer (newlines, thinking tags) -> opening: direct or sketch? -> lines -> points

What counts as what:

- A text is a sketch once a marker line (`OUTLINE`, in any dress) or a line that begins with a budget has come;
  preambles and an opening code fence before it are dropped. Anything else is a direct answer, passed on as it
  streams: so is a list without marker whose lines do not begin with budgets.
- Every bulleted, numbered or budgeted line is a point and leaves at its newline.
- Sub-bullets without a budget and lines that continue a point come too late for it: a run of them becomes one more
  point right after it, with half the default words, and leaves when the run ends.
- A heading (or a paragraph after a blank line) is put before the text of the point that follows. With nothing after
  it, a heading is a point of its own and a paragraph is a closing remark, dropped.
- In a sketch without any bullets every line is a point; only the first waits for the second, as it may be a title.
- The last of `max_points` takes the text and the words of all that follow, so it leaves at the end.
- `<think>` at the beginning of a line opens a block that is dropped up to `</think>`, or to the end. What stands
  before a stray `</think>` was thinking too and is dropped, unless something is out already. In a direct answer that
  has begun both tags are ordinary text.
"""

import re
from dataclasses import dataclass

from pice.core import Point
from pice.sketch.opening import Kind, judge_beginning, judge_line
from pice.sketch.outline import Outline

_OPEN, _CLOSE = "<think>", "</think>"
_TOKENS = re.compile(rf"({_OPEN}|{_CLOSE}|\n)")
_MAX_HELD = 600


@dataclass(frozen=True, slots=True)
class Direct:
    """Some more text of a direct answer."""

    text: str


Item = Direct | Point


class SketchParser:
    """Reads one text in pieces and gives out its points, or passes a direct answer through.

    The result is the same however the text is cut into pieces. Points are numbered from 0; words are within
    1..`max_words`, `default_words` where the line names none. With `forced` all but a preamble is a sketch. Takes
    any text, never raises; time and memory are linear in its length.
    """

    def __init__(
        self, *, forced: bool = False, default_words: int = 60, max_words: int = 400, max_points: int = 64
    ) -> None:
        self._outline = Outline(default_words=default_words, max_words=max_words, max_points=max_points)
        self._kind: Kind = "sketch" if forced else "undecided"
        self._thinking = False
        self._cut = ""
        self._held: list[str] = []
        self._line: list[str] = []
        self._line_is_blank = True

    @property
    def kind(self) -> Kind:
        """What the text is; never "undecided" after `finish` (an empty text is a direct answer)."""
        return self._kind

    def feed(self, text: str) -> list[Item]:
        """The items that are certain now."""
        if self._kind == "sketch" and not (self._cut or self._thinking or "\n" in text or "<" in text):
            self._extend_line(text)
            return []
        text = self._cut + text
        keep = len(text) if self._kind == "direct" else len(text) - _num_cut(text)
        self._cut = text[keep:]
        return self._read(text[:keep])

    def finish(self) -> list[Item]:
        """What was still held back. Nothing may be fed after it; a second call gives nothing."""
        text, self._cut = self._cut, ""
        items = self._read(text)
        if self._kind == "undecided":
            items += self._settle()
        if self._kind == "sketch":
            items += [*self._end_line(), *self._outline.close()]
        return items

    def _read(self, text: str) -> list[Item]:
        items: list[Item] = []
        start = 0
        for token in _TOKENS.split(text):
            if self._kind == "direct":
                break
            start += len(token)
            if token and not self._is_thought(token):
                items += self._take(token)
        return _joined([*items, Direct(text[start:])]) if self._kind == "direct" else items

    def _is_thought(self, token: str) -> bool:
        """Whether `token` belongs to a thinking block; follows where such blocks begin and end."""
        if self._thinking:
            self._thinking = token != _CLOSE
            return True
        if token == _OPEN and self._line_is_blank:
            self._thinking = True
        elif token == _CLOSE:
            self._forget()
        else:
            return False
        return True

    def _forget(self) -> None:
        """Drops what stands before a stray closing tag, unless some of it is already out."""
        if self._outline.num_points == 0:
            self._held.clear()
            self._outline.clear()
            self._start_line()

    def _take(self, token: str) -> list[Item]:
        if token.endswith("\n"):
            return self._end_opening_line() if self._kind == "undecided" else self._end_line()
        if self._kind == "undecided":
            return self._open(token)
        self._extend_line(token)
        return []

    def _open(self, token: str) -> list[Item]:
        """Reads the opening character by character, so that it is decided at the same one however it comes."""
        for at, char in enumerate(token, start=1):
            self._extend_line(char)
            self._kind = judge_beginning("".join(self._line))
            if self._kind == "direct":
                return self._release(token[at:])
            if self._kind == "sketch":
                self._extend_line(token[at:])
                break
        return []

    def _end_opening_line(self) -> list[Item]:
        self._kind = judge_line("".join(self._line))
        if self._kind == "sketch":
            return self._end_line()
        if self._held or not self._line_is_blank:
            self._held += [*self._line, "\n"]
        self._start_line()
        if len(self._held) > _MAX_HELD:
            self._kind = "direct"
        return self._release("") if self._kind == "direct" else []

    def _settle(self) -> list[Item]:
        """Decides an opening after which nothing comes."""
        if judge_line("".join(self._line)) == "sketch":
            self._kind = "sketch"
            return []
        self._kind = "direct"
        return self._release("") if self._held or not self._line_is_blank else []

    def _release(self, rest: str) -> list[Item]:
        text = "".join(self._held + self._line) + rest
        self._held.clear()
        self._start_line()
        return [Direct(text)]

    def _end_line(self) -> list[Item]:
        line = "".join(self._line)
        self._start_line()
        return [*self._outline.add(line)]

    def _extend_line(self, text: str) -> None:
        self._line.append(text)
        self._line_is_blank = self._line_is_blank and not text.strip()

    def _start_line(self) -> None:
        self._line = []
        self._line_is_blank = True


def _num_cut(text: str) -> int:
    """Characters at the end of `text` that may be the first part of a tag."""
    at = text.rfind("<", max(0, len(text) - len(_CLOSE) + 1))
    return len(text) - at if at >= 0 and (_OPEN.startswith(text[at:]) or _CLOSE.startswith(text[at:])) else 0


def _joined(items: list[Item]) -> list[Item]:
    """`items`, adjacent texts made one and empty ones left out."""
    text = "".join(item.text for item in items if isinstance(item, Direct))
    points: list[Item] = [item for item in items if isinstance(item, Point)]
    return [*points, Direct(text)] if text else points
