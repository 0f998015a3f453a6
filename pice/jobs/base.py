"""The job port: batch jobs in the queue, and the results of their lines."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from pice.core import Job


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the output. `name` says of which line of the input; see `pice.batch.format.name_of`."""

    name: str
    line: bytes
    answered: bool


class JobStore(Protocol):
    """Shared by all processes. Every change is atomic and may be repeated. A job and its results are forgotten some
    time after its last change, whether it has ended or was left alone. Raises `TransportError` when its server is gone.
    """

    async def create(self, job: Job) -> None:
        """Makes the job, open and without results, of its id, name, source and number of lines, which is at least 1.
        Nothing happens if it is there."""
        ...

    async def seal(self, job_id: str) -> bool:
        """All lines are in the queue. False: it is cancelled or unknown."""
        ...

    async def wanted(self, job_id: str, name: str) -> bool:
        """Whether a result of this name is still to come: the job is open, and has none."""
        ...

    async def add_result(self, job_id: str, result: Result) -> bool:
        """Keeps the first result of a name; the last one ends the job. False: there was one, or the job takes none.

        Raises:
            Full: there is no room, and nothing was kept; says when to come back.
        """
        ...

    async def cancel(self, job_id: str) -> bool:
        """No result is taken any more; those that came stay. False: it has ended, or is unknown."""
        ...

    async def job(self, job_id: str) -> Job | None:
        """How far it is now, or None when it is unknown or forgotten."""
        ...

    async def jobs(self) -> list[Job]:
        """The latest jobs that are known, newest first."""
        ...

    def results(self, job_id: str) -> AsyncGenerator[Result, None]:
        """Every result that is there, once, in any order; of those that come meanwhile some may be missed."""
        ...
