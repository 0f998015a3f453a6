"""The output of a batch: a file of answers and one of failures, which together say what is done."""

from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

from pice.batch.format import Key
from pice.batch.journal import Journal
from pice.errors import InputError

Start = Literal["resume", "new", "overwrite"]
"""What to do with results that are there already: go on after them, refuse, or throw them away."""


class BatchFiles:
    """`<out>.jsonl` for answers and `<out>.errors.jsonl` for failures; with `single_file` failures go to the first.

    Every key is in `answered`, in `failed` or in neither; each is written once. A context manager.
    """

    def __init__(
        self, output: Path, *, source: Path | None = None, single_file: bool = False, start: Start = "resume"
    ) -> None:
        """Opens both files for this process alone; whatever a former run wrote counts, in either of them.

        Raises:
            InputError: a file cannot be written, is the input (`source`), holds something else, is held by another
                process, or holds results although `start` is "new".
        """
        if output.name in ("", "-"):
            raise InputError(f"{output} cannot be the output: name a file, so that a rerun can read it")
        errors = errors_path(output)
        self._journals: list[Journal] = []
        try:
            for path in (output, errors):
                _refuse_input(path, source)
                if path == output or not single_file or _is_there(path):
                    self._journals.append(Journal(path))
            found = self._begin(start)
        except BaseException:
            self._close(keep_empty=False)
            raise
        self._answers, self._failures = self._journals[0], self._journals[0 if single_file else -1]
        self.answered = {key for key, answered in found if answered}
        self.failed = {key for key, _ in found} - self.answered

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: Key) -> bool:
        return key in self.answered or key in self.failed

    def add_answer(self, key: Key, line: bytes) -> None:
        """Writes the line of an answered request. Raises `OutputLost`."""
        self._answers.append(line)
        self.answered.add(key)

    def add_failure(self, key: Key, line: bytes) -> None:
        """Writes the line of a failed request. Raises `OutputLost`."""
        self._failures.append(line)
        self.failed.add(key)

    def forget_failed(self) -> None:
        """Takes the failures of former runs out of the files, so that they are simply not done. Raises `OutputLost`."""
        if self.failed:
            for journal in self._journals:
                journal.drop_failed()
        self.failed.clear()

    def sync(self) -> None:
        """Brings what was written to the disk itself. May be called from another thread."""
        for journal in self._journals:
            journal.sync()

    def close(self) -> None:
        """Syncs and lets go. A file of failures that has none is removed. May be called twice."""
        self._close(keep_empty=True)

    def _begin(self, start: Start) -> list[tuple[Key, bool]]:
        """The results to go on after: each key, and whether it has an answer."""
        found = [result for journal in self._journals for result in journal.found.items()]
        if start == "new" and found:
            names = " and ".join(journal.path.name for journal in self._journals if journal.found)
            raise InputError(f"{names} holds {len(found)} results: resume it, overwrite it or name another output")
        if start == "overwrite":
            for journal in self._journals:
                journal.clear()
            return []
        return found

    def _close(self, *, keep_empty: bool) -> None:
        with ExitStack() as each:
            for number, journal in enumerate(self._journals):
                each.callback(journal.close, keep_empty=keep_empty and number == 0)


def errors_path(output: Path) -> Path:
    """Where the failures of a batch go: `out.errors.jsonl` beside `out.jsonl`."""
    return output.with_name(f"{output.stem}.errors.jsonl")


def _refuse_input(path: Path, source: Path | None) -> None:
    if source is not None and _is_there(path) and path.samefile(source):
        raise InputError(f"{path} is the input itself: name another output")


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True
