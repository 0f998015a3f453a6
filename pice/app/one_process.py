"""A pipeline whose nodes all run here, on a queue and a store in memory."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from pice.app.engines import all_sites, start_engines
from pice.app.nodes import Ports, cloud_node, cloud_site, collector, edge_node, new_planner, running
from pice.core import CLOUD_SITE
from pice.node.client import Client
from pice.node.load import Load
from pice.pipeline import Pipeline
from pice.settings import Settings
from pice.store.memory import MemoryStore
from pice.transport.memory import MemoryTransport


@asynccontextmanager
async def in_one_process(settings: Settings) -> AsyncIterator[Pipeline]:
    """All nodes in this process, ready to answer. On leaving, what is still asked ends as `cancelled`, and the nodes
    are drained and closed. They share one planner, so what the collector learns of answers and places informs the
    cloud node's plans.

    Raises:
        ModelLoadError: an engine cannot be used.
    """
    rng = random.Random(int.from_bytes(os.urandom(16)))
    async with AsyncExitStack() as stack:
        engines = await start_engines(settings, all_sites(settings), rng, stack)
        ports = Ports(
            MemoryTransport(max_bytes=settings.limits.max_message_bytes),
            MemoryStore(max_open=settings.limits.max_open_requests, record_ttl_s=settings.limits.record_ttl_s),
        )
        stack.push_async_callback(ports.store.close)
        stack.push_async_callback(ports.transport.close)
        load, shared = Load(), new_planner(settings)
        cloud_engine = engines[CLOUD_SITE][0]
        cloud = cloud_node(settings, ports, shared, cloud_engine, load)
        edges = [cloud_site(settings, ports, cloud_engine, load)]
        for partition, name in enumerate(settings.sites):
            loaded = [(engine, Load()) for engine in engines[name]]
            edges.append(edge_node(settings, ports, name, partition, loaded))
        for edge in edges:
            await edge.announce()
        nodes = [cloud.run, collector(settings, ports, shared).run, *(edge.run for edge in edges)]
        async with running(nodes):
            client = Client(ports.transport, ports.store)
            try:
                yield Pipeline(settings, client, cloud.plan, rng)
            finally:
                await client.close()
