"""The users of docs/redis-acl.md on a real Redis: what a site needs works, and what it must not do is refused."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pice.core import (
    Candidate,
    Curve,
    Event,
    Failure,
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
from pice.errors import ConfigError
from pice.message.codec import encode
from pice.redis_client import RedisClient, Script, connect_redis
from pice.registry.redis import RedisRegistry
from pice.store.base import Counted, Unwanted
from pice.store.redis import RedisStore
from pice.transport.base import CANDIDATES
from pice.transport.redis import RedisTransport
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
    assert await core.store.add_candidate(CANDIDATE) is Counted.NEW
    assert await core.store.choose("r1", 1, Span(0, "text", "paris", "m", 0.5))
    assert await core.store.close_request("r1", 1, Failure("r1", "cancelled", ""))
    assert await notices.receive() == Unwanted("r1", 1)
    await subscription.ack(delivery)
    await edge.registry.release("paris", token)
    assert [event.kind async for event in core.store.follow("r1", until_s=core.store.now())] == [
        "segment_text",
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


async def test_streams_of_others_cannot_be_deleted_as_what_publishing_takes_away(log_in: LogIn) -> None:
    core, edge = await log_in("pice"), await log_in("site-paris")
    await core.candidates.publish(CANDIDATES, b"other's", key="r1")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await edge.client.call("GETDEL", _stream(core))
    with pytest.raises(ConfigError, match="refuses us"):
        await edge.client.call("UNLINK", _stream(core))
    subscription = await core.candidates.subscribe(CANDIDATES, group="collectors")
    assert (await subscription.receive()).payload == b"other's"


def _stream(process: Process) -> str:
    return f"{process.store._keys.shard('r1').tag}:stream:{CANDIDATES}"
