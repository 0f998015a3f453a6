"""A deployment whose Redis is a Cluster of three nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.own_cluster import redis_cluster_url
from tests.system.cluster import Cluster, deployment
from tests.system.command import batch_line, keys
from tests.system.test_ask import QUESTION, check_record

NUM_LINES = 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cloud node, two sites and a collector, in a process each."""
    with deployment(tmp_path_factory.mktemp("cluster"), f"redis.url={redis_cluster_url()}") as cluster:
        cluster.start_all(("cloud",), ("edge", "--site", "a"), ("edge", "--site", "b"), ("collector",))
        yield cluster


def test_answer_is_put_together_from_what_other_processes_wrote(cluster: Cluster) -> None:
    record = cluster.json("ask", "--mode", "progressive", QUESTION)
    check_record(record)
    assert (record["mode"], record["degraded"]) == ("progressive", [])
    assert {span["site"] for span in record["spans"]} == {"a", "b"}


def test_sites_are_listed(cluster: Cluster) -> None:
    assert [site["name"] for site in cluster.json("sites")] == ["a", "b", "cloud"]


def test_job_gives_each_line_once(cluster: Cluster, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    names = [f"q{number:02}" for number in range(NUM_LINES)]
    source.write_bytes(b"".join(batch_line(name, max_tokens=60) for name in names))
    submitted = cluster.pice("batch", "submit", source, "--wait", "--quiet")
    assert submitted.code == 0, submitted.err
    assert cluster.pice("batch", "fetch", submitted.out.strip(), "--output", out).code == 0
    assert keys(out) == names
    for service in cluster.services:
        assert "Traceback" not in service.said()
