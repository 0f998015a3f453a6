"""One line of a sketch, as models write them: bullet, number, budget and text told apart."""

import re
from dataclasses import dataclass
from typing import Literal

from pice.sketch.budget import Budget, budget_at_start, budget_inside

Mark = Literal["", "symbol", "number", "heading"]

_INVISIBLE = dict.fromkeys((0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF))
_LEAD = re.compile(r"(?P<indent>[ \t\u3000]*+)(?:>[ ]?)*+(?P<hashes>#{1,6}+)?[ ]*+")
_SYMBOL = re.compile(r"(?:-(?![-\d])|[*+](?=[\s(\[（])|[–—](?![–—])|[•・◦‣▪▫●○■□·∙➤→✓✔])\s*+(?:\[[ xX]?\]\s++)?")
_NUMBER = re.compile(
    r"(?:(?P<digits>\d{1,3}(?:\.\d{1,3})*+)[.)、．）](?!\d)|[一二三四五六七八九十]{1,3}[、.．]|[（(][一二三四五六七八九十]{1,3}[)）]"
    r"|[①-⑳]|[IVX]{1,5}[.)](?=\s)|[a-zA-Z]\)|(?:point|punkt|section|part)\s\d{1,2}\s?[:.)](?=\s))\s*+",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"[(（\[](\d{1,3})[)）\]]\s*+")
_EMPHASIS = re.compile(r"(\*{1,3})(?=\S)([^*]++)(?<=\S)\*{1,3}")
_SPACES = re.compile(r"\s+")
_NOISE = re.compile(r"(?:`{3,}+|~{3,}+)\s*[\w+-]*+|[-=_*~—–\s]{3,}+|</?\|?[\w/|]{1,40}\|?>|\[/?[A-Z]{2,20}\]")


@dataclass(frozen=True, slots=True)
class Line:
    """`mark` is the bullet it begins with; `budget` None where no number of words is named; `indent` in columns.

    `leads` says that the budget stands before the text. `title` is true of a line that names what follows (a heading,
    all bold, or ending in a colon); `nested` of one numbered below another (`2.1.`). `text` is free of all marks, and
    empty for a line with nothing else.
    """

    text: str
    indent: int
    mark: Mark
    budget: Budget | None
    leads: bool
    title: bool
    nested: bool


def read_line(line: str, *, ordinal: int = 0) -> Line:
    """The parts of `line`. A bare `(n)` at its start is a number, not a budget, where n is the `ordinal` expected."""
    lead, hashes, rest = _lead(line.translate(_INVISIBLE))
    symbol = _SYMBOL.match(rest)
    rest = rest[symbol.end() :] if symbol else rest
    bold = rest.startswith("**") and rest.rstrip(" :：\r\t").endswith("**")
    rest = _EMPHASIS.sub(r"\2", rest).lstrip("*").strip()
    number = _NUMBER.match(rest) or (None if symbol else _ordinal(rest, ordinal))
    budget, text = budget_at_start(rest[number.end() :].lstrip() if number else rest)
    leads = budget is not None
    if budget is None:
        budget, text = budget_inside(text)
    mark: Mark = "number" if number else "symbol" if symbol else "heading" if hashes else ""
    text = _clean(text)
    title = bool(hashes) or bold or text.endswith((":", "："))
    return Line(text, lead, mark, budget, leads, title, _is_nested(number))


def is_noise(line: str) -> bool:
    """Whether `line` says nothing: blank, a code fence, a rule, or a lone tag such as `</outline>` or `<|im_end|>`."""
    stripped = line.translate(_INVISIBLE).strip()
    return not stripped or _NOISE.fullmatch(stripped) is not None


def _lead(line: str) -> tuple[int, str, str]:
    match = _LEAD.match(line)
    assert match is not None
    return len(match["indent"].expandtabs(4)), match["hashes"] or "", line[match.end() :]


def _ordinal(text: str, ordinal: int) -> re.Match[str] | None:
    match = _ORDINAL.match(text)
    return match if match and int(match[1]) == ordinal else None


def _is_nested(number: re.Match[str] | None) -> bool:
    return number is not None and "." in (number.groupdict().get("digits") or "")


def _clean(text: str) -> str:
    return _SPACES.sub(" ", text.replace("**", "")).strip(" *|")
