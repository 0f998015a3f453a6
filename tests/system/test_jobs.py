"""A batch job in the queue, on services and a terminal that die."""

import signal
import subprocess
from pathlib import Path

from tests.system.cluster import Cluster, deployment, until
from tests.system.command import COMMAND, ROOT, batch_line, environment, keys, killed_at_the_deadline

NUM_LINES = 1000
CLOUD, COLLECTOR = ("cloud",), ("collector",)
SITES = (("edge", "--site", "a"), ("edge", "--site", "b"))


def lines() -> list[bytes]:
    """Requests that are answered at the cloud, at a site, or sketched."""
    modes = ("cloud", "edge", "progressive", "cloud", "cloud")
    return [
        batch_line(f"q{number:04}", max_tokens=40, pice={"mode": modes[number % len(modes)]})
        for number in range(NUM_LINES)
    ]


def num_done(cluster: Cluster, job_id: str) -> int:
    counts = cluster.json("batch", "status", job_id)["request_counts"]
    return int(counts["completed"]) + int(counts["failed"])


def goes_on(cluster: Cluster, job_id: str) -> None:
    least = num_done(cluster, job_id) + 50
    until(lambda: num_done(cluster, job_id) >= least, "it goes on", within_s=60)


def begun_and_killed(cluster: Cluster, source: Path) -> str:
    """The id of a job whose submission was killed as soon as it had one."""
    command = [*COMMAND, "batch", "submit", str(source), *cluster.options()]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE)
    with killed_at_the_deadline(process):
        assert process.stdout is not None
        job_id = process.stdout.readline().decode().strip()
        process.send_signal(signal.SIGKILL)
        process.wait()
    return job_id


def test_job_outlives_its_terminal_a_cloud_node_and_a_collector(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"".join(lines()))
    with deployment(tmp_path) as cluster:
        cloud, collector, *_ = cluster.start_all(CLOUD, COLLECTOR, *SITES)
        job_id = begun_and_killed(cluster, source)
        again = cluster.pice("batch", "submit", source, "--job", job_id)
        assert (again.code, again.out) == (0, f"{job_id}\n")
        for victim, words in ((cloud, CLOUD), (collector, COLLECTOR)):
            goes_on(cluster, job_id)
            victim.kill()
            cluster.start(*words).ready()
        until(lambda: num_done(cluster, job_id) == NUM_LINES, "every line has its result", within_s=120)
        ran = cluster.pice("batch", "fetch", job_id, "-o", out)
        assert (ran.code, ran.err) == (0, f"{NUM_LINES} lines: {NUM_LINES} answered, 0 failed\n")
        assert keys(out) == [f"q{number:04}" for number in range(NUM_LINES)]
