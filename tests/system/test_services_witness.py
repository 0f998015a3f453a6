"""What Kafka and Redis themselves say of a deployment at work, by kcat and redis-cli."""

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgpack
import pytest

from tests.system.cluster import Cluster, Service, deployment, until
from tests.system.witness import Position, messages, positions, redis

QUESTION = "What should I know before adopting a cat?"
SITES, COLLECTOR = slice(1, 3), 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A site writes its segments one after the other, one candidate may wait, and what is known of a request is kept
    for 4 s after its end."""
    one_by_one = [f"{each}.max_inflight=1" for each in ("engines.small-a", "engines.small-b")]
    in_order = [f"{each}.order=fcfs" for each in ("sites.a", "sites.b")]
    few = ("redis.max_candidates=1", "limits.record_ttl_s=4", *one_by_one, *in_order)
    with deployment(tmp_path_factory.mktemp("witness"), *few) as cluster:
        cluster.start_all(("cloud",), ("edge", "--site", "a"), ("edge", "--site", "b"), ("collector",))
        yield cluster


def ask(cluster: Cluster) -> dict[str, Any]:
    record: dict[str, Any] = cluster.json("ask", "--mode", "progressive", QUESTION)
    assert record["degraded"] == []
    return record


def segments(cluster: Cluster) -> list[tuple[int, dict[str, Any]]]:
    """By partition, all that was ever published for the sites."""
    found = messages(f"{cluster.prefix}.pice.segments.main")
    return [(partition, msgpack.unpackb(payload)) for partition, payload in found]


def of_segments(cluster: Cluster) -> Position:
    """How many segments were acknowledged, and how many were published."""
    topic = f"{cluster.prefix}.pice.segments.main"
    at = [each for (name, _), each in asyncio.run(positions(f"{cluster.prefix}.")).items() if name == topic]
    return Position(sum(each.committed for each in at), sum(each.end for each in at))


def num_waiting(cluster: Cluster) -> int:
    """Candidates in Redis."""
    streams = redis("--scan", "--pattern", f"{cluster.prefix}:*:stream:pice.candidates")
    return sum(int(redis("XLEN", stream)[0]) for stream in streams)


def waits_for_room(site: Service) -> bool:
    reply = site.get("/readyz")
    return reply.status == 503 and "limit" in reply.text


def holders_of(cluster: Cluster, text: str) -> list[str]:
    """The keys with a text in their name, and the sets and hashes with one in a name of what they hold."""
    found = []
    for key in redis("--scan", "--pattern", f"{cluster.prefix}:*"):
        kind = redis("TYPE", key)[0]
        words = {"zset": ("ZRANGE", key, "0", "-1"), "set": ("SMEMBERS", key), "hash": ("HKEYS", key)}.get(kind)
        if text in key or (words and any(text in name for name in redis(*words))):
            found.append(key)
    return found


def test_segment_of_a_site_stands_on_the_partition_of_that_site_only(cluster: Cluster) -> None:
    records = [ask(cluster) for _ in range(2)]
    partitions = {site["name"]: site["partition"] for site in cluster.json("sites")}
    stand = segments(cluster)
    assert {(segment["site"], partition) for partition, segment in stand} == {
        ("a", partitions["a"]),
        ("b", partitions["b"]),
    }
    asked = {(record["request_id"], span["index"]) for record in records for span in record["spans"]}
    assert sorted((segment["request_id"], segment.get("index", 0)) for _, segment in stand) == sorted(asked)


def test_segment_is_acknowledged_once_its_candidate_is_in_redis_and_not_before(cluster: Cluster) -> None:
    """While the collector stands still Redis takes one candidate, and the sites wait with the others in hand."""
    collector, sites = cluster.services[COLLECTOR], cluster.services[SITES]
    before = of_segments(cluster)
    assert before.committed == before.end
    collector.send(signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        try:
            asking = pool.submit(ask, cluster)
            until(lambda: num_waiting(cluster) == 1, "a candidate is in Redis")
            for site in sites:
                until(partial(waits_for_room, site), f"{site.name} waits for room")
            until(lambda: of_segments(cluster).committed == before.committed + 1, "one segment is acknowledged")
            now = of_segments(cluster)
            assert (now.committed, num_waiting(cluster)) == (before.committed + 1, 1)
            assert now.end - before.end > 2
        finally:
            collector.send(signal.SIGCONT)
        record = asking.result()
    assert now.end - before.end == len(record["spans"])


def test_lag_of_every_group_returns_to_nothing(cluster: Cluster) -> None:
    ask(cluster)

    def behind() -> dict[tuple[str, int], Position]:
        found = asyncio.run(positions(f"{cluster.prefix}.")).items()
        return {at: each for at, each in found if each.committed != each.end and not at[0].endswith(".pice.dead")}

    until(lambda: not behind(), "all groups have acknowledged all there is")
    until(lambda: num_waiting(cluster) == 0, "no candidate is left")
    assert messages(f"{cluster.prefix}.pice.dead") == []


def test_nothing_of_a_finished_request_is_left_in_redis_after_its_time(cluster: Cluster) -> None:
    request_id = ask(cluster)["request_id"]
    assert holders_of(cluster, request_id)
    until(lambda: not holders_of(cluster, request_id), "all of it has expired")
