"""Texts as bags of words, in any script, and how much of one is in another (ROUGE-1)."""

import re
from collections import Counter
from dataclasses import dataclass
from unicodedata import normalize

# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces: there a character is a word, as in budgets.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# What parts words is listed, because combining marks, without which Hindi falls apart, are no letters to `re`.
_BETWEEN = (
    r"\s!-/:-@\[-`{-~"
    "\u00a0-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u060c\u061b\u061f\u06d4\u0964\u0965\u2000-\u206f"
    "\u3000-\u3004\u3008-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
WORD = re.compile(f"[{_UNSPACED}]|[^{_BETWEEN}{_UNSPACED}]+")
_ASCII_WORD = re.compile(r"[^\s!-/:-@\[-`{-~]+")


@dataclass(frozen=True, slots=True)
class Bag:
    """The words of a text, case folded, in order and counted."""

    words: list[str]
    counts: Counter[str]


def bag(text: str) -> Bag:
    words = words_of(text)
    return Bag(words, Counter(words))


def folded(text: str) -> str:
    """A text without what sets equal words apart: case, width, composition."""
    return text.lower() if text.isascii() else normalize("NFKC", text).casefold()


def words_of(text: str) -> list[str]:
    """The words of a text in order, folded, without punctuation."""
    text = folded(text)
    return (_ASCII_WORD if text.isascii() else WORD).findall(text)


def rouge1_recall(reference: Bag, text: Bag) -> float:
    """The share of the reference's words that the text has too, each as often as in both; 0 without words.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
    """
    return _num_shared(reference, text) / len(reference.words) if reference.words else 0.0


def rouge1_f(one: Bag, other: Bag) -> float:
    """The harmonic mean of both texts' recall of each other; 0 without words."""
    num_words = len(one.words) + len(other.words)
    return 2 * _num_shared(one, other) / num_words if num_words else 0.0


def _num_shared(one: Bag, other: Bag) -> int:
    few, many = sorted((one.counts, other.counts), key=len)
    count = many.get
    return sum([min(times, count(word, 0)) for word, times in few.items()])
