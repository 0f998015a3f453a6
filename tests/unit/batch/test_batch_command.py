import asyncio
import io
import json
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from pice.batch.files import errors_path
from pice.batch.progress import Progress
from pice.cli.batch import commands
from pice.cli.batch_run import exit_code, summary
from pice.cli.meter import clock, metered
from pice.cli.session import report
from pice.core import Answer, Plan, Request
from pice.errors import DeadlineExceeded, ModelLoadError, PiceError
from pice.loop import Shutdown
from pice.settings import Settings

SMALL = """\
[engines.big]
kind = "emulated"
curve = { batch = [1], step_s = [0.001] }
[cloud]
engine = "big"
max_inflight = 3
"""


def line(custom_id: str) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": custom_id}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


async def answer(request: Request) -> Answer:
    await asyncio.sleep(0)
    return Answer(request.request_id, "Yes.", "cloud", "stop", 1, Plan("cloud", "short"))


async def too_late(request: Request) -> Answer:
    raise DeadlineExceeded("too late")


@dataclass
class Desk:
    """`pice batch run` in a folder of its own, over a pipeline that does `ask`."""

    folder: Path
    ask: Callable[[Request], Awaitable[Answer]] = answer
    asked: list[Request] = field(default_factory=list)
    num_opened: int = 0
    num_asking: int = 0
    most_asking: int = 0

    def __post_init__(self) -> None:
        self.source, self.out = self.folder / "in.jsonl", self.folder / "out.jsonl"
        (self.folder / "small.toml").write_text(SMALL)

    @asynccontextmanager
    async def open_pipeline(self, settings: Settings) -> AsyncIterator[SimpleNamespace]:
        self.num_opened += 1
        self.settings = settings
        yield SimpleNamespace(ask_request=self._ask)

    async def _ask(self, request: Request) -> Answer:
        self.asked.append(request)
        self.num_asking += 1
        self.most_asking = max(self.most_asking, self.num_asking)
        try:
            return await self.ask(request)
        finally:
            self.num_asking -= 1

    def run(self, *args: str, source: str | None = None) -> int:
        given = ["run", "-i", source or str(self.source), "-o", str(self.out), "-c", str(self.folder / "small.toml")]
        with pytest.raises((SystemExit, PiceError)) as ended:
            commands([*given, *args])
        if isinstance(ended.value, PiceError):
            return report(ended.value)
        return int(str(ended.value))

    def written(self) -> list[str]:
        return sorted(json.loads(raw)["custom_id"] for raw in self.out.read_bytes().splitlines())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(tmp_path)
    desk.source.write_text(line("a") + line("b"))
    monkeypatch.delenv("PICE_CONFIG", raising=False)
    monkeypatch.setattr("pice.cli.batch_run.open_pipeline", desk.open_pipeline)
    return desk


def test_file_is_answered(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.run("--set", "limits.request_timeout_s=7") == 0
    assert desk.written() == ["a", "b"]
    assert {request.timeout_s for request in desk.asked} == {7.0}
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2 lines: 2 answered (0 of them before), 0 failed; 0:00, 0 tokens" in shown.err


def test_finished_batch_is_not_begun_again(desk: Desk) -> None:
    assert [desk.run(), desk.run()] == [0, 0]
    assert desk.num_opened == 1


def test_failures_end_with_3_until_they_are_retried(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.ask = too_late
    assert [desk.run(), desk.run()] == [3, 3]
    assert (
        f"2 failed; failures are in {errors_path(desk.out)}, --retry-failed asks them again" in capsys.readouterr().err
    )
    desk.ask = answer
    assert desk.run("--retry-failed") == 0
    assert desk.written() == ["a", "b"]
    assert not errors_path(desk.out).exists()


def test_single_file_takes_the_failures(desk: Desk) -> None:
    desk.ask = too_late
    assert desk.run("--single-file") == 3
    assert desk.written() == ["a", "b"]


def test_invalid_lines_are_told_before_anything_runs(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.source.write_text(line("a") + "{\n")
    assert desk.run() == 3
    assert "1 lines are invalid and will fail; the first: line 2: must be one JSON object" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prepare", "args", "message"),
    [
        (lambda desk: desk.source.write_text(line("a") * 2), (), "lines 1 and 2 have the same custom_id 'a'"),
        (lambda desk: desk.source.unlink(), (), "in.jsonl cannot be read"),
        (lambda desk: desk.out.mkdir(), (), "it is a folder"),
        (lambda desk: desk.out.symlink_to(desk.source), (), "is the input itself"),
        (lambda desk: desk.run(), ("--no-resume",), "out.jsonl holds 2 results"),
        (lambda desk: None, ("--set", "cloud.max_inflight=0"), "cloud.max_inflight must be >= 1"),
    ],
    ids=["custom_id twice", "no input", "folder as output", "input as output", "results there", "bad setting"],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(
    desk: Desk,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Desk], object],
    args: tuple[str, ...],
    message: str,
) -> None:
    prepare(desk)
    desk.num_opened = 0
    assert desk.run(*args) == 2
    assert message in capsys.readouterr().err
    assert desk.num_opened == 0


def test_overwrite_asks_everything_again(desk: Desk) -> None:
    assert [desk.run(), desk.run("--overwrite")] == [0, 0]
    assert len(desk.asked) == 4
    assert desk.written() == ["a", "b"]


@pytest.mark.parametrize(
    ("args", "most"),
    [
        ((), 3),
        (("--set", "cloud.max_inflight=16"), 8),
        (("--set", "engines.big.max_inflight=2"), 2),
        (("--set", "engines.big={kind='llama_cpp', path='x.gguf', n_seq_max=1}"), 1),
        (("--set", "sites.lyon={engines=['big']}", "--set", "engines.big.max_inflight=2"), 4),
        (("--set", "limits.max_open_requests=2"), 2),
        (("--concurrency", "5"), 5),
    ],
    ids=["the cloud node", "default engine", "engine", "llama.cpp", "cloud and edge", "open requests", "given"],
)
def test_requests_at_once_are_those_all_models_work_on_unless_given(
    desk: Desk, args: tuple[str, ...], most: int
) -> None:
    if "llama" in str(args):
        (desk.folder / "small.toml").write_text("[cloud]\nengine = 'big'\n")
    desk.source.write_text("".join(line(f"q{number}") for number in range(20)))
    assert desk.run("--quiet", *args) == 0
    assert desk.most_asking == most
    assert len(desk.asked) == 20


@pytest.mark.parametrize(("at_once", "rounds"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_line_has_time_for_each_round_of_others_before_it(desk: Desk, at_once: int, rounds: int) -> None:
    named = json.loads(line("named"))
    named["body"]["pice"] = {"timeout_s": 7}
    desk.source.write_text(line("not named") + json.dumps(named) + "\n")
    assert desk.run("--concurrency", str(at_once), "--set", "limits.request_timeout_s=10") == 0
    assert sorted(request.timeout_s for request in desk.asked) == [7, 10 * rounds]


def test_no_more_are_asked_than_may_be_open_and_that_is_said(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.source.write_text("".join(line(f"q{number}") for number in range(9)))
    assert desk.run("--concurrency", "5", "--set", "limits.max_open_requests=4") == 0
    assert desk.most_asking == 4
    assert "4 requests at once, not 5: limits.max_open_requests allows no more" in capsys.readouterr().err


def test_standard_input_is_read_when_the_input_is_a_dash(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO((line("x") + line("y")).encode())
    monkeypatch.setattr(typer, "get_binary_stream", lambda name: stream)
    assert desk.run(source="-") == 0
    assert desk.written() == ["x", "y"]


def test_named_pipe_can_be_the_input(desk: Desk) -> None:
    pipe = desk.folder / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb") as stream:
            stream.write((line("x") + line("y")).encode())
            pipe.unlink()

    writer = threading.Thread(target=write)
    writer.start()
    assert desk.run(source=str(pipe)) == 0
    writer.join(10)
    assert desk.written() == ["x", "y"]


def test_quiet_says_nothing_but_errors(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.run("--quiet") == 0
    assert capsys.readouterr().err == ""


def test_first_signal_finishes_what_was_begun_and_ends_with_130(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown = Shutdown()

    async def interrupted(request: Request) -> Answer:
        shutdown.draining.set()
        return await answer(request)

    desk.ask = interrupted
    desk.source.write_text("".join(line(f"q{number}") for number in range(9)))
    with monkeypatch.context() as patch:
        patch.setattr("pice.cli.batch_run.run", lambda main: asyncio.run(main(shutdown)))
        assert desk.run("--concurrency", "1") == 130
    assert desk.written() == ["q0"]
    shown = capsys.readouterr().err
    assert "finishing what was begun; interrupt again to give it up" in shown
    assert "1 answered (0 of them before), 0 failed, 8 left for the same command to do" in shown
    desk.ask = answer
    assert desk.run() == 0
    assert desk.written() == [f"q{number}" for number in range(9)]


def test_model_that_cannot_be_loaded_ends_with_2(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(settings: Settings) -> AbstractAsyncContextManager[None]:
        raise ModelLoadError("model.gguf is cut off")

    monkeypatch.setattr("pice.cli.batch_run.open_pipeline", broken)
    assert desk.run() == 2
    assert "error: model.gguf is cut off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (Progress(2, answered=1, answered_before=1), 0),
        (Progress(2, answered=1, failed=1), 3),
        (Progress(2, answered=1, failed_before=1), 3),
        (Progress(3, answered=1, failed=1), 130),
        (Progress(0), 0),
    ],
)
def test_exit_code_says_what_became_of_all_lines(end: Progress, code: int) -> None:
    assert exit_code(end) == code


def test_summary_counts_former_runs(tmp_path: Path) -> None:
    end = Progress(20, answered_before=5, failed_before=1, answered=7, failed=1, num_output_tokens=900, elapsed_s=65)
    assert summary(end, failures=Path("out.errors.jsonl")) == (
        "20 lines: 12 answered (5 of them before), 2 failed, 6 left for the same command to do; failures are in "
        "out.errors.jsonl, --retry-failed asks them again; 1:05, 900 tokens"
    )


@pytest.mark.parametrize(("span_s", "text"), [(0, "0:00"), (59.6, "1:00"), (3_723, "1:02:03")])
def test_span_is_shown_as_on_a_clock(span_s: float, text: str) -> None:
    assert clock(span_s) == text


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with metered(Progress(100), quiet=False) as meter:
        for answered, elapsed_s in [(0, 0.0), (1, 2.0), (20, 11.0), (24, 12.0), (25, 13.0), (44, 22.0), (50, 25.0)]:
            meter(Progress(100, answered=answered, num_output_tokens=answered * 30, elapsed_s=elapsed_s))
    assert capsys.readouterr().err.splitlines() == [
        "1/100 0 failed · 0.50 requests/s · 15 tokens/s · 3:18 left",
        "24/100 0 failed · 2.00 requests/s · 60 tokens/s · 0:38 left",
        "44/100 0 failed · 2.00 requests/s · 60 tokens/s · 0:28 left",
        "50/100 0 failed · 2.00 requests/s · 60 tokens/s · 0:25 left",
    ]
    assert meter.latest.answered == 50


def test_progress_says_nothing_where_nothing_happened_and_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with metered(Progress(2), quiet=False) as meter:
        meter(Progress(2))
    assert capsys.readouterr().err == ""
    with metered(Progress(2), quiet=False) as meter:
        meter(Progress(2, answered=2, elapsed_s=1.0))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with metered(Progress(100), quiet=False) as meter:
        meter(Progress(100, answered=20, failed=5, elapsed_s=10))
    assert "25/100" in screen.getvalue()
    assert "5 failed · 2.50 requests/s" in screen.getvalue()
