"""`pice batch submit`, `status`, `fetch`, `cancel` over a queue and a job store in memory."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pice.app.jobs import JobPorts
from pice.batch.files import errors_path
from pice.batch.format import name_of, read_line
from pice.core import Job, JobLine
from pice.errors import TransportError
from pice.jobs.base import Result
from pice.jobs.memory import MemoryJobs
from pice.loop import Shutdown
from pice.message.codec import decode_as
from pice.settings import Settings
from pice.transport.base import JOBS
from pice.transport.memory import MemoryTransport
from tests.unit.cli.conftest import SMALL, Ran

CLUSTER = f"""\
{SMALL}
[kafka]
bootstrap_servers = "127.0.0.1:9092"
[redis]
url = "redis://127.0.0.1:6379/0"
"""


def line(custom_id: str) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


class Answering(MemoryTransport):
    """A queue behind which every line has its result at once, a failure where `fails` says so."""

    def __init__(self, jobs: MemoryJobs) -> None:
        super().__init__()
        self.jobs = jobs
        self.fails: frozenset[str] = frozenset()

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        published = decode_as(JobLine, payload)
        name = name_of(read_line(published.raw, published.number).key)
        await self.jobs.add_result(published.job_id, Result(name, f"{name}\n".encode(), name not in self.fails))


@dataclass
class Desk:
    """The commands in a folder of their own."""

    pice: Callable[..., Ran]
    folder: Path
    jobs: MemoryJobs = field(default_factory=MemoryJobs)
    transport: MemoryTransport = field(default_factory=MemoryTransport)
    num_opened: int = 0

    def __post_init__(self) -> None:
        self.source, self.out, self.config = (self.folder / name for name in ("in.jsonl", "out.jsonl", "cluster.toml"))
        self.source.write_text(line("a") + line("b"))
        self.config.write_text(CLUSTER)

    @asynccontextmanager
    async def open_jobs(self, settings: Settings) -> AsyncIterator[JobPorts]:
        self.num_opened += 1
        yield JobPorts(self.transport, self.jobs)

    def run(self, command: str, *args: str) -> Ran:
        return self.pice("batch", command, *args, "--config", str(self.config))

    def submit(self, *args: str) -> str:
        """The id of a job whose submission went well."""
        ran = self.run("submit", str(self.source), *args)
        assert ran.code == 0, ran.err
        return ran.out.strip()

    def finish(self, job_id: str, **answered: bool) -> None:
        async def add() -> None:
            for custom_id, is_answer in answered.items():
                name = f"id:{custom_id}"
                assert await self.jobs.add_result(job_id, Result(name, f"{name}\n".encode(), is_answer))

        asyncio.run(add())

    def job(self, job_id: str) -> Job:
        job = asyncio.run(self.jobs.job(job_id))
        assert job is not None
        return job

    def fetch(self, job_id: str, *args: str) -> Ran:
        return self.run("fetch", job_id, "-o", str(self.out), *args)


@pytest.fixture
def desk(pice: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(pice, tmp_path)
    monkeypatch.setattr("pice.cli.batch_jobs.open_jobs", desk.open_jobs)
    return desk


def test_submit_prints_the_id_alone_and_puts_the_lines_into_the_queue(desk: Desk) -> None:
    ran = desk.run("submit", str(desk.source), "--name", "nightly")
    assert (ran.code, ran.err) == (0, "2 lines are in the queue\n")
    assert re.fullmatch(r"job_[0-9a-f]{24}\n", ran.out)
    job = desk.job(ran.out.strip())
    assert (job.name, job.num_lines, job.sealed_s is not None) == ("nightly", 2, True)
    assert desk.transport.num_messages(JOBS) == 2


def test_two_jobs_of_one_file_are_two(desk: Desk) -> None:
    assert desk.submit() != desk.submit()


def test_invalid_lines_are_told_and_submitted(desk: Desk) -> None:
    desk.source.write_text(line("a") + "{torn\n")
    ran = desk.run("submit", str(desk.source))
    assert "1 lines are invalid and will fail; the first: line 2: must be one JSON object" in ran.err
    assert desk.transport.num_messages(JOBS) == 2


@pytest.mark.parametrize("command", ["submit FILE", "status", "fetch ID -o x", "cancel ID"])
def test_settings_without_brokers_are_refused_and_the_other_way_is_named(desk: Desk, command: str) -> None:
    desk.config.write_text(SMALL)
    ran = desk.run(*command.replace("FILE", "missing.jsonl").replace("ID", "job_" + "0" * 24).split(" "))
    assert ran.code == 2
    assert "expected the tables [kafka] and [redis]" in ran.err
    assert "`pice batch run`" in ran.err
    assert desk.num_opened == 0


@pytest.mark.parametrize(
    ("args", "content", "says"),
    [
        (("--job", "job_9"), None, "expected the id of a job, job_ and 24 hexadecimal digits, got 'job_9'"),
        (("--job", "job_" + "0" * 24), None, "there is no job job_0000"),
        (("--name", "x" * 81), None, "--name must be at most 80 printable characters"),
        (("--name", "\x1b[2J"), None, "--name must be at most 80 printable characters"),
        ((), "\n\n", "has no lines: there is nothing to submit"),
        ((), line("a") * 2, "lines 1 and 2 have the same custom_id 'a'"),
    ],
    ids=["no id", "unknown job", "long name", "name that steers", "no lines", "custom_id twice"],
)
def test_what_cannot_be_submitted_is_refused(desk: Desk, args: tuple[str, ...], content: str | None, says: str) -> None:
    if content is not None:
        desk.source.write_text(content)
    ran = desk.run("submit", str(desk.source), *args)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert desk.transport.num_messages(JOBS) == 0


def test_submission_that_was_cut_short_says_how_to_go_on_and_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise TransportError("no broker")

    with monkeypatch.context() as patch:
        patch.setattr(desk.transport, "publish", away)
        cut = desk.run("submit", str(desk.source))
    job_id = cut.out.strip()
    assert cut.code == 1
    assert f"0 of 2 lines are in the queue; submit the file with --job {job_id} to go on" in cut.err
    assert "error: no broker" in cut.err
    assert desk.job(job_id).sealed_s is None
    assert desk.submit("--job", job_id) == job_id
    assert desk.job(job_id).sealed_s is not None
    desk.source.write_text(line("c"))
    assert desk.run("submit", str(desk.source), "--job", job_id).code == 2


@pytest.mark.parametrize(("fails", "code"), [(frozenset[str](), 0), (frozenset({"id:b"}), 3)])
def test_waiting_ends_with_the_code_of_the_job(desk: Desk, fails: frozenset[str], code: int) -> None:
    desk.transport = answering = Answering(desk.jobs)
    answering.fails = fails
    ran = desk.run("submit", str(desk.source), "--wait")
    assert ran.code == code
    assert f"2 lines: {2 - len(fails)} answered, {len(fails)} failed" in ran.err


def test_signal_ends_the_waiting_and_not_the_job(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    shutdown, seal = Shutdown(), desk.jobs.seal

    async def interrupted(job_id: str) -> bool:
        asyncio.get_running_loop().call_later(0.01, shutdown.draining.set)
        return await seal(job_id)

    def run(main: Callable[[Shutdown], Coroutine[Any, Any, int]]) -> int:
        return asyncio.run(main(shutdown))

    with monkeypatch.context() as patch:
        patch.setattr(desk.jobs, "seal", interrupted)
        patch.setattr("pice.cli.session.run", run)
        ran = desk.run("submit", str(desk.source), "--wait")
    job_id = ran.out.strip()
    assert ran.code == 130
    assert f"the job goes on: `pice batch status {job_id}` says how far it is" in ran.err
    assert desk.job(job_id).is_open


def test_status_shows_one_job_or_all(desk: Desk) -> None:
    first, second = desk.submit("--name", "nightly"), desk.submit()
    desk.finish(first, a=True, b=False)
    one = desk.run("status", first).out.splitlines()
    assert one[:2] == [f"{first}  completed  nightly", "2 lines: 1 answered, 1 failed, 0 left"]
    assert re.fullmatch(r"created .* UTC, queued .* UTC, ended .* UTC", one[2])
    table = [row.split() for row in desk.run("status").out.splitlines()]
    assert table[0] == ["ID", "STATUS", "LINES", "ANSWERED", "FAILED", "CREATED", "NAME"]
    assert [row[:5] for row in table[1:]] == [
        [second, "in_progress", "2", "0", "0"],
        [first, "completed", "2", "1", "1"],
    ]
    assert table[2][-1] == "nightly"


def test_status_in_json_is_a_batch_or_a_list_of_them(desk: Desk) -> None:
    job_id = desk.submit()
    shown = json.loads(desk.run("status", job_id, "--json").out)
    assert (shown["id"], shown["object"], shown["status"]) == (job_id, "batch", "in_progress")
    assert shown["request_counts"] == {"total": 2, "completed": 0, "failed": 0}
    assert json.loads(desk.run("status", "--json").out)["data"] == [shown]


def test_finished_job_is_fetched(desk: Desk) -> None:
    job_id = desk.submit()
    desk.finish(job_id, a=True, b=True)
    ran = desk.fetch(job_id)
    assert (ran.code, ran.out, ran.err) == (0, "", "2 lines: 2 answered, 0 failed\n")
    assert sorted(desk.out.read_text().splitlines()) == ["id:a", "id:b"]
    again = desk.fetch(job_id)
    assert (again.code, "out.jsonl is there already: --overwrite it" in again.err) == (2, True)
    assert desk.fetch(job_id, "--overwrite", "--quiet") == Ran(0, "", "")


def test_failures_end_a_fetch_with_3(desk: Desk) -> None:
    job_id = desk.submit()
    desk.finish(job_id, a=True, b=False)
    assert desk.fetch(job_id).code == 3
    assert (desk.out.read_text(), errors_path(desk.out).read_text()) == ("id:a\n", "id:b\n")
    assert desk.fetch(job_id, "--overwrite", "--single-file").code == 3
    assert sorted(desk.out.read_text().splitlines()) == ["id:a", "id:b"]
    assert not errors_path(desk.out).exists()


def test_running_job_is_fetched_only_in_part(desk: Desk) -> None:
    job_id = desk.submit()
    desk.finish(job_id, a=True)
    refused = desk.fetch(job_id)
    assert (refused.code, desk.out.exists()) == (1, False)
    assert f"{job_id} still runs, 1 lines are left: wait, or take what there is: --partial" in refused.err
    ran = desk.fetch(job_id, "--partial")
    assert (ran.code, ran.err) == (1, "2 lines: 1 answered, 0 failed, 1 without a result\n")
    assert desk.out.read_text() == "id:a\n"


def test_cancelled_job_gives_what_it_has(desk: Desk) -> None:
    job_id = desk.submit()
    desk.finish(job_id, a=True)
    ran = desk.run("cancel", job_id)
    assert ran.code == 0
    assert ran.err == f"{job_id} is cancelled; 2 lines: 1 answered, 0 failed, 1 without a result\n"
    assert desk.run("status", job_id).out.startswith(f"{job_id}  cancelled\n")
    assert (desk.fetch(job_id).code, desk.out.read_text()) == (1, "id:a\n")
    assert desk.run("submit", str(desk.source), "--job", job_id).code == 2
    assert desk.run("cancel", job_id).code == 0


def test_job_that_has_ended_cannot_be_cancelled(desk: Desk) -> None:
    job_id = desk.submit()
    desk.finish(job_id, a=True, b=True)
    ran = desk.run("cancel", job_id)
    assert (ran.code, "has ended: there is nothing to cancel" in ran.err) == (2, True)


@pytest.mark.parametrize("command", ["status", "fetch", "cancel"])
def test_unknown_job_is_refused(desk: Desk, command: str) -> None:
    args = ["-o", str(desk.out)] if command == "fetch" else []
    unknown = desk.run(command, "job_" + "0" * 24, *args)
    assert (unknown.code, "there is no job job_000000000000000000000000" in unknown.err) == (2, True)
    wrong = desk.run(command, "../job", *args)
    assert (wrong.code, "expected the id of a job" in wrong.err) == (2, True)
