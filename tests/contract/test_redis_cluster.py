"""What only a Redis Cluster has: keys on several nodes, slots that move, a node that dies and another in its place."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar
from zlib import crc32

import pytest

from pice.core import Failure, Message, Request
from pice.errors import ConfigError, TransportError
from pice.redis_client import RedisClient, Script, connect_redis
from pice.redis_servers import slot_of
from pice.store.base import Unwanted
from pice.store.redis_keys import NUM_SHARDS
from tests.brokers import redis_url
from tests.contract.own_cluster import OwnCluster, redis_cluster_url
from tests.contract.redis_stores import connected, redis_prefix, redis_stores
from tests.contract.redis_transports import redis_transport
from tests.system.command import ROOT

COUNT = Script("#!lua\nreturn redis.call('INCR', KEYS[1])")
NUM_KEYS = 32
RECOVERY_S = 30.0
RIGHTS = re.findall(r"`(\+cluster\|slots [^`]*)`", (ROOT / "docs/deployment.md").read_text(encoding="utf-8"))[0].split()
MESSAGES = (Message("user", "Why?"),)
T = TypeVar("T")


@pytest.fixture
async def client() -> AsyncIterator[RedisClient]:
    async with connected(redis_cluster_url()) as client:
        yield client


@pytest.fixture
async def prefix() -> AsyncIterator[str]:
    async with redis_prefix(redis_cluster_url()) as prefix:
        yield prefix


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCluster]:
    redis_url()
    cluster = OwnCluster(tmp_path_factory.mktemp("cluster"), with_replica=True)
    yield cluster
    cluster.stop()


async def test_database_that_a_cluster_has_not_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match="has database 0 alone: expected redis://host:6379/0"):
        await connect_redis(redis_cluster_url().replace("/0", "/1"))


async def test_node_that_evicts_is_refused_at_start_wherever_one_connects(own_cluster: OwnCluster) -> None:
    own_cluster.says(1, "CONFIG", "SET", "maxmemory", "64mb", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigError, match=r"allkeys-lru.*set maxmemory-policy noeviction"):
            await connect_redis(own_cluster.url)
    finally:
        own_cluster.says(1, "CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")
    await (await connect_redis(own_cluster.url)).close()


async def test_user_with_the_rights_that_the_documents_name_can_connect(own_cluster: OwnCluster) -> None:
    for number in range(3):
        own_cluster.says(number, "ACL", "SETUSER", "paris", "reset", "on", ">secret", "~a", "+info", "+get", *RIGHTS)
    client = await connect_redis(own_cluster.url.replace("//", "//paris@"), password="secret")
    assert await client.call("GET", "a") is None
    line = client.line()
    assert await line.call("GET", "a") is None
    with pytest.raises(ConfigError, match="refuses us"):
        await client.call("GET", "b")
    await line.close()
    await client.close()


async def test_commands_said_together_reach_all_nodes(client: RedisClient, prefix: str) -> None:
    keys = [f"{prefix}:{number}" for number in range(NUM_KEYS)]
    await client.call_all([("SET", key, key) for key in keys])
    assert await client.call_all([("GET", key) for key in keys]) == [key.encode() for key in keys]


async def test_script_that_some_nodes_do_not_know_runs_once_on_each(client: RedisClient, prefix: str) -> None:
    keys = [f"{prefix}:{number}" for number in range(NUM_KEYS)]
    await client.run(COUNT, keys[:1], [])
    assert await client.run_all(COUNT, [([key], []) for key in keys]) == [2] + [1] * (NUM_KEYS - 1)


async def test_line_finds_what_comes_on_any_of_its_streams_and_loses_none(client: RedisClient, prefix: str) -> None:
    names = [f"{prefix}:{number}" for number in range(NUM_KEYS)]
    line, after, read = client.line(), dict.fromkeys(names, "0"), dict[str, bytes]()
    async with asyncio.timeout(10):
        for number in (3, 17, 30):
            await client.call("XADD", names[number], "*", "n", number)
            while names[number] not in read:
                for name, entries in (await line.read(after, count=10, wait_s=5.0)).items():
                    assert name not in read
                    read[name] = entries[-1][1][1]
                    after[name] = entries[-1][0].decode()
    assert read == {names[number]: str(number).encode() for number in (3, 17, 30)}
    await line.close()


async def test_line_waits_for_a_token_on_any_of_its_lists(client: RedisClient, prefix: str) -> None:
    names = [f"{prefix}:{number}" for number in range(NUM_KEYS)]
    line = client.line()
    async with asyncio.timeout(10):
        assert not await line.wait(names, 0.01)
        await client.call("RPUSH", names[7], "1")
        while not await line.wait(names, 1.0):
            continue
    assert await client.call("LLEN", names[7]) == 0
    await line.close()
    await line.close()


async def test_line_outlives_its_client(prefix: str) -> None:
    client = await connect_redis(redis_cluster_url())
    line = client.line()
    await client.call("SET", f"{prefix}:a", "kept")
    await client.close()
    assert await line.call("GET", f"{prefix}:a") == b"kept"
    await line.close()
    with pytest.raises(TransportError, match="closed"):
        await client.call("GET", f"{prefix}:a")


async def test_slot_that_moves_to_another_node_is_followed(own_cluster: OwnCluster) -> None:
    async with connected(own_cluster.url) as client:
        line, key = client.line(), "moved:{a}"
        assert await client.run(COUNT, [key], []) == 1
        assert await line.call("GET", key) == b"1"
        slot = own_cluster.says(0, "CLUSTER", "KEYSLOT", key)
        names = [own_cluster.says(number, "CLUSTER", "MYID") for number in range(3)]
        source = next(number for number in range(3) if own_cluster.says(number, "CLUSTER", "COUNTKEYSINSLOT", slot))
        target = (source + 1) % 3
        own_cluster.says(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        own_cluster.says(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        own_cluster.move(key, source, target)
        assert await client.run(COUNT, [key], []) == 2, "the source says to ask the target"
        for number in (target, source, (source + 2) % 3):
            own_cluster.says(number, "CLUSTER", "SETSLOT", slot, "NODE", names[target])
        assert await client.run(COUNT, [key], []) == 3
        assert await line.call("GET", key) == b"3"
        await line.close()


async def test_node_that_dies_is_replaced_and_who_was_there_before_goes_on(own_cluster: OwnCluster) -> None:
    async with redis_stores(own_cluster.url) as make:
        store, other = await make(), await make()
        requests = [Request(f"r{number}", MESSAGES, timeout_s=600) for number in range(NUM_KEYS)]
        for request in requests[: NUM_KEYS // 2]:
            assert await store.open(request)
        taking, notices = asyncio.ensure_future(store.take_due()), store.notices()
        news = asyncio.ensure_future(notices.receive())
        assert await other.close_request("r0", None, Failure("r0", "cancelled", ""))
        assert await news == Unwanted("r0", 0)
        news = asyncio.ensure_future(notices.receive())
        own_cluster.programs[0].kill()
        try:
            async with asyncio.timeout(RECOVERY_S):
                for request in requests:
                    await insist(partial(store.open, request))
                for request in requests:
                    failure = Failure(request.request_id, "cancelled", "")
                    await insist(partial(store.close_request, request.request_id, None, failure))
                records = [await insist(partial(store.record, request.request_id)) for request in requests]
                assert (await news).request_id.startswith("r")
                with pytest.raises(TransportError):
                    await taking
        finally:
            own_cluster.programs[0].restart()
            own_cluster.until_up()
        assert all(record is not None and record.outcome is not None for record in records)
        await notices.close()


async def test_transport_goes_on_after_a_node_was_started_again(own_cluster: OwnCluster) -> None:
    async with redis_transport(own_cluster.url, max_messages=100, max_bytes=1000) as transport:
        subscription = await insist(partial(transport.subscribe, "t", group="g"))
        own_cluster.programs[1].kill()
        own_cluster.programs[1].restart()
        async with asyncio.timeout(RECOVERY_S):
            await insist(lambda: transport.publish("t", b"a", key="k"))
            delivery = await insist(subscription.receive)
            await insist(lambda: subscription.ack(delivery))
        assert delivery.payload == b"a"
        own_cluster.until_up()


@pytest.fixture
def paused(own_cluster: OwnCluster) -> Iterator[tuple[set[int], set[int]]]:
    """The shards of a node that keeps its connections and does not answer, and those of the others, which go on."""
    name = own_cluster.says(1, "CLUSTER", "MYID")
    ranges = [
        (first, last) for first, last, primary, *_ in own_cluster.says(1, "CLUSTER", "SLOTS") if primary[2] == name
    ]
    slots = {number: slot_of(f"{{{number:02}}}") for number in range(NUM_SHARDS)}
    of_paused = {number for number, slot in slots.items() if any(first <= slot <= last for first, last in ranges)}
    own_cluster.programs[1].pause()
    yield of_paused, set(range(NUM_SHARDS)) - of_paused
    own_cluster.programs[1].resume()


async def test_node_that_does_not_answer_keeps_nothing_from_those_who_take_from_others(
    own_cluster: OwnCluster, request: pytest.FixtureRequest
) -> None:
    async with redis_transport(own_cluster.url, max_messages=100, max_bytes=1000) as transport:
        subscription = await insist(partial(transport.subscribe, "t", group="g"))
        of_paused, others = request.getfixturevalue("paused")
        assert of_paused
        assert others
        taken = set[int]()
        async with asyncio.timeout(RECOVERY_S):
            for number in others:
                await transport.publish("t", b"a", partition=number)
            while taken != others:
                delivery = await subscription.receive()
                await subscription.ack(delivery)
                taken.add(delivery.partition)
        own_cluster.programs[1].resume()
        own_cluster.until_up()


async def test_node_that_does_not_answer_keeps_nothing_from_those_who_look_for_what_is_due(
    own_cluster: OwnCluster, request: pytest.FixtureRequest
) -> None:
    async with redis_stores(own_cluster.url, due_lease_s=60) as make:
        store = await make()
        requests = [Request(f"due{number}", MESSAGES, timeout_s=600) for number in range(NUM_KEYS)]
        for each in requests:
            assert await insist(partial(store.open, each))
        of_paused, _ = request.getfixturevalue("paused")
        here = {it.request_id for it in requests if crc32(it.request_id.encode()) % NUM_SHARDS not in of_paused}
        taken = set[str]()
        async with asyncio.timeout(RECOVERY_S):
            for name in here:
                await store.set_due(name, store.now())
            while taken != here:
                taken.update(await store.take_due())
        own_cluster.programs[1].resume()
        own_cluster.until_up()


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """What it returns once the Cluster serves again."""
    while True:
        try:
            return await call()
        except TransportError:
            await asyncio.sleep(0)
