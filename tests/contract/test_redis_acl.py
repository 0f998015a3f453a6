"""The users of docs/redis-acl.md on a real Redis: what a site needs works, and what it must not do is refused."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pice.core import (
    Candidate,
    Curve,
    Event,
    Failure,
    Job,
    Message,
    ModelState,
    Placement,
    Plan,
    Point,
    Request,
    Sampling,
    Segment,
    SiteState,
    Span,
)
from pice.engine.emulated import EmulatedEngine
from pice.errors import ConfigError
from pice.jobs.base import Result
from pice.jobs.redis import RedisJobs
from pice.message.codec import decode_as, encode
from pice.node.edge import Address, EdgeNode, EdgePolicy
from pice.node.keeper import SiteKeeper
from pice.node.load import Load
from pice.redis_client import RedisClient, Script, connect_redis
from pice.registry.redis import RedisRegistry
from pice.sketch.prompts import load_prompts
from pice.store.base import Chosen, Counted, Unwanted
from pice.store.redis import RedisStore
from pice.transport.base import CANDIDATES, segments_topic
from pice.transport.memory import MemoryTransport
from pice.transport.redis import RedisTransport
from pice.transport.routed import RoutedTransport
from tests.brokers import redis_url
from tests.contract.own_redis import OwnRedis

PAGE = Path(__file__).parents[2] / "docs" / "redis-acl.md"
PASSWORD = "a site's own"
MESSAGES = (Message("user", "Why?"),)
CANDIDATE = Candidate("r1", 1, 0, "paris", "m", "text")


def setups() -> list[list[str]]:
    """The commands that the page shows, in words."""
    lines = re.findall(r"^    (ACL SETUSER .+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [[word.replace("PASSWORD", PASSWORD) for word in line.split(" ")] for line in lines]


@dataclass(slots=True)
class Process:
    """What one process works with."""

    client: RedisClient
    store: RedisStore
    registry: RedisRegistry
    candidates: RedisTransport


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    redis_url()
    own = OwnRedis(tmp_path)
    await own.start()
    yield own
    await own.stop()


@pytest.fixture
async def log_in(own_redis: OwnRedis) -> AsyncIterator[Callable[[str], Awaitable[Process]]]:
    """Connects as a user of the page; the default user is off."""
    admin = await connect_redis(own_redis.url)
    for words in setups():
        assert await admin.call(*words) == b"OK"
    made: list[Process] = []

    async def log_in(user: str) -> Process:
        client = await connect_redis(own_redis.url.replace("//", f"//{user}@"), password=PASSWORD)
        made.append(Process(client, RedisStore(client), RedisRegistry(client), RedisTransport(client)))
        await made[-1].store.start()
        return made[-1]

    yield log_in
    for process in made:
        await process.candidates.close()
        await process.client.close()
    await admin.close()


LogIn = Callable[[str], Awaitable[Process]]


def segment() -> Segment:
    return Segment("r1", 1, 0, "expand", MESSAGES, (), (Point(0, "a", 10),), 10, Sampling(), 99.0)


def state(site: str) -> SiteState:
    return SiteState(site, "main", 0, (ModelState("m", 4096, 4, Curve((1,), (0.1,))),), 0.0, token=1)


async def placed(process: Process) -> None:
    assert await process.store.open(Request("r1", MESSAGES, timeout_s=30))
    assert await process.store.begin("r1")
    assert await process.store.place(segment(), Placement("paris", "m", 0.0, 1.0))


async def test_page_makes_a_user_for_each_kind_and_switches_the_default_off(own_redis: OwnRedis, log_in: LogIn) -> None:
    assert [words[2] for words in setups()] == ["pice", "site-paris", "default"]
    with pytest.raises(ConfigError, match="check user, password and ACL"):
        await connect_redis(own_redis.url)
    with pytest.raises(ConfigError, match="check user, password and ACL"):
        await connect_redis(own_redis.url.replace("//", "//site-paris@"), password="another's")


async def test_user_of_a_site_can_do_all_that_an_edge_node_and_its_keeper_do(log_in: LogIn) -> None:
    core, edge = await log_in("pice"), await log_in("site-paris")
    await placed(core)
    assert await edge.registry.register("paris", "main") == 0
    token = await edge.registry.acquire("paris", "host.1", lease_s=30)
    assert token is not None
    assert await edge.registry.renew("paris", token, lease_s=30) == "held"
    await edge.store.heartbeat(state("paris"), ttl_s=30)
    assert await core.store.sites() == [state("paris")]
    notices = edge.store.notices()
    assert await edge.store.wanted("r1", 1, 0)
    await edge.store.emit(Event("r1", "segment_text", 0.0, 1, 0, "text", "paris", "m"))
    await edge.candidates.publish(CANDIDATES, encode(CANDIDATE), key="r1", headers={"signature": b"s"})
    subscription = await core.candidates.subscribe(CANDIDATES, group="collectors")
    delivery = await subscription.receive()
    assert delivery.payload == encode(CANDIDATE)
    assert (await core.store.add_candidate(CANDIDATE))[0] is Counted.NEW
    assert await core.store.choose("r1", 1, Span(0, "text", "paris", "m", 0.5)) is Chosen.MADE
    assert await core.store.close_request("r1", 1, Failure("r1", "cancelled", ""))
    assert await notices.receive() == Unwanted("r1", 1)
    await subscription.ack(delivery)
    await edge.registry.release("paris", token)
    assert [event.kind async for event in core.store.follow("r1", until_s=core.store.now())] == [
        "segment_text",
        "segment_chosen",
        "failed",
    ]
    await notices.close()


async def test_user_of_a_site_says_an_event_again_that_was_not_answered(log_in: LogIn) -> None:
    core, edge = await log_in("pice"), await log_in("site-paris")
    await placed(core)
    event = Event("r1", "segment_text", 0.0, 1, 0, "text", "paris", "m")
    await edge.store.emit(event)
    edge.store._unsure._kept[encode(event)] = None
    await edge.store.emit(event)
    await core.store.close_request("r1", 1, Failure("r1", "cancelled", ""))
    events = [event.kind async for event in core.store.follow("r1", until_s=core.store.now())]
    assert events == ["segment_text", "failed"]


SNEAK = Script("#!lua\nreturn redis.call('HSET', ARGV[1], 'closed', '1', 'outcome', 'forged')")
"""Writes a record without declaring its key."""

FORBIDDEN: dict[str, Callable[[Process], Awaitable[Any]]] = {
    "opening a request": lambda edge: edge.store.open(Request("r2", MESSAGES)),
    "beginning one": lambda edge: edge.store.begin("r1"),
    "planning": lambda edge: edge.store.planned("r1", 1, Plan("edge", "")),
    "placing": lambda edge: edge.store.place(segment(), Placement("paris", "m2", 0.0, 1.0)),
    "taking a placement back": lambda edge: edge.store.unplace(segment(), Placement("paris", "m", 0.0, 1.0)),
    "sealing": lambda edge: edge.store.seal("r1", 1, (), 1, num_prompt_tokens=0, num_output_tokens=0, cut=False),
    "counting a candidate": lambda edge: edge.store.add_candidate(CANDIDATE),
    "choosing": lambda edge: edge.store.choose("r1", 1, Span(0, "text", "paris", "m", 0.5)),
    "closing a request": lambda edge: edge.store.close_request("r1", None, Failure("r1", "cancelled", "")),
    "making a request due": lambda edge: edge.store.set_due("r1", 0.0),
    "taking what is due": lambda edge: edge.store.take_due(),
    "a script of its own": lambda edge: edge.client.run(SNEAK, [], [edge.store._keys.shard("r1").record("r1")]),
    "reading candidates in a group": lambda edge: edge.candidates.subscribe(CANDIDATES, group="collectors"),
    "writing to another topic": lambda edge: edge.candidates.publish("pice.requests", b"x"),
    "the heartbeat of another": lambda edge: edge.store.heartbeat(state("rome"), ttl_s=30),
    "registering another": lambda edge: edge.registry.register("oslo", "main"),
    "going to another pool": lambda edge: edge.registry.register("paris", "south"),
    "the lease of another": lambda edge: edge.registry.acquire("rome", "host.1", lease_s=30),
    "giving back that of another": lambda edge: edge.registry.release("rome", 1),
    "draining another": lambda edge: edge.registry.drain("rome", draining=True),
    "removing another": lambda edge: edge.registry.remove("rome"),
    "reading a request": lambda edge: edge.store.record("r1"),
    "reading events": lambda edge: edge.client.call("XRANGE", "pice:{00}:events:r1", "-", "+"),
    "following a request": lambda edge: anext(edge.store.follow("r1", until_s=edge.store.now())),
    "calling a request closed": lambda edge: edge.client.call("HSET", "pice:{00}:wanted:r1", "attempt", 7),
    "reading candidates": lambda edge: edge.client.call("XREAD", "STREAMS", _stream(edge), "0"),
    "a hash where events belong": lambda edge: edge.client.call("HSET", "pice:{00}:events:r2", 1, 1),
    "a hash where names belong": lambda edge: edge.client.call("HSET", "pice:{sites}:names", 1, 1),
    "reading all keys": lambda edge: edge.client.call("KEYS", "*"),
    "deleting": lambda edge: edge.client.call("DEL", edge.store._keys.shard("r1").record("r1")),
    "flushing": lambda edge: edge.client.call("FLUSHALL"),
    "settings": lambda edge: edge.client.call("CONFIG", "SET", "maxmemory", "1"),
    "users": lambda edge: edge.client.call("ACL", "LIST"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_user_of_a_site_is_refused_what_is_not_its_own(log_in: LogIn, name: str) -> None:
    core, edge = await log_in("pice"), await log_in("site-paris")
    await placed(core)
    await core.registry.register("rome", "main")
    record, sites = await core.store.record("r1"), await core.registry.sites()
    with pytest.raises(ConfigError, match="refuses us"):
        await FORBIDDEN[name](edge)
    assert (await core.store.record("r1"), await core.registry.sites()) == (record, sites)
    assert await core.store.sites() == []


async def test_site_can_neither_delete_what_others_published_nor_stop_them(log_in: LogIn) -> None:
    core, edge = await log_in("pice"), await log_in("site-paris")
    await core.candidates.publish(CANDIDATES, b"other's", key="r1")
    for words in (("GETDEL", _stream(core)), ("UNLINK", _stream(core)), ("XTRIM", _stream(core), "MAXLEN", 0)):
        with pytest.raises(ConfigError, match="refuses us"):
            await edge.client.call(*words)
    await core.client.call("XADD", _stream(core).replace("stream", "asleep"), "*", "no", "string")
    await core.candidates.publish(CANDIDATES, b"another's", key="r1")
    subscription = await core.candidates.subscribe(CANDIDATES, group="collectors")
    assert [(await subscription.receive()).payload for _ in range(2)] == [b"other's", b"another's"]


async def test_edge_node_and_its_keeper_serve_a_segment_with_the_user_of_their_site(log_in: LogIn) -> None:
    core, edge = await log_in("pice"), await log_in("site-paris")
    await placed(core)
    queue, stopping = MemoryTransport(), asyncio.Event()
    transport = RoutedTransport({CANDIDATES: edge.candidates}, queue)
    engine = EmulatedEngine(model="m", curve=Curve((1,), (0.0,)), seed=1)
    await engine.start()

    def make(partition: int, token: int) -> EdgeNode:
        return EdgeNode(
            Address("paris", "main", partition),
            transport=transport,
            store=edge.store,
            engines=[(engine, Load(), load_prompts("default"))],
            policy=EdgePolicy(),
            token=token,
        )

    async def prepare(pool: str, partition: int) -> None:
        """A queue in memory has all partitions."""

    async with asyncio.timeout(30):
        keeper = SiteKeeper(edge.registry, "paris", "main", "host.1", make, prepare, lease_s=4.0)
        running = asyncio.ensure_future(keeper.run(stopping))
        wanted = replace(segment(), deadline_s=core.store.now() + 30, site="paris", model="m")
        await queue.publish(segments_topic("main"), encode(wanted), partition=0)
        subscription = await core.candidates.subscribe(CANDIDATES, group="collectors")
        candidate = decode_as(Candidate, (await subscription.receive()).payload)
        assert (candidate.site, bool(candidate.text), candidate.error) == ("paris", True, "")
        assert (await core.store.add_candidate(candidate))[0] is Counted.NEW
        assert [(site.site, site.token) for site in await core.store.sites()] == [("paris", 1)]
        stopping.set()
        await running
    assert [site.holder for site in await core.registry.sites()] == [""]
    await engine.close()


async def test_user_of_services_can_keep_jobs(log_in: LogIn) -> None:
    jobs = RedisJobs((await log_in("pice")).client)
    await jobs.create(Job("job_1", "name", "source", 1))
    assert await jobs.seal("job_1")
    assert await jobs.add_result("job_1", Result("a", b"{}", answered=True))
    assert [result.name async for result in jobs.results("job_1")] == ["a"]
    assert [job.job_id for job in await jobs.jobs()] == ["job_1"]


def _stream(process: Process) -> str:
    return f"{process.store._keys.shard('r1').tag}:stream:{CANDIDATES}"
