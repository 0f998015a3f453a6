"""A whole deployment on one event loop: the real nodes, emulated engines, and a life for each node."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pice.answer.steps import EnsemblePolicy
from pice.core import CLOUD_SITE
from pice.engine.base import Engine
from pice.errors import TransportError
from pice.message.signing import site_key
from pice.node.client import Client
from pice.node.cloud import CloudNode, CloudPolicy
from pice.node.collector import CollectorNode
from pice.node.edge import Address, EdgeNode, EdgePolicy
from pice.node.load import Load
from pice.plan.base import Planner
from pice.plan.planner import EarliestFinish, PlanPolicy
from pice.simulation.faults import FaultyTransport, Life, mortal
from pice.sketch.prompts import PromptSet
from pice.store.base import Store
from pice.transport.base import Transport

RTT_S = 0.02
"""To a site of which nothing else is said."""
_PAUSE_S = 0.5
"""From a node's end to its next run."""


@dataclass(frozen=True, slots=True)
class Policies:
    """How every node of the cluster is set."""

    plan: PlanPolicy = field(default_factory=PlanPolicy)
    cloud: CloudPolicy = field(default_factory=CloudPolicy)
    edge: EdgePolicy = field(default_factory=EdgePolicy)
    ensemble: EnsemblePolicy = field(default_factory=EnsemblePolicy)


class Node(Protocol):
    async def run(self, stopping: asyncio.Event) -> None: ...


@dataclass(slots=True)
class Running:
    """A node that runs: its task, its life and how to ask it to stop."""

    life: Life
    stopping: asyncio.Event
    task: asyncio.Task[None]
    transport: "TrackingTransport"


class TrackingTransport:
    """Remembers the subscriptions one node made, since after a sudden death the broker closes them, not the node."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.subscriptions: list[Any] = []

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        await self._transport.publish(topic, payload, key=key, partition=partition, headers=headers)

    async def subscribe(self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64) -> Any:
        subscription = await self._transport.subscribe(topic, group=group, partition=partition, prefetch=prefetch)
        self.subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        for subscription in self.subscriptions:
            await subscription.close()


class Cluster:
    """Starts, kills and restarts nodes by name: `cloud-0`, `collector-1`, `site-paris`.

    `session_s` is how long a broker takes to notice a dead subscriber and give its deliveries to others, `reply_s` how
    long to answer a call it has done. With a `secret` every site signs its candidates, and collectors ask for it.
    """

    def __init__(
        self,
        transport: FaultyTransport,
        store: Store,
        prompts: PromptSet,
        policies: Policies,
        *,
        cloud: Engine,
        sites: Mapping[str, list[Engine]],
        rtts_s: Mapping[str, float] | None = None,
        session_s: float = 3.0,
        reply_s: float = 0.0,
        secret: str = "",
        new_planner: Callable[[PlanPolicy], Planner] = EarliestFinish,
    ) -> None:
        self.transport = transport
        self.store = store
        self.client = Client(transport, store)
        self.nodes: dict[str, Running] = {}
        self._prompts = prompts
        self._policies = policies
        self._cloud = cloud
        self._sites = sites
        self._rtts_s = rtts_s or {}
        self._session_s = session_s
        self._reply_s = reply_s
        self._secret = secret
        self._new_planner = partial(new_planner, policies.plan)
        self._loads: dict[str, list[Load]] = {}
        self._loop = asyncio.get_running_loop()

    def site_names(self) -> list[str]:
        return list(self._sites)

    async def start(self, *, num_clouds: int = 1, num_collectors: int = 1) -> None:
        """Starts every node; sites are announced before the first cloud node looks for them."""
        for name in (CLOUD_SITE, *self._sites):
            self.spawn(f"site-{name}")
        await asyncio.sleep(0.001)
        for number in range(num_collectors):
            self.spawn(f"collector-{number}")
        for number in range(num_clouds):
            self.spawn(f"cloud-{number}")

    def loads(self) -> Mapping[str, list[Load]]:
        """What each site's engines have still to write."""
        return self._loads

    def spawn(self, name: str) -> Running:
        """Starts a node, or starts it again after its death."""
        life = Life(on_death=lambda: self._died(running), reply_s=self._reply_s)
        tracking = TrackingTransport(self.transport)
        node = self._make(name, mortal(tracking, life), mortal(self.store, life))
        stopping = asyncio.Event()
        task = self._loop.create_task(_until_death(node, stopping, life), name=name)
        self.nodes[name] = running = Running(life, stopping, task, tracking)
        return running

    async def stop(self) -> None:
        """Drains every node. Raises what a node raised."""
        for running in self.nodes.values():
            running.life.mend()
            running.stopping.set()
        for running in self.nodes.values():
            await running.task
        await self.transport.close()

    def engines(self, site: str) -> list[Engine]:
        return [self._cloud] if site == CLOUD_SITE else self._sites[site]

    def _died(self, running: Running) -> None:
        self._loop.call_soon(running.task.cancel)
        self._loop.call_later(self._session_s, lambda: self._loop.create_task(running.transport.close()))

    def _make(self, name: str, transport: Transport, store: Store) -> Node:
        kind, _, rest = name.partition("-")
        makers: dict[str, Callable[[], Node]] = {
            "cloud": lambda: self._cloud_node(transport, store),
            "collector": lambda: CollectorNode(
                transport=transport,
                store=store,
                planner=self._new_planner(),
                policy=self._policies.ensemble,
                secret=self._secret,
            ),
            "site": lambda: self._edge_node(rest, transport, store),
        }
        return makers[kind]()

    def _cloud_node(self, transport: Transport, store: Store) -> CloudNode:
        return CloudNode(
            transport=transport,
            store=store,
            engine=self._cloud,
            load=self._load(CLOUD_SITE)[0],
            planner=self._new_planner(),
            prompts=self._prompts,
            policy=self._policies.cloud,
        )

    def _edge_node(self, site: str, transport: Transport, store: Store) -> EdgeNode:
        is_cloud = site == CLOUD_SITE
        pool, partition = (CLOUD_SITE, 0) if is_cloud else ("main", self.site_names().index(site))
        if not is_cloud:
            self._loads.pop(site, None)  # it dies with its node; that of the cloud engine is shared by several
        loads = zip(self.engines(site), self._load(site), strict=True)
        return EdgeNode(
            Address(site, pool, partition, 0.0 if is_cloud else self._rtts_s.get(site, RTT_S)),
            transport=transport,
            store=store,
            engines=[(engine, load, self._prompts) for engine, load in loads],
            policy=self._policies.edge,
            key=site_key(self._secret, site) if self._secret else "",
        )

    def _load(self, site: str) -> list[Load]:
        return self._loads.setdefault(site, [Load() for _ in self.engines(site)])


async def _until_death(node: Node, stopping: asyncio.Event, life: Life) -> None:
    """A dead node's end is no error; one that its ports let down is run again, as by its service; any other is."""
    try:
        while True:
            try:
                return await node.run(stopping)
            except TransportError:
                await asyncio.sleep(_PAUSE_S)
    except asyncio.CancelledError:
        if not life.dead:
            raise


def seeded(seed: int, name: str) -> random.Random:
    """A generator of its own for each part, so that one part's draws do not move another's."""
    return random.Random(f"{seed}/{name}")
