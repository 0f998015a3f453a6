"""`pice ask` and `pice plan` over a pipeline that plays recorded events."""

import asyncio
import io
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from pice.cli import ask, watching
from pice.core import Answer, Event, Failure, Plan, Request, Times
from pice.errors import EngineUnavailable, ModelLoadError, RequestFailed

Run = Callable[..., Any]

ANSWER = Answer("r1", "Cats sleep. \x1b[31mA lot.", "cloud", "stop", 1, Plan("cloud", "short"), times=Times(e2e_s=1.5))
ANSWERED = [Event("r1", "planned", 0.1, 1, plan=ANSWER.plan), Event("r1", "answered", 1.5, 1, answer=ANSWER)]
FAILURE = Failure("r1", "deadline_exceeded", "no answer within 3 s: raise --timeout")


def test_pipe_gets_the_bare_answer(pice: Run, pipeline: Any, config_file: Path) -> None:
    pipeline.events = ANSWERED
    ran = pice("ask", "why?", "-c", str(config_file))
    assert (ran.code, ran.out, ran.err) == (0, ANSWER.text + "\n", "")


def test_terminal_gets_the_answer_without_control_characters_and_its_figures() -> None:
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        assert ask.tell(ANSWER, console) == 0
    assert capture.get().splitlines() == [
        "Cats sleep. [31mA lot.",
        "cloud · first text 0.00 s · whole answer 1.50 s · cloud 0 tokens",
    ]


def test_json_gives_the_whole_record(pice: Run, pipeline: Any, config_file: Path) -> None:
    pipeline.events = ANSWERED
    ran = pice("ask", "why?", "--json", "-c", str(config_file))
    record = orjson.loads(ran.out)
    assert ran.code == 0
    assert record["text"] == ANSWER.text
    assert record["plan"]["reason"] == "short"
    assert record["times"]["e2e_s"] == 1.5


def test_failed_request_is_said_on_standard_error(pice: Run, pipeline: Any, config_file: Path) -> None:
    pipeline.events = [Event("r1", "failed", 3.0, 1, failure=FAILURE)]
    ran = pice("ask", "why?", "-c", str(config_file))
    assert (ran.code, ran.out, ran.err) == (1, "", "error: no answer within 3 s: raise --timeout\n")


def test_failed_request_is_a_record_in_json(pice: Run, pipeline: Any, config_file: Path) -> None:
    pipeline.events = [Event("r1", "failed", 3.0, 1, failure=FAILURE)]
    ran = pice("ask", "why?", "--json", "-c", str(config_file))
    assert ran.code == 1
    assert orjson.loads(ran.out)["code"] == "deadline_exceeded"


def test_options_become_the_request(pice: Run, pipeline: Any, config_file: Path) -> None:
    pipeline.events = ANSWERED
    options = ["--mode=edge", "--timeout=9", "--max-tokens=50", "--temperature=0", "--seed=7", "--system=brief"]
    pice("ask", " why? ", *options, "-c", str(config_file))
    (request,) = pipeline.requests
    assert [(message.role, message.content) for message in request.messages] == [("system", "brief"), ("user", "why?")]
    assert (request.mode, request.timeout_s) == ("edge", 9)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed, sampling.top_p) == (50, 0, 7, 0.95)


def test_override_reaches_the_settings(pice: Run, pipeline: Any, config_file: Path) -> None:
    pipeline.events = ANSWERED
    pice("ask", "why?", "-c", str(config_file), "--set", "planner.margin=0.4", "--set", "cloud.max_inflight=2")
    (settings,) = pipeline.opened
    assert (settings.planner.margin, settings.cloud.max_inflight) == (0.4, 2)


def test_config_file_may_come_from_the_environment(
    pice: Run, pipeline: Any, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.events = ANSWERED
    monkeypatch.setenv("PICE_CONFIG", str(config_file))
    assert pice("ask", "why?").code == 0


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_dash_reads_the_question_from_standard_input(
    pice: Run, pipeline: Any, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standard_input(monkeypatch, "où?\n".encode())
    pipeline.events = ANSWERED
    pice("ask", "-", "-c", str(config_file))
    assert pipeline.requests[0].messages[0].content == "où?"


@pytest.mark.parametrize(("content", "reason"), [(b" \n", "question is empty"), (b"\xff", "must be UTF-8")])
def test_useless_standard_input_is_refused(
    pice: Run, pipeline: Any, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    standard_input(monkeypatch, content)
    ran = pice("ask", "-")
    assert ran.code == 2
    assert reason in ran.err


def test_empty_question_is_refused_before_anything_starts(pice: Run, pipeline: Any, config_file: Path) -> None:
    ran = pice("ask", "  ", "-c", str(config_file))
    assert ran.code == 2
    assert ran.err.startswith("error: the question is empty")
    assert not pipeline.opened


def test_wrong_settings_are_said_line_by_line(pice: Run, pipeline: Any, config_file: Path) -> None:
    ran = pice("ask", "why?", "-c", str(config_file), "--set", "cloud.max_inflight=0", "--set", "x.y=1")
    assert ran.code == 2
    assert [line.partition(" --set")[0] for line in ran.err.splitlines()] == ["error:", "error:"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestFailed("no"), 1),
        (EngineUnavailable("the server is gone"), 1),
        (ModelLoadError("models/x.gguf: no such file"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_of_the_pipeline_becomes_one_line_and_a_code(
    pice: Run, pipeline: Any, config_file: Path, error: Exception, code: int
) -> None:
    pipeline.error = error
    ran = pice("ask", "why?", "-c", str(config_file))
    assert (ran.code, ran.err) == (code, f"error: {error}\n")


def test_stream_that_ends_without_an_outcome_is_an_error(pice: Run, pipeline: Any, config_file: Path) -> None:
    ran = pice("ask", "why?", "-c", str(config_file))
    assert ran.code == 1
    assert "ended without an answer" in ran.err


def test_signal_closes_the_stream_and_gives_130(
    pice: Run, pipeline: Any, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shutdown:
        def __init__(self) -> None:
            self.draining = asyncio.Event()

    shutdown: list[Shutdown] = []

    def run(main: Callable[[Shutdown], Any]) -> int:
        async def outer() -> int:
            shutdown.append(Shutdown())
            async with asyncio.timeout(10):
                code: int = await main(shutdown[0])
            return code

        return asyncio.run(outer())

    async def stream(request: Request) -> AsyncGenerator[Event, None]:
        try:
            yield ANSWERED[0]
            shutdown[0].draining.set()
            await asyncio.Event().wait()
        finally:
            pipeline.closed.append(request.request_id)

    monkeypatch.setattr("pice.cli.session.run", run)
    pipeline.stream = stream
    ran = pice("ask", "why?", "-c", str(config_file))
    assert (ran.code, ran.out) == (130, "")
    assert pipeline.closed == ["r1"]


async def test_screen_is_drawn_while_events_come() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)

    async def events() -> AsyncGenerator[Event, None]:
        for event in ANSWERED:
            yield event

    assert await watching.watch(events(), console) == ANSWER
    assert isinstance(console.file, io.StringIO)
    assert "cloud: short" in console.file.getvalue()


@pytest.mark.parametrize(
    ("out", "err", "stderr"),
    [(True, True, False), (False, True, True), (False, False, None)],
    ids=["out", "err", "none"],
)
def test_progress_goes_where_a_person_looks(
    monkeypatch: pytest.MonkeyPatch, out: bool, err: bool, stderr: bool | None
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: out, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: err, raising=False)
    console = watching.terminal()
    assert (console and console.stderr) == stderr


DECIDED = Plan("progressive", "sooner", 9.0, 4.0, sketch_words=50, segment_words=60, max_segments=6, candidates=2)


def test_plan_is_told_with_its_times(pice: Run, pipeline: Any, config_file: Path) -> None:
    pipeline.decided = DECIDED
    ran = pice("plan", "why?", "-c", str(config_file))
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "progressive: sooner (predicted: cloud 9.0 s, progressive 4.0 s)",
        "sketch of up to 50 words, up to 6 segments of 60 words or more, candidates per segment: 2",
    ]
    assert not pipeline.closed


def test_plan_in_json_is_the_record(pice: Run, pipeline: Any, config_file: Path) -> None:
    pipeline.decided = DECIDED
    assert orjson.loads(pice("plan", "why?", "--json", "-c", str(config_file)).out)["t_cloud_s"] == 9.0


def test_plan_without_a_sketch_is_one_line(pice: Run, pipeline: Any, config_file: Path) -> None:
    assert pice("plan", "why?", "-c", str(config_file)).out == "cloud: why not\n"
