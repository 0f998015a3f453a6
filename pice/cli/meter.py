"""How far a batch is, for a person: a bar on a terminal, elsewhere a line now and then. On standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from pice.batch.progress import Progress
from pice.cli.streams import note

PLAIN_EVERY_S = 10.0


class Meter:
    """Shows each progress it is called with, and keeps the latest."""

    def __init__(self, begin: Progress, show: Callable[[Progress], None]) -> None:
        self._show = show
        self.latest = begin

    def __call__(self, progress: Progress) -> None:
        self.latest = progress
        self._show(progress)


@contextmanager
def metered(begin: Progress, *, quiet: bool) -> Iterator[Meter]:
    """A meter that suits standard error, until the block ends; `begin` is not shown."""
    if quiet:
        yield Meter(begin, lambda _: None)
    elif sys.stderr.isatty():
        console = Console(stderr=True)
        with Bar(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=console) as bar:
            task = bar.add_task("")
            yield Meter(
                begin, lambda seen: bar.update(task, total=seen.total, completed=seen.finished, description=pace(seen))
            )
    else:
        lines = _Lines()
        yield Meter(begin, lines)
        lines.flush()


class _Lines:
    """A line when the first result is there, then one every `PLAIN_EVERY_S`, and one of the last result."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._unsaid: Progress | None = None

    def __call__(self, seen: Progress) -> None:
        if seen.answered + seen.failed > 0:
            self._unsaid = seen
            if seen.elapsed_s >= self._next_s:
                self._next_s = seen.elapsed_s + PLAIN_EVERY_S
                self.flush()

    def flush(self) -> None:
        """Says what was not said yet."""
        if seen := self._unsaid:
            note(f"{seen.finished}/{seen.total} {pace(seen)}")
            self._unsaid = None


def pace(seen: Progress) -> str:
    """Failures, rates and what is left, in one line."""
    parts = [
        f"{seen.failed_before + seen.failed} failed",
        f"{seen.requests_per_s:.2f} requests/s",
    ]
    if seen.num_output_tokens:
        parts.append(f"{seen.output_tokens_per_s:.0f} tokens/s")
    if seen.eta_s is not None:
        parts.append(f"{clock(seen.eta_s)} left")
    return " · ".join(parts)


def clock(span_s: float) -> str:
    """Hours, minutes and seconds: `1:02:03`, `2:03`."""
    minutes, seconds = divmod(round(span_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
