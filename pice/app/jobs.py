"""Settings -> batch jobs in the queue of a deployment, for terminals; and the node that runs them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pice.app.capacity import line_timeout_s
from pice.app.packages import cluster_packages
from pice.app.topics import brokers_of, check_topic
from pice.jobs.base import JobStore
from pice.node.client import Client
from pice.node.jobs import JobsNode, JobsPolicy
from pice.node.telemetry import SILENT, Telemetry
from pice.settings import Settings
from pice.transport.base import JOBS, Transport

if TYPE_CHECKING:
    from pice.app.cluster import ClusterPorts


@dataclass(frozen=True, slots=True)
class JobPorts:
    """Where jobs are submitted, and where they are kept."""

    transport: Transport
    jobs: JobStore


@asynccontextmanager
async def open_jobs(settings: Settings) -> AsyncIterator[JobPorts]:
    """The jobs of a deployment.

    Raises:
        ConfigError: there are no brokers in the settings, or one refuses us.
        TransportError: one does not answer.
    """
    brokers_of(settings)
    with cluster_packages():
        from pice.app.cluster import open_ports
    async with open_ports(settings) as ports:
        await check_topic(settings, ports.topics, JOBS)
        yield JobPorts(ports.transport, _job_store(settings, ports))


def jobs_node(settings: Settings, ports: "ClusterPorts", telemetry: Telemetry = SILENT) -> JobsNode:
    """The node that runs lines of jobs. It waits for `ports` itself where they are away."""
    max_inflight = settings.jobs.max_inflight
    return JobsNode(
        transport=ports.transport,
        store=ports.store,
        jobs=_job_store(settings, ports),
        client=Client(ports.transport, ports.store),
        policy=JobsPolicy(
            max_inflight=max_inflight,
            timeout_s=line_timeout_s(settings, max_inflight),
            drain_s=settings.limits.drain_s,
        ),
        wall_s=time.time,
        telemetry=telemetry,
    )


def _job_store(settings: Settings, ports: "ClusterPorts") -> JobStore:
    from pice.jobs.redis import RedisJobs

    _, redis = brokers_of(settings)
    return RedisJobs(ports.redis, prefix=redis.prefix, keep_s=settings.jobs.keep_s)
