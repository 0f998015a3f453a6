"""A GGUF file -> its metadata and its tensors' names, types and shapes. No weights are read.

The file is not trusted: every length is checked against what is left of it before anything is read, and the header may
not be longer than `MAX_HEADER_BYTES`, so neither memory nor time grows with a number that somebody wrote into it.
"""

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from pice.errors import ModelLoadError
from pice.models.ggml_types import tensor_type
from pice.models.printable import shown, shown_path

MAX_HEADER_BYTES = 64 << 20
"""Four times the largest header known (a vocabulary of 262,144 tokens with its merges)."""
MAX_ENTRIES = 100_000
"""Of metadata, and of tensors."""
MAX_KEPT = 1024
"""A longer array is counted and passed over, but for the vocabulary."""
TOKENS = "tokenizer.ggml.tokens"

_MAX_DIMENSIONS = 4
_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Array:
    """`values` is None where they were not kept."""

    count: int
    values: tuple[int | float | str, ...] | None


Value = int | float | str | Array


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    type: str
    num_elements: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path
    size_bytes: int
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]


def read_gguf(path: Path) -> GgufFile:
    """The header of one file.

    Raises:
        ModelLoadError: there is no such file, or it is no whole GGUF; says what was expected and what came.
        ConfigError: gguf is not installed.
    """
    label = shown_path(path)
    try:
        with _open(path, label) as file:
            return _read(path, _Header(file, os.fstat(file.fileno()).st_size, label))
    except OSError as error:
        raise ModelLoadError(f"{label}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelLoadError(f"{label}: cannot be read: {error}") from error


def _open(path: Path, label: str) -> BinaryIO:
    """Looks what it is first: opening a pipe would wait for its writer."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ModelLoadError(
            f"{label}: expected a GGUF file, got {'a folder' if stat.S_ISDIR(mode) else 'something else than a file'}"
        )
    return path.open("rb", buffering=1 << 20)


class _Header:
    """The bytes of a file from its start, never more than there are."""

    def __init__(self, file: BinaryIO, size: int, label: str) -> None:
        self._file, self.size, self._label = file, size, label
        self.position = 0

    def error(self, expected: str, got: str) -> ModelLoadError:
        return ModelLoadError(f"{self._label}: expected {expected}, got {got}")

    def take(self, count: int, what: str = "header") -> bytes:
        self._check(count, what)
        data = self._file.read(count)
        if len(data) < count:
            raise self.error(f"{self.size} bytes as when it was opened", "fewer: it changes while it is read")
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
        keep = count <= MAX_KEPT or key == TOKENS
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
        return tuple(kept) if keep else None

    def _code(self, kind: int, key: str) -> str:
        if kind not in _NUMBERS:
            raise self.error(f"a value type from 0 to 12 for '{shown(key)}'", str(kind))
        return _NUMBERS[kind]

    def _check(self, count: int, what: str) -> None:
        if count > self.size - self.position:
            raise self.error(
                f"{count} more bytes of {what} at byte {self.position}",
                f"{self.size - self.position} before the end: it is cut off or damaged",
            )
        if count > MAX_HEADER_BYTES - self.position:
            raise self.error(f"a header of at most {MAX_HEADER_BYTES} bytes", f"{self.position + count} or more")


def _read(path: Path, header: _Header) -> GgufFile:
    version = _read_version(header)
    num_tensors, num_values = header.number("Q"), header.number("Q")
    for what, count in (("tensors", num_tensors), ("values", num_values)):
        if count > MAX_ENTRIES:
            raise header.error(f"at most {MAX_ENTRIES} {what}", str(count))
    metadata = _read_metadata(header, num_values)
    tensors = tuple(_read_tensors(header, num_tensors, _alignment(header, metadata)))
    return GgufFile(path, header.size, version, metadata, tensors)


def _read_version(header: _Header) -> int:
    if not header.size:
        raise header.error("a GGUF file", "an empty one")
    magic = header.take(min(4, header.size))
    if magic != b"GGUF":
        raise header.error("a GGUF file", f"one that begins with {magic!r}")
    version = header.number("I")
    if version and not version & 0xFFFF:
        raise header.error("a little-endian GGUF file", "a big-endian one, which llama.cpp cannot use here")
    if version not in _VERSIONS:
        raise header.error(f"GGUF version {' or '.join(map(str, _VERSIONS))}", f"version {version}")
    return version


def _read_metadata(header: _Header, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = header.string()
        if key in metadata:
            raise header.error("each key once", f"'{shown(key)}' twice")
        metadata[key] = header.value(header.number("I"), key)
    return metadata


def _alignment(header: _Header, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise header.error("general.alignment to be a power of two", shown(str(value)))
    return value


def _read_tensors(header: _Header, count: int, alignment: int) -> Iterator[Tensor]:
    """Tensors lie one after another, each at a multiple of `alignment`; the last must end within the file."""
    names: set[str] = set()
    end = padded = 0
    for _ in range(count):
        tensor, offset = _read_tensor(header)
        if tensor.name in names:
            raise header.error("each tensor once", f"'{shown(tensor.name)}' twice")
        if offset != padded:
            raise header.error(f"tensor '{shown(tensor.name)}' at offset {padded}", str(offset))
        names.add(tensor.name)
        end = padded + tensor.num_bytes
        padded = -(-end // alignment) * alignment
        yield tensor
    start = -(-header.position // alignment) * alignment
    if count and start + end > header.size:
        raise header.error(f"a file of {start + end} bytes", f"{header.size}: it is cut off; fetch it again")


def _read_tensor(header: _Header) -> tuple[Tensor, int]:
    name, num_dimensions = header.string(), header.number("I")
    if num_dimensions > _MAX_DIMENSIONS:
        raise header.error(f"at most {_MAX_DIMENSIONS} dimensions of tensor '{shown(name)}'", str(num_dimensions))
    shape = struct.unpack(f"<{num_dimensions}Q", header.take(8 * num_dimensions))
    number, offset = header.number("I"), header.number("Q")
    kind = tensor_type(number)
    if kind is None:
        raise header.error(f"a tensor type that gguf knows for '{shown(name)}'", f"{number}: is it newer than gguf?")
    if num_dimensions and shape[0] % kind.block_elements:
        raise header.error(
            f"rows of '{shown(name)}' to be a multiple of {kind.block_elements} ({kind.name})", str(shape[0])
        )
    num_elements = prod(shape)
    num_bytes = num_elements // kind.block_elements * kind.block_bytes
    if num_bytes > header.size:
        raise header.error(
            f"at least {num_bytes} bytes for tensor '{shown(name)}'",
            f"a file of {header.size}: it is cut off or damaged",
        )
    return Tensor(name, kind.name, num_elements, num_bytes), offset
