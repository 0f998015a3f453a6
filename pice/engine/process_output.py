"""What an engine's process prints."""

import asyncio
import logging
import os
from collections import deque
from contextlib import suppress
from io import FileIO
from typing import BinaryIO

NUM_LAST_LINES, MAX_LINE_CHARS = 5, 500
"""Of what a process printed, for the error that says how it ended."""
MAX_LOGGED_LINES = 50
"""Of what a process prints in its life."""
OUTPUT_WAIT_S = 1.0
"""For how long the output of a process that has ended is read: a process that it started may hold it open."""

_logger = logging.getLogger(__name__)


class Output:
    """What a process prints: the first of it is logged, and the last is kept."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: deque[str] = deque(maxlen=NUM_LAST_LINES)
        self._rest = b""
        self._num_lines = 0
        self._file: FileIO | None = None
        self._over = asyncio.Event()

    @property
    def last(self) -> list[str]:
        return list(filter(None, [*self._last, _printable(self._rest)]))

    def open(self) -> BinaryIO:
        """The file that a process is to print to. Its lines are taken as they come, until `close`."""
        source, target = os.pipe()
        os.set_blocking(source, False)
        self._file = os.fdopen(source, "rb", buffering=0)
        asyncio.get_running_loop().add_reader(source, self._read)
        return os.fdopen(target, "wb")

    async def ended(self) -> None:
        """Waits, but not for long, until all is read that an ended process printed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(OUTPUT_WAIT_S):
                await self._over.wait()

    def close(self) -> None:
        if self._file and not self._file.closed:
            asyncio.get_running_loop().remove_reader(self._file.fileno())
            self._file.close()
            self._over.set()

    def _read(self) -> None:
        assert self._file is not None
        if data := self._file.read(1 << 16):
            self._take(data)
        elif data is not None:
            self.close()

    def _take(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:MAX_LINE_CHARS]
        del lines[MAX_LOGGED_LINES + 1 : -NUM_LAST_LINES]
        for line in filter(None, map(_printable, lines)):
            self._log(line)
            self._last.append(line)

    def _log(self, line: str) -> None:
        self._num_lines += 1
        if self._num_lines <= MAX_LOGGED_LINES:
            _logger.warning("%s: the engine process says: %s", self._name, line)
        elif self._num_lines == MAX_LOGGED_LINES + 1:
            _logger.warning("%s: the engine process says more, which is left out here", self._name)


def _printable(line: bytes) -> str:
    """A line as text that a terminal does not act on: its words may be a model file's."""
    text = line[:MAX_LINE_CHARS].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
