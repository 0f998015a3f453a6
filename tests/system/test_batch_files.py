"""`pice batch run` as a process of its own over the whole pipeline, killed in the middle of a write."""

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0
NUM_LINES = 12

FAST = """\
[engines.big]
kind = "emulated"
curve = { batch = [1, 16], step_s = [0.0001, 0.0001] }
max_inflight = 16
[engines.small]
kind = "emulated"
curve = { batch = [1, 8], step_s = [0.0001, 0.0001] }
[cloud]
engine = "big"
[sites.lyon]
engines = ["small"]
"""

SIGNALLED = """\
import os, sys
left, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
write = os.write

def write_and_die(fd, data):
    global left
    num = write(fd, bytes(data)[:left] if number == 9 and left > 0 else data)
    left -= num
    if left <= 0 < left + num:
        os.kill(os.getpid(), number)
    return num

os.write = write_and_die
from pice.cli.batch import commands
commands()
"""
"""The command, sent a signal by itself once it has written so many bytes; SIGKILL comes at that very byte."""


def line(custom_id: str) -> bytes:
    body = {"model": "pice", "messages": [{"role": "user", "content": f"What about {custom_id}?"}]}
    ask = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(ask).encode() + b"\n"


class Desk:
    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.errors = folder, folder / "out.jsonl", folder / "out.errors.jsonl"
        (folder / "fast.toml").write_text(FAST)
        lines = [line(f"q{number}") for number in range(NUM_LINES)]
        (folder / "in.jsonl").write_bytes(b"".join([*lines[:5], b"{torn\n", *lines[5:]]))

    def run(self, *, after_bytes: int = 1 << 40, number: signal.Signals = signal.SIGKILL) -> int:
        """Return code of one run; negative is the signal that ended it."""
        command = ["run", "-i", "in.jsonl", "-o", "out.jsonl", "-c", "fast.toml", "--concurrency", "4"]
        code = [sys.executable, "-c", SIGNALLED, str(after_bytes), str(int(number))]
        return subprocess.run(
            [*code, *command], cwd=self.folder, check=False, capture_output=True, timeout=DEADLINE_S
        ).returncode

    def results(self) -> list[dict[str, Any]]:
        """Every whole line of both files."""
        raw = b"".join(path.read_bytes() for path in (self.out, self.errors) if path.exists())
        return [json.loads(piece) for piece in raw.splitlines(keepends=True) if piece.endswith(b"\n")]

    def keys(self) -> Counter[str | int]:
        return Counter(result["custom_id"] or result["line"] for result in self.results())


EVERYTHING = Counter[str | int]([*(f"q{number}" for number in range(NUM_LINES)), 6])


def test_killed_again_and_again_each_line_has_one_result(tmp_path: Path) -> None:
    rng = random.Random(1)
    desk = Desk(tmp_path)
    kept: dict[str | int, Any] = {}
    for _ in range(4):
        assert desk.run(after_bytes=rng.randrange(1, 5_000)) == -signal.SIGKILL
        found = {result["custom_id"] or result["line"]: result for result in desk.results()}
        assert {key: found[key] for key in kept} == kept
        kept = found
    assert desk.run() == 3
    assert desk.keys() == EVERYTHING


def test_terminated_batch_finishes_what_was_begun_and_goes_on_when_run_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.run(after_bytes=1, number=signal.SIGTERM) == 130
    assert 1 <= desk.keys().total() < EVERYTHING.total()
    assert desk.out.read_bytes().endswith(b"\n")
    assert desk.run() == 3
    assert desk.keys() == EVERYTHING
