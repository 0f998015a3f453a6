"""Settings -> nodes, on the ports they are given."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pice.answer.score import Weights
from pice.answer.steps import EnsemblePolicy
from pice.core import CLOUD_SITE
from pice.engine.base import Engine
from pice.errors import PiceError
from pice.node.cloud import CloudNode, CloudPolicy
from pice.node.collector import CollectorNode
from pice.node.edge import Address, EdgeNode, EdgePolicy
from pice.node.load import Load
from pice.node.telemetry import SILENT, Telemetry
from pice.plan.base import Planner
from pice.plan.planner import EarliestFinish, PlanPolicy
from pice.settings import Settings
from pice.sketch.prompts import load_prompts
from pice.store.base import Store
from pice.transport.base import Transport

CLOUD_ADDRESS = Address(CLOUD_SITE, CLOUD_SITE, 0)
"""Where segments for the cloud engine itself go."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What every node of a deployment talks through."""

    transport: Transport
    store: Store


@dataclass(frozen=True, slots=True)
class Membership:
    """How a site stands in a deployment: what it signs with, its lease's fencing token and who counts its work."""

    key: str = ""
    token: int = 0
    telemetry: Telemetry = SILENT


ALONE = Membership()
"""Of a site that needs no lease and no signature, since all nodes are in one process."""


def new_planner(settings: Settings) -> EarliestFinish:
    return EarliestFinish(plan_policy(settings))


def cloud_node(
    settings: Settings, ports: Ports, planner: Planner, engine: Engine, load: Load, telemetry: Telemetry = SILENT
) -> CloudNode:
    return CloudNode(
        transport=ports.transport,
        store=ports.store,
        engine=engine,
        load=load,
        planner=planner,
        prompts=load_prompts(settings.cloud.prompts),
        policy=cloud_policy(settings),
        telemetry=telemetry,
    )


def collector(
    settings: Settings, ports: Ports, planner: Planner, telemetry: Telemetry = SILENT, secret: str = ""
) -> CollectorNode:
    """With the cluster's `secret` it takes only signed candidates."""
    return CollectorNode(
        transport=ports.transport,
        store=ports.store,
        planner=planner,
        policy=ensemble_policy(settings),
        drain_s=settings.limits.drain_s,
        secret=secret,
        telemetry=telemetry,
    )


def cloud_site(settings: Settings, ports: Ports, engine: Engine, load: Load, site: Membership = ALONE) -> EdgeNode:
    """The cloud engine as a site of its own; `load` is shared with the cloud node beside it."""
    return EdgeNode(
        CLOUD_ADDRESS,
        transport=ports.transport,
        store=ports.store,
        engines=[(engine, load, load_prompts(settings.cloud.prompts))],
        policy=EdgePolicy(max_deliveries=settings.limits.max_deliveries, drain_s=settings.limits.drain_s),
        key=site.key,
        token=site.token,
        telemetry=site.telemetry,
    )


def edge_node(
    settings: Settings,
    ports: Ports,
    name: str,
    partition: int,
    engines: Sequence[tuple[Engine, Load]],
    membership: Membership = ALONE,
) -> EdgeNode:
    site = settings.sites[name]
    prompts = load_prompts(site.prompts)
    return EdgeNode(
        Address(name, site.pool, partition, site.rtt_s),
        transport=ports.transport,
        store=ports.store,
        engines=[(engine, load, prompts) for engine, load in engines],
        policy=EdgePolicy(
            window=site.window,
            order=site.order,
            max_deliveries=settings.limits.max_deliveries,
            drain_s=settings.limits.drain_s,
        ),
        key=membership.key,
        token=membership.token,
        telemetry=membership.telemetry,
    )


def plan_policy(settings: Settings) -> PlanPolicy:
    planner = settings.planner
    return PlanPolicy(
        margin=planner.margin,
        sketch_ratio=planner.sketch_ratio,
        sketch_flex=planner.sketch_flex,
        segment_words=planner.segment_words,
        max_segments=planner.max_segments,
        assumed_answer_words=planner.assumed_answer_words,
        candidates=planner.candidates,
    )


def cloud_policy(settings: Settings) -> CloudPolicy:
    return CloudPolicy(
        max_inflight=settings.cloud.max_inflight,
        max_deliveries=settings.limits.max_deliveries,
        drain_s=settings.cloud.drain_s,
        max_points=settings.planner.max_points,
        eager=settings.planner.eager,
        sketch_grammar=settings.cloud.sketch_grammar,
    )


def ensemble_policy(settings: Settings) -> EnsemblePolicy:
    ensemble, planner = settings.ensemble, settings.planner
    return EnsemblePolicy(
        weights=Weights(**ensemble.weights.model_dump()),
        max_candidates=ensemble.max_candidates,
        second_opinion_below=ensemble.second_opinion_below,
        hedge_factor=planner.hedge_factor,
        hedge_min_s=planner.hedge_min_s,
    )


Run = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


@asynccontextmanager
async def running(nodes: Sequence[Run]) -> AsyncIterator[None]:
    """Runs nodes until the block ends, then drains them. An error of a node ends the block, and comes out as itself;
    where several were refused at once, the first of them."""
    stopping = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            for node in nodes:
                tasks.create_task(node(stopping))
            yield
            stopping.set()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1 or all(isinstance(error, PiceError) for error in group.exceptions):
            raise group.exceptions[0] from None
        raise
