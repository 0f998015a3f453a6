"""The results of a job -> the files that a batch run would have written, whole or not at all."""

import contextlib
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Self

from pice.batch.files import errors_path
from pice.errors import InputError, OutputLost
from pice.jobs.base import Result


async def fetch_results(
    results: AsyncGenerator[Result, None],
    output: Path,
    *,
    num_expected: int,
    single_file: bool = False,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Writes each result once: answers to `output`, failures to `<output>.errors.jsonl`, or with `single_file` to the
    first too. Both are written beside and renamed at the end, that of the answers last; without failures there is no
    file of them. Returns how many answers and how many failures there were.

    Raises:
        InputError: a file cannot be written, or is there and `overwrite` is not set.
        OutputLost: there are fewer results than `num_expected`, or the disk is full or gone; nothing was changed.
    """
    failures_path = errors_path(output)
    _check(output, failures_path, overwrite=overwrite)
    num_answered = num_failed = 0
    with ExitStack() as stack:
        answers = stack.enter_context(_Draft(output))
        failures = answers if single_file else stack.enter_context(_Draft(failures_path))
        async with aclosing(results):
            async for result in results:
                (answers if result.answered else failures).append(result.line)
                num_answered += result.answered
                num_failed += not result.answered
        if num_answered + num_failed < num_expected:
            raise OutputLost(
                f"{num_answered + num_failed} results of {num_expected} were found: the job was forgotten while they "
                "were read"
            )
        if num_failed and not single_file:
            failures.publish()
        elif overwrite:
            failures_path.unlink(missing_ok=True)
        answers.publish()
    return num_answered, num_failed


def _check(output: Path, failures_path: Path, *, overwrite: bool) -> None:
    if output.name in ("", "-"):
        raise InputError(f"{output} cannot be the output: name a file")
    for path in (output, failures_path):
        if path.is_dir():
            raise InputError(f"{path} cannot be the output: it is a folder: name a file")
        if path.exists() and not overwrite:
            raise InputError(f"{path} is there already: --overwrite it, or name another output")


class _Draft:
    """A file beside another, which it replaces when published; else it is removed. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self._file = self._draft.open("wb")
        except OSError as error:
            raise InputError(f"{path} cannot be the output: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._draft.unlink(missing_ok=True)

    def append(self, line: bytes) -> None:
        try:
            self._file.write(line)
        except OSError as error:
            raise self._lost(error) from error

    def publish(self) -> None:
        """Brings it to the disk and gives it its name. Raises `OutputLost`."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._draft.replace(self._path)
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> OutputLost:
        return OutputLost(f"{self._path} could not be written: {error.strerror}; it is as it was")
