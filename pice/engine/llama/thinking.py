"""What reasoning models write before their answer, kept out of it: their thinking is closed in the prompt, and taken
out of the text where they think all the same."""

from enum import Enum, auto

_TURN, _CHANNELS = "<|start|>assistant", "# Valid channels:"
_ANSWER = "<|channel|>final<|message|>"

BLOCKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>", "<channel|>"),
    ("<|channel|>", _ANSWER),
)
"""How a block begins and ends: Qwen, DeepSeek and most others; Magistral; Seed; Kimi; Command; Gemma 4; and gpt-oss,
whose answer is a channel of its own."""
TAGS = frozenset({tag for block in BLOCKS[:-1] for tag in block} | {"<|channel|>", "<|message|>"})
"""Tokens whose text is wanted even where they are control tokens, which have none."""


def answer_begun(prompt: str) -> str:
    """The prompt with thinking that it opens closed at once, and with gpt-oss already in the channel of answers."""
    if prompt.endswith(_TURN) and _CHANNELS in prompt:
        return prompt + _ANSWER
    bare = prompt.rstrip()
    close = next((close for begin, close in BLOCKS if bare.endswith(begin)), None)
    return prompt if close is None else f"{bare}\n\n{close}\n\n"


class _At(Enum):
    START = auto()
    INSIDE = auto()
    AFTER = auto()
    ANSWER = auto()


class Answer:
    """Text without a block of thinking in front of it and without the white space round that block.

    Held back is only what may still become the tag that opens a block.
    """

    def __init__(self) -> None:
        self._at = _At.START
        self._held = ""
        self._close = ""

    def feed(self, text: str) -> str:
        """The text that is certain now to be part of the answer."""
        if self._at is _At.ANSWER:
            return text
        self._held += text
        if self._at is _At.START:
            self._open()
        if self._at is _At.INSIDE:
            self._skip()
        if self._at is _At.AFTER:
            self._held = self._held.lstrip()
            self._at = _At.ANSWER if self._held else _At.AFTER
        return self._take() if self._at is _At.ANSWER else ""

    def rest(self) -> str:
        """What was held back for a tag that will not come; nothing if the text ends inside of a block."""
        return self._take() if self._at is _At.START else ""

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held

    def _open(self) -> None:
        text = self._held.lstrip()
        close = next((close for begin, close in BLOCKS if text.startswith(begin)), None)
        if close is not None:
            self._at, self._close, self._held = _At.INSIDE, close, text
        elif not any(begin.startswith(text) for begin, _ in BLOCKS):
            self._at = _At.ANSWER

    def _skip(self) -> None:
        _, found, after = self._held.partition(self._close)
        if found:
            self._at, self._held = _At.AFTER, after
        else:
            self._held = self._held[-len(self._close) + 1 :]
