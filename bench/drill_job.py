"""A batch job that is in the queue during the whole drill: every line is answered once, whoever dies meanwhile."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from bench.drill_counts import JobFate
from bench.drill_service import Service
from bench.drill_stage import CONFIG, Stage
from pice.app.jobs import open_jobs
from pice.errors import ConfigError, TransportError

_ENDED_WITHIN_S = 120.0
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that was submitted. Its commands are those that people use."""

    stage: Stage
    job_id: str
    num_lines: int

    async def fate(self) -> JobFate:
        """What became of its lines, once it has ended or had time enough."""
        await self._until_ended()
        output = self.stage.folder / "fetched.jsonl"
        words = ["batch", "fetch", self.job_id, "--output", str(output), "--single-file", "--partial", "--quiet"]
        await run(self.stage, "fetch", words)
        return job_fate([_name(number) for number in range(self.num_lines)], output.read_bytes().splitlines())

    async def _until_ended(self) -> None:
        async with open_jobs(self.stage.settings) as ports:
            try:
                async with asyncio.timeout(_ENDED_WITHIN_S):
                    while True:
                        job = await ports.jobs.job(self.job_id)
                        if job is None or not job.is_open:
                            return
                        await asyncio.sleep(_LOOK_EVERY_S)
            except (TimeoutError, TransportError):
                return


async def submit(stage: Stage, num_lines: int) -> QueuedJob:
    """Puts a file of so many questions into the queue.

    Raises:
        ConfigError: it could not be; says what the command said.
    """
    source = stage.folder / "job.jsonl"
    _write(source, num_lines)
    said = await run(stage, "submit", ["batch", "submit", str(source)])
    if (found := re.search("job_[0-9a-f]{24}", said)) is None:
        raise ConfigError(f"pice batch submit named no job: {said}")
    return QueuedJob(stage, found[0], num_lines)


async def run(stage: Stage, name: str, words: Sequence[str]) -> str:
    """What a command said, to its end."""
    command = Service(name, words, CONFIG, stage.overrides, stage.folder)
    command.start()
    await command.wait()
    return command.said()


def _write(path: Path, num_lines: int) -> None:
    with path.open("wb") as file:
        for number in range(num_lines):
            question = {"role": "user", "content": f"What should one know about street {number}?"}
            body = {"model": "pice", "messages": [question]}
            line = {"custom_id": _name(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(orjson.dumps(line) + b"\n")


def _name(number: int) -> str:
    return f"line-{number}"


def job_fate(wanted: Sequence[str], lines: Sequence[bytes]) -> JobFate:
    """By the lines that were fetched."""
    results = [orjson.loads(line) for line in lines]
    counts = Counter(result["custom_id"] for result in results)
    failed = Counter(result["error"]["code"] for result in results if result.get("error"))
    missing = tuple(name for name in wanted if name not in counts)
    doubled = tuple(sorted(name for name, count in counts.items() if count > 1))
    return JobFate(len(wanted), missing, doubled, dict(failed))
