"""How a process starts, stops while it still waits, and outlasts a broker that is away."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pice.app.nodes import Run
from pice.app.roles import Roles
from pice.app.services import _Deployment, _drain_s, _run, _sites_of, _unless_stopped
from pice.config import load_settings
from pice.errors import ConfigError, TransportError
from pice.loop import Shutdown
from pice.message.signing import site_key
from pice.service.health import Health

CONFIG = Path(__file__).parents[3] / "config" / "emulated.toml"


async def test_start_that_succeeds_gives_what_it_made() -> None:
    async def start() -> str:
        return "made"

    assert await _unless_stopped(start(), asyncio.Event()) == "made"


async def test_start_that_is_refused_says_why() -> None:
    async def start() -> str:
        raise ConfigError("wrong password")

    with pytest.raises(ConfigError, match="wrong password"):
        await _unless_stopped(start(), asyncio.Event())


async def test_stop_while_a_start_waits_ends_it_once_it_has_cleaned_up() -> None:
    stopping, cleaned = asyncio.Event(), asyncio.Event()

    async def start() -> str:
        try:
            await asyncio.get_running_loop().create_future()
            return "never"
        finally:
            await asyncio.sleep(1)
            cleaned.set()

    asyncio.get_running_loop().call_later(60, stopping.set)
    assert await _unless_stopped(start(), stopping) is None
    assert cleaned.is_set()


@pytest.mark.parametrize(
    ("roles", "sites"),
    [
        (Roles(cloud=True), ("cloud",)),
        (Roles(sites=("lyon",)), ("lyon",)),
        (Roles(collector=True), ()),
        (Roles(cloud=True, sites=("lyon",), collector=True), ("cloud", "lyon")),
    ],
    ids=lambda value: value.name if isinstance(value, Roles) else "",
)
def test_process_starts_the_engines_of_what_it_serves_alone(roles: Roles, sites: tuple[str, ...]) -> None:
    assert _sites_of(roles) == sites


def deployment(roles: Roles, *overrides: str, health: Health | None = None, ports: Any = None) -> _Deployment:
    """Services on these ports, or on nothing."""
    uncounted: Any = None
    return _Deployment(load_settings(CONFIG, overrides, environ={}), roles, ports, {}, health or Health(), uncounted)


SECRET = "security.secret=the secret"


@pytest.mark.parametrize(
    ("roles", "site", "overrides", "key"),
    [
        (Roles(sites=("lyon",)), "lyon", ["sites.lyon.key=own"], "own"),
        (Roles(sites=("lyon",)), "lyon", ["sites.lyon.key=own", SECRET], "own"),
        (Roles(sites=("lyon",), cloud=True), "lyon", [SECRET], site_key("the secret", "lyon")),
        (Roles(sites=("lyon",)), "lyon", [SECRET], ""),
        (Roles(sites=("lyon",)), "lyon", [], ""),
    ],
    ids=["own", "own before derived", "derived", "secret is not for edges", "none"],
)
def test_site_signs_with_its_own_key_or_the_one_that_follows_from_a_secret_it_may_know(
    roles: Roles, site: str, overrides: Sequence[str], key: str
) -> None:
    assert deployment(roles, *overrides)._key(site) == key


def test_key_that_does_not_follow_from_the_secret_is_refused_where_both_are_known() -> None:
    with pytest.raises(ConfigError, match="does not follow from security"):
        deployment(Roles(sites=("lyon",), cloud=True), "sites.lyon.key=own", SECRET)._key("lyon")


def test_edge_needs_no_file_of_the_cluster_secret(tmp_path: Path) -> None:
    absent = f"security.secret_file={tmp_path / 'absent'}"
    deployment(Roles(sites=("lyon",)), absent)
    with pytest.raises(ConfigError, match=r"security\.secret_file .*absent cannot be read"):
        deployment(Roles(collector=True), absent)


class Node:
    """Raises what it is given, one each time that it runs, and then runs until it is stopped."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.num_runs = 0

    async def run(self, stopping: asyncio.Event) -> None:
        self.num_runs += 1
        if self.errors:
            raise self.errors.pop(0)
        await stopping.wait()


async def test_node_that_an_absent_broker_ended_is_started_again() -> None:
    gone = TransportError("Kafka at 127.0.0.1:9092 is gone")
    node, health, stopping = Node(gone, gone), Health(), asyncio.Event()
    health.started()
    run = deployment(Roles(collector=True), health=health)._kept("collector", lambda: node.run)
    running = asyncio.ensure_future(run(stopping))
    for _ in range(2):
        await asyncio.sleep(0.5)
        assert not health.is_ready
        assert "127.0.0.1:9092 is gone" in health.outages["collector"]
        await asyncio.sleep(0.6)
    assert (health.is_ready, node.num_runs) == (True, 3)
    stopping.set()
    await running


async def test_idle_service_asks_the_store_for_a_little_again_and_again() -> None:
    asked_s, clock, stopping = list[float](), asyncio.get_running_loop(), asyncio.Event()

    async def wanted(*_: object) -> None:
        asked_s.append(clock.time())
        raise TransportError("Redis is gone")

    clock.call_later(3.5, stopping.set)
    ports = SimpleNamespace(store=SimpleNamespace(wanted=wanted))
    await deployment(Roles(collector=True), ports=ports)._pulse(stopping)
    assert (asked_s, clock.time()) == ([0.0, 1.0, 2.0, 3.0], 3.5)


class Services:
    """A deployment of these nodes."""

    def __init__(self, *nodes: Run) -> None:
        self.nodes = lambda: iter(nodes)


async def run(*nodes: Run, health: Health | None = None, stop_after_s: float = 60.0) -> float:
    """Runs nodes, which may drain for 10 s, until they are asked to stop; how long after that they have ended."""
    services: Any = Services(*nodes)
    shutdown, clock = Shutdown(), asyncio.get_running_loop()
    clock.call_later(stop_after_s, shutdown.draining.set)
    await _run(services, 10.0, health or Health(), shutdown)
    return clock.time() - stop_after_s


async def test_services_are_ready_until_they_are_asked_to_stop() -> None:
    health, states = Health(), list[str]()

    async def node(stopping: asyncio.Event) -> None:
        await asyncio.sleep(1)
        states.append(health.state)
        await stopping.wait()
        states.append(health.state)
        await asyncio.sleep(3)

    assert await run(node, health=health) == 3.0
    assert states == ["serving", "draining"]


async def test_node_that_does_not_drain_in_time_is_given_up() -> None:
    async def node(_: asyncio.Event) -> None:
        await asyncio.get_running_loop().create_future()

    assert await run(node) == 10.0


async def test_node_that_ran_out_of_its_own_time_is_no_drain() -> None:
    async def node(_: asyncio.Event) -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await run(node)


@pytest.mark.parametrize(
    ("roles", "drain_s"),
    [(Roles(cloud=True), 35.0), (Roles(sites=("lyon",)), 15.0), (Roles(cloud=True, collector=True), 35.0)],
    ids=lambda value: value.name if isinstance(value, Roles) else "",
)
def test_process_ends_five_seconds_after_the_longest_drain_of_what_it_serves(roles: Roles, drain_s: float) -> None:
    assert _drain_s(load_settings(CONFIG, environ={}), roles) == drain_s


async def test_error_of_a_node_that_is_none_of_a_broker_ends_the_process() -> None:
    node = Node(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await deployment(Roles(collector=True))._kept("collector", lambda: node.run)(asyncio.Event())
    assert node.num_runs == 1
