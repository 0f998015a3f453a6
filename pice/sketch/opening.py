"""Direct answer or sketch, told from the first characters a model writes."""

import re
from typing import Literal

from pice.sketch.budget import may_become_budget
from pice.sketch.line import Line, is_noise, read_line

Kind = Literal["undecided", "direct", "sketch"]

MAX_WAIT = 160
"""Characters of one line after which it is a direct answer, whatever it begins with."""

_MARKERS = (
    *("outline", "sketch", "gliederung", "skizze", "esquema", "esquisse", "plan détaillé", "schema", "esboço"),
    *("大纲", "大綱", "提纲", "提綱", "アウトライン", "骨子", "개요", "план", "مخطط", "المخطط"),
)
_COURTESIES = (
    *("sure", "certainly", "of course", "okay", "ok", "absolutely", "alright", "great", "got it", "understood"),
    *("natürlich", "gerne", "klar", "bien sûr", "d'accord", "claro", "por supuesto", "certo", "好的", "当然", "當然"),
    *("はい", "もちろん", "承知しました", "네", "конечно", "بالتأكيد", "حسنا", "حسنًا", "بالطبع"),
)
_PRESENTERS = (
    *("here is", "here's", "here’s", "here are", "below is", "the outline", "i'll", "i’ll", "i will"),
    *("hier ist", "hier die", "voici", "aquí está", "aquí tienes", "este es", "ecco", "вот"),
    *("以下", "下面", "这是", "這是", "これは", "次の", "다음은", "إليك", "هذا", "فيما يلي"),
)
_WRAPPERS = ("", "text", "txt", "markdown", "md", "plaintext", "outline")
_DECORATION = " ¡¿\t\r#>*_=[<「【`~-\u200b\u200e\u200f\ufeff"
_NO_TEXT = frozenset(("", *"+-−=^*/×÷<>()[]{}|.,;:!?%"))


def _any_of(words: tuple[str, ...]) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


_COURTESY = re.compile(rf"(?:{_any_of(_COURTESIES)}(?:\s*+[,.!:，。！：、،]\s*+|\s*+$))++", re.IGNORECASE)
_PRESENTER = re.compile(_any_of(_PRESENTERS), re.IGNORECASE)
_OUTLINE_WORD = re.compile(rf"{_any_of(_MARKERS)}(?![a-zß-ÿ])", re.IGNORECASE)
_MARKER = re.compile(rf"/?{_any_of(_MARKERS)}\s*+(?:\([^()]{{0,40}}\))?[\s:：.\-–—!*_\]>」】=`~#]*+", re.IGNORECASE)
_PROTOCOL = re.compile(r"OUTLINE[*_`\]]{0,3}\s{0,2}[:：\-–—]+[*_`]{0,3}\s*(?P<rest>\S.*)", re.DOTALL)


def after_marker(line: str) -> str | None:
    """What follows the marker on a complete `line` ("" for the usual nothing); None for a line that is no marker.

    A marker is one of the known words alone on its line in any dress (`**Outline:**`, `# 大纲`, `OUTLINE (5 points)`)
    or, in capitals as the prompt has it, with a title or the first point behind a colon or dash.
    """
    head = _undressed(line)
    if _MARKER.fullmatch(head):
        return ""
    match = _PROTOCOL.fullmatch(head)
    return match["rest"] if match else None


def is_preamble(line: str) -> bool:
    """Whether a complete `line` only announces what comes (`Sure!`, `Here is the outline:`)."""
    head = _undressed(line).rstrip()
    if not head or (_announces(head) and head.endswith((":", "："))):
        return True
    return _PRESENTER.match(head) is not None and _OUTLINE_WORD.search(head) is not None


def judge_line(line: str) -> Kind:
    """What a complete first line makes of the text; "undecided" after a blank line, a preamble or an outer fence."""
    if after_marker(line) is not None or _opens_sketch(read_line(line, ordinal=1)):
        return "sketch"
    if line.lstrip().startswith(("```", "~~~")):
        return "undecided" if _may_become_fence(line.strip()) else "direct"
    head = _undressed(line)
    return "undecided" if not head or is_noise(line) or _announces(head) else "direct"


def judge_beginning(line: str) -> Kind:
    """What an unfinished first line makes of the text: "direct" as soon as it can no longer open a sketch."""
    if _opens_sketch(read_line(line, ordinal=1)):
        return "sketch"
    if len(line) > MAX_WAIT:
        return "direct"
    return "undecided" if _may_open(line) else "direct"


def _may_open(line: str) -> bool:
    if line.lstrip().startswith(("```", "~~~")):
        return _may_become_fence(line.lstrip())
    head = _undressed(line).casefold()
    if not head or any(word.startswith(head) for word in (*_MARKERS, *_COURTESIES, *_PRESENTERS)):
        return True
    return _announces(head) or _may_become_point(line)


def _may_become_point(line: str) -> bool:
    read = read_line(line, ordinal=1)
    if read.budget is not None:
        return not read.text and _is_plausible(read)
    return not read.text or may_become_budget(read.text)


def _may_become_fence(text: str) -> bool:
    info = text.lstrip("`~").strip().casefold()
    return any(word.startswith(info) for word in _WRAPPERS)


def _announces(head: str) -> bool:
    return _PRESENTER.match(head) is not None or _OUTLINE_WORD.match(head) is not None


def _undressed(line: str) -> str:
    """`line` without decoration and courtesies before its first word."""
    head = line.lstrip(_DECORATION)
    match = _COURTESY.match(head)
    return (head[match.end() :].lstrip(_DECORATION) if match else head).rstrip("\r\n")


def _opens_sketch(read: Line) -> bool:
    """Whether a line is a point where no marker was seen: a believable budget first, then words."""
    return read.leads and _is_plausible(read) and read.text[:1] not in _NO_TEXT


def _is_plausible(read: Line) -> bool:
    return read.budget is not None and (read.budget.unit or 5 <= read.budget.words <= 999)
