"""A GGUF file -> its metadata and its tensors' names, types and shapes. No weights are read, and no number that
somebody wrote into it is trusted."""

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
from pice.models.gguf_header import Header, Value
from pice.models.printable import shown, shown_path

MAX_ENTRIES = 100_000
"""Of metadata, and of tensors."""

_MAX_DIMENSIONS = 4
_VERSIONS = (2, 3)


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
            return _read(path, Header(file, os.fstat(file.fileno()).st_size, label))
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


def _read(path: Path, header: Header) -> GgufFile:
    version = _read_version(header)
    num_tensors, num_values = header.number("Q"), header.number("Q")
    for what, count in (("tensors", num_tensors), ("values", num_values)):
        if count > MAX_ENTRIES:
            raise header.error(f"at most {MAX_ENTRIES} {what}", str(count))
    metadata = _read_metadata(header, num_values)
    tensors = tuple(_read_tensors(header, num_tensors, _alignment(header, metadata)))
    return GgufFile(path, header.size, version, metadata, tensors)


def _read_version(header: Header) -> int:
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


def _read_metadata(header: Header, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = header.string()
        if key in metadata:
            raise header.error("each key once", f"'{shown(key)}' twice")
        metadata[key] = header.value(header.number("I"), key)
    return metadata


def _alignment(header: Header, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise header.error("general.alignment to be a power of two", shown(str(value)))
    return value


def _read_tensors(header: Header, count: int, alignment: int) -> Iterator[Tensor]:
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


def _read_tensor(header: Header) -> tuple[Tensor, int]:
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
