"""The services as users run them: each in a process of its own, or all of them in one."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

import pice
from pice.core import Answer
from tests.system.cluster import Cluster, Service, deployment, until
from tests.system.command import COMMAND, ROOT, batch_line, curve, environment, keys, killed_at_the_deadline
from tests.system.test_ask import QUESTION, check_record

CLOUD, SITE_A, SITE_B, COLLECTOR = ("cloud",), ("edge", "--site", "a"), ("edge", "--site", "b"), ("collector",)
DRAINED_WITHIN_S = 15.0
"""The 10 s of the configuration, and what it takes a process to end."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cloud node, two sites and a collector, all of them ready."""
    with deployment(tmp_path_factory.mktemp("services")) as cluster:
        cluster.start_all(CLOUD, SITE_A, SITE_B, COLLECTOR)
        yield cluster


def long_line(custom_id: str) -> bytes:
    """A request that is sketched."""
    return batch_line(custom_id, max_tokens=600, pice={"mode": "progressive"})


def num_lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextmanager
def batch_under_way(cluster: Cluster, folder: Path, num_lines: int) -> Iterator[subprocess.Popen[bytes]]:
    """`pice batch run` on sketched requests, of which one is answered and some are being asked."""
    lines = [long_line(f"q{number:02}") for number in range(num_lines)]
    (folder / "in.jsonl").write_bytes(b"".join(lines))
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--concurrency", "6", "--quiet"]
    command = [*COMMAND, "batch", "run", *files, *cluster.options()]
    process = subprocess.Popen(command, cwd=ROOT, env=environment())
    with killed_at_the_deadline(process):
        until(lambda: process.poll() is not None or num_lines_of(folder / "out.jsonl"), "the first line is answered")
        yield process


def test_topics_say_what_they_are(cluster: Cluster) -> None:
    ran = cluster.pice("topics", "describe")
    assert ran.code == 0
    for topic in ("pice.requests", "pice.segments.main", "pice.segments.cloud", "pice.dead"):
        assert f"{topic}: " in ran.out


def test_topics_may_be_created_again(cluster: Cluster) -> None:
    ran = cluster.pice("topics", "create")
    assert ran.code == 0


def test_answer_is_put_together_from_what_other_processes_wrote(cluster: Cluster) -> None:
    record = cluster.json("ask", "--mode", "progressive", QUESTION)
    check_record(record)
    assert (record["mode"], record["degraded"]) == ("progressive", [])
    assert {span["site"] for span in record["spans"]} == {"a", "b"}
    assert {span["model"] for span in record["spans"]} == {"small-a", "small-b"}


def test_pipe_gets_the_answer_and_nothing_else(cluster: Cluster) -> None:
    ran = cluster.pice("ask", "--max-tokens", "20", "--mode", "cloud", QUESTION)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    assert 15 <= len(ran.out.split()) <= 20


def test_small_model_at_a_site_answers_alone_where_that_is_asked_for(cluster: Cluster) -> None:
    record = cluster.json("ask", "--mode", "edge", "--max-tokens", "50", QUESTION)
    assert record["mode"] == "edge"
    assert [span["site"] for span in record["spans"]] in (["a"], ["b"])


def test_plan_is_made_from_the_sites_that_are_up(cluster: Cluster) -> None:
    plan = cluster.json("plan", QUESTION)
    assert min(plan["t_cloud_s"], plan["t_progressive_s"], plan["t_edge_s"]) > 0


def test_batch_runs_on_the_services(cluster: Cluster, tmp_path: Path) -> None:
    lines = [batch_line("cloud"), long_line("sketched"), batch_line("edge", pice={"mode": "edge"}), b"{torn\n"]
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    ran = cluster.pice("batch", "run", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert ran.code == 3
    assert "3 answered" in ran.err
    assert keys(tmp_path / "out.jsonl") == ["cloud", "edge", "sketched"]


def test_request_that_cannot_be_answered_fails_with_its_cause(cluster: Cluster) -> None:
    ran = cluster.pice("ask", "--max-tokens", "100000", QUESTION)
    assert ran.code == 1
    assert "a context of 4096" in ran.refusal


def test_sites_are_listed_with_who_serves_them(cluster: Cluster) -> None:
    sites = {site["name"]: site for site in cluster.json("sites")}
    assert sorted(sites) == ["a", "b", "cloud"]
    assert all(site["holder"] and site["status"] == "up" for site in sites.values())
    assert {sites["a"]["partition"], sites["b"]["partition"]} == {0, 1}
    shown = cluster.pice("sites")
    assert shown.code == 0
    assert {"a", "b", "cloud"} <= {line.split()[0] for line in shown.out.splitlines() if line.split()}


def test_every_service_says_that_it_lives_and_serves(cluster: Cluster) -> None:
    for service in cluster.services[:4]:
        assert json.loads(service.get("/livez").text)["live"]
        assert json.loads(service.get("/readyz").text)["ready"]
        assert service.get("/").status == 404


def test_metrics_count_what_was_asked(cluster: Cluster) -> None:
    cloud, site_a, site_b, collector = cluster.services[:4]

    def counts() -> list[float]:
        return [
            cloud.total("pice_plans_total", mode="progressive"),
            cloud.total("pice_segments_placed_total"),
            site_a.total("pice_candidates_written_total", site="a", outcome="written"),
            site_b.total("pice_candidates_written_total", site="b", outcome="written"),
            collector.total("pice_candidates_counted_total", outcome="new"),
            collector.total("pice_segments_chosen_total", degraded="false"),
            collector.total("pice_requests_closed_total", mode="progressive", outcome="answered"),
        ]

    before = counts()
    record = cluster.json("ask", "--mode", "progressive", "How do I prepare for a marathon?")
    by_site = [sum(span["site"] == site for span in record["spans"]) for site in ("a", "b")]
    num = sum(by_site)
    expected = [1, num, *by_site, num, num, 1]
    until(lambda: [new - old for new, old in zip(counts(), before, strict=True)] == expected, f"they count {expected}")


def test_service_asked_to_end_drains_and_no_request_under_way_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    """Each is replaced while requests are asked, as in an upgrade that rolls through a deployment."""
    first = cluster.services[:4]
    cluster.start_all(CLOUD, SITE_A, SITE_B, COLLECTOR)
    with batch_under_way(cluster, tmp_path, 60) as batch:
        for service in first:
            service.stop()
        assert batch.poll() is None
        assert [service.ended(within_s=DRAINED_WITHIN_S) for service in first] == [0] * 4
        assert batch.wait() == 0
    assert keys(tmp_path / "out.jsonl") == [f"q{number:02}" for number in range(60)]
    for service in first:
        assert "Traceback" not in service.said()
    cluster.services[:] = [*cluster.services[4:], *first]


async def asked_and_stopped(cluster: Cluster, service: Service) -> Answer | None:
    """The answer of the cloud model, at whose first text the service is asked to end."""
    async with asyncio.timeout(60), pice.open(cluster.config, overrides=cluster.overrides) as pipeline:
        async with aclosing(pipeline.stream(pipeline.new_request(QUESTION, mode="cloud"))) as events:
            stopped = False
            async for event in events:
                if event.kind == "answer_text" and not stopped:
                    service.stop()
                    stopped = True
        assert stopped
        return event.answer


def test_all_services_run_in_one_process_and_finish_what_was_begun_when_asked_to_end(tmp_path: Path) -> None:
    """Nobody else is there who could take the second request, which takes some two seconds."""
    with deployment(tmp_path, curve("big", 0.03).removeprefix("--set=")) as alone:
        service = alone.start("up").ready()
        record = alone.json("ask", "--mode", "progressive", QUESTION)
        assert {span["site"] for span in record["spans"]} == {"a", "b"}
        assert service.total("pice_requests_closed_total", outcome="answered") == 1
        answer = asyncio.run(asked_and_stopped(alone, service))
        assert answer is not None
        assert len(answer.text.split()) >= 60
        assert service.ended(within_s=DRAINED_WITHIN_S) == 0
        assert service.get("/livez").status == 0
        assert "Traceback" not in service.said()


def test_idle_services_end_at_once_when_asked(cluster: Cluster) -> None:
    for service in cluster.services[:4]:
        service.stop()
    assert [service.ended(within_s=DRAINED_WITHIN_S) for service in cluster.services[:4]] == [0] * 4
