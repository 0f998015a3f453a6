"""A file of result lines that is its own journal: appended to in whole lines, held by one process, mended when torn."""

import contextlib
import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

from pice.batch.format import LINE_START, Key, Written, read_back
from pice.errors import DecodeError, InputError, OutputLost

_HINTS = {
    errno.ENOENT: "its folder does not exist: make it first",
    errno.ENOTDIR: "its folder is not a folder",
    errno.EISDIR: "it is a folder: name a file",
}


class Journal:
    """One open file. Not for use from several threads, but for `sync`."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file, for this process alone, and cuts a torn last line off.

        `found` says of each key that was in it whether it has an answer.

        Raises:
            InputError: the file cannot be written, another process holds it, or it holds something else.
        """
        self.path = path.resolve()
        self._rewritten = self.path.with_name(f"{self.path.name}.rewritten")
        self._closing = threading.Lock()
        self._fd = _open_alone(self.path)
        self._dirty = False
        try:
            self._rewritten.unlink(missing_ok=True)
            self.found, self._end = self._read_whole_lines()
            os.ftruncate(self._fd, self._end)
        except BaseException:
            self.close(keep_empty=False)
            raise

    def append(self, line: bytes) -> None:
        """Writes one whole line, or nothing.

        Raises:
            OutputLost: the disk is full or gone; what was there before is whole.
        """
        try:
            _write_all(self._fd, line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise OutputLost(
                f"{self.path}: a result could not be written: {error.strerror}; what is in the file is whole and kept, "
                "make room and run the same command again"
            ) from error
        self._end += len(line)
        self._dirty = True

    def sync(self) -> None:
        """Brings what was written to the disk itself. May be called from another thread.

        Raises:
            OutputLost: the disk would not take it.
        """
        with self._closing:
            if not self._dirty or self._fd < 0:
                return
            self._dirty = False
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise OutputLost(f"{self.path}: the last results may not be on the disk: {error.strerror}") from error

    def drop_failed(self) -> None:
        """Takes the lines without an answer out, by writing the rest anew and renaming: all at once or not at all.

        Raises:
            OutputLost: the disk is full or gone; the file is as it was.
        """
        mode = stat.S_IMODE(os.fstat(self._fd).st_mode)
        fd = os.open(self._rewritten, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._copy_answered(fd)
            os.fsync(fd)
            self._rewritten.rename(self.path)
        except BaseException as error:
            os.close(fd)
            self._rewritten.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise OutputLost(f"{self.path} could not be rewritten and is as it was: {error.strerror}") from error
            raise
        os.close(self._fd)
        self._fd, self._end = fd, os.fstat(fd).st_size
        _sync_folder(self.path.parent)

    def clear(self) -> None:
        """Takes every line out."""
        os.ftruncate(self._fd, 0)
        self._end = 0

    def close(self, *, keep_empty: bool = True) -> None:
        """Syncs and lets go; a file without lines is removed unless `keep_empty`. May be called twice."""
        try:
            self.sync()
        finally:
            with self._closing:
                self._let_go(keep_empty)

    def _let_go(self, keep_empty: bool) -> None:
        if self._fd >= 0:
            if not keep_empty and os.fstat(self._fd).st_size == 0:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def _copy_answered(self, fd: int) -> None:
        with self.path.open("rb") as file:
            for raw in file:
                if read_back(raw).answered:
                    _write_all(fd, raw)

    def _read_whole_lines(self) -> tuple[dict[Key, bool], int]:
        """Whether each key has an answer, and where the last whole line ends.

        Raises:
            InputError: what follows that line is not the beginning of a line of ours.
        """
        found: dict[Key, bool] = {}
        end = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if written := _whole(raw):
                    found[written.key] = written.answered or found.get(written.key, False)
                    end += len(raw)
                elif file.read(1) or not _begins_a_line(raw):
                    raise InputError(
                        f"{self.path}: line {number} is no result of a batch, got {raw[:60]!r}: name another output, "
                        "or take that line out"
                    )
        return found, end


def _open_alone(path: Path) -> int:
    """A descriptor for reading and appending, with the file locked until it is closed."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            hint = _HINTS.get(error.errno or 0, f"{error.strerror}")
            raise InputError(f"{path} cannot be the output: {hint}") from error
        try:
            if _locked(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _locked(fd: int, path: Path) -> bool:
    """Locks the file; False when it was renamed or removed in between, so that the lock is worth nothing."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise InputError(f"{path} cannot be the output: it must be an ordinary file, so that a rerun can read it")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path} is being written by another process: wait for it, or name another output") from None
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _write_all(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _whole(raw: bytes) -> Written | None:
    try:
        return read_back(raw) if raw.endswith(b"\n") else None
    except DecodeError:
        return None


def _begins_a_line(raw: bytes) -> bool:
    """Whether this can be what a killed process, or a machine that lost power, left of a line of ours."""
    rest = raw.rstrip(b"\0")
    return rest.startswith(LINE_START) or LINE_START.startswith(rest)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
