"""A job from afar, until it has ended."""

import asyncio
from collections.abc import Callable

from pice.batch.progress import Progress
from pice.core import Job
from pice.errors import InputError, TransportError
from pice.jobs.base import JobStore

_EVERY_S = 1.0


async def known_job(jobs: JobStore, job_id: str) -> Job:
    """How far it is now.

    Raises:
        InputError: there is no such job.
    """
    if (job := await jobs.job(job_id)) is None:
        raise InputError(f"there is no job {job_id}, or no more: `pice batch status` lists those there are")
    return job


async def watch(jobs: JobStore, job_id: str, progress: Callable[[Progress], None]) -> Job:
    """The job, once it takes no more results. Where the store is away, it is waited for.

    Raises:
        InputError: there is no such job.
    """
    clock = asyncio.get_running_loop().time
    began_s, begin = clock(), await known_job(jobs, job_id)
    job = begin
    while job.is_open:
        await asyncio.sleep(_EVERY_S)
        try:
            job = await known_job(jobs, job_id)
        except TransportError:
            continue
        progress(_between(begin, job, clock() - began_s))
    return job


def _between(begin: Job, now: Job, elapsed_s: float) -> Progress:
    return Progress(
        now.num_lines,
        answered_before=begin.num_answered,
        failed_before=begin.num_failed,
        answered=now.num_answered - begin.num_answered,
        failed=now.num_failed - begin.num_failed,
        elapsed_s=elapsed_s,
    )
