"""The standard streams of a command: there whatever the caller did to them, and what happens when they take nothing."""

import io
import os
import sys
from typing import Any

import typer

from pice.errors import OutputLost

_FLAGS = (os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)
"""How the stand-in of each stream is opened: using input or output fails, and nobody misses the messages."""


class _Output(io.FileIO):
    """Standard output, which says what failed when it cannot be written. A reader that went away is no failure."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _drop(self.fileno())  # what is still buffered would fail again at the exit
            raise OutputLost(f"standard output could not be written: {error.strerror}") from error


def mend_streams() -> None:
    """Puts a stand-in where the caller closed a stream, so that nothing else is opened under its number. What the
    output's encoding has no sign for is written as `?`."""
    for number, flags in enumerate(_FLAGS):
        if not _is_open(number):
            os.open(os.devnull, flags)  # gets the lowest free number: this one
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    encoding = sys.stdout.encoding if sys.stdout else None
    output = io.BufferedWriter(_Output(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(output, encoding=encoding, errors="replace", line_buffering=output.isatty())


def note(text: str) -> None:
    """Says it on standard error. Where nobody listens, the work goes on."""
    try:
        typer.echo(text, err=True)
    except OSError:
        _drop(sys.stderr.fileno())


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _drop(number: int) -> None:
    """From now on nothing fails that is written there."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
