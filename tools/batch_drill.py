"""Kills a batch again and again and checks that nothing is lost: the 80 Vicuna questions, emulated engines.

    python tools/batch_drill.py --seed 0

Each run of `pice batch run` is ended by SIGKILL at a moment drawn from the seed: so many answers later, and then up to
a tenth of a second. The next run goes on after it, and the last is left alone. Exit code 0 when each question then has
exactly one answer and no answer that was whole at a kill has changed.
"""

import argparse
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PICE_DATA", ROOT.parent / "shared" / "data"))
QUESTIONS = Path("questions", "vicuna_80.jsonl.gz")
STEP_S = {"cloud": 0.001, "workstation": 0.0005, "orin-super": 0.001, "orin-gemma": 0.001}
"""Seconds per decode step at any batch: some 30 times the pace of the machines in config/emulated.toml."""
CONCURRENCY = 4
RUN_S = 120.0
"""No run takes longer; one that does is killed, which the verdict shows."""
LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class Kill:
    """What one killed run left. `kept` says whether the lines of the runs before are as they were."""

    num_before: int
    num_after: int
    num_torn_bytes: int
    kept: bool
    exit_code: int

    def row(self, number: int) -> str:
        figures = f"{number:>4}  {self.num_before:>6}  {self.num_after:>5}  {self.num_torn_bytes:>10}"
        return f"{figures}  {'yes' if self.kept else 'NO':>8}  {self.exit_code:>9}"


class Drill:
    """A folder with the batch in it and what became of it so far."""

    def __init__(self, folder: Path, questions: Sequence[tuple[str, str]]) -> None:
        self.source, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.failures = folder / "out.errors.jsonl"
        self.wanted = [custom_id for custom_id, _ in questions]
        self.source.write_text("".join(batch_line(*question) for question in questions), encoding="utf-8")

    def kill_after(self, num_answers: int, more_s: float) -> Kill:
        """One run, killed that long after it has written so many answers."""
        before = whole_lines(self.read())
        with self._start() as batch:
            rounds = int(RUN_S / LOOK_EVERY_S)
            while batch.poll() is None and rounds > 0 and len(whole_lines(self.read())) < len(before) + num_answers:
                wait(batch, LOOK_EVERY_S)
                rounds -= 1
            wait(batch, more_s)
            batch.kill()
        found = self.read()
        after = whole_lines(found)
        num_torn_bytes = len(found) - sum(map(len, after))
        return Kill(len(before), len(after), num_torn_bytes, after[: len(before)] == before, batch.returncode)

    def finish(self) -> int:
        """Exit code of a run that is left alone."""
        with self._start() as batch:
            wait(batch, RUN_S)
            batch.kill()
        return batch.returncode

    def read(self) -> bytes:
        return self.output.read_bytes() if self.output.exists() else b""

    def faults(self) -> list[str]:
        """What is wrong with the results; empty when each question has exactly one answer."""
        results = [json.loads(line) for line in self.read().splitlines()]
        found = Counter(result["custom_id"] for result in results)
        empty = [r["custom_id"] for r in results if not r["response"]["body"]["choices"][0]["message"]["content"]]
        counted = {
            "lost": set(self.wanted) - set(found),
            "answered twice": {custom_id for custom_id, num in found.items() if num > 1},
            "never asked": set(found) - set(self.wanted),
            "empty": set(empty),
        }
        faults = [f"{len(names)} {what} ({', '.join(sorted(names))})" for what, names in counted.items() if names]
        return faults + (["there are failures"] if self.failures.exists() else [])

    def _start(self) -> subprocess.Popen[bytes]:
        curves = [f"--set=engines.{name}.curve={{batch=[1], step_s=[{step_s}]}}" for name, step_s in STEP_S.items()]
        files = ["--input", str(self.source), "--output", str(self.output), "--quiet"]
        config = ["--config", str(ROOT / "config" / "emulated.toml"), "--concurrency", str(CONCURRENCY)]
        return subprocess.Popen([sys.executable, "-m", "pice", "batch", "run", *files, *config, *curves], cwd=ROOT)


def wait(process: subprocess.Popen[bytes], most_s: float) -> None:
    """Returns when the process has ended, or after that long."""
    try:
        process.wait(most_s)
    except subprocess.TimeoutExpired:
        return


def whole_lines(content: bytes) -> list[bytes]:
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def read_questions(path: Path) -> list[tuple[str, str]]:
    """A custom_id and a text for each question."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [(f"vicuna-{question['question_id']:02}", question["question"]) for question in found]


def batch_line(custom_id: str, text: str) -> str:
    body = {"model": "pice", "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


def drill(questions: Sequence[tuple[str, str]], *, num_kills: int, seed: int) -> bool:
    """Whether nothing was lost; prints a row for each kill and the verdict."""
    rng = random.Random(seed)
    most_answers = max(1, (len(questions) - 2 * CONCURRENCY) // num_kills)
    with tempfile.TemporaryDirectory(prefix="pice-drill-") as folder:
        work = Drill(Path(folder), questions)
        print("kill  before  after  torn bytes  kept all  exit code")
        faults = []
        for number in range(1, num_kills + 1):
            kill = work.kill_after(rng.randint(0, most_answers), rng.uniform(0.0, 0.1))
            print(kill.row(number), flush=True)
            if not kill.kept:
                faults.append(f"kill {number} changed what was written")
            if kill.exit_code != -signal.SIGKILL:
                faults.append(f"run {number} ended by itself with {kill.exit_code}")
        code = work.finish()
        faults += [f"the last run ended with {code}"] if code else []
        faults += work.faults()
    done = f"{len(questions)} answers after {num_kills} kills, each custom_id exactly once, none lost"
    print(f"FAILED: {'; '.join(faults)}" if faults else f"ok: {done}")
    return not faults


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a batch again and again and check that nothing is lost.")
    parser.add_argument("--kills", type=int, default=10, help="runs to kill before the last one")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    path = DATA / QUESTIONS
    if not path.exists():
        print(f"{path}: no such file; set PICE_DATA to the folder that holds {QUESTIONS}", file=sys.stderr)
        return 2
    return 0 if drill(read_questions(path), num_kills=arguments.kills, seed=arguments.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
