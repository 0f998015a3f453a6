"""Kills what a queued job depends on and checks that each line of it is answered once: emulated engines, real brokers.

    python -m tools.job_drill --lines 1000 --kills 3 --seed 0

A file is submitted by `pice batch submit`, which is killed once all lines are in the queue. Then, at moments drawn from
the seed, the cloud node and a collector are killed in turn and started again at once, so many times each. Exit code 0
when the job then ends by itself, and `pice batch fetch` gives exactly one answer for each `custom_id`. The deployment
is that of bench/drill.toml; brokers are those of PICE_KAFKA and PICE_REDIS, where its topics and keys stay, under a
prefix of their own, or are started (`tools.brokers`).
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

from bench.drill_service import Service, until_ready
from pice.app.jobs import open_jobs
from pice.config import load_settings
from pice.core import Job
from pice.errors import PiceError
from pice.jobs.base import JobStore
from tools.brokers.__main__ import brokers
from tools.brokers.errors import NoBrokers

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "bench" / "drill.toml"
READY_WITHIN_S = 60.0
ENDED_WITHIN_S = 900.0
LOOK_EVERY_S = 0.2
AT_ONCE = 32
"""Lines that one collector asks at once."""
SERVICES = {
    "cloud": ("cloud",),
    "collector": ("collector",),
    "collector-2": ("collector",),
    **{site: ("edge", "--site", site) for site in ("lyon", "oslo", "montreal")},
}
KILLED = ("cloud", "collector")


class Drill:
    """A deployment with a job of so many lines in it."""

    def __init__(self, folder: Path, overrides: Sequence[str], num_lines: int) -> None:
        self.folder = folder
        self.overrides = overrides
        self.wanted = [f"line-{number:04}" for number in range(num_lines)]
        self.source, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.source.write_text("".join(map(batch_line, self.wanted)), encoding="utf-8")
        self.services = {name: self.command(name, *words) for name, words in SERVICES.items()}

    def command(self, name: str, *words: str) -> Service:
        return Service(name, words, CONFIG, self.overrides, self.folder)

    async def ran(self, name: str, *words: str) -> Service:
        """A command that has ended well.

        Raises:
            RuntimeError: it has not; says what it wrote.
        """
        command = self.command(name, *words)
        command.start()
        if code := await command.wait():
            raise RuntimeError(f"pice {' '.join(words)} ended with {code}: {command.said()}")
        return command

    async def submit(self) -> str:
        """The id of the job, once all of its lines are in the queue and its terminal is dead."""
        terminal = self.command("terminal", "batch", "submit", str(self.source), "--wait")
        terminal.start()
        until_s = now_s() + READY_WITHIN_S
        while "lines are in the queue" not in terminal.said():
            if now_s() > until_s or terminal.pid is None:
                raise RuntimeError(f"the file was not submitted: {terminal.said()}")
            await asyncio.sleep(LOOK_EVERY_S)
        terminal.kill()
        return terminal.said().split()[0]

    def faults(self) -> Iterator[str]:
        """What is wrong with what was fetched."""
        lines = [json.loads(line) for line in self.output.read_bytes().splitlines()]
        found = Counter(line["custom_id"] for line in lines)
        empty = {
            line["custom_id"] for line in lines if not line["response"]["body"]["choices"][0]["message"]["content"]
        }
        for what, names in {
            "lost": set(self.wanted) - set(found),
            "answered twice": {name for name, num in found.items() if num > 1},
            "never asked": set(found) - set(self.wanted),
            "empty": empty,
        }.items():
            if names:
                yield f"{len(names)} {what} ({', '.join(sorted(names)[:5])})"
        if self.output.with_suffix(".errors.jsonl").exists():
            yield "there are failures"


@asynccontextmanager
async def deployed(folder: Path, addresses: dict[str, str], num_lines: int) -> AsyncIterator[Drill]:
    """A drill whose services are ready; at the end they are killed."""
    prefix = f"jobs-{uuid4().hex[:8]}"
    overrides = [
        f"kafka.bootstrap_servers={addresses['PICE_KAFKA']}",
        f"kafka.prefix={prefix}.",
        f"redis.url={addresses['PICE_REDIS']}",
        f"redis.prefix={prefix}",
        f"jobs.max_inflight={AT_ONCE}",
    ]
    async with AsyncExitStack() as stack:
        drill = Drill(folder, overrides, num_lines)
        await drill.ran("topics", "topics", "create")
        for service in drill.services.values():
            service.start()
            stack.callback(service.kill)
        await until_ready(list(drill.services.values()), READY_WITHIN_S)
        yield drill


async def until_done(jobs: JobStore, job_id: str, num_done: int) -> Job:
    """The job, once so many of its lines have their result.

    Raises:
        RuntimeError: that takes too long.
    """
    until_s = now_s() + ENDED_WITHIN_S
    while (job := await jobs.job(job_id)) is not None and job.is_open and job.num_lines - job.num_left < num_done:
        if now_s() > until_s:
            raise RuntimeError(f"{job.num_left} lines are left after {ENDED_WITHIN_S:g} s")
        await asyncio.sleep(LOOK_EVERY_S)
    if job is None:
        raise RuntimeError(f"the job {job_id} is not known any more")
    return job


async def play(drill: Drill, num_kills: int, rng: random.Random) -> list[str]:
    """What is wrong at the end; prints a row for each kill."""
    num_lines, began_s = len(drill.wanted), now_s()
    job_id = await drill.submit()
    print(f"{now_s() - began_s:6.1f} s  terminal killed, {num_lines} lines are in the queue", flush=True)
    moments = sorted(rng.randrange(num_lines * 9 // 10) for _ in range(num_kills * len(KILLED)))
    async with open_jobs(load_settings(CONFIG, drill.overrides, environ={})) as ports:
        for number, moment in enumerate(moments):
            job = await until_done(ports.jobs, job_id, moment)
            victim = drill.services[KILLED[number % len(KILLED)]]
            victim.kill()
            victim.start()
            print(f"{now_s() - began_s:6.1f} s  {victim.name} killed, {job.num_left} lines were left", flush=True)
        job = await until_done(ports.jobs, job_id, num_lines)
    print(f"{now_s() - began_s:6.1f} s  ended: {job.num_answered} answered, {job.num_failed} failed", flush=True)
    await drill.ran("fetch", "batch", "fetch", job_id, "--output", str(drill.output))
    ended = [said for service in drill.services.values() if (said := service.ended())]
    return [*drill.faults(), *ended]


def now_s() -> float:
    return asyncio.get_running_loop().time()


def batch_line(custom_id: str) -> str:
    body = {"model": "pice", "messages": [{"role": "user", "content": f"What is there to know about {custom_id}?"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


async def drill(num_lines: int, num_kills: int, seed: int) -> list[str]:
    with brokers() as addresses, tempfile.TemporaryDirectory(prefix="pice-job-drill-") as folder:
        async with deployed(Path(folder), addresses, num_lines) as deployment:
            return await play(deployment, num_kills, random.Random(seed))


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill what a queued job depends on and check that nothing is lost.")
    parser.add_argument("--lines", type=int, default=1000, help="of the job")
    parser.add_argument("--kills", type=int, default=3, help="of the cloud node, and of a collector")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        faults = asyncio.run(drill(arguments.lines, arguments.kills, arguments.seed))
    except (NoBrokers, PiceError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    done = f"{arguments.lines} lines, each custom_id answered exactly once"
    print(f"FAILED: {'; '.join(faults)}" if faults else f"ok: {done}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
