"""The input of a batch: its lines, read one at a time, and what can be said of them before anything runs."""

import codecs
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pice.batch.format import MAX_LINE_BYTES, InputLine, Key, read_line
from pice.errors import InputError


@dataclass(frozen=True, slots=True)
class Survey:
    """An input that was read through once: which keys it holds, and why the invalid ones of them are invalid."""

    path: Path
    keys: frozenset[Key]
    num_invalid: int
    first_fault: str = ""


def read_lines(path: Path) -> Generator[tuple[int, bytes], None, None]:
    """Number (from 1) and bytes of each line that is not blank.

    A line longer than `MAX_LINE_BYTES` is cut one byte beyond it, which `read_line` finds too long: no line, however
    long, is held in memory.
    """
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            tail = raw
            while len(tail) > MAX_LINE_BYTES and not tail.endswith(b"\n"):
                tail = file.readline(MAX_LINE_BYTES + 1)
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if raw.strip():
                yield number, raw


def survey(path: Path) -> Survey:
    """Reads the whole input. Memory grows by the custom_ids alone.

    Raises:
        InputError: the file cannot be read, or two lines have the same custom_id.
    """
    numbers: dict[Key, int] = {}
    num_invalid, first_fault = 0, ""
    try:
        for number, raw in read_lines(path):
            line = read_line(raw, number)
            _note(numbers, line)
            if fault := _fault(line):
                num_invalid, first_fault = num_invalid + 1, first_fault or fault
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected a file of batch lines") from error
    return Survey(path, frozenset(numbers), num_invalid, first_fault)


def digest(path: Path) -> str:
    """SHA-256 of the input, in hexadecimal.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected a file of batch lines") from error


@contextlib.contextmanager
def spooled(stream: BinaryIO) -> Iterator[Path]:
    """A file with everything the stream gives, so that it can be read twice; gone at the end.

    Raises:
        InputError: the stream cannot be read, or the temporary folder cannot take it.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="pice-batch-", suffix=".jsonl"))
            shutil.copyfileobj(stream, file)
            file.flush()
        except OSError as error:
            raise InputError(
                f"the input cannot be copied to a temporary file: {error.strerror}; name an ordinary file instead"
            ) from error
        yield Path(file.name)


def _note(numbers: dict[Key, int], line: InputLine) -> None:
    if (first := numbers.setdefault(line.key, line.number)) != line.number:
        raise InputError(
            f"lines {first} and {line.number} have the same custom_id {line.key!r}: each must have its own"
        )


def _fault(line: InputLine) -> str:
    try:
        line.item()
    except InputError as error:
        return str(error)
    return ""
