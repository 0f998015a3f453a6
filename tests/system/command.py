"""`pice` as a process of its own, with engines that hardly wait."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "pice")
DEADLINE_S = 60.0


def curve(engine: str, step_s: float) -> str:
    return f"--set=engines.{engine}.curve={{batch=[1], step_s=[{step_s}], base_s=0.0, prefill_s_per_token=0.0}}"


def emulated(step_s: float = 0.0) -> tuple[str, ...]:
    """Options for the shipped configuration at a pace of its own: seconds per decode step of every engine."""
    engines = ("cloud", "workstation", "orin-super", "orin-gemma")
    return ("--config", str(ROOT / "config" / "emulated.toml"), *(curve(engine, step_s) for engine in engines))


def environment() -> dict[str, str]:
    """Of the tests, without what would configure the command, and with room for a message on one line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PICE_", "PYTHON"))}
    return kept | {"COLUMNS": "200", "TERM": "dumb", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """What it says is wrong; the test fails unless that is all it says."""
        lines = self.err.splitlines()
        assert self.out == ""
        assert [line for line in lines if not line.startswith("error: ")] == []
        return "\n".join(line.removeprefix("error: ") for line in lines)


def pice(*args: str | Path, cwd: Path = ROOT, stdin: bytes = b"") -> Ran:
    """One command from its beginning to its end; its output is a pipe."""
    ran = subprocess.run(
        [*COMMAND, *args],
        cwd=cwd,
        input=stdin,
        env=environment(),
        check=False,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def shell(script: str, cwd: Path) -> Ran:
    """A line of bash in which `pice` is the command; for what only a shell does to a process."""
    command = " ".join(COMMAND)
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'pice() {{ {command} "$@"; }}; {script}'],
        cwd=cwd,
        env=environment(),
        check=False,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


class Started:
    """A command that runs. Everything waited for comes before the deadline, or the command is killed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._said: list[str] = []

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def says(self, text: str) -> None:
        """Waits for a line on standard error with `text` in it."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            if text in line:
                return
        raise AssertionError(f"it ended without saying {text!r}: {''.join(self._said)}")

    def has_written(self, path: Path, num_lines: int) -> None:
        """Waits for so many whole lines in a file."""
        while not path.exists() or path.read_bytes().count(b"\n") < num_lines:
            try:
                code = self._process.wait(timeout=0.01)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"it ended with {code} before {path.name} had {num_lines} lines")

    def end(self) -> Ran:
        assert self._process.stderr is not None
        self._said += self._process.stderr.readlines()
        return Ran(self._process.wait(), "", "".join(self._said))


@contextmanager
def started(*args: str | Path, cwd: Path) -> Iterator[Started]:
    """A command in the background; killed at the deadline, and at the end of the block."""
    process = subprocess.Popen([*COMMAND, *args], cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True)
    with killed_at_the_deadline(process):
        yield Started(process)


@contextmanager
def killed_at_the_deadline(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Kills the process then, or at the end of the block if that is sooner."""
    deadline = threading.Timer(DEADLINE_S, process.kill)
    deadline.start()
    with process:
        try:
            yield
        finally:
            deadline.cancel()
            process.kill()


def batch_line(custom_id: str, **body: Any) -> bytes:
    """A request that the cloud answers alone, so that its pace is that of the cloud's engine."""
    asked: dict[str, Any] = {
        "model": "pice",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": f"What about {custom_id}?"}],
        "pice": {"mode": "cloud"},
    }
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked | body}
    return json.dumps(line).encode() + b"\n"


def results(*paths: Path) -> list[dict[str, Any]]:
    """Every line of the files that are there; a torn one fails the test."""
    return [json.loads(line) for path in paths if path.exists() for line in path.read_bytes().splitlines()]


def keys(*paths: Path) -> list[str]:
    return sorted(result["custom_id"] or f"line {result['line']}" for result in results(*paths))
