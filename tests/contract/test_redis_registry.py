"""What the registry in Redis does beside the contract: several processes, a restart, a full memory, a standby."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pice.core import SiteState
from pice.errors import Full, TransportError
from pice.node.keeper import SiteKeeper
from pice.registry.redis import RedisRegistry
from pice.store.redis import RedisStore
from tests.brokers import redis_url
from tests.contract.own_redis import OwnRedis
from tests.contract.redis_stores import connected, keys_of

LONG_S = 60.0


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    redis_url()
    own = OwnRedis(tmp_path, keeps=True)
    await own.start()
    yield own
    await own.stop()


@pytest.fixture
async def registries(own_redis: OwnRedis) -> AsyncIterator[list[RedisRegistry]]:
    """Two of them, each with a connection of its own."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(own_redis.url)) for _ in range(2)]
        yield [RedisRegistry(client) for client in clients]


async def test_what_one_process_does_another_sees(registries: list[RedisRegistry]) -> None:
    one, other = registries
    await one.register("paris", "main")
    token = await one.acquire("paris", "a", lease_s=LONG_S)
    assert token is not None
    assert await other.acquire("paris", "b", lease_s=LONG_S) is None
    assert await other.drain("paris", draining=True)
    assert await one.renew("paris", token, lease_s=LONG_S) == "draining"
    assert [site.holder for site in await other.sites()] == ["a"]


async def test_leases_and_partitions_outlast_a_restart_of_redis(
    own_redis: OwnRedis, registries: list[RedisRegistry]
) -> None:
    one, other = registries
    for name in ("rome", "paris"):
        await one.register(name, "main")
    token = await one.acquire("paris", "a", lease_s=LONG_S)
    assert token is not None
    await own_redis.stop()
    with pytest.raises(TransportError, match=r"127\.0\.0\.1"):
        await one.renew("paris", token, lease_s=LONG_S)
    await own_redis.start()
    assert await other.acquire("paris", "b", lease_s=LONG_S) is None
    assert await one.renew("paris", token, lease_s=LONG_S) == "held"
    assert await one.register("paris", "main") == 1


async def test_redis_that_is_only_a_replica_for_a_while_may_be_tried_again(registries: list[RedisRegistry]) -> None:
    registry = registries[0]
    await registry.register("paris", "main")
    token = await registry.acquire("paris", "a", lease_s=LONG_S)
    assert token is not None
    await registry._client.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(TransportError, match="cannot serve now"):
        await registry.renew("paris", token, lease_s=LONG_S)
    await registry._client.call("REPLICAOF", "NO", "ONE")
    assert await registry.renew("paris", token, lease_s=LONG_S) == "held"


async def test_full_redis_keeps_sites_served_and_takes_no_new_one(
    own_redis: OwnRedis, registries: list[RedisRegistry]
) -> None:
    registry = registries[0]
    store = RedisStore(registry._client)
    await registry.register("paris", "main")
    await registry._client.call("CONFIG", "SET", "maxmemory", 1)
    token = await registry.acquire("paris", "a", lease_s=LONG_S)
    assert token is not None
    assert await registry.renew("paris", token, lease_s=LONG_S) == "held"
    await store.heartbeat(SiteState("paris", "main", 0, (), 0.0, token=token), ttl_s=30)
    assert [state.site for state in await store.sites()] == ["paris"]
    assert await registry.drain("paris", draining=True)
    with pytest.raises(Full):
        await registry.register("rome", "main")
    await registry.release("paris", token)
    assert await registry.remove("paris")
    await registry._client.call("CONFIG", "SET", "maxmemory", 0)


async def test_lease_is_free_when_redis_clock_was_set_back(registries: list[RedisRegistry]) -> None:
    registry = registries[0]
    await registry.register("paris", "main")
    assert await registry.acquire("paris", "a", lease_s=10) == 1
    seconds, _ = await registry._client.call("TIME")
    await registry._client.call("HSET", "pice:{sites}:site:paris", "until", int(seconds) + 15)
    assert await registry.acquire("paris", "b", lease_s=10) is None
    await registry._client.call("HSET", "pice:{sites}:site:paris", "until", int(seconds) + 3600)
    assert [site.holder for site in await registry.sites()] == [""]
    assert await registry.acquire("paris", "b", lease_s=10) == 2


async def test_junk_that_a_site_writes_of_itself_does_not_hide_the_others(registries: list[RedisRegistry]) -> None:
    registry = registries[0]
    for name in ("paris", "rome"):
        await registry.register(name, "main")
    junk = ("partition", "x", "until", "y", "lease", "z", "holder", b"\xff", "token", "t", "draining", "d")
    await registry._client.call("HSET", "pice:{sites}:site:paris", *junk)
    paris, rome = await registry.sites()
    assert (paris.partition, paris.holder, paris.token, paris.draining) == (-1, "", 0, False)
    assert rome.partition == 1


async def test_site_that_claims_the_partition_of_another_takes_it_from_nobody(registries: list[RedisRegistry]) -> None:
    registry = registries[0]
    for name in ("paris", "rome"):
        await registry.register(name, "main")
    await registry._client.call("HSET", "pice:{sites}:site:paris", "partition", 1)
    assert await registry.remove("paris")
    assert await registry.register("oslo", "main") == 2
    assert await registry.register("rome", "main") == 1


async def test_removed_site_leaves_its_token_alone(registries: list[RedisRegistry]) -> None:
    registry = registries[0]
    await registry.register("paris", "main")
    token = await registry.acquire("paris", "a", lease_s=LONG_S)
    assert token is not None
    await registry.release("paris", token)
    await registry.remove("paris")
    assert await keys_of(registry._client, "*") == [b"pice:{sites}:site:paris"]
    assert await registry._client.call("HGETALL", "pice:{sites}:site:paris") == [b"token", b"1"]


class Node:
    """Serves until it is told to stop."""

    def __init__(self, token: int, serving: asyncio.Queue[int]) -> None:
        self._token = token
        self._serving = serving

    async def run(self, stopping: asyncio.Event) -> None:
        self._serving.put_nowait(self._token)
        await stopping.wait()

    def set_draining(self, draining: bool) -> None:
        pass


async def _prepare(pool: str, partition: int) -> None:
    pass


def keeper(registry: RedisRegistry, holder: str, serving: asyncio.Queue[int]) -> SiteKeeper:
    return SiteKeeper(registry, "paris", "main", holder, lambda _, token: Node(token, serving), _prepare, lease_s=1.0)


async def test_standby_serves_a_site_whose_process_died(registries: list[RedisRegistry]) -> None:
    served: list[asyncio.Queue[int]] = [asyncio.Queue(), asyncio.Queue()]
    stopping = asyncio.Event()
    async with asyncio.timeout(30):
        first = asyncio.ensure_future(keeper(registries[0], "a", served[0]).run(stopping))
        assert await served[0].get() == 1
        standby = asyncio.ensure_future(keeper(registries[1], "b", served[1]).run(stopping))
        await registries[0]._client.close()  # it cannot even give its lease back
        first.cancel()
        assert await served[1].get() == 2
        stopping.set()
        await standby
        await asyncio.wait([first])
    assert [site.holder for site in await registries[1].sites()] == [""]


async def test_keeper_outlasts_a_restart_of_redis(own_redis: OwnRedis, registries: list[RedisRegistry]) -> None:
    serving: asyncio.Queue[int] = asyncio.Queue()
    stopping = asyncio.Event()
    async with asyncio.timeout(30):
        running = asyncio.ensure_future(keeper(registries[0], "a", serving).run(stopping))
        assert await serving.get() == 1
        await own_redis.stop()
        await own_redis.start()
        while [site.holder for site in await registries[1].sites()] != ["a"]:
            pass
        stopping.set()
        await running
    assert serving.empty()
