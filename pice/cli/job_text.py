"""Jobs in words."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from pice.batch.job_object import state_of
from pice.core import Job
from pice.models.printable import shown

_HEAD = ("ID", "STATUS", "LINES", "ANSWERED", "FAILED", "CREATED", "NAME")


def job_lines(job: Job) -> Iterator[str]:
    """All that is known of one job."""
    yield f"{job.job_id}  {state_of(job)}" + (f"  {shown(job.name)}" if job.name else "")
    yield f"{job.num_lines} lines: {job.num_answered} answered, {job.num_failed} failed, {job.num_left} left"
    times = {"created": job.created_s, "queued": job.sealed_s, "ended": job.ended_s, "cancelled": job.cancelled_s}
    yield ", ".join(f"{what} {_date(at_s)}" for what, at_s in times.items() if at_s is not None)


def job_table(jobs: Sequence[Job]) -> Iterator[str]:
    """A line for each, under a head."""
    rows = [_HEAD, *map(_row, jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def outcome(num_lines: int, num_answered: int, num_failed: int) -> str:
    """What became of a job's lines."""
    left = num_lines - num_answered - num_failed
    text = f"{num_lines} lines: {num_answered} answered, {num_failed} failed"
    return text + (f", {left} without a result" if left else "")


def _row(job: Job) -> tuple[str, ...]:
    counts = (job.num_lines, job.num_answered, job.num_failed)
    return (job.job_id, state_of(job), *map(str, counts), _date(job.created_s), shown(job.name))


def _date(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
