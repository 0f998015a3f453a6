"""Text out of a llama.cpp model: characters out of bytes, the answer without the thinking, stop strings."""

import codecs

from pice.engine.llama.thinking import Answer

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
"""Bounds on what is searched for in every token's text."""


class Text:
    """Text out of token bytes, up to the first stop string (the one completed first).

    A character that is not complete yet and text that may be the start of a stop string are held back. With
    `thinking` a block of it in front of the text is left out, stop strings in it included.
    """

    def __init__(self, stop: tuple[str, ...], *, thinking: bool = True) -> None:
        self._stop = stop
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._answer = Answer() if thinking else None
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text that is certain now. Sets `stopped` when a stop string is complete."""
        text = self._decode(piece)
        return self._search(self._answer.feed(text) if self._answer else text)

    def rest(self) -> str:
        """What was held back for a tag or a stop string that will not come; an incomplete character is dropped."""
        text = self._search(self._answer.rest()) if self._answer else ""
        held, self._held = self._held, ""
        return text + held

    def _search(self, new: str) -> str:
        text = self._held + new
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - num_held
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
