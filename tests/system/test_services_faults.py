"""What services do when a broker is away, a process dies, a site is drained, and a message is forged or junk."""

import asyncio
import hashlib
import hmac
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

import pice
from pice.core import Answer, Candidate, Event, Message, Request, Sampling, Segment
from pice.message.codec import encode
from pice.redis_client import connect_redis
from pice.transport.base import CANDIDATES, REQUESTS, Transport, segments_topic
from pice.transport.redis import RedisTransport
from tests.brokers import kafka_address, redis_url
from tests.system.cluster import Cluster, Service, deployment, forwarding, site_key, until
from tests.system.command import curve
from tests.system.witness import publish
from tools.brokers.program import Program, found, free_port, listens

QUESTION = "What should I know before adopting a cat?"
MAX_BYTES = 65_536
SLOW = (
    *(curve(engine, 0.05).removeprefix("--set=") for engine in ("small-a", "small-b")),
    "planner.hedge_min_s=50.0",
    "ensemble.max_candidates=1",
    f"limits.max_message_bytes={MAX_BYTES}",
    "service.lease_s=5.0",
)
"""A segment takes about a second, and nobody else is given it meanwhile."""
HOLDER, STANDBY, SITE_B, COLLECTOR = range(1, 5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cloud node, two slow sites of which the first has a standby, and a collector."""
    with deployment(tmp_path_factory.mktemp("faults"), *SLOW) as cluster:
        site_a = ("edge", "--site", "a")
        cluster.start_all(("cloud",), site_a)
        cluster.start_all(site_a, ("edge", "--site", "b"), ("collector",))
        yield cluster


async def ask(cluster: Cluster, when_given_to_a: Callable[[Event], Awaitable[Any]] | None = None) -> Answer:
    """The answer to a question; what shall be done is done once the first segment is published to site a."""
    async with asyncio.timeout(50), pice.open(cluster.config, overrides=cluster.overrides) as pipeline:
        request = pipeline.new_request(QUESTION, mode="progressive")
        async with aclosing(pipeline.stream(request)) as events:
            async for event in events:
                if event.kind == "segment_released" and event.site == "a" and when_given_to_a:
                    await when_given_to_a(event)
                    when_given_to_a = None
                if event.answer:
                    assert when_given_to_a is None
                    return event.answer
                assert event.failure is None
    raise AssertionError("the events end with an outcome")


def written_at(answer: Answer, site: str) -> int:
    """How many parts of it came from a site; none of it may be degraded."""
    assert answer.degraded == ()
    assert all(len(span.placements) == 1 for span in answer.spans)
    return sum(span.site == site for span in answer.spans)


def readiness(service: Service) -> dict[str, Any]:
    """What is down, by name; nothing where nobody answers."""
    reply = service.get("/readyz")
    down: dict[str, Any] = json.loads(reply.text)["down"] if reply.status == 503 else {}
    return down


@contextmanager
def own_redis(folder: Path, port: int, *settings: str) -> Iterator[None]:
    command = [found("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", str(port)]
    program = Program("redis", [*command, "--save", "", "--appendonly", "no", *settings], folder)
    try:
        program.wait_until(lambda: listens(port))
        yield
    finally:
        program.stop()


# --- brokers that are away, or no good -------------------------------------------------------------------------------


def test_service_waits_for_its_brokers_and_says_which_is_away(tmp_path: Path) -> None:
    kafka_port, redis_port = free_port(), free_port()
    elsewhere = (
        f"kafka.bootstrap_servers=127.0.0.1:{kafka_port}",
        f"redis.url=redis://127.0.0.1:{redis_port}/0",
    )
    with deployment(tmp_path) as own, ExitStack() as stack:
        service = own.start("collector", overrides=elsewhere)

        def names(address: int) -> bool:
            return any(f"127.0.0.1:{address}" in cause for cause in readiness(service).values())

        until(lambda: names(redis_port), "it says that it waits for Redis")
        with own_redis(tmp_path, redis_port):
            until(lambda: names(kafka_port), "it says that it waits for Kafka")
            assert service.get("/livez").status == 200
            stack.enter_context(forwarding(kafka_port, kafka_address()))
            service.ready()
        until(lambda: names(redis_port), "it says that Redis has gone")
        with own_redis(tmp_path, redis_port):
            service.ready()
            service.stop()
            assert service.ended() == 0
    assert "Traceback" not in service.said()


def test_service_whose_redis_went_away_ends_when_asked(tmp_path: Path) -> None:
    """It has nothing to finish, so it does not wait for as long as it may."""
    port = free_port()
    long = ("cloud.drain_s=600", "limits.drain_s=600")
    with deployment(tmp_path, f"redis.url=redis://127.0.0.1:{port}/0", *long) as own:
        with own_redis(tmp_path, port):
            service = own.start("up").ready()
            until(lambda: all(site["status"] == "up" for site in own.json("sites")), "the sites are served")
        until(lambda: readiness(service), "it says that Redis has gone")
        service.stop()
        assert service.ended() == 0
    assert "Traceback" not in service.said()


@pytest.mark.parametrize("words", [("cloud",), ("edge", "--site", "a"), ("collector",)], ids=lambda words: words[0])
def test_service_that_waits_for_its_brokers_ends_when_asked(tmp_path: Path, words: tuple[str, ...]) -> None:
    cluster = Cluster(tmp_path, ("redis.url=redis://127.0.0.1:1/0",))
    try:
        service = cluster.start(*words)
        until(lambda: readiness(service), "it waits")
        service.stop()
        assert service.ended() == 0
        assert "Traceback" not in service.said()
    finally:
        cluster.close()


def test_command_whose_broker_is_away_says_so_and_does_not_wait(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for away in ("kafka.bootstrap_servers=127.0.0.1:1", "redis.url=redis://127.0.0.1:1/0"):
        ran = cluster.pice("ask", QUESTION, overrides=[away])
        assert ran.code == 1
        assert "127.0.0.1:1" in ran.refusal
    cluster.close()


@pytest.fixture(scope="module")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis with a password, that throws away what was used longest ago."""
    port = free_port()
    settings = ("--requirepass", "right", "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    with own_redis(tmp_path_factory.mktemp("redis"), port, *settings):
        yield f"redis://127.0.0.1:{port}/0"


@pytest.mark.parametrize(
    ("password", "advice"),
    [("wrong", "check user, password and ACL"), ("right", "set maxmemory-policy noeviction")],
    ids=["wrong password", "eviction"],
)
def test_redis_that_is_no_good_is_refused_at_start(
    tmp_path: Path, guarded_redis: str, password: str, advice: str
) -> None:
    cluster = Cluster(tmp_path, (f"redis.url={guarded_redis}", f"redis.password={password}"))
    ran = cluster.pice("collector")
    cluster.close()
    assert ran.code == 2
    assert advice in ran.err
    assert password not in ran.err.replace("check user, password and ACL", "")


@pytest.mark.parametrize(
    "words", [("cloud",), ("edge", "--site", "a"), ("collector",), ("up",)], ids=lambda words: words[0]
)
def test_topics_that_are_missing_are_refused_at_start(tmp_path: Path, words: tuple[str, ...]) -> None:
    cluster = Cluster(tmp_path)
    ran = cluster.pice(*words)
    cluster.close()
    assert ran.code == 2
    assert "pice topics create" in ran.err


# --- messages that are none, or lies ---------------------------------------------------------------------------------


def buried(cluster: Cluster) -> Counter[str]:
    """How many messages were put aside, by topic."""
    return Counter(each["topic"] for each in cluster.json("dead", "list"))


@asynccontextmanager
async def candidates_queue(cluster: Cluster) -> AsyncIterator[Transport]:
    client = await connect_redis(redis_url())
    try:
        yield RedisTransport(client, prefix=cluster.prefix)
    finally:
        await client.close()


def signed(key: str, payload: bytes) -> Mapping[str, bytes]:
    return {"signature": hmac.new(key.encode(), payload, hashlib.sha256).hexdigest().encode()}


async def test_candidate_that_another_site_forged_is_refused_and_the_request_is_answered(cluster: Cluster) -> None:
    text = "Buy this at once. It is what everybody has who knows about cats, and costs nearly nothing."
    collector = cluster.services[COLLECTOR]
    before = collector.total("pice_candidates_forged_total"), buried(cluster)["pice.candidates"]

    async def forge(event: Event) -> None:
        def lie(site: str) -> bytes:
            return encode(Candidate(event.request_id, event.attempt, event.index, site, f"small-{site}", text))

        as_a, as_b = lie("a"), lie("b")
        async with candidates_queue(cluster) as queue:
            for payload, headers in (
                (as_a, {}),
                (as_a, {"signature": b""}),
                (as_a, signed(site_key("b"), as_a)),
                (as_a, signed(site_key("a"), as_b)),
                (as_b, signed(site_key("b"), as_b)),
            ):
                await queue.publish(CANDIDATES, payload, key=event.request_id, headers=headers)

    answer = await ask(cluster, forge)
    assert written_at(answer, "a") > 0
    assert "Buy this" not in answer.text
    assert all(len(span.candidates) == 1 for span in answer.spans)
    assert collector.total("pice_candidates_forged_total") - before[0] == 4
    assert buried(cluster)["pice.candidates"] - before[1] == 5


def junk(rng: random.Random) -> list[bytes]:
    """Messages that no node can read, each in its own way."""
    request = Request("r1", (Message("user", "why?"),))
    return [
        b"",
        rng.randbytes(300),
        encode(request)[:-3],
        msgpack.packb({"v": 1, "t": "nonsense", "request_id": "r1"}),
        msgpack.packb({"v": 99, "t": "request", "request_id": "r1"}),
        msgpack.packb({"v": 1, "t": "point", "index": 0, "text": "in the wrong place", "words": 3}),
        b"\xc1" * (MAX_BYTES + 1000),
    ]


def segment_of_nowhere() -> bytes:
    question = (Message("user", "why?"),)
    return encode(Segment("r1", 1, 0, "answer", question, (), (), 10, Sampling(), 1e12, "nowhere", "small-a"))


async def test_junk_is_put_aside_once_and_no_service_stops(cluster: Cluster) -> None:
    rng = random.Random(7)
    before = buried(cluster)
    main = segments_topic("main")
    sent = {
        REQUESTS: [*junk(rng)],
        main: [*junk(rng), segment_of_nowhere()],
        segments_topic("cloud"): [*junk(rng), segment_of_nowhere()],
        CANDIDATES: [*junk(rng)],
    }
    partitions = {site["name"]: site["partition"] for site in cluster.json("sites")}
    for topic, payloads in sent.items():
        if topic == CANDIDATES:
            async with candidates_queue(cluster) as queue:
                for payload in payloads:
                    await queue.publish(topic, payload, key="r1")
        else:
            await publish(f"{cluster.prefix}.{topic}", partitions["a"] if topic == main else 0, payloads)
    answer = await ask(cluster)
    assert written_at(answer, "a") + written_at(answer, "b") == len(answer.spans)
    expected = {topic: len(payloads) for topic, payloads in sent.items()}
    until(lambda: buried(cluster) - before == expected, f"put aside is {expected}")
    for service in cluster.services:
        assert service.get("/readyz").status == 200
        assert "Traceback" not in service.said()
    counted = sum(service.total("pice_dead_letters_total") for service in cluster.services)
    assert counted == sum(buried(cluster).values())


# --- sites that die, or are to end -----------------------------------------------------------------------------------


def holder_of(cluster: Cluster, site: str) -> str:
    """Who serves a site, as the registry has it."""
    (holder,) = [each["holder"] for each in cluster.json("sites") if each["name"] == site]
    assert isinstance(holder, str)
    return holder


async def test_standby_takes_over_what_stands_on_the_partition_of_a_site_that_was_killed(cluster: Cluster) -> None:
    holder, standby = cluster.services[HOLDER], cluster.services[STANDBY]
    assert f".{holder.pid}." in holder_of(cluster, "a")
    assert standby.total("pice_candidates_written_total") == 0

    async def kill(_: Event) -> None:
        holder.kill()

    answer = await ask(cluster, kill)
    assert f".{standby.pid}." in holder_of(cluster, "a")
    assert standby.total("pice_candidates_written_total", site="a", outcome="written") == written_at(answer, "a") > 0


async def test_drained_site_finishes_what_it_has_and_gets_no_more(cluster: Cluster) -> None:
    """After the test above it is the standby that serves the site."""

    async def drain(_: Event) -> None:
        ran = await asyncio.to_thread(cluster.pice, "sites", "drain", "a")
        assert ran.code == 0

    answer = await ask(cluster, drain)
    assert written_at(answer, "a") > 0
    (site,) = [each for each in cluster.json("sites") if each["name"] == "a"]
    assert site["status"] == "draining"
    assert written_at(await ask(cluster), "a") == 0
    refused = cluster.pice("sites", "remove", "a")
    assert refused.code == 2
    assert "stop its process" in refused.err
    for service in cluster.services[HOLDER : STANDBY + 1]:
        service.kill()
    until(lambda: cluster.pice("sites", "remove", "a").code == 0, "it is removed once its lease has lapsed")
    until(
        lambda: "a" not in [each["name"] for each in cluster.json("sites")],
        "it is not listed once its last heartbeat has lapsed too",
    )
