"""An answer kept within the tokens that its request allows."""

import re
from collections.abc import Sequence
from dataclasses import replace

from pice.core import Span

_SENTENCE_END = re.compile(r"[.!?…।॥؟۔][\"'”’»)\]*_]*(?=\s)|[。！？][」』】）]*")


def within_limit(spans: Sequence[Span], num_tokens: Sequence[int], max_tokens: int) -> tuple[Span, ...]:
    """The spans that fit into `max_tokens` together; the first that does not is cut, at the end of a sentence if what
    fits holds one, and those after it are left out.

    Segments are written side by side, each allowed more than it is expected to take, so only when all are there is
    it known how long they are together. `num_tokens` has the size of each span.
    """
    kept, left = list[Span](), max_tokens
    for span, size in zip(spans, num_tokens, strict=True):
        if size > left:
            text = _beginning(span.text, left / size)
            return (*kept, replace(span, text=text, finish_reason="length")) if text else tuple(kept)
        kept.append(span)
        left -= size
    return tuple(kept)


def _beginning(text: str, share: float) -> str:
    """About that share of a text, up to its last whole sentence, or else its last whole word; in a script without
    spaces every character may be the last."""
    part = text[: int(share * len(text))]
    ends = [match.end() for match in _SENTENCE_END.finditer(part)]
    if ends:
        return part[: ends[-1]]
    return part.rpartition(" ")[0] if " " in part or part.isascii() else part
