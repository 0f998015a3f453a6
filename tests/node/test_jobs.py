"""What becomes of the lines of a job, whatever becomes of those that run them."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from pice.batch.format import request_id_of
from pice.core import Failure, Job, JobLine
from pice.errors import DecodeError, EngineUnavailable, Full, TransportError
from pice.jobs.base import JobStore, Result
from pice.jobs.memory import MemoryJobs
from pice.message.codec import encode
from pice.node.client import Client
from pice.node.jobs import JobsNode, JobsPolicy
from pice.simulation.cluster import TrackingTransport
from pice.simulation.faults import Life, mortal
from pice.store.memory import MemoryStore
from pice.transport.base import DEAD, JOBS, REQUESTS
from tests.node.scripted import Script, ScriptedEngine
from tests.node.stage import Stage, a_request, time_passes

JOB = "job_1"
SLOW = Script("The moon pulls.", step_s=1.0)
DEADLINE_S = 500.0


def line(custom_id: str, **fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": f"What about {custom_id}?"}], **fields}
    ask = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(ask).encode() + b"\n"


@dataclass
class Runner:
    """A node that runs lines, in a life of its own."""

    stopping: asyncio.Event
    task: asyncio.Task[None]
    life: Life
    transport: TrackingTransport

    async def stop(self) -> None:
        """Drains it, if it lives. Raises what it raised."""
        self.stopping.set()
        if not self.life.dead:
            await self.task

    async def die(self) -> None:
        """As by kill -9: nothing more of it is seen, and the queue gives what it had to others."""
        self.life.kill()
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.transport.close()


@dataclass
class Desk:
    """A job store beside a stage, and what a test submits to them."""

    stage: Stage
    jobs: JobStore = field(default_factory=MemoryJobs)
    runners: list[Runner] = field(default_factory=list)

    async def submit(self, *lines: bytes) -> None:
        await self.jobs.create(Job(JOB, "", "", len(lines)))
        await self.publish(*lines)
        await self.jobs.seal(JOB)

    async def publish(self, *lines: bytes, job_id: str = JOB) -> None:
        for number, raw in enumerate(lines, start=1):
            await self.stage.transport.publish(JOBS, encode(JobLine(job_id, number, raw)), key=str(number))

    def start(self, **policy: Any) -> Runner:
        life = Life(on_death=lambda: None)
        tracking = TrackingTransport(self.stage.transport)
        transport, store = mortal(tracking, life), mortal(self.stage.store, life)
        node = JobsNode(
            transport=transport,
            store=store,
            jobs=mortal(self.jobs, life),
            client=Client(transport, store),
            policy=JobsPolicy(**policy),
            wall_s=lambda: 1_700_000_000.5,
        )
        stopping = asyncio.Event()
        self.runners.append(Runner(stopping, asyncio.ensure_future(node.run(stopping)), life, tracking))
        return self.runners[-1]

    async def job(self) -> Job:
        job = await self.jobs.job(JOB)
        assert job is not None
        return job

    async def ended(self) -> Job:
        """The job, once it has all results."""
        async with asyncio.timeout(DEADLINE_S):
            while (await self.job()).is_open:
                await time_passes(0.1)
        return await self.job()

    async def results(self) -> dict[str, Any]:
        async with aclosing(self.jobs.results(JOB)) as results:
            return {each.name: json.loads(each.line) | {"answered": each.answered} async for each in results}

    def num_waiting(self) -> int:
        return self.stage.transport.num_messages(JOBS)

    async def outcome_code(self, number: int = 0, custom_id: str = "a") -> str:
        record = await self.stage.record(request_id_of(JOB, custom_id, number))
        return record.outcome.code if isinstance(record.outcome, Failure) else "answered"


@pytest.fixture
async def desk(stage: Stage) -> AsyncIterator[Desk]:
    desk = Desk(stage)
    yield desk
    for runner in desk.runners:
        await runner.stop()


def errors_of(results: dict[str, Any]) -> dict[str, str]:
    """By name, the code of what went wrong."""
    return {
        name: (each["error"] or each["response"]["body"]["error"])["code"]
        for name, each in results.items()
        if not each["answered"]
    }


async def test_every_line_is_answered_and_acknowledged(desk: Desk) -> None:
    engine = ScriptedEngine("big", Script("The moon pulls."))
    desk.stage.cloud(engine)
    desk.start()
    await desk.submit(*(line(f"q{number}") for number in range(5)))
    job = await desk.ended()
    assert (job.num_answered, job.num_failed, desk.num_waiting()) == (5, 0, 0)
    results = await desk.results()
    assert sorted(results) == [f"id:q{number}" for number in range(5)]
    first = results["id:q0"]
    assert (first["custom_id"], first["response"]["request_id"]) == ("q0", request_id_of(JOB, "q0"))
    body = first["response"]["body"]
    assert (body["created"], body["choices"][0]["message"]["content"]) == (1_700_000_000, "The moon pulls.")


async def test_line_that_is_no_request_fails_and_the_others_go_on(desk: Desk) -> None:
    desk.stage.cloud(ScriptedEngine("big", Script("The moon pulls.")))
    desk.start()
    no_question = line("c", messages=[{"role": "assistant", "content": "?"}])
    await desk.submit(b'{"custom_id":"\xff"}\n', b"{torn\n", no_question, line("d", logprobs=True), line("e"))
    job = await desk.ended()
    assert (job.num_answered, job.num_failed, desk.num_waiting()) == (1, 4, 0)
    results = await desk.results()
    assert errors_of(results) == {
        "line:1": "invalid_request",
        "line:2": "invalid_request",
        "id:c": "invalid_request",
        "id:d": "unsupported_parameter",
    }
    assert results["line:1"]["line"] == 1


async def test_no_more_lines_are_asked_at_once_than_may_be(desk: Desk) -> None:
    engine = ScriptedEngine("big", SLOW)
    desk.stage.cloud(engine)
    desk.start(max_inflight=2)
    await desk.submit(*(line(f"q{number}") for number in range(5)))
    most = 0
    while (await desk.job()).is_open:
        most = max(most, engine.num_running)
        await time_passes(0.1)
    assert (most, len(engine.prompts)) == (2, 5)


async def test_two_runners_ask_each_line_once(desk: Desk) -> None:
    engine = ScriptedEngine("big", Script("The moon pulls."))
    desk.stage.cloud(engine)
    desk.start(max_inflight=2)
    desk.start(max_inflight=2)
    await desk.submit(*(line(f"q{number}") for number in range(9)))
    assert (await desk.ended()).num_answered == 9
    assert len(engine.prompts) == 9


async def test_line_submitted_twice_is_asked_once(desk: Desk) -> None:
    engine = ScriptedEngine("big", SLOW)
    desk.stage.cloud(engine)
    desk.start()
    await desk.submit(line("a"), line("b"))
    await time_passes(1)
    await desk.publish(line("a"))
    await time_passes(2.5)
    await desk.publish(line("a"), line("b"))
    assert (await desk.ended()).num_answered == 2
    await time_passes(5)
    assert (len(engine.prompts), desk.num_waiting()) == (2, 0)


async def test_line_redelivered_while_its_request_runs_follows_it(desk: Desk) -> None:
    engine = ScriptedEngine("big", SLOW)
    desk.stage.cloud(engine)
    first = desk.start()
    await desk.submit(line("a"))
    await time_passes(1.5)
    await first.die()
    assert (await desk.stage.record(request_id_of(JOB, "a"))).outcome is None
    desk.start()
    assert (await desk.ended()).num_answered == 1
    assert len(engine.prompts) == 1
    assert desk.stage.store.now() == pytest.approx(3.1, abs=0.2)


async def test_line_redelivered_after_its_request_ended_reads_the_outcome(desk: Desk) -> None:
    engine = ScriptedEngine("big", SLOW)
    desk.stage.cloud(engine)
    first = desk.start()
    await desk.submit(line("a"))
    await time_passes(1.5)
    await first.die()
    await time_passes(5)
    assert await desk.outcome_code() == "answered"
    desk.start()
    await time_passes(0.01)
    assert ((await desk.job()).num_answered, len(engine.prompts), desk.num_waiting()) == (1, 1, 0)


@pytest.mark.parametrize("num_calls", range(1, 14))
async def test_runner_that_dies_at_any_call_costs_no_line_and_no_second_answer(desk: Desk, num_calls: int) -> None:
    """Between any two of its calls: before and after the request, its answer, its result."""
    engine = ScriptedEngine("big", Script("The moon pulls."))
    desk.stage.cloud(engine)
    await desk.submit(line("a"), line("b"))
    first = desk.start(max_inflight=1)
    first.life.die_after(num_calls)
    await time_passes(1)
    await first.die()
    desk.start()
    assert (await desk.ended()).num_answered == 2
    await time_passes(1)
    assert (len(engine.prompts), desk.num_waiting()) == (2, 0)


async def test_line_of_a_runner_that_was_drained_is_asked_anew(desk: Desk) -> None:
    engine = ScriptedEngine("big", SLOW)
    desk.stage.cloud(engine)
    first = desk.start(drain_s=0.5)
    await desk.submit(line("a"))
    await time_passes(1)
    await first.stop()
    assert await desk.outcome_code() == "cancelled"
    assert ((await desk.job()).num_left, desk.num_waiting()) == (1, 1)
    desk.start()
    assert (await desk.ended()).num_answered == 1
    assert (await desk.results())["id:a"]["response"]["request_id"] == request_id_of(JOB, "a", 1)


async def test_runner_asked_to_stop_finishes_what_it_has_in_hand(desk: Desk) -> None:
    desk.stage.cloud(ScriptedEngine("big", SLOW))
    first = desk.start(max_inflight=1)
    await desk.submit(line("a"), line("b"))
    await time_passes(1)
    await first.stop()
    assert ((await desk.job()).num_answered, desk.num_waiting()) == (1, 1)


async def test_cancelled_job_ends_the_lines_in_hand_and_drops_the_rest(desk: Desk) -> None:
    engine = ScriptedEngine("big", SLOW)
    desk.stage.cloud(engine)
    desk.start(max_inflight=1)
    await desk.submit(line("a"), line("b"), line("c"))
    await time_passes(1.5)
    await desk.jobs.cancel(JOB)
    await time_passes(1.5)
    assert (await desk.outcome_code(), engine.num_running, len(engine.prompts)) == ("cancelled", 0, 1)
    assert (desk.num_waiting(), await desk.results()) == (0, {})


async def test_cancelled_job_ends_a_request_that_another_runner_began(desk: Desk) -> None:
    engine = ScriptedEngine("big", SLOW)
    desk.stage.cloud(engine)
    first = desk.start()
    await desk.submit(line("a"))
    await time_passes(0.5)
    await first.die()
    desk.start(sweep_s=0.5)
    await time_passes(0.2)
    await desk.jobs.cancel(JOB)
    await time_passes(1)
    assert (await desk.outcome_code(), engine.num_running, desk.num_waiting()) == ("cancelled", 0, 0)


async def test_lines_of_an_unknown_job_are_dropped(desk: Desk) -> None:
    engine = ScriptedEngine("big", SLOW)
    desk.stage.cloud(engine)
    desk.start()
    await desk.publish(line("a"), job_id="job_9")
    await time_passes(0.1)
    assert (desk.num_waiting(), engine.prompts) == (0, [])


async def test_junk_is_put_aside_and_lines_after_it_are_answered(desk: Desk) -> None:
    desk.stage.cloud(ScriptedEngine("big", Script("The moon pulls.")))
    desk.start()
    await desk.stage.transport.publish(JOBS, b"\xc1 no message")
    await desk.stage.transport.publish(JOBS, encode(a_request()))
    await desk.submit(line("a"))
    assert (await desk.ended()).num_answered == 1
    assert (desk.num_waiting(), desk.stage.transport.num_messages(DEAD)) == (0, 2)
    assert (await desk.stage.dead()).payload == b"\xc1 no message"


async def test_line_that_ended_its_runners_too_often_fails_and_is_put_aside(desk: Desk) -> None:
    desk.stage.cloud(ScriptedEngine("big", Script("The moon pulls.")))
    await desk.submit(line("a"), line("b"))
    for _ in range(2):
        subscription = await desk.stage.transport.subscribe(JOBS, group="jobs")
        assert b'"a"' in (await subscription.receive()).payload
        await subscription.close()
    desk.start(max_deliveries=2)
    job = await desk.ended()
    assert (job.num_answered, job.num_failed) == (1, 1)
    assert (await desk.results())["id:a"]["error"]["message"].startswith("it was delivered 2 times before")
    assert b'"a"' in (await desk.stage.dead()).payload


async def test_retriable_failure_is_tried_again_under_another_id(desk: Desk) -> None:
    engine = ScriptedEngine("big", Script("The moon pulls."))
    desk.stage.cloud(engine, max_deliveries=1)
    engine.down = EngineUnavailable("it restarts")
    desk.start()
    await desk.submit(line("a"))
    await time_passes(0.5)
    engine.down = None
    assert (await desk.ended()).num_answered == 1
    assert (await desk.outcome_code(0), await desk.outcome_code(1)) == ("engine_unavailable", "answered")


async def test_failure_that_lasts_fails_the_line_when_its_time_is_over(desk: Desk) -> None:
    engine = ScriptedEngine("big", Script("The moon pulls."))
    desk.stage.cloud(engine, max_deliveries=1)
    engine.down = EngineUnavailable("it restarts")
    desk.start(timeout_s=5.0)
    await desk.submit(line("a"), line("b", pice={"timeout_s": 30}))
    await time_passes(10)
    assert errors_of(await desk.results()) == {"id:a": "engine_unavailable"}
    assert (await desk.ended()).num_failed == 2


async def test_line_refused_at_the_door_waits_under_the_same_id(desk: Desk) -> None:
    """So that whoever is given it later finds its request."""
    desk.stage.store = MemoryStore(max_open=1)
    await desk.stage.submit(a_request("other", timeout_s=400.0))
    desk.start(timeout_s=5.0)
    await desk.submit(line("a"))
    await time_passes(50)
    assert (await desk.job()).num_left == 1
    desk.stage.cloud(ScriptedEngine("big", Script("The moon pulls.")))
    assert (await desk.ended()).num_answered == 1
    assert (await desk.results())["id:a"]["response"]["request_id"] == request_id_of(JOB, "a")


async def test_record_that_cannot_be_read_does_not_end_the_runner(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreadable(request_id: str) -> None:
        raise DecodeError("of another version")

    engine = ScriptedEngine("big", Script("The moon pulls."))
    desk.stage.cloud(engine)
    desk.start()
    await time_passes(0.1)
    monkeypatch.setattr(desk.stage.store, "record", unreadable)
    await desk.submit(line("a"))
    assert ((await desk.ended()).num_answered, len(engine.prompts)) == (1, 1)


async def test_queue_that_goes_away_ends_the_runner_with_that_error(desk: Desk) -> None:
    runner = desk.start()
    await time_passes(0.1)
    await runner.transport.close()
    with pytest.raises(TransportError, match="closed"):
        await runner.task
    desk.runners.clear()


class Moody:
    """A job store that raises its errors first, one at each call."""

    def __init__(self, *errors: TransportError) -> None:
        self.inner = MemoryJobs()
        self.errors = list(errors)

    async def create(self, job: Job) -> None:
        await self.inner.create(job)

    async def seal(self, job_id: str) -> bool:
        return await self.inner.seal(job_id)

    async def cancel(self, job_id: str) -> bool:
        return await self.inner.cancel(job_id)

    async def job(self, job_id: str) -> Job | None:
        return await self.inner.job(job_id)

    async def jobs(self) -> list[Job]:
        return await self.inner.jobs()

    def results(self, job_id: str) -> AsyncGenerator[Result, None]:
        return self.inner.results(job_id)

    async def wanted(self, job_id: str, name: str) -> bool:
        self._fail()
        return await self.inner.wanted(job_id, name)

    async def add_result(self, job_id: str, result: Result) -> bool:
        self._fail()
        return await self.inner.add_result(job_id, result)

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


async def test_result_waits_for_room_and_is_not_asked_for_again(desk: Desk) -> None:
    moody = desk.jobs = Moody()
    engine = ScriptedEngine("big", Script("The moon pulls."))
    desk.stage.cloud(engine)
    desk.start()
    await desk.submit(line("a"))
    await time_passes(0.001)
    moody.errors = [Full("no room", retry_after_s=7.0)] * 20
    assert (await desk.ended()).num_answered == 1
    assert desk.stage.store.now() == pytest.approx(140.1, abs=0.2)
    assert (len(engine.prompts), desk.num_waiting()) == (1, 0)


async def test_job_store_that_is_away_is_no_fault_of_the_line(desk: Desk) -> None:
    """However often it is tried, the line counts as begun once."""
    desk.jobs = Moody(*[TransportError("away")] * 40)
    engine = ScriptedEngine("big", Script("The moon pulls."))
    desk.stage.cloud(engine)
    desk.start(max_deliveries=1)
    await desk.submit(line("a"))
    assert (await desk.ended()).num_answered == 1
    assert (len(engine.prompts), desk.stage.transport.num_messages(DEAD)) == (1, 0)


async def test_queue_that_never_carried_the_request_costs_only_its_time(desk: Desk) -> None:
    """A former runner died after it had opened the request; nobody but its deadline ended it."""
    await desk.stage.store.open(a_request(request_id_of(JOB, "a"), timeout_s=20.0))
    await desk.stage.store.close_request(
        request_id_of(JOB, "a"), None, Failure(request_id_of(JOB, "a"), "deadline_exceeded", "20 s are over")
    )
    desk.stage.cloud(ScriptedEngine("big", Script("The moon pulls.")))
    desk.start()
    await desk.submit(line("a"))
    assert (await desk.ended()).num_answered == 1
    assert desk.stage.transport.num_messages(REQUESTS) == 0
