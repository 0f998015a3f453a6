"""Jobs in memory: the reference for every other job store."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from pice.core import Job
from pice.errors import Full
from pice.jobs.base import Result


@dataclass(slots=True)
class _Entry:
    job: Job
    changed_s: float
    results: dict[str, Result] = field(default_factory=dict)


class MemoryJobs:
    """One process's jobs; see `pice.jobs.base.JobStore`. Its clock is the running loop's.

    A job is kept for `keep_s` after its last change; all results together take at most `max_bytes`.
    """

    def __init__(self, *, keep_s: float = 604_800.0, max_bytes: int = 1 << 30) -> None:
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._entries: dict[str, _Entry] = {}

    async def create(self, job: Job) -> None:
        if self._entry(job.job_id) is None:
            made = Job(job.job_id, job.name, job.source, job.num_lines, created_s=_now())
            self._entries[job.job_id] = _Entry(made, _now())

    async def seal(self, job_id: str) -> bool:
        entry = self._entry(job_id)
        if entry is None or entry.job.cancelled_s is not None:
            return False
        if entry.job.sealed_s is None:
            self._change(entry, replace(entry.job, sealed_s=_now()))
        return True

    async def wanted(self, job_id: str, name: str) -> bool:
        entry = self._entry(job_id)
        return entry is not None and entry.job.is_open and name not in entry.results

    async def add_result(self, job_id: str, result: Result) -> bool:
        entry = self._entry(job_id)
        if entry is None or not await self.wanted(job_id, result.name):
            return False
        num_bytes = sum(len(each.line) for entry in self._entries.values() for each in entry.results.values())
        if num_bytes + len(result.line) > self._max_bytes:
            raise Full(f"the results of all jobs take {num_bytes} bytes", retry_after_s=1.0)
        entry.results[result.name] = result
        job = entry.job
        counted = replace(
            job, num_answered=job.num_answered + result.answered, num_failed=job.num_failed + (not result.answered)
        )
        self._change(entry, counted if counted.num_left else replace(counted, ended_s=_now()))
        return True

    async def cancel(self, job_id: str) -> bool:
        entry = self._entry(job_id)
        if entry is None or entry.job.ended_s is not None:
            return False
        if entry.job.cancelled_s is None:
            self._change(entry, replace(entry.job, cancelled_s=_now()))
        return True

    async def job(self, job_id: str) -> Job | None:
        entry = self._entry(job_id)
        return entry.job if entry else None

    async def jobs(self) -> list[Job]:
        entries = filter(None, map(self._entry, list(self._entries)))
        return [entry.job for entry in entries][::-1]

    async def results(self, job_id: str) -> AsyncGenerator[Result, None]:
        entry = self._entry(job_id)
        for result in list(entry.results.values()) if entry else ():
            yield result

    def _entry(self, job_id: str) -> _Entry | None:
        entry = self._entries.get(job_id)
        if entry and entry.changed_s + self._keep_s <= _now():
            del self._entries[job_id]
            return None
        return entry

    def _change(self, entry: _Entry, job: Job) -> None:
        entry.job, entry.changed_s = job, _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
