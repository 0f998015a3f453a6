"""The texts that a vocabulary reads as one token each: what a template may write and a message may not."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pice.core import Prompt

_STAND_INS = range(0x100000, 0x10FFFE)
"""Private-use characters: no text means anything by them."""
_C_SPACE = " \t\n\v\f\r"


@dataclass(frozen=True, slots=True)
class Special:
    """A token that is looked for in the text before the rest of it is split up.

    A `control` token is structure; others (`<tool_call>`, runs of spaces) are text that happens to be one token.
    White space before or after the token is lost with `lstrip`, `rstrip`.
    """

    token: int
    text: str
    control: bool
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True)
class Hidden:
    """A prompt in whose messages stand-ins of one character each take the place of control tokens' texts."""

    prompt: Prompt
    texts: Mapping[str, str]

    def shown(self, text: str) -> str:
        """With the texts themselves again."""
        for stand_in, hidden in self.texts.items():
            text = text.replace(stand_in, hidden)
        return text


class Specials:
    """Those of one vocabulary."""

    def __init__(self, specials: Iterable[Special]) -> None:
        longest_first = sorted((each for each in specials if each.text), key=lambda each: -len(each.text.encode()))
        self._by_text = {each.text: each for each in reversed(longest_first)}
        self._order = {each.text: number for number, each in enumerate(longest_first)}
        self._lengths = _lengths_by_beginning(self._by_text)
        beginnings = sorted(self._lengths, key=len, reverse=True)
        self._beginning = re.compile(f"(?=({'|'.join(map(re.escape, beginnings))}))")

    def hide(self, prompt: Prompt) -> Hidden:
        """What a template may be given without the words of a user becoming structure."""
        contents = "\n".join(message.content for message in prompt.messages)
        found = [text for text in self._present(contents) if self._by_text[text].control]
        if not found:
            return Hidden(prompt, {})
        free = (char for char in map(chr, _STAND_INS) if char not in contents)
        texts = dict(zip(free, found, strict=False))
        messages = []
        for message in prompt.messages:
            content = message.content
            for stand_in, text in texts.items():
                content = content.replace(text, stand_in)
            messages.append(replace(message, content=content))
        return Hidden(replace(prompt, messages=tuple(messages)), texts)

    def _present(self, text: str) -> list[str]:
        """The texts of special tokens that occur, the longest first; some vocabularies have thousands."""
        if not self._by_text:
            return []
        found = {
            text[match.start() : match.start() + length]
            for match in self._beginning.finditer(text)
            for length in self._lengths[match[1]]
        }
        return sorted(found & self._by_text.keys(), key=self._order.__getitem__)

    def split(self, text: str) -> list[Special | str]:
        """The text as special tokens and what is between them, none of it empty; of two that overlap the one that
        begins first, then the longer counts."""
        present = self._present(text)
        if not present:
            return [text] if text else []
        parts: list[Special | str] = []
        strip_next = False
        for part in re.split(f"({'|'.join(map(re.escape, present))})", text):
            special = self._by_text.get(part)
            if special is None:
                parts.append(part.lstrip(_C_SPACE) if strip_next else part)
                strip_next = False
                continue
            if special.lstrip and parts and isinstance(parts[-1], str):
                parts[-1] = parts[-1].rstrip(_C_SPACE)
            parts.append(special)
            strip_next = special.rstrip
        return [part for part in parts if part]


def _lengths_by_beginning(texts: Iterable[str]) -> dict[str, set[int]]:
    """How long the texts are that begin with these one or two characters; those of one count for two as well."""
    lengths: dict[str, set[int]] = {}
    for text in texts:
        lengths.setdefault(text[:2], set()).add(len(text))
    for beginning in lengths:
        lengths[beginning] |= lengths.get(beginning[0], set())
    return lengths
