"""A file of requests -> one message for each line, in the queue."""

import asyncio
import contextlib
from collections.abc import Callable

from pice.batch.format import failure_line, name_of, read_line, request_id_of
from pice.batch.source import Survey, read_lines
from pice.core import Job, JobLine
from pice.errors import InputError, MessageTooLarge, PiceError
from pice.jobs.base import JobStore, Result
from pice.message.codec import encode
from pice.message.trace import headers
from pice.transport.base import JOBS, Transport

_AT_ONCE = 64


async def submit_lines(
    survey: Survey, job_id: str, transport: Transport, jobs: JobStore, *, sent: Callable[[int], None]
) -> None:
    """Puts every line of the file into the queue, then seals the job. `sent` is told how many are there so far.

    May be cancelled and done again: a line that is there twice is answered once. A line too long for the queue is
    given its failure at once. Lines of one file have keys of their own, so that they spread over all partitions.

    Raises:
        InputError: the file changed after the survey, or the job was cancelled or forgotten meanwhile.
        TransportError: the queue or the store is gone; do it again.
    """
    await _Submission(survey, job_id, transport, jobs, sent).run()
    if not await jobs.seal(job_id):
        raise InputError(f"{job_id} was cancelled or forgotten while its lines were submitted: submit the file anew")


class _Submission:
    def __init__(
        self, survey: Survey, job_id: str, transport: Transport, jobs: JobStore, sent: Callable[[int], None]
    ) -> None:
        self._survey = survey
        self._job_id = job_id
        self._transport = transport
        self._jobs = jobs
        self._sent = sent
        self._num_sent = 0
        self._lines = read_lines(survey.path)

    async def run(self) -> None:
        num_lines = len(self._survey.keys)
        with contextlib.closing(self._lines):
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(_AT_ONCE, num_lines)):
                        group.create_task(self._work())
            except ExceptionGroup as several:
                raise several.exceptions[0] from several
        if self._num_sent != num_lines:
            raise InputError(
                f"{self._survey.path} had {num_lines} lines and now has {self._num_sent}: the input must not change "
                "while it is submitted"
            )

    async def _work(self) -> None:
        for number, raw in self._lines:
            await self._send(number, raw)
            self._num_sent += 1
            self._sent(self._num_sent)

    async def _send(self, number: int, raw: bytes) -> None:
        line = read_line(raw, number)
        request_id = request_id_of(self._job_id, line.key)
        payload = encode(JobLine(self._job_id, number, raw))
        try:
            await self._transport.publish(JOBS, payload, key=request_id, headers=headers(request_id))
        except MessageTooLarge as too_large:
            fault: PiceError = MessageTooLarge(f"line {number} is too long for the queue: {too_large}")
            if isinstance(line.content, InputError):
                fault = line.content
            failure = failure_line(line.key, fault, request_id=request_id)
            await self._jobs.add_result(self._job_id, Result(name_of(line.key), failure, answered=False))


def check_resumable(job: Job | None, job_id: str, source: str) -> None:
    """Refuses to submit lines to a job that takes none, or was begun with another file.

    Raises:
        InputError: says which, and what to do.
    """
    if job is None:
        raise InputError(f"there is no job {job_id}, or no more: submit the file without --job")
    if job.source != source:
        raise InputError(f"{job_id} was begun with another file: give that one, or submit this without --job")
    if job.cancelled_s is not None:
        raise InputError(f"{job_id} is cancelled: submit the file without --job")
