"""The bytes of a GGUF file's header -> values, within bounds.

The file is not trusted: every length is checked against what is left of it before anything is read, and the header may
not be longer than `MAX_HEADER_BYTES`, so neither memory nor time grows with a number that somebody wrote into it.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from pice.errors import ModelLoadError
from pice.models.printable import shown

MAX_HEADER_BYTES = 64 << 20
"""Four times the largest header known (a vocabulary of 262,144 tokens with its merges)."""
MAX_KEPT = 1024
"""A longer array is counted and passed over, but for the vocabulary."""
MAX_KEPT_IN_ALL = 1 << 20
"""Values of arrays; further ones are counted and passed over too. A value takes more memory than it has bytes."""
TOKENS = "tokenizer.ggml.tokens"

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Array:
    """`values` is None where they were not kept."""

    count: int
    values: tuple[int | float | str, ...] | None


Value = int | float | str | Array


class Header:
    """The bytes of a file from its start, never more than there are."""

    def __init__(self, file: BinaryIO, size: int, label: str) -> None:
        self._file, self.size, self._label = file, size, label
        self.position = 0
        self._num_kept = 0

    def error(self, expected: str, got: str) -> ModelLoadError:
        return ModelLoadError(f"{self._label}: expected {expected}, got {got}")

    def take(self, count: int, what: str = "header") -> bytes:
        self._check(count, what)
        data = self._file.read(count)
        if len(data) < count:
            raise self._changed()
        self.position += count
        return data

    def skip(self, count: int) -> None:
        self._check(count, "header")
        self._file.seek(count, os.SEEK_CUR)
        self.position += count

    def number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]
        return value

    def string(self) -> str:
        return self.take(self.number("Q")).decode(errors="replace")

    def value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(key)
        return self.number(self._code(kind, key))

    def _array(self, key: str) -> Array:
        kind, count = self.number("I"), self.number("Q")
        keep = self._num_kept + count <= MAX_KEPT_IN_ALL and (count <= MAX_KEPT or (kind == _STRING and key == TOKENS))
        self._num_kept += count if keep else 0
        if kind == _STRING:
            return Array(count, self._strings(count, keep=keep))
        code = self._code(kind, key)
        num_bytes = count * struct.calcsize(code)
        if keep:
            return Array(count, struct.unpack(f"<{count}{code}", self.take(num_bytes)))
        self.skip(num_bytes)
        return Array(count, None)

    def _strings(self, count: int, *, keep: bool) -> tuple[str, ...] | None:
        """As `string`, so often that its calls would be felt."""
        self._check(8 * count, "header")
        read, number, position, end = self._file.read, int.from_bytes, self.position, min(self.size, MAX_HEADER_BYTES)
        kept = []
        for _ in range(count):
            length = number(read(8), "little")
            if 8 + length > end - position:
                self.position = position
                self._check(8 + length, "header")
            position += 8 + length
            data = read(length)
            if keep:
                kept.append(data.decode(errors="replace"))
        self.position = position
        if self._file.tell() != position:
            raise self._changed()
        return tuple(kept) if keep else None

    def _code(self, kind: int, key: str) -> str:
        if kind not in _NUMBERS:
            raise self.error(f"a value type from 0 to 12 for '{shown(key)}'", str(kind))
        return _NUMBERS[kind]

    def _changed(self) -> ModelLoadError:
        return self.error(f"{self.size} bytes as when it was opened", "fewer: it changes while it is read")

    def _check(self, count: int, what: str) -> None:
        if count > self.size - self.position:
            raise self.error(
                f"{count} more bytes of {what} at byte {self.position}",
                f"{self.size - self.position} before the end: it is cut off or damaged",
            )
        if count > MAX_HEADER_BYTES - self.position:
            raise self.error(f"a header of at most {MAX_HEADER_BYTES} bytes", f"{self.position + count} or more")
