"""From a file to a job in the queue, and from the job's results to files."""

import asyncio
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pice.batch.fetch import fetch_results
from pice.batch.files import errors_path
from pice.batch.format import name_of, request_id_of
from pice.batch.job_object import job_list, job_object, state_of
from pice.batch.progress import Progress
from pice.batch.source import digest, survey
from pice.batch.submit import check_resumable, submit_lines
from pice.batch.watch import watch
from pice.core import Job, JobLine
from pice.errors import InputError, OutputLost, TransportError
from pice.jobs.base import Result
from pice.jobs.memory import MemoryJobs
from pice.message.codec import decode_as
from pice.simulation.clock import run_virtual
from pice.transport.base import JOBS, Delivery
from pice.transport.memory import MemoryTransport

JOB = "job_1"


def line(custom_id: str, question: str = "Why?") -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": question}]}
    ask = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(ask).encode() + b"\n"


class Desk:
    """An input, a queue and a job store."""

    def __init__(self, folder: Path, *lines: bytes, max_bytes: int = 1 << 20) -> None:
        self.source, self.out = folder / "in.jsonl", folder / "out.jsonl"
        self.source.write_bytes(b"".join(lines))
        self.transport, self.jobs = MemoryTransport(max_bytes=max_bytes), MemoryJobs()
        self.sent: list[int] = []

    async def submit(self) -> None:
        found = survey(self.source)
        await self.jobs.create(Job(JOB, "", digest(self.source), len(found.keys)))
        await submit_lines(found, JOB, self.transport, self.jobs, sent=self.sent.append)

    async def queued(self) -> list[Delivery]:
        subscription = await self.transport.subscribe(JOBS, group="test", prefetch=1000)
        return [await subscription.receive() for _ in range(self.transport.num_messages(JOBS))]

    async def job(self) -> Job:
        job = await self.jobs.job(JOB)
        assert job is not None
        return job

    async def finish(self, answered: Mapping[str, bool]) -> None:
        """Gives each of these names its result."""
        for name, is_answer in answered.items():
            await self.jobs.add_result(JOB, Result(name, f"{name}\n".encode(), is_answer))

    async def fetch(self, **options: Any) -> tuple[int, int]:
        job = await self.job()
        num_expected = options.pop("num_expected", job.num_answered + job.num_failed)
        return await fetch_results(self.jobs.results(JOB), self.out, num_expected=num_expected, **options)

    def written(self) -> dict[str, set[str]]:
        """Lines of each file of the folder but the input."""
        paths = [path for path in self.source.parent.iterdir() if path != self.source]
        return {path.name: set(path.read_text().splitlines()) for path in paths}


async def test_every_line_is_put_into_the_queue_as_it_stands(tmp_path: Path) -> None:
    lines = [line("a"), b'{"custom_id":"\xff"}\n', line("c")]
    desk = Desk(tmp_path, lines[0], b"\n", *lines[1:])
    await desk.submit()
    queued = await desk.queued()
    assert [decode_as(JobLine, each.payload) for each in queued] == [
        JobLine(JOB, number, raw) for number, raw in zip((1, 3, 4), lines, strict=True)
    ]
    assert [each.key for each in queued] == [request_id_of(JOB, key) for key in ("a", 3, "c")]
    assert queued[0].headers["request_id"] == request_id_of(JOB, "a").encode()
    assert (desk.sent, (await desk.job()).sealed_s is not None) == ([1, 2, 3], True)


async def test_line_submitted_again_has_the_same_key(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"), line("b"))
    await desk.submit()
    await desk.submit()
    keys = [each.key for each in await desk.queued()]
    assert keys[:2] == keys[2:]
    assert len(set(keys)) == 2


async def test_line_too_long_for_the_queue_fails_at_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"), line("b", "x" * 5000), b"x" * 5000 + b"\n", max_bytes=1000)
    await desk.submit()
    assert len(await desk.queued()) == 1
    results = {each.name: json.loads(each.line) async for each in desk.jobs.results(JOB)}
    assert {name: each["response"]["status_code"] for name, each in results.items()} == {"id:b": 413, "line:3": 400}
    assert results["id:b"]["response"]["body"]["error"]["message"].startswith("line 2 is too long for the queue: ")
    assert ((await desk.job()).num_failed, (await desk.job()).num_left) == (2, 1)


async def test_input_that_changed_after_the_survey_is_refused_and_the_job_not_sealed(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"), line("b"))
    found = survey(desk.source)
    await desk.jobs.create(Job(JOB, "", "", 2))
    desk.source.write_bytes(line("a"))
    with pytest.raises(InputError, match="had 2 lines and now has 1"):
        await submit_lines(found, JOB, desk.transport, desk.jobs, sent=desk.sent.append)
    assert (await desk.job()).sealed_s is None


async def test_job_cancelled_while_it_is_submitted_is_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"))
    await desk.jobs.create(Job(JOB, "", "", 1))
    await desk.jobs.cancel(JOB)
    with pytest.raises(InputError, match="was cancelled or forgotten"):
        await submit_lines(survey(desk.source), JOB, desk.transport, desk.jobs, sent=desk.sent.append)


async def test_queue_that_goes_away_ends_the_submission_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, line("a"), line("b"))

    async def away(*_: object, **__: object) -> None:
        raise TransportError("no broker")

    monkeypatch.setattr(desk.transport, "publish", away)
    with pytest.raises(TransportError, match="no broker"):
        await desk.submit()
    assert (await desk.job()).sealed_s is None


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (None, "there is no job"),
        (Job(JOB, "", "other", 1), "begun with another file"),
        (Job(JOB, "", "same", 1, cancelled_s=1.0), "is cancelled"),
    ],
)
def test_submission_goes_on_only_with_an_open_job_of_the_same_file(job: Job | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_resumable(job, JOB, "same")
    check_resumable(Job(JOB, "", "same", 1, sealed_s=1.0), JOB, "same")


async def test_results_are_written_to_the_files_of_a_run(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"), line("b"), line("c"))
    await desk.submit()
    await desk.finish({"id:a": True, "id:b": False, "id:c": True})
    assert await desk.fetch() == (2, 1)
    assert desk.written() == {"out.jsonl": {"id:a", "id:c"}, "out.errors.jsonl": {"id:b"}}


async def test_single_file_takes_failures_too(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"), line("b"))
    await desk.submit()
    await desk.finish({"id:a": True, "id:b": False})
    assert await desk.fetch(single_file=True) == (1, 1)
    assert desk.written() == {"out.jsonl": {"id:a", "id:b"}}


async def test_job_without_results_gives_an_empty_file(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"))
    await desk.submit()
    assert await desk.fetch() == (0, 0)
    assert desk.written() == {"out.jsonl": set()}


async def test_files_that_are_there_are_kept_unless_overwritten(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"))
    await desk.submit()
    await desk.finish({"id:a": True})
    errors_path(desk.out).write_text("mine\n")
    with pytest.raises(InputError, match=r"out\.errors\.jsonl is there already: --overwrite"):
        await desk.fetch()
    assert desk.written() == {"out.errors.jsonl": {"mine"}}
    desk.out.write_text("old\n")
    assert await desk.fetch(overwrite=True) == (1, 0)
    assert desk.written() == {"out.jsonl": {"id:a"}}


async def test_fewer_results_than_were_counted_leave_the_files_as_they_were(tmp_path: Path) -> None:
    desk = Desk(tmp_path, line("a"), line("b"))
    await desk.submit()
    await desk.finish({"id:a": True})
    desk.out.write_text("old\n")
    with pytest.raises(OutputLost, match="1 results of 2 were found"):
        await desk.fetch(num_expected=2, overwrite=True)
    assert desk.written() == {"out.jsonl": {"old"}}


async def test_disk_that_is_full_leaves_the_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, line("a"))
    await desk.submit()
    await desk.finish({"id:a": True})
    desk.out.write_text("old\n")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputLost, match="No space left on device; it is as it was"):
        await desk.fetch(overwrite=True)
    assert desk.written() == {"out.jsonl": {"old"}}


@pytest.mark.parametrize(("output", "says"), [("-", "name a file"), (".", "name a file"), ("no/x", "No such file")])
async def test_output_that_can_be_no_file_is_refused(tmp_path: Path, output: str, says: str) -> None:
    desk = Desk(tmp_path, line("a"))
    await desk.submit()
    desk.out = tmp_path / output
    with pytest.raises(InputError, match=says):
        await desk.fetch()


def test_job_is_watched_until_it_ends(tmp_path: Path) -> None:
    async def watched() -> tuple[Job, list[Progress]]:
        desk, seen = Desk(tmp_path, line("a"), line("b"), line("c")), list[Progress]()
        await desk.submit()
        await desk.finish({"id:a": True})
        watching = asyncio.ensure_future(watch(desk.jobs, JOB, seen.append))
        await asyncio.sleep(1.5)
        await desk.finish({"id:b": False})
        await asyncio.sleep(1)
        await desk.finish({"id:c": True})
        return await watching, seen

    job, seen = run_virtual(watched())
    assert (job.num_answered, job.num_failed) == (2, 1)
    assert [(each.answered_before, each.answered, each.failed, each.left) for each in seen] == [
        (1, 0, 0, 2),
        (1, 0, 1, 1),
        (1, 1, 1, 0),
    ]


def test_store_that_is_away_is_waited_for_while_a_job_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def watched() -> Job:
        desk = Desk(tmp_path, line("a"))
        await desk.submit()
        watching = asyncio.ensure_future(watch(desk.jobs, JOB, lambda _: None))
        await asyncio.sleep(0.5)
        with monkeypatch.context() as patch:
            patch.setattr(desk.jobs, "job", away)
            await asyncio.sleep(5)
        await desk.jobs.cancel(JOB)
        return await watching

    async def away(job_id: str) -> Job | None:
        raise TransportError("no Redis")

    assert run_virtual(watched()).cancelled_s is not None


async def test_unknown_job_cannot_be_watched() -> None:
    with pytest.raises(InputError, match="there is no job job_9"):
        await watch(MemoryJobs(), "job_9", lambda _: None)


@pytest.mark.parametrize(
    ("times", "state"),
    [
        ({}, "validating"),
        ({"sealed_s": 5.5}, "in_progress"),
        ({"sealed_s": 5.5, "ended_s": 7.5}, "completed"),
        ({"sealed_s": 5.5, "cancelled_s": 7.5}, "cancelled"),
    ],
)
def test_job_is_shown_as_a_batch(times: dict[str, float], state: str) -> None:
    job = Job(JOB, "nightly", "ab12", 9, 1.5, num_answered=4, num_failed=2, **times)
    shown = job_object(job)
    assert (state_of(job), shown["status"]) == (state, state)
    assert (shown["id"], shown["object"], shown["created_at"], shown["metadata"]) == (
        JOB,
        "batch",
        1,
        {"name": "nightly"},
    )
    assert shown["request_counts"] == {"total": 9, "completed": 4, "failed": 2}
    assert (shown["completed_at"], shown["cancelled_at"]) == (
        7 if state == "completed" else None,
        7 if state == "cancelled" else None,
    )


def test_jobs_are_shown_as_a_list() -> None:
    jobs = [Job("job_2", "", "", 1), Job("job_1", "", "", 1)]
    shown = job_list(jobs)
    assert (shown["object"], shown["first_id"], shown["last_id"]) == ("list", "job_2", "job_1")
    assert [each["id"] for each in shown["data"]] == ["job_2", "job_1"]
    assert job_list([])["first_id"] is None


def test_names_of_lines_are_those_of_no_other() -> None:
    names = [name_of(key) for key in ("1", 1, "line:1", "id:1", 11)]
    assert len(set(names)) == len(names)
