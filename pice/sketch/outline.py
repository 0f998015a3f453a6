"""Lines of a sketch -> points, each given out as soon as its line has ended."""

import re

from pice.core import Point
from pice.sketch.line import Line, is_noise, read_line
from pice.sketch.opening import after_marker, is_preamble

_CLOSING = re.compile(
    r"let me know|(?:i )?hope (?:this|that)|feel free|would you like|do you want|if you(?:['’]d| would| want| need)"
    r"|if you have|this (?:outline|sketch)|lass(?:en sie)? (?:es )?mich wissen|gerne kann ich|n'hésite|si vous |avísame"
    r"|si (?:quieres|deseas)|如果|希望|如需|ご質問|必要であれば|هل تريد",
    re.IGNORECASE,
)
_TOTAL = re.compile(r"(?:total|sum|gesamt|word count)[\s:：=~≈]++\d[\d.,]*+\s*\w*+", re.IGNORECASE)


class Outline:
    """Collects the points of one sketch. See `pice.sketch.parser` for what becomes a point."""

    def __init__(self, *, default_words: int, max_words: int, max_points: int) -> None:
        self._default_words = default_words
        self._max_words = max_words
        self._max_points = max_points
        self._num_given = 0
        self._last: list[tuple[str, int]] = []
        self.clear()

    @property
    def num_points(self) -> int:
        """Points found so far, those folded into the last included."""
        return self._num_given + len(self._last)

    def clear(self) -> None:
        """Forgets lines that have not become points."""
        self._base: Line | None = None
        self._plain = False
        self._gap = False
        self._titles: list[str] = []
        self._is_remark = False
        self._run: list[str] = []

    def add(self, line: str) -> list[Point]:
        """The points that are certain after this complete line."""
        title = after_marker(line) if self.num_points == 0 or line.strip(" *_#:：\r") == "OUTLINE" else None
        if title == "" or is_noise(line):
            self._gap = True
            return []
        line = title or line
        read = read_line(line, ordinal=self.num_points + 1)
        gap, self._gap = self._gap, False
        if not read.text or _TOTAL.fullmatch(read.text):
            return []
        if read.mark in ("symbol", "number") or read.budget is not None:
            return self._add_item(read)
        return self._add_plain(read, gap) if self.num_points or not is_preamble(line) else []

    def close(self) -> list[Point]:
        """What is left: an unfinished run, a heading with nothing below it, and the last point where it is folded."""
        points = self._end_run() + self._give_titles()
        if self._last:
            text = "; ".join(text for text, _ in self._last)
            points.append(Point(self._num_given, text, self._clamp(sum(words for _, words in self._last))))
            self._last = []
        return points

    def _add_item(self, read: Line) -> list[Point]:
        if read.budget is None and self._is_below(read):
            return self._continue(read)
        if self._base is None or read.indent < self._base.indent:
            self._base = read
        return self._end_run() + self._give(self._entitled(read.text), self._words(read))

    def _is_below(self, read: Line) -> bool:
        """Whether an item without a budget belongs to the point before it."""
        base = self._base
        if base is None:
            return False
        return read.nested or read.indent >= base.indent + 2 or (read.mark == "symbol" and base.mark != "symbol")

    def _add_plain(self, read: Line, gap: bool) -> list[Point]:
        closing = self.num_points > 0 and _CLOSING.match(read.text) is not None
        if read.title and not closing:
            return self._end_run() + self._give_titles() + self._hold(read.text)
        if self._base is None and not closing:
            return self._add_unmarked(read)
        if self._titles or gap or closing:
            self._is_remark = self._is_remark or not self._titles
            return self._end_run() + self._hold(read.text)
        return self._continue(read)

    def _add_unmarked(self, read: Line) -> list[Point]:
        """A line of a sketch without bullets; the first may also be its title, so it waits for the second."""
        if not self._plain and not self._titles:
            return self._hold(read.text)
        self._plain = True
        return self._give_titles() + self._give(read.text, self._default_words)

    def _hold(self, title: str) -> list[Point]:
        self._titles.append(title)
        return []

    def _continue(self, read: Line) -> list[Point]:
        if self._run:
            self._run.append("; " if read.mark else " ")
        self._run.append(self._entitled(read.text))
        return []

    def _end_run(self) -> list[Point]:
        run, self._run = "".join(self._run), []
        return self._give(run, self._default_words // 2) if run else []

    def _entitled(self, text: str) -> str:
        titles, self._titles, self._is_remark = self._titles, [], False
        return ": ".join([*(title.rstrip(":： ") for title in titles), text])

    def _give_titles(self) -> list[Point]:
        titles, self._titles = self._titles, []
        remark, self._is_remark = self._is_remark, False
        return [] if remark or not titles else self._give(" ".join(titles), self._default_words)

    def _give(self, text: str, words: int) -> list[Point]:
        if self._num_given + 1 >= self._max_points:
            self._last.append((text, words))
            return []
        self._num_given += 1
        return [Point(self._num_given - 1, text, self._clamp(words))]

    def _words(self, read: Line) -> int:
        if read.budget is not None:
            return read.budget.words
        return self._default_words // 2 if read.text.endswith((":", "：")) else self._default_words

    def _clamp(self, words: int) -> int:
        return min(max(words, 1), self._max_words)
