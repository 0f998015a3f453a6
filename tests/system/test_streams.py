"""What callers do to the standard streams of a command: a pipe nobody reads, a full disk, a closed descriptor."""

import os
import pty
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.command import COMMAND, Ran, batch_line, emulated, environment, keys, killed_at_the_deadline, shell

ASK = " ".join(f"'{arg}'" for arg in ("ask", *emulated(), "why?"))
UNWRITABLE = "error: standard output could not be written: "


@pytest.mark.parametrize("command", [ASK, f"{ASK} --json", "--help", "doctor"], ids=["ask", "json", "help", "doctor"])
def test_reader_that_goes_away_ends_the_command_without_a_word(tmp_path: Path, command: str) -> None:
    ran = shell(f"pice {command} | true", tmp_path)
    assert (ran.code, ran.err) == (1, "")


@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
@pytest.mark.parametrize("command", [ASK, f"{ASK} --json", "--version"], ids=["ask", "json", "version"])
def test_answer_that_cannot_be_written_is_an_error(tmp_path: Path, command: str, redirection: str, reason: str) -> None:
    ran = shell(f"pice {command} {redirection}", tmp_path)
    assert (ran.code, ran.err) == (1, f"{UNWRITABLE}{reason}\n")


def test_closed_input_is_named(tmp_path: Path) -> None:
    ran = shell(f"pice {ASK} - <&-".replace("'why?'", ""), tmp_path)
    assert (ran.code, ran.refusal) == (2, "standard input cannot be read: Bad file descriptor")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_answer_comes_where_messages_cannot(tmp_path: Path, redirection: str) -> None:
    ran = shell(f"pice {ASK} {redirection}", tmp_path)
    assert ran.code == 0
    assert len(ran.out.split()) > 10
    assert shell(f"pice ask '' {redirection}", tmp_path).code == 2


@pytest.mark.parametrize("redirection", ["2>&1 | true", "2>/dev/full", "2>&- >&- <&-"])
def test_batch_goes_on_when_nobody_reads_its_progress(tmp_path: Path, redirection: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(batch_line("a") + batch_line("b"))
    options = " ".join(f"'{option}'" for option in emulated())
    ran = shell(f"pice batch run {options} -i in.jsonl -o out.jsonl {redirection}", tmp_path)
    assert ran.code == 0
    assert keys(tmp_path / "out.jsonl") == ["a", "b"]


def on_terminal(columns: int, *args: str, **env: str) -> Ran:
    """The command with a terminal of that width for input, output and messages."""
    shown = bytearray()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args],
        env=environment() | {"COLUMNS": str(columns)} | env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with killed_at_the_deadline(process), os.fdopen(ours, "rb", buffering=0) as screen:
        with suppress(OSError):  # Linux says so when the other end of a terminal is gone
            while piece := screen.read(65_536):
                shown += piece
        return Ran(process.wait(), shown.decode(errors="replace"), "")


@pytest.mark.parametrize(
    ("columns", "env"),
    [
        (100, {"TERM": "xterm-256color"}),
        (20, {"TERM": "xterm"}),
        (1, {"TERM": "xterm"}),
        (20, {"TERM": "dumb"}),
        (80, {"TERM": "xterm", "NO_COLOR": "1"}),
        (80, {"TERM": "xterm", "PYTHONIOENCODING": "ascii"}),
    ],
    ids=["usual", "narrow", "no room", "dumb", "no colour", "ascii"],
)
def test_terminal_of_any_kind_shows_the_answer_and_its_figures(columns: int, env: dict[str, str]) -> None:
    ran = on_terminal(columns, "ask", *emulated(0.0002), "--mode", "progressive", "where to, café?", **env)
    assert ran.code == 0
    assert "Traceback" not in ran.out
    assert "progressive" in ran.out
    assert "whole answer" in ran.out
    assert ("\x1b[" in ran.out) == (env["TERM"] != "dumb")
    assert ran.out.count("\x1b[?25l") == ran.out.count("\x1b[?25h")
