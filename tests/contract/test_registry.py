"""What every registry promises; adapters are parameters of the `case` fixture."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from pice.errors import ConfigError, InputError
from pice.registry.base import RegisteredSite, Registry
from pice.registry.memory import MemoryRegistry
from pice.registry.redis import RedisRegistry
from tests.brokers import redis_url
from tests.contract.own_cluster import redis_cluster_url
from tests.contract.redis_stores import connected, redis_prefix

LONG_S = 60.0
SHORT_S = 0.05


@dataclass(slots=True)
class Case:
    """A registry, and how to come past leases of `SHORT_S`."""

    registry: Registry
    now_s: float = 0.0

    async def lapse(self) -> None:
        """Returns once nobody holds a lease."""
        self.now_s += SHORT_S
        async with asyncio.timeout(10):
            while any(site.holder for site in await self.registry.sites()):
                pass


@pytest.fixture(params=["memory", "redis", "redis-cluster"])
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    if request.param == "memory":
        memory = Case(MemoryRegistry(lambda: memory.now_s))
        yield memory
        return
    url = redis_cluster_url() if request.param == "redis-cluster" else redis_url()
    async with redis_prefix(url) as prefix, connected(url) as client:
        yield Case(RedisRegistry(client, prefix))


@pytest.fixture
def registry(case: Case) -> Registry:
    return case.registry


async def taken(registry: Registry, holder: str, *, lease_s: float = LONG_S) -> int:
    """The token that `holder` is given for the site paris."""
    token = await registry.acquire("paris", holder, lease_s=lease_s)
    assert token is not None
    return token


async def shown(registry: Registry) -> dict[str, RegisteredSite]:
    return {site.name: site for site in await registry.sites()}


async def test_site_keeps_the_partition_it_was_given(registry: Registry) -> None:
    assert [await registry.register(name, "main") for name in ("paris", "rome", "paris", "rome")] == [0, 1, 0, 1]


async def test_each_pool_counts_its_own_partitions(registry: Registry) -> None:
    assert await registry.register("paris", "main") == 0
    assert await registry.register("rome", "south") == 0
    assert await registry.register("oslo", "main") == 1


async def test_site_gets_the_lowest_partition_that_is_free(registry: Registry) -> None:
    for name in ("paris", "rome", "oslo"):
        await registry.register(name, "main")
    assert await registry.remove("rome")
    assert await registry.register("bern", "main") == 1
    assert await registry.register("rome", "main") == 3


async def test_site_of_another_pool_is_refused(registry: Registry) -> None:
    await registry.register("paris", "main")
    with pytest.raises(ConfigError, match=r"paris is registered in pool main, not in south.*sites remove paris"):
        await registry.register("paris", "south")
    assert await registry.register("rome", "south") == 0
    assert await registry.remove("paris")
    assert await registry.register("paris", "south") == 1


async def test_many_that_register_at_once_get_a_partition_each(registry: Registry) -> None:
    partitions = await asyncio.gather(*(registry.register(f"site-{number}", "main") for number in range(20)))
    assert sorted(partitions) == list(range(20))


async def test_lease_is_held_by_one(registry: Registry) -> None:
    await registry.register("paris", "main")
    token = await taken(registry, "a")
    assert await registry.acquire("paris", "b", lease_s=LONG_S) is None
    assert await registry.renew("paris", token, lease_s=LONG_S) == "held"


async def test_lease_of_a_site_that_is_not_registered_is_given_to_nobody(registry: Registry) -> None:
    assert await registry.acquire("paris", "a", lease_s=LONG_S) is None
    assert await registry.renew("paris", 1, lease_s=LONG_S) == "lost"
    await registry.release("paris", 1)
    assert await registry.sites() == []


async def test_lease_given_back_is_taken_at_once_under_a_higher_token(registry: Registry) -> None:
    await registry.register("paris", "main")
    first = await taken(registry, "a")
    await registry.release("paris", first)
    assert await registry.renew("paris", first, lease_s=LONG_S) == "lost"
    assert await taken(registry, "b") > first


async def test_standby_takes_a_lapsed_lease_and_the_old_token_is_void(case: Case) -> None:
    registry = case.registry
    await registry.register("paris", "main")
    old = await taken(registry, "a", lease_s=SHORT_S)
    await case.lapse()
    new = await taken(registry, "b")
    assert new > old
    assert await registry.renew("paris", old, lease_s=LONG_S) == "lost"
    await registry.release("paris", old)
    assert await registry.renew("paris", new, lease_s=LONG_S) == "held"
    assert (await shown(registry))["paris"].holder == "b"


async def test_lapsed_lease_that_nobody_took_is_held_again(case: Case) -> None:
    registry = case.registry
    await registry.register("paris", "main")
    token = await taken(registry, "a", lease_s=SHORT_S)
    await case.lapse()
    assert await registry.renew("paris", token, lease_s=LONG_S) == "held"
    assert await registry.acquire("paris", "b", lease_s=LONG_S) is None


async def test_holder_that_asks_again_has_the_lease_under_a_new_token(registry: Registry) -> None:
    await registry.register("paris", "main")
    unheard = await taken(registry, "a")
    token = await taken(registry, "a")
    assert token > unheard
    assert await registry.renew("paris", unheard, lease_s=LONG_S) == "lost"
    assert await registry.renew("paris", token, lease_s=LONG_S) == "held"


async def test_one_of_many_that_want_a_lease_gets_it(registry: Registry) -> None:
    await registry.register("paris", "main")
    tokens = await asyncio.gather(*(registry.acquire("paris", f"h{n}", lease_s=LONG_S) for n in range(16)))
    assert sum(token is not None for token in tokens) == 1


async def test_draining_is_told_to_the_holder_and_outlasts_it(registry: Registry) -> None:
    await registry.register("paris", "main")
    token = await taken(registry, "a")
    assert await registry.drain("paris", draining=True)
    assert await registry.renew("paris", token, lease_s=LONG_S) == "draining"
    await registry.release("paris", token)
    token = await taken(registry, "b")
    assert await registry.renew("paris", token, lease_s=LONG_S) == "draining"
    assert (await shown(registry))["paris"].draining
    assert await registry.drain("paris", draining=False)
    assert await registry.renew("paris", token, lease_s=LONG_S) == "held"


async def test_unknown_site_is_neither_drained_nor_removed(registry: Registry) -> None:
    assert not await registry.drain("paris", draining=True)
    assert not await registry.remove("paris")
    assert await registry.sites() == []


async def test_site_is_not_removed_while_its_lease_is_held(case: Case) -> None:
    registry = case.registry
    await registry.register("paris", "main")
    token = await taken(registry, "host.7", lease_s=LONG_S)
    with pytest.raises(InputError, match=r"served by host\.7: drain it and stop its process"):
        await registry.remove("paris")
    assert await registry.renew("paris", token, lease_s=SHORT_S) == "held"
    await case.lapse()
    assert await registry.remove("paris")
    assert await registry.renew("paris", token, lease_s=LONG_S) == "lost"
    assert await registry.sites() == []


async def test_tokens_of_a_name_grow_though_its_site_was_removed(registry: Registry) -> None:
    await registry.register("paris", "main")
    await registry.drain("paris", draining=True)
    old = await taken(registry, "a")
    await registry.release("paris", old)
    await registry.remove("paris")
    await registry.register("paris", "main")
    new = await taken(registry, "a")
    assert new > old
    assert await registry.renew("paris", old, lease_s=LONG_S) == "lost"
    assert await registry.renew("paris", new, lease_s=LONG_S) == "held"


async def test_sites_are_shown_by_name_with_who_holds_them(registry: Registry) -> None:
    await registry.register("rome", "south")
    await registry.register("paris", "main")
    token = await taken(registry, "a")
    paris, rome = await registry.sites()
    assert (paris.name, paris.pool, paris.partition, paris.holder, paris.token) == ("paris", "main", 0, "a", token)
    assert 0 < paris.lease_left_s <= LONG_S
    assert rome == RegisteredSite("rome", "south", 0, draining=False, holder="", token=0, lease_left_s=0.0)
    await registry.release("paris", token)
    assert await registry.sites() == [
        RegisteredSite("paris", "main", 0, draining=False, holder="", token=token, lease_left_s=0.0),
        rome,
    ]
