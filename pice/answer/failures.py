"""What makes a candidate no text to show, whatever its score."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pice.answer.words import Bag, folded, words_of
from pice.core import Candidate, Segment

_REFUSAL_WORDS = 60
"""A refusal is short; a long text that begins like one goes on to answer."""
_QUOTABLE = 1200
"""Characters of a question that must not be repeated; a longer one carries material, and quoting that is no echo."""
_ECHO_SHARE = 0.8
_LOOP_SHARE = 0.5
_LOOP_WORDS = 12

_SENTENCE_END = re.compile(r"(?:[.!?…:。！？：।॥؟۔]|```)[\s\"'”’»)\]*_）」』】]*\Z")
_NUMBERS = re.compile(r"^\W{0,9}\d{1,3}[.):]\s", re.MULTILINE)
# A few openings of the large languages, each with a verb where it could begin an honest text ("I can't wait to").
_HELP = r"(?:help|assist|provide|answer|fulfill?|comply|do (?:that|this)|write|create|generate|discuss|continue)"
_REFUSAL = re.compile(
    r"\W*(?:(?:(?:i['’]m|i am) (?:\w+ )?)?sorry,? (?:but )?(?:i|as an|that|this)\b"
    rf"|(?:unfortunately,? )?i(?: can(?:not|['’]t)|['’]m unable to| am unable to|['’]m not able to) {_HELP}\b"
    r"|as an? (?:ai|artificial intelligence|(?:ai |large )?language model)(?: model| assistant)?,? i\b"
    r"|es tut mir (?:sehr )?leid\b|ich kann (?:dir|ihnen|dabei|das) (?:\w+ )?nicht\b|leider kann ich\b"
    r"|je suis désolée?\b|je ne peux pas\b|lo siento\b|no puedo (?:ayudar|responder|proporcionar)"
    r"|(?:很|非常)?抱歉|对不起|對不起|我无法|我無法|作为(?:一个)?(?:ai|人工智能)|申し訳|죄송)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Given:
    """The text, folded, that a segment's is written from and must not merely repeat: the question, and of a part of an
    answer (not `whole`) the sketch too."""

    text: str
    whole: bool


def given(segment: Segment) -> Given:
    question = segment.messages[-1].content if segment.messages else ""
    if segment.kind == "answer":
        return Given(folded(question), whole=True)
    lines = [point.text for point in segment.sketch]
    return Given(folded("\n".join([question, *lines] if len(question) <= _QUOTABLE else lines)), whole=False)


def failures(candidate: Candidate, text: Bag, source: Given) -> tuple[str, ...]:
    """Names of all that is wrong; none for a sound candidate.

    `error`: its site says that it failed. `empty`: no word in it. `cut`: stopped by its limit within a sentence; a
    whole answer's limit is the user's own, so keeping to it is none. `refusal`: short, and begins like one. `echo`:
    nearly all of it was given; a whole answer may repeat what it was asked about, but not the whole question and
    little else. `loop`: most of it repeats itself.
    """
    return tuple(_failures(candidate, text, source))


def _failures(candidate: Candidate, text: Bag, source: Given) -> Iterator[str]:
    if candidate.error:
        yield "error"
    if not text.words:
        yield "empty"
        return
    if candidate.finish_reason == "length" and not source.whole and not _SENTENCE_END.search(candidate.text):
        yield "cut"
    if len(text.words) < _REFUSAL_WORDS and _REFUSAL.match(candidate.text):
        yield "refusal"
    if _repeats(text, source.text) if source.whole else _is_copied(candidate, text, source.text):
        yield "echo"
    if _is_loop(text):
        yield "loop"


def _repeats(text: Bag, question: str) -> bool:
    """Whether the question is said again with little more. A greeting, of a word or two, may be returned."""
    asked = words_of(question)
    num_words = len(asked)
    return text.words[:num_words] == asked and num_words >= 5 and num_words >= _ECHO_SHARE * len(text.words)


def _is_copied(candidate: Candidate, text: Bag, source: str) -> bool:
    """Whether most runs of three words (fewer, in a shorter text) stand in the source, the numbers of a
    list aside. The first look, which nearly all texts pass, is for speed."""
    if sum([word in source for word in text.words]) < len(text.words) / 2:
        return False
    words = words_of(_NUMBERS.sub("", candidate.text)) or text.words
    size = min(3, len(words))
    known = set(_runs(words_of(source), size))
    runs = _runs(words, size)
    return sum(map(known.__contains__, runs)) >= _ECHO_SHARE * len(runs)


def _is_loop(text: Bag) -> bool:
    """Whether most runs of four words have been there before. Each new word ends a new run, so a text of mostly
    different words needs no closer look."""
    num_words = len(text.words)
    if num_words < _LOOP_WORDS or len(text.counts) - 3 > _LOOP_SHARE * num_words:
        return False
    runs = _runs(text.words, 4)
    return len(set(runs)) < _LOOP_SHARE * len(runs)


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))
