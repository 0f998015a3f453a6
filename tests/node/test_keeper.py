"""One site's life: standing by, serving, losing the lease, draining, and a registry or a broker that is away."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from pice.errors import ConfigError, TransportError
from pice.node.keeper import SiteKeeper
from pice.registry.base import Hold
from pice.registry.memory import MemoryRegistry

LEASE_S = 8.0


class Unreliable(MemoryRegistry):
    """A registry that is away for as long as `away` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.num_calls = 0

    async def register(self, name: str, pool: str) -> int:
        self._call()
        return await super().register(name, pool)

    async def acquire(self, name: str, holder: str, *, lease_s: float) -> int | None:
        self._call()
        return await super().acquire(name, holder, lease_s=lease_s)

    async def renew(self, name: str, token: int, *, lease_s: float) -> Hold:
        self._call()
        return await super().renew(name, token, lease_s=lease_s)

    async def release(self, name: str, token: int) -> None:
        self._call()
        await super().release(name, token)

    def _call(self) -> None:
        self.num_calls += 1
        if self.away:
            raise TransportError("Redis is away")


@dataclass(eq=False)
class Node:
    """Serves until it is told to stop, and then drains for `drain_s`."""

    partition: int
    token: int
    drain_s: float = 0.0
    fails: list[Exception] = field(default_factory=list)
    draining: bool = False
    state: str = "new"

    async def run(self, stopping: asyncio.Event) -> None:
        self.state = "serving"
        if self.fails:
            self.state = "failed"
            raise self.fails.pop(0)
        try:
            await stopping.wait()
            self.state = "draining"
            await asyncio.sleep(self.drain_s)
            self.state = "drained"
        except asyncio.CancelledError:
            self.state = "cancelled"
            raise

    def set_draining(self, draining: bool) -> None:
        self.draining = draining


@dataclass(eq=False)
class Process:
    """A keeper that runs, and the nodes it made."""

    registry: Unreliable
    holder: str
    prepare: Callable[[str, int], Awaitable[None]]
    fails: list[Exception] = field(default_factory=list)
    drain_s: float = 0.0
    nodes: list[Node] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        keeper = SiteKeeper(self.registry, "paris", "main", self.holder, self._make, self.prepare, lease_s=LEASE_S)
        self.task = asyncio.ensure_future(keeper.run(self.stopping))

    @property
    def node(self) -> Node:
        return self.nodes[-1]

    def _make(self, partition: int, token: int) -> Node:
        self.nodes.append(Node(partition, token, self.drain_s, self.fails))
        return self.nodes[-1]

    async def stop(self) -> None:
        self.stopping.set()
        await self.task

    async def kill(self) -> None:
        """As `kill -9` would: it does nothing more, and gives nothing back."""
        self.registry.away = True
        self.task.cancel()
        await asyncio.wait([self.task])
        self.registry.away = False


@dataclass
class House:
    """A registry and the processes of one site."""

    registry: Unreliable = field(default_factory=Unreliable)
    prepared: list[tuple[str, int]] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    prepare_fails: list[Exception] = field(default_factory=list)

    async def process(self, holder: str, **options: Any) -> Process:
        """One that had the time to take the lease, if that was free."""
        self.processes.append(Process(self.registry, holder, self._prepare, **options))
        await asyncio.sleep(LEASE_S / 100)
        return self.processes[-1]

    async def holder(self) -> str:
        (site,) = await self.registry.sites()
        return site.holder

    async def _prepare(self, pool: str, partition: int) -> None:
        self.prepared.append((pool, partition))
        if self.prepare_fails:
            raise self.prepare_fails.pop(0)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    for process in house.processes:
        process.task.cancel()
    await asyncio.gather(*(process.task for process in house.processes), return_exceptions=True)


async def passes(seconds: float) -> None:
    """Lets time pass: these tests run on a virtual clock, so none of it is waited for."""
    await asyncio.sleep(seconds)


async def test_site_is_registered_prepared_and_served(house: House) -> None:
    await house.registry.register("rome", "main")
    process = await house.process("a")
    assert house.prepared == [("main", 1)]
    assert (process.node.partition, process.node.token, process.node.state) == (1, 1, "serving")
    await passes(20 * LEASE_S)
    assert len(process.nodes) == 1
    assert [site.holder for site in await house.registry.sites()] == ["a", ""]


async def test_stopped_keeper_drains_its_node_under_the_lease_and_then_gives_it_back(house: House) -> None:
    process = await house.process("a", drain_s=3 * LEASE_S)
    process.stopping.set()
    await passes(2 * LEASE_S)
    assert (process.node.state, await house.holder()) == ("draining", "a")
    await process.task
    assert (process.node.state, await house.holder()) == ("drained", "")


async def test_standby_waits_and_takes_over_at_once_when_the_lease_is_given_back(house: House) -> None:
    first, second = await house.process("a"), await house.process("b")
    await passes(10 * LEASE_S)
    assert second.nodes == []
    await first.stop()
    await passes(LEASE_S / 3)
    assert (second.node.state, second.node.token) == ("serving", 2)


async def test_standby_takes_over_from_one_that_died_once_its_lease_has_lapsed(house: House) -> None:
    first, second = await house.process("a"), await house.process("b")
    await first.kill()
    await passes(LEASE_S / 3)
    assert second.nodes == []
    await passes(LEASE_S)
    assert (second.node.state, second.node.token) == ("serving", 2)
    assert house.prepared == [("main", 0), ("main", 0)]


async def test_keeper_that_stands_by_can_be_stopped(house: House) -> None:
    await house.process("a")
    standby = await house.process("b")
    async with asyncio.timeout(LEASE_S / 10):
        await standby.stop()
    assert (standby.nodes, await house.holder()) == ([], "a")


async def test_node_of_a_lost_lease_is_cancelled_and_its_keeper_stands_by(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    first = await house.process("a")
    house.registry._sites["paris"].until_s = 0.0
    assert await house.registry.acquire("paris", "b", lease_s=LEASE_S) == 2
    await passes(LEASE_S / 3)
    assert first.node.state == "cancelled"
    assert await house.holder() == "b"
    assert "site paris is not served here any more" in caplog.text
    await house.registry.release("paris", 2)
    await passes(LEASE_S / 3)
    assert [(node.state, node.token) for node in first.nodes] == [("cancelled", 1), ("serving", 3)]


async def test_node_that_meets_an_outage_while_it_is_cancelled_is_not_started_again(house: House) -> None:
    class Stubborn(Node):
        async def run(self, stopping: asyncio.Event) -> None:
            try:
                await super().run(stopping)
            finally:
                raise TransportError("cannot leave the group")

    class Other(Process):
        def _make(self, partition: int, token: int) -> Node:
            self.nodes.append(Stubborn(partition, token))
            return self.nodes[-1]

    process = Other(house.registry, "a", house._prepare)
    house.processes.append(process)
    await passes(LEASE_S / 10)
    house.registry._sites["paris"].until_s = 0.0
    await house.registry.acquire("paris", "b", lease_s=1000 * LEASE_S)
    await passes(20 * LEASE_S)
    assert [node.state for node in process.nodes] == ["cancelled"]
    assert await house.holder() == "b"


async def test_site_that_was_removed_registers_itself_again(house: House) -> None:
    process = await house.process("a")
    house.registry._sites.clear()
    await house.registry.register("rome", "main")
    await passes(LEASE_S)
    assert [(node.partition, node.token, node.state) for node in process.nodes] == [
        (0, 1, "cancelled"),
        (1, 2, "serving"),
    ]
    assert house.prepared == [("main", 0), ("main", 1)]


async def test_node_announces_that_its_site_drains_and_that_it_does_no_more(house: House) -> None:
    process = await house.process("a")
    for draining in (True, False, True):
        await house.registry.drain("paris", draining=draining)
        await passes(LEASE_S / 3)
        assert (process.node.draining, process.node.state) == (draining, "serving")


async def test_node_of_a_draining_site_knows_it_from_the_start(house: House) -> None:
    await house.registry.register("paris", "main")
    await house.registry.drain("paris", draining=True)
    process = await house.process("a")
    assert process.node.draining


async def test_node_goes_on_while_the_registry_is_away_and_keeps_its_lease(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    first, standby = await house.process("a"), await house.process("b")
    house.registry.away = True
    await passes(3 * LEASE_S)
    assert (first.node.state, await house.holder()) == ("serving", "")
    house.registry.away = False
    await passes(LEASE_S)
    assert (await house.holder(), len(first.nodes), standby.nodes) == ("a", 1, [])
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["site paris waits for a broker: Redis is away"] * 2  # each of the two keepers


@pytest.mark.parametrize("away_s", [3 * LEASE_S + step / 4 for step in range(9)])
async def test_holder_comes_before_its_standby_when_the_registry_is_back(house: House, away_s: float) -> None:
    first, standby = await house.process("a"), await house.process("b")
    house.registry.away = True
    await passes(away_s)
    house.registry.away = False
    await passes(2 * LEASE_S)
    assert (await house.holder(), first.node.state, standby.nodes) == ("a", "serving", [])


async def test_registry_that_is_away_is_asked_less_and_less_often(house: House) -> None:
    house.registry.away = True
    await house.process("a")
    await passes(10 * LEASE_S)
    assert 40 <= house.registry.num_calls <= 50


async def test_keeper_starts_once_the_registry_is_there(house: House) -> None:
    house.registry.away = True
    process = await house.process("a")
    await passes(5 * LEASE_S)
    house.registry.away = False
    await passes(LEASE_S)
    assert process.node.state == "serving"


async def test_keeper_that_waits_for_the_registry_can_be_stopped(house: House) -> None:
    house.registry.away = True
    process = await house.process("a")
    async with asyncio.timeout(LEASE_S):
        await process.stop()
    assert process.nodes == []


async def test_lease_that_cannot_be_given_back_is_left_to_lapse(house: House) -> None:
    process = await house.process("a")
    house.registry.away = True
    await process.stop()
    assert process.node.state == "drained"
    assert await house.holder() == "a"


async def test_partition_that_cannot_be_prepared_yet_is_tried_again(house: House) -> None:
    house.prepare_fails.append(TransportError("Kafka is away"))
    process = await house.process("a")
    await passes(LEASE_S)
    assert process.node.state == "serving"
    assert house.prepared == [("main", 0), ("main", 0)]


async def test_node_that_a_missing_broker_ended_is_started_again_with_pauses(house: House) -> None:
    lost: list[Exception] = [TransportError("gone"), ExceptionGroup("", [TransportError("gone too")])]
    process = await house.process("a", fails=lost)
    await passes(LEASE_S)
    assert [(node.state, node.token) for node in process.nodes] == [("failed", 1), ("failed", 1), ("serving", 1)]
    await house.registry.drain("paris", draining=True)
    await passes(LEASE_S)
    assert process.node.draining


async def test_node_started_again_knows_that_its_site_drains(house: House) -> None:
    await house.registry.register("paris", "main")
    await house.registry.drain("paris", draining=True)
    process = await house.process("a", fails=[TransportError("gone")])
    await passes(LEASE_S)
    assert [node.draining for node in process.nodes] == [True, True]


async def test_keeper_is_stopped_while_its_node_waits_to_be_started_again(house: House) -> None:
    process = await house.process("a", fails=[TransportError("gone")] * 100)
    await passes(LEASE_S)
    await process.stop()
    assert await house.holder() == ""


@pytest.mark.parametrize("error", [ValueError("a bug"), ConfigError("refused")], ids=["bug", "refusal"])
async def test_any_other_error_of_a_node_ends_the_keeper_and_frees_the_site(house: House, error: Exception) -> None:
    process = await house.process("a", fails=[error])
    with pytest.raises(type(error), match=str(error)):
        await process.task
    assert await house.holder() == ""


async def test_site_of_another_pool_ends_the_keeper(house: House) -> None:
    await house.registry.register("paris", "south")
    process = await house.process("a")
    with pytest.raises(ConfigError, match="paris is registered in pool south"):
        await process.task


async def test_cancelled_keeper_gives_its_lease_back(house: House) -> None:
    process = await house.process("a", drain_s=1000.0)
    process.stopping.set()
    await passes(1)
    process.task.cancel()
    await asyncio.wait([process.task])
    assert process.task.cancelled()
    assert (process.node.state, await house.holder()) == ("cancelled", "")
