"""Settings -> the services of a deployment, each in a process of its own or several in one."""

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, TypeVar

from pice.app.cluster import ClusterPorts, open_ports
from pice.app.engines import all_sites, start_engines
from pice.app.jobs import jobs_node
from pice.app.nodes import Membership, Run, cloud_node, cloud_site, collector, edge_node, new_planner, running
from pice.app.patience import Patience
from pice.app.roles import Roles
from pice.app.topics import used_topics
from pice.config import read_secret, with_keys
from pice.core import CLOUD_SITE
from pice.engine.base import Engine
from pice.errors import ConfigError, TransportError
from pice.loop import Shutdown
from pice.message.signing import site_key
from pice.node.cloud import CloudNode
from pice.node.edge import EdgeNode
from pice.node.keeper import SiteKeeper, SiteNode
from pice.node.load import Load
from pice.service.health import Health
from pice.service.http import serve_health
from pice.service.logs import set_up_logs
from pice.service.metrics import PrometheusTelemetry
from pice.settings import Settings
from pice.transport.base import segments_topic

T = TypeVar("T")

log = logging.getLogger(__name__)

_PAUSE_S = 1.0
_MARGIN_S = 5.0


async def serve(settings: Settings, roles: Roles, shutdown: Shutdown) -> int:
    """Serves until asked to stop, then drains: requests for `cloud.drain_s`, segments and candidates for
    `limits.drain_s`. Ends at most five seconds after that. Exit code 0.

    Raises:
        ConfigError: a broker refuses us, or a setting is wrong.
        ModelLoadError: an engine cannot be used.
    """
    service = settings.service
    set_up_logs(service.log_format, service.log_level, roles.name)
    health, telemetry = Health(), PrometheusTelemetry()
    async with AsyncExitStack() as stack:
        stack.enter_context(serve_health(service.health_host, service.health_port, health, telemetry.registry))
        patience = Patience(health, shutdown.draining)
        parts = await _unless_stopped(_start(settings, roles, patience, stack), shutdown.draining)
        if parts is not None:
            deployment = _Deployment(settings, roles, *parts, health, telemetry)
            await _run(deployment, _drain_s(settings, roles), health, shutdown)
    return 0


async def _run(deployment: "_Deployment", drain_s: float, health: Health, shutdown: Shutdown) -> None:
    """Runs the nodes until asked to stop, and `drain_s` longer at most."""
    bound = asyncio.timeout(None)
    try:
        async with bound, running(list(deployment.nodes())):
            health.started()
            await shutdown.draining.wait()
            health.draining()
            bound.reschedule(asyncio.get_running_loop().time() + drain_s)
    except TimeoutError:
        if not bound.expired():
            raise
        log.warning("gave up what was not drained; others do it again")


def _drain_s(settings: Settings, roles: Roles) -> float:
    """How long this process may take to end: its nodes drain within less."""
    return max(settings.limits.drain_s, settings.cloud.drain_s if roles.cloud else 0.0) + _MARGIN_S


async def _start(
    settings: Settings, roles: Roles, patience: Patience, stack: AsyncExitStack
) -> tuple[ClusterPorts, Mapping[str, list[Engine]]]:
    """The brokers, connected, with the topics that this process needs, and its engines, loaded."""
    wanted = {name: names for name, names in all_sites(settings).items() if name in _sites_of(roles)}
    settings = with_keys(settings, [engine for names in wanted.values() for engine in names])
    ports = await stack.enter_async_context(open_ports(settings, patience))
    await patience.insist(lambda: ports.topics.check(used_topics(settings, roles)), "kafka")
    rng = random.Random(int.from_bytes(os.urandom(16)))
    return ports, await start_engines(settings, wanted, rng, stack)


def _sites_of(roles: Roles) -> tuple[str, ...]:
    return (*([CLOUD_SITE] if roles.cloud else []), *roles.sites)


async def _unless_stopped(starting: Coroutine[Any, Any, T], stopping: asyncio.Event) -> T | None:
    """The result; None when `stopping` is set first."""
    task, stop = asyncio.ensure_future(starting), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return None
    finally:
        stop.cancel()
        task.cancel()


class _Deployment:
    """The nodes of one process, each of which is started again when a broker's absence ended it."""

    def __init__(
        self,
        settings: Settings,
        roles: Roles,
        ports: ClusterPorts,
        engines: Mapping[str, Sequence[Engine]],
        health: Health,
        telemetry: PrometheusTelemetry,
    ) -> None:
        self._settings = settings
        self._roles = roles
        self._ports = ports
        self._engines = engines
        self._health = health
        self._telemetry = telemetry
        self._planner = new_planner(settings)
        self._holder = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        security = settings.security
        knows_secret = roles.cloud or roles.collector
        self._secret = (
            read_secret(security.secret, security.secret_file, "security.secret_file") if knows_secret else ""
        )

    def nodes(self) -> Iterator[Run]:
        yield self._pulse
        if self._roles.cloud:
            yield from self._cloud()
        for name in self._roles.sites:
            yield self._site(name)
        if self._roles.collector:
            settings, ports, telemetry = self._settings, self._ports, self._telemetry
            counting = partial(collector, settings, ports, self._planner, telemetry, self._secret)
            yield self._kept("collector", lambda: counting().run)
            yield self._kept("jobs", lambda: jobs_node(settings, ports, telemetry).run)

    async def _pulse(self, stopping: asyncio.Event) -> None:
        """Asks the store again and again for what every role may, so that an idle process too hears that it is away."""
        while not stopping.is_set():
            with suppress(TransportError):
                await self._ports.store.wanted("", 0, 0)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await stopping.wait()

    def _cloud(self) -> Iterator[Run]:
        ((engine, load),) = self._loaded(CLOUD_SITE)
        key = site_key(self._secret, CLOUD_SITE) if self._secret else ""

        def node() -> CloudNode:
            made = cloud_node(self._settings, self._ports, self._planner, engine, load, self._telemetry)
            self._telemetry.watch_requests("cloud", lambda: made.num_in_hand)
            return made

        def site(_: int, token: int) -> SiteNode:
            return self._held(
                CLOUD_SITE, cloud_site(self._settings, self._ports, engine, load, self._member(key, token))
            )

        yield self._kept("cloud", lambda: node().run)
        yield self._keeper(CLOUD_SITE, CLOUD_SITE, site)

    def _site(self, name: str) -> Run:
        loaded, key = self._loaded(name), self._key(name)

        def site(partition: int, token: int) -> SiteNode:
            membership = self._member(key, token)
            return self._held(name, edge_node(self._settings, self._ports, name, partition, loaded, membership))

        return self._keeper(name, self._settings.sites[name].pool, site)

    def _loaded(self, name: str) -> list[tuple[Engine, Load]]:
        """The site's engines, each with a load of its own that metrics show."""
        loaded = [(engine, Load()) for engine in self._engines[name]]
        for engine, load in loaded:
            self._telemetry.watch_load(name, engine.info.model, load)
        return loaded

    def _member(self, key: str, token: int) -> Membership:
        return Membership(key, token, self._telemetry)

    def _held(self, name: str, node: EdgeNode) -> SiteNode:
        return _HeldSite(node, partial(self._telemetry.lease_held, name))

    def _keeper(self, name: str, pool: str, make: Callable[[int, int], SiteNode]) -> Run:
        async def prepare(pool: str, partition: int) -> None:
            await self._ports.topics.ensure_partition(segments_topic(pool), partition)

        lease_s = self._settings.service.lease_s
        return SiteKeeper(self._ports.registry, name, pool, self._holder, make, prepare, lease_s=lease_s).run

    def _key(self, name: str) -> str:
        """What the site signs with: its own key, or the one that follows where this process knows the secret."""
        site = self._settings.sites[name]
        own = read_secret(site.key, site.key_file, f"sites.{name}.key_file")
        due = site_key(self._secret, name) if self._secret else ""
        if own and due and own != due:
            raise ConfigError(
                f"sites.{name}.key does not follow from security.secret: expected what `pice sites key {name}` prints"
            )
        return own or due

    def _kept(self, name: str, make: Callable[[], Run]) -> Run:
        async def run(stopping: asyncio.Event) -> None:
            while not stopping.is_set():
                try:
                    await make()(stopping)
                except TransportError as error:
                    self._health.down(name, str(error))
                    await asyncio.sleep(_PAUSE_S)
                    self._health.up(name)

        return run


class _HeldSite:
    """A site's node that says while it runs that its lease is held."""

    def __init__(self, node: EdgeNode, lease_held: Callable[..., None]) -> None:
        self._node = node
        self._lease_held = lease_held
        self.set_draining = node.set_draining

    async def run(self, stopping: asyncio.Event) -> None:
        self._lease_held(held=True)
        try:
            await self._node.run(stopping)
        finally:
            self._lease_held(held=False)
