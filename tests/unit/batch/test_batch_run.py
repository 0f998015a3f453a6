import asyncio
import errno
import json
import math
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pice.batch.run
from pice.batch.files import BatchFiles, errors_path
from pice.batch.format import Key
from pice.batch.progress import Progress
from pice.batch.run import run_batch
from pice.batch.source import read_lines, survey
from pice.core import Answer, Plan, Request, Usage
from pice.errors import DeadlineExceeded, InputError, OutputLost, Overloaded, TransportError, Unavailable
from pice.simulation.clock import run_virtual

DEADLINE_S = 10.0
Ask = Callable[[Request], Awaitable[Answer]]


def line(custom_id: str, question: str = "", **options: Any) -> bytes:
    messages = [{"role": "user", "content": question or custom_id}]
    body = {"model": "m", "messages": messages, "pice": options}
    ask = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(ask).encode() + b"\n"


def answer(request: Request) -> Answer:
    question = request.messages[-1].content
    return Answer(
        request.request_id,
        f"To {question}.",
        "cloud",
        "stop",
        1,
        Plan("cloud", "short"),
        usage=Usage(num_answer_tokens=5),
    )


async def answer_at_once(request: Request) -> Answer:
    await asyncio.sleep(0)
    return answer(request)


class Batch:
    """An input and an output, run as often as a test likes."""

    def __init__(self, tmp_path: Path, content: bytes) -> None:
        self.source = tmp_path / "in.jsonl"
        self.out = tmp_path / "out.jsonl"
        self.source.write_bytes(content)
        self.stop = asyncio.Event()
        self.seen: list[Progress] = []
        self.asked: list[Request] = []

    async def run(
        self, ask: Ask = answer_at_once, *, concurrency: int = 4, run_id: str = "run1", deadline_s: float = DEADLINE_S
    ) -> Progress:
        async def noted(request: Request) -> Answer:
            self.asked.append(request)
            return await ask(request)

        with BatchFiles(self.out, source=self.source) as files:
            async with asyncio.timeout(deadline_s):
                return await run_batch(
                    noted,
                    survey(self.source),
                    files,
                    run_id=run_id,
                    concurrency=concurrency,
                    timeout_s=60.0,
                    stop=self.stop,
                    wall_s=lambda: 1_700_000_000.5,
                    progress=self.seen.append,
                )

    def written(self) -> Counter[Key]:
        lines = [json.loads(raw) for path in self.paths() for raw in path.read_bytes().splitlines()]
        return Counter(line["custom_id"] or line["line"] for line in lines)

    def whole_lines(self) -> set[Key]:
        lines = self.out.read_bytes().splitlines(keepends=True)
        return {json.loads(raw)["custom_id"] for raw in lines if raw.endswith(b"\n")}

    def failures(self) -> dict[Key, Any]:
        lines = [json.loads(raw) for raw in errors_path(self.out).read_bytes().splitlines()]
        return {line["custom_id"] or line["line"]: line for line in lines}

    def paths(self) -> list[Path]:
        return [path for path in (self.out, errors_path(self.out)) if path.exists()]


def once(*keys: Key) -> Counter[Key]:
    return Counter(keys)


async def test_every_line_is_answered_once(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line("a") + b"\n" + line("b") + line("c"))
    end = await batch.run()
    assert batch.written() == once("a", "b", "c")
    assert (end.total, end.answered, end.failed, end.left, end.num_output_tokens) == (3, 3, 0, 0, 15)
    first = json.loads(batch.out.read_bytes().splitlines()[0])["response"]["body"]
    assert (first["created"], first["choices"][0]["message"]["content"]) == (1_700_000_000, "To a.")


async def test_invalid_line_fails_with_its_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line("a") + b"{\n" + line("b", timeout_s=-1) + line("c"))
    end = await batch.run()
    assert batch.written() == once("a", 2, "b", "c")
    assert (end.answered, end.failed) == (2, 2)
    assert batch.failures()[2]["response"]["body"]["error"]["message"].startswith("line 2: must be one JSON object")
    assert batch.failures()["b"]["response"]["status_code"] == 400
    await batch.run()
    assert batch.written() == once("a", 2, "b", "c")
    assert len(batch.asked) == 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_kill_at_any_byte_and_rerun_give_each_line_once(tmp_path: Path, data: st.DataObject) -> None:
    content = b"".join(line(f"q{number}") if number % 3 else b"[]\n" for number in range(1, 7))
    for path in Batch(tmp_path, content).paths():
        path.unlink()
    left = {"q1", "q2", "q4", "q5"}
    for number in range(data.draw(st.integers(1, 3), label="kills") + 1):
        batch = Batch(tmp_path, content)
        asyncio.run(batch.run(run_id=f"run{number}", concurrency=data.draw(st.integers(1, 7), label="concurrency")))
        assert batch.written() == once("q1", "q2", 3, "q4", "q5", 6)
        assert {request.messages[-1].content for request in batch.asked} == left
        for path in batch.paths():
            whole = path.read_bytes()
            kept = whole[: data.draw(st.integers(0, len(whole)), label=f"bytes left of {path.name}")]
            path.write_bytes(kept)
        left = {"q1", "q2", "q4", "q5"} - batch.whole_lines()


async def test_rerun_asks_only_what_is_left_and_under_other_request_ids(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line("a") + line("b") + line("c"))
    await batch.run()
    batch.out.write_bytes(b"".join(batch.out.read_bytes().splitlines(keepends=True)[:2])[:-1])
    first = {request.request_id for request in batch.asked}
    batch.asked.clear()
    end = await batch.run(run_id="run2")
    assert [request.messages[-1].content for request in batch.asked] == ["b", "c"]
    assert not first & {request.request_id for request in batch.asked}
    assert (end.answered_before, end.answered, end.left) == (1, 2, 0)
    assert batch.written() == once("a", "b", "c")


async def test_failures_are_left_alone_until_they_are_forgotten(tmp_path: Path) -> None:
    async def refuse_b(request: Request) -> Answer:
        if request.messages[-1].content == "b":
            raise DeadlineExceeded("too late")
        return answer(request)

    batch = Batch(tmp_path, line("a") + line("b"))
    assert (await batch.run(refuse_b)).failed == 1
    assert batch.failures()["b"]["response"]["body"]["error"]["code"] == "deadline_exceeded"
    assert (await batch.run()).failed_before == 1
    with BatchFiles(batch.out) as files:
        files.forget_failed()
    end = await batch.run()
    assert (end.answered_before, end.failed_before, end.answered) == (1, 0, 1)
    assert batch.written() == once("a", "b")
    assert not errors_path(batch.out).exists()


async def test_no_more_than_concurrency_are_asked_and_lines_are_read_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read = num_asking = most_asking = most_held = num_answered = 0

    def counted(path: Path) -> Generator[tuple[int, bytes], None, None]:
        nonlocal num_read
        for found in read_lines(path):
            num_read += 1
            yield found

    async def ask(request: Request) -> Answer:
        nonlocal num_asking, most_asking, most_held, num_answered
        num_asking += 1
        most_asking = max(most_asking, num_asking)
        most_held = max(most_held, num_read - num_answered)
        for _ in range(int(request.messages[-1].content) % 5):
            await asyncio.sleep(0)
        num_asking -= 1
        num_answered += 1
        return answer(request)

    monkeypatch.setattr(pice.batch.run, "read_lines", counted)
    batch = Batch(tmp_path, b"".join(line(f"q{number}", str(number)) for number in range(200)))
    await batch.run(ask, concurrency=8)
    assert (most_asking, most_held, num_answered) == (8, 8, 200)


async def test_stop_finishes_what_is_asked_and_begins_nothing_more(tmp_path: Path) -> None:
    batch = Batch(tmp_path, b"".join(line(f"q{number}") for number in range(9)))
    finish = asyncio.Event()

    async def ask(request: Request) -> Answer:
        if len(batch.asked) == 3:
            batch.stop.set()
            asyncio.get_running_loop().call_soon(finish.set)
        await finish.wait()
        return answer(request)

    end = await batch.run(ask, concurrency=3)
    assert batch.written() == once("q0", "q1", "q2")
    assert (end.answered, end.left) == (3, 6)


async def test_cancelling_keeps_what_was_written_and_gives_the_rest_up(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line("a") + line("b") + line("c"))
    waiting = asyncio.Event()

    async def ask(request: Request) -> Answer:
        if request.messages[-1].content == "b":
            waiting.set()
            await asyncio.Event().wait()
        return answer(request)

    task = asyncio.create_task(batch.run(ask, concurrency=1))
    async with asyncio.timeout(DEADLINE_S):
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert batch.written() == once("a")
    await batch.run()
    assert batch.written() == once("a", "b", "c")


def run_in_virtual_time(batch: Batch, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> Progress:
    monkeypatch.setattr(pice.batch.run, "SYNC_EVERY_S", math.inf)
    return run_virtual(batch.run(ask, deadline_s=1_000.0))


def test_retriable_error_is_tried_again_after_its_pause_under_another_request_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [Overloaded("full", retry_after_s=3.0), TransportError("no broker"), Overloaded("full", retry_after_s=0.0)]
    asked_s: list[float] = []

    async def ask(request: Request) -> Answer:
        asked_s.append(asyncio.get_running_loop().time())
        if errors:
            raise errors.pop(0)
        return answer(request)

    batch = Batch(tmp_path, line("a", timeout_s=5))
    end = run_in_virtual_time(batch, ask, monkeypatch)
    assert (end.answered, end.failed) == (1, 0)
    assert asked_s == pytest.approx([0, 3, 4, 4.05])
    assert len({request.request_id for request in batch.asked}) == 4
    assert {request.timeout_s for request in batch.asked} == {5}


def test_time_refused_at_the_door_is_not_the_lines_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But its other tries and pauses are: 2 s here, of 3."""

    async def ask(request: Request) -> Answer:
        if len(batch.asked) <= 100:
            raise Overloaded("1024 requests are open", retry_after_s=2.0)
        if len(batch.asked) <= 102:
            raise TransportError("no broker")
        return answer(request)

    batch = Batch(tmp_path, line("a", timeout_s=3))
    end = run_in_virtual_time(batch, ask, monkeypatch)
    assert (end.answered, end.failed) == (1, 0)
    assert end.elapsed_s == pytest.approx(202)


def test_retriable_error_fails_when_waiting_would_outlast_the_lines_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(request: Request) -> Answer:
        await asyncio.sleep(1.0)
        raise Unavailable("the engine is down", failure_code="engine_unavailable")

    batch = Batch(tmp_path, line("a", timeout_s=5) + line("b"))
    end = run_in_virtual_time(batch, ask, monkeypatch)
    assert end.failed == 2
    assert Counter(request.messages[-1].content for request in batch.asked) == {"a": 3, "b": 31}
    response = batch.failures()["a"]["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (503, "engine_unavailable")
    assert response["request_id"] == [r.request_id for r in batch.asked if r.messages[-1].content == "a"][-1]


async def test_stop_between_two_tries_leaves_the_line_undone(tmp_path: Path) -> None:
    async def ask(request: Request) -> Answer:
        asyncio.get_running_loop().call_soon(batch.stop.set)
        raise Overloaded("full", retry_after_s=30.0)

    batch = Batch(tmp_path, line("a"))
    end = await batch.run(ask)
    assert (end.left, batch.written()) == (1, once())


async def test_unexpected_error_ends_the_batch_loudly_and_keeps_what_was_written(tmp_path: Path) -> None:
    async def ask(request: Request) -> Answer:
        if request.messages[-1].content == "b":
            raise ZeroDivisionError("a bug")
        return answer(request)

    batch = Batch(tmp_path, line("a") + line("b") + line("c"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await batch.run(ask, concurrency=1)
    assert batch.written() == once("a")


async def test_result_that_cannot_be_written_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def full_after_the_first(fd: int, data: bytes) -> int:
        if batch.seen[-1].answered:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    batch = Batch(tmp_path, line("a") + line("b") + line("c"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_after_the_first)
        with pytest.raises(OutputLost, match="No space left on device"):
            await batch.run(concurrency=1)
    assert batch.written() == once("a")
    await batch.run()
    assert batch.written() == once("a", "b", "c")


async def test_input_that_shrank_after_the_survey_is_reported(tmp_path: Path) -> None:
    async def ask(request: Request) -> Answer:
        batch.source.write_bytes(b"")
        return answer(request)

    batch = Batch(tmp_path, line("a") + line("b", "x" * 300_000) + line("c"))
    with pytest.raises(InputError, match="the input must not change"):
        await batch.run(ask, concurrency=1)
    assert batch.written()["a"] == 1


async def test_progress_is_told_at_the_start_and_after_each_result(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line("a") + b"{\n" + line("b"))
    end = await batch.run(concurrency=1)
    assert [(seen.answered, seen.failed, seen.left) for seen in batch.seen] == [
        (0, 0, 3),
        (1, 0, 2),
        (1, 1, 1),
        (2, 1, 0),
    ]
    assert batch.seen[-1] == end


async def test_results_are_synced_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []
    monkeypatch.setattr(pice.batch.run, "SYNC_EVERY_S", 0.0)
    monkeypatch.setattr(
        BatchFiles, "sync", lambda self: threads.append(threading.current_thread() is threading.main_thread())
    )
    await Batch(tmp_path, line("a") + line("b")).run()
    assert threads == [False, False]


async def test_input_without_lines_gives_an_output_without_lines(tmp_path: Path) -> None:
    batch = Batch(tmp_path, b"\n")
    end = await batch.run()
    assert (end.total, end.left, batch.out.read_bytes()) == (0, 0, b"")


def test_rates_are_of_this_run_alone() -> None:
    progress = Progress(
        100, answered_before=50, failed_before=10, answered=15, failed=5, num_output_tokens=200, elapsed_s=10
    )
    assert (progress.finished, progress.left) == (80, 20)
    assert (progress.requests_per_s, progress.output_tokens_per_s, progress.eta_s) == (2.0, 20.0, 10.0)
    assert Progress(100).eta_s is None
