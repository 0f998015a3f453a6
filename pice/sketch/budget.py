"""How many words a point deserves, as models write it: `(60)`, `[60]`, `(~60 words)`, `（50字）`, `60 words:`.

Digits of any script count. A number without brackets is a budget only with a unit and a colon or dash after it, so
that `- 1969: first landing` keeps its year.
"""

import re
from dataclasses import dataclass

_UNITS = (
    *("words", "word", "wds", "w", "tokens", "wörter", "wörtern", "worte", "wort", "mots", "mot", "palabras"),
    *("palavras", "parole", "woorden", "kelime", "ord", "słów", "слов", "слова", "كلمة", "كلمات", "शब्द", "từ", "kata"),
    *("字", "词", "詞", "个字", "個字", "字左右", "文字", "語", "単語", "단어", "자"),
)
_ABOUT = (
    *(
        "~",
        "≈",
        "～",
        "<",
        "≤",
        "about",
        "approx",
        "approx.",
        "approximately",
        "around",
        "circa",
        "ca.",
        "max.",
        "up to",
    ),
    *("etwa", "ungefähr", "rund", "environ", "env.", "unas", "aprox.", "约", "約", "大约", "大約", "حوالي"),
    *("words:", "words =", "budget:"),
)
_OPEN, _CLOSE = "(\\[（［【〔{", ")\\]）］】〕}"
_GAP = r"[ \t\u00a0\u3000]{0,2}+"
_MAX_DIGITS = 6
_MAX_HEAD = 32


def _any_of(words: tuple[str, ...]) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


_AMOUNT = (
    rf"(?:{_any_of(_ABOUT)}{_GAP})?(?P<minus>[-−])?(?P<low>\d{{1,3}}(?:[.,]\d{{3}})++(?!\d)|\d++)"
    rf"(?:{_GAP}(?:[-–—~～]|to|bis|à|至){_GAP}(?P<high>\d++))?"
)
_UNIT = rf"{_GAP}-?(?P<unit>{_any_of(_UNITS)}){_GAP}(?:max|each)?\.?"
_BRACKETED = rf"[`_]{{0,2}}[{_OPEN}]{_GAP}{_AMOUNT}(?:{_UNIT})?{_GAP}[{_CLOSE}][`_]{{0,2}}"
_SEPARATOR = r"\s*+(?:[:：|–—]|-(?=\s))?\s*+"
_HEAD = re.compile(rf"{_BRACKETED}{_SEPARATOR}", re.IGNORECASE)
_BARE_HEAD = re.compile(rf"{_AMOUNT}{_UNIT}{_GAP}(?:[:：|–—]|-(?=\s))\s*+", re.IGNORECASE)
_TAIL = re.compile(rf"{_BRACKETED}(?=\s*+(?:[:：–—]|-\s|[.。]?\s*+$))", re.IGNORECASE)
_PARTIAL = re.compile(
    rf"(?P<open>[`_]{{0,2}}[{_OPEN}])?\s{{0,2}}(?P<about>[~≈～<≤]|[^\W\d]++(?:\s?[:=]|\.)?)?\s{{0,2}}"
    r"(?P<number>[-−]?\d[\d.,\-–—~～ ]*+)?(?P<unit>[^\W\d]*+)\.?\s?$"
)


@dataclass(frozen=True, slots=True)
class Budget:
    """A number of words as written: not clamped, negative and absurd ones included. `unit` says it was named."""

    words: int
    unit: bool


def budget_at_start(text: str) -> tuple[Budget | None, str]:
    """The budget `text` begins with and the text after it; None and `text` where there is none."""
    match = _HEAD.match(text) or _BARE_HEAD.match(text)
    return (_read(match), text[match.end() :]) if match else (None, text)


def budget_inside(text: str) -> tuple[Budget | None, str]:
    """The first budget in brackets that ends `text` or its title (`Cost (60 words): ...`), and the text without it.

    Without a unit only 10 to 999 counts: `(1969)` and `(3)` are more likely part of the sentence.
    """
    for match in _TAIL.finditer(text):
        found = _read(match)
        if found.unit or 10 <= found.words <= 999:
            return found, text[: match.start()].rstrip() + text[match.end() :]
    return None, text


def may_become_budget(text: str) -> bool:
    """Whether more characters could turn all of `text` into the beginning of a budget."""
    match = _PARTIAL.match(text[: _MAX_HEAD + 1])
    if match is None or len(text) > _MAX_HEAD:
        return False
    about, unit = (match["about"] or "").casefold(), match["unit"].casefold()
    if match["number"] is None:
        return not unit and (
            _begins_one_of(about, _ABOUT) if match["open"] else len(about) <= 1 and not about.isalpha()
        )
    return _begins_one_of(unit, _UNITS) and (not about or _begins_one_of(about, _ABOUT))


def _begins_one_of(text: str, words: tuple[str, ...]) -> bool:
    return any(word.startswith(text) for word in words)


def _read(match: re.Match[str]) -> Budget:
    sign = -1 if match["minus"] else 1
    return Budget(sign * max(_whole(match["low"]), _whole(match["high"] or "0")), unit=match["unit"] is not None)


def _whole(digits: str) -> int:
    """`digits` as a number; more than `_MAX_DIGITS` of them are cut, which is huge all the same."""
    return int(re.sub(r"\D", "", digits)[:_MAX_DIGITS])
