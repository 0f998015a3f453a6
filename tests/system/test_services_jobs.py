"""Batch jobs in the queue: submitted, asked after, fetched and cancelled, and outliving whatever is killed."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.cluster import Cluster, deployment, until
from tests.system.command import batch_line, curve, keys, started
from tests.system.witness import redis

NUM_LINES, NUM_LINES_TOO_MANY = 60, 400
CLOUD, COLLECTOR = ("cloud",), ("collector",)
SLOW = (curve("big", 0.02).removeprefix("--set="), "jobs.max_inflight=8")
"""A line takes about a second, and eight are asked at once."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cloud node, a site and a collector."""
    with deployment(tmp_path_factory.mktemp("jobs"), *SLOW) as cluster:
        cluster.start_all(CLOUD, ("edge", "--site", "a"), COLLECTOR)
        yield cluster


def line(number: int) -> bytes:
    mode = "progressive" if number % 4 == 0 else "cloud"
    return batch_line(f"q{number:03}", max_tokens=60, pice={"mode": mode})


def write_input(folder: Path, num_lines: int) -> Path:
    """A file with requests and, in the middle, a line that is none."""
    lines = [line(number) for number in range(num_lines - 1)]
    source = folder / "in.jsonl"
    source.write_bytes(b"".join([*lines[: num_lines // 2], b"{torn\n", *lines[num_lines // 2 :]]))
    return source


def num_done(cluster: Cluster, job: str) -> int:
    """Results that are in Redis."""
    return int(redis("HLEN", f"{cluster.prefix}:{{{job}}}:results")[0])


def state(cluster: Cluster, job: str) -> str:
    found: str = cluster.json("batch", "status", job)["status"]
    return found


def test_job_survives_the_death_of_its_terminal_of_the_cloud_node_and_of_a_collector(
    cluster: Cluster, tmp_path: Path
) -> None:
    source, out = write_input(tmp_path, NUM_LINES), tmp_path / "out.jsonl"
    with started("batch", "submit", source, "--wait", *cluster.options(), cwd=tmp_path) as terminal:
        terminal.says(f"{NUM_LINES} lines are in the queue")
        terminal.send(signal.SIGKILL)
        assert terminal.end().code == -signal.SIGKILL
    (job,) = [each["id"] for each in cluster.json("batch", "status")["data"]]
    cloud, _, collector = cluster.services
    until(lambda: num_done(cluster, job) >= 8, "some lines are done")
    for killed, words in ((cloud, CLOUD), (collector, COLLECTOR)):
        killed.kill()
        cluster.start(*words)
    assert num_done(cluster, job) < NUM_LINES
    until(lambda: state(cluster, job) == "completed", "the job has ended", within_s=60.0)
    ran = cluster.pice("batch", "fetch", job, "--output", out)
    assert ran.code == 3
    assert f"{NUM_LINES} lines: {NUM_LINES - 1} answered, 1 failed" in ran.err
    assert keys(out) == [f"q{number:03}" for number in range(NUM_LINES - 1)]
    assert keys(tmp_path / "out.errors.jsonl") == [f"line {NUM_LINES // 2 + 1}"]
    for service in cluster.services:
        assert "Traceback" not in service.said()


def test_cancelled_job_ends_and_keeps_what_it_has(cluster: Cluster, tmp_path: Path) -> None:
    source = write_input(tmp_path, NUM_LINES_TOO_MANY)
    submitted = cluster.pice("batch", "submit", source, "--name", "to be cancelled", "--quiet")
    assert (submitted.code, submitted.err) == (0, "")
    job = submitted.out.strip()
    assert "to be cancelled" in cluster.pice("batch", "status").out
    running = cluster.pice("batch", "fetch", job, "-o", tmp_path / "early.jsonl")
    assert running.code == 1
    assert "still runs" in running.refusal
    until(lambda: num_done(cluster, job) > 0, "a line is done")
    assert cluster.pice("batch", "cancel", job).code == 0
    assert state(cluster, job) == "cancelled"
    assert cluster.pice("batch", "cancel", job).code == 0
    ran = cluster.pice("batch", "fetch", job, "-o", tmp_path / "out.jsonl")
    assert ran.code == 1
    assert "without a result" in ran.err
    assert 0 < len(keys(tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl")) < NUM_LINES_TOO_MANY
