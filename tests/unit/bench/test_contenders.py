"""Contenders in processes of their own: what goes in and out, and that none is left behind."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")

from bench import contenders
from bench.contenders import Worker, serve
from bench.engine_pice import Spans, _timed
from bench.engine_work import Asked, Done, Job, Setup, Unfair, Written

DEADLINE_S = 60.0
JOB = Job((Asked(" a", " b", (1, 2)),), greedy=True, seed=7)
STARTS_A_CHILD = """
import subprocess, sys, time
from bench.lifeline import killed_with_parent
code = "import time; print('begun', flush=True); time.sleep(10); print('outlived its parent')"
subprocess.run([sys.executable, "-c", code], **killed_with_parent())
"""


class Echo:
    """Says how many segments it was asked for, as a rate."""

    def __init__(self, problem: Exception | None = None, *, starts: bool = True) -> None:
        self.problem, self.starts = problem, starts
        self.seen: list[Any] = []

    async def start(self) -> None:
        self.seen.append("start")
        if not self.starts:
            raise Unfair("not ready")

    async def run(self, job: Job) -> Done:
        if self.problem:
            raise self.problem
        self.seen.append(job)
        return Done(float(len(job.segments)), (Written(0.1, 0.2, 96, 2, 0),))

    async def close(self) -> None:
        self.seen.append("close")
        if not self.starts:
            raise AttributeError("nothing to close")


async def test_jobs_are_answered_line_by_line_until_there_are_no_more() -> None:
    echo, answers = Echo(), io.BytesIO()
    await serve(echo, io.BytesIO(2 * (orjson.dumps(JOB) + b"\n")), answers)
    assert echo.seen == ["start", JOB, JOB, "close"]
    assert [orjson.loads(line)["decode_per_s"] for line in answers.getvalue().splitlines()] == [1.0, 1.0]


async def test_contender_that_fails_is_closed() -> None:
    echo = Echo(Unfair("no"))
    with pytest.raises(Unfair, match="no"):
        await serve(echo, io.BytesIO(orjson.dumps(JOB) + b"\n"), io.BytesIO())
    assert echo.seen == ["start", "close"]


async def test_contender_that_fails_to_start_is_closed_as_far_as_it_had_begun() -> None:
    echo = Echo(starts=False)
    with pytest.raises(Unfair, match="not ready"):
        await serve(echo, io.BytesIO(), io.BytesIO())
    assert echo.seen == ["start", "close"]


@pytest.mark.parametrize("given_up", [False, True], ids=["waited for", "given up"])
async def test_contender_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_up: bool) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 1000\n")
    hangs.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(contenders, "END_WAIT_S", 1000.0 if given_up else 0.01)
    worker = Worker("echo", Setup(tmp_path, 1, 1, None), os.environ)
    async with asyncio.timeout(DEADLINE_S):
        await worker.__aenter__()
        ending = asyncio.create_task(worker.__aexit__())
        await asyncio.sleep(0)
        if given_up:
            ending.cancel()
        await asyncio.wait([ending])
    assert worker._process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_killed_benchmark_leaves_no_process_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS_A_CHILD], stdout=subprocess.PIPE, env=os.environ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"begun\n"
        parent.kill()
        assert parent.stdout.read() == b"", "the pipe ends with the last process that has it"


def spans(evaluating: list[tuple[int, int, int]], drawing: list[tuple[int, int, int]]) -> Spans:
    made = Spans.__new__(Spans)
    made._evaluating, made._drawing = evaluating, drawing
    return made


def test_shares_are_of_steps_in_which_each_segment_gets_a_token() -> None:
    prefill, first, second, third = (0, 500, 40), (600, 680, 2), (700, 780, 2), (800, 860, 2)
    waits, next_prefill = [(680, 690, 0), (780, 785, 0)], (900, 1300, 40)
    drawing = [(510, 590, 0), (691, 696, 0), (786, 791, 0), (870, 890, 0)]
    found = spans([prefill, first, waits[0], second, waits[1], third, next_prefill], drawing).shares(2)
    assert found == {"evaluating": 175 / 200, "drawing": 10 / 200, "rest": pytest.approx(15 / 200)}


def test_shares_are_refused_when_no_step_was_seen() -> None:
    with pytest.raises(Unfair, match="steps of 8 tokens"):
        spans([(0, 10, 4), (20, 30, 4)], []).shares(8)


def test_timed_function_notes_the_tokens_of_its_batch_and_returns_the_same() -> None:
    noted: list[tuple[int, int, int]] = []
    double = _timed(lambda context, batch: 2 * batch.n_tokens, noted)
    assert double(None, SimpleNamespace(n_tokens=3)) == 6
    assert [(begin <= end, num) for begin, end, num in noted] == [(True, 3)]
