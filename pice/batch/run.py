"""Runs a batch: lines in, each asked once, results out as they finish."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from pice.batch.files import BatchFiles
from pice.batch.format import BatchItem, InputLine, Key, failure_line, read_line, request_id_of, success_line
from pice.batch.progress import Progress
from pice.batch.settle import settle
from pice.batch.source import Survey, read_lines
from pice.core import Answer, Request
from pice.errors import InputError, PiceError

SYNC_EVERY_S = 1.0


async def run_batch(
    ask: Callable[[Request], Awaitable[Answer]],
    survey: Survey,
    files: BatchFiles,
    *,
    run_id: str,
    concurrency: int,
    timeout_s: float,
    stop: asyncio.Event,
    wall_s: Callable[[], float],
    progress: Callable[[Progress], None],
) -> Progress:
    """How far the batch came: to its end, or to where `stop` was set.

    Lines are read as they are needed, and at most `concurrency` are in memory and being asked. A line whose key is in
    `files` is skipped. A result is written, whole, the moment it is there; an invalid line or a `PiceError` is written
    as a failure. A retriable error is tried again, until the line's own timeout (or `timeout_s`) has passed with tries
    and pauses. Those that end in `Overloaded` do not count: nothing was begun, and the batch itself may fill the queue.
    Each try has that timeout for itself, and a request id made from `run_id` that no other try has. After `stop` no
    line is begun and those being asked are finished; cancelling gives them up, unwritten.

    Raises:
        OutputLost: a result could not be written.
        InputError: the input changed after the survey.
        Exception: whatever else `ask` raised; what was finished before is written.
    """
    batch = _Batch(ask, survey, files, run_id, timeout_s, stop, wall_s, progress)
    return await batch.run(concurrency)


def so_far(survey: Survey, files: BatchFiles) -> Progress:
    """How far former runs came."""
    return Progress(
        total=len(survey.keys),
        answered_before=len(survey.keys & files.answered),
        failed_before=len(survey.keys & files.failed),
    )


class _Batch:
    def __init__(
        self,
        ask: Callable[[Request], Awaitable[Answer]],
        survey: Survey,
        files: BatchFiles,
        run_id: str,
        timeout_s: float,
        stop: asyncio.Event,
        wall_s: Callable[[], float],
        report: Callable[[Progress], None],
    ) -> None:
        self._ask = ask
        self._lines = read_lines(survey.path)
        self._files = files
        self._run_id = run_id
        self._timeout_s = timeout_s
        self._stop = stop
        self._wall_s = wall_s
        self._report = report
        self._clock = asyncio.get_running_loop().time
        self._started_s = self._synced_s = self._clock()
        self._progress = so_far(survey, files)

    async def run(self, concurrency: int) -> Progress:
        self._report(self._progress)
        with contextlib.closing(self._lines):
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, self._progress.left)):
                        group.create_task(self._work())
            except ExceptionGroup as several:
                raise several.exceptions[0] from several
        if self._progress.left and not self._stop.is_set():
            raise InputError(
                f"{self._progress.left} lines have no result though nothing stopped the batch: the input must not "
                "change while it is read; run the same command again to do them"
            )
        return self._progress

    async def _work(self) -> None:
        while not self._stop.is_set() and (found := next(self._lines, None)):
            number, raw = found
            line = read_line(raw, number)
            if line.key in self._files:
                await asyncio.sleep(0)
            else:
                await self._finish(line)
                await self._sync()

    async def _finish(self, line: InputLine) -> None:
        try:
            item = line.item()
        except InputError as error:
            self._write_failure(line.key, error, request_id_of(self._run_id, line.key))
            await asyncio.sleep(0)
        else:
            await self._settle(item)

    async def _settle(self, item: BatchItem) -> None:
        """Asks until there is an answer or an error to write; writes nothing when `stop` comes between two tries."""
        settled = await settle(
            item, self._ask, run_id=self._run_id, timeout_s=self._timeout_s, stopped_within=self._stopped_within
        )
        if settled is None:
            return
        if isinstance(settled.outcome, Answer):
            self._write_answer(item, settled.outcome)
        else:
            self._write_failure(item.custom_id, settled.outcome, settled.request_id)

    async def _stopped_within(self, wait_s: float) -> bool:
        try:
            async with asyncio.timeout(wait_s):
                return await self._stop.wait()
        except TimeoutError:
            return False

    def _write_answer(self, item: BatchItem, answer: Answer) -> None:
        self._files.add_answer(item.custom_id, success_line(item, answer, created=int(self._wall_s())))
        done = self._progress
        num_output_tokens = done.num_output_tokens + answer.usage.num_answer_tokens
        self._went_on(replace(done, answered=done.answered + 1, num_output_tokens=num_output_tokens))

    def _write_failure(self, key: Key, error: PiceError, request_id: str) -> None:
        self._files.add_failure(key, failure_line(key, error, request_id=request_id))
        self._went_on(replace(self._progress, failed=self._progress.failed + 1))

    def _went_on(self, progress: Progress) -> None:
        self._progress = replace(progress, elapsed_s=self._clock() - self._started_s)
        self._report(self._progress)

    async def _sync(self) -> None:
        """About once a second, off the loop: a disk may take its time."""
        if self._clock() - self._synced_s >= SYNC_EVERY_S:
            self._synced_s = self._clock()
            await asyncio.to_thread(self._files.sync)
