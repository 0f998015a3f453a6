"""The real nodes in one process on real Kafka and Redis, with engines that take no time."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench.brokers_figures import SIZE
from bench.brokers_host import Brokers, Spent
from bench.complete import require_complete
from bench.instant import InstantEngine, Known
from pice.app.admin import create_topics
from pice.app.cluster import open_ports
from pice.app.nodes import Membership, Ports, cloud_node, cloud_site, collector, edge_node, running
from pice.app.patience import Patience
from pice.core import CLOUD_SITE, Answer, Message, Request, Sampling
from pice.message.signing import site_key
from pice.node.client import Client
from pice.node.load import Load
from pice.plan.planner import EarliestFinish
from pice.service.metrics import PrometheusTelemetry
from pice.settings import Settings
from pice.transport.base import CANDIDATES, Subscription, Transport, segments_topic

_POOL = "main"


@dataclass(frozen=True, slots=True)
class Sent:
    """A message as it was published."""

    payload: bytes
    key: str
    headers: Mapping[str, bytes]


@dataclass(slots=True)
class Recording:
    """The messages of a run, by topic."""

    sent: dict[str, list[Sent]] = field(default_factory=dict)

    @property
    def segments(self) -> Sequence[Sent]:
        return self.sent[segments_topic(_POOL)]

    @property
    def candidates(self) -> Sequence[Sent]:
        return self.sent[CANDIDATES]


class Recorder:
    """A transport that notes what is published."""

    def __init__(self, transport: Transport, recording: Recording) -> None:
        self._transport = transport
        self._recording = recording

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        self._recording.sent.setdefault(topic, []).append(Sent(payload, key, headers or {}))
        await self._transport.publish(topic, payload, key=key, partition=partition, headers=headers)

    async def subscribe(
        self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64
    ) -> Subscription:
        return await self._transport.subscribe(topic, group=group, partition=partition, prefetch=prefetch)

    async def close(self) -> None:
        await self._transport.close()


class _Undisturbed:
    """What services are told of outages; here nobody asks."""

    def down(self, name: str, cause: str) -> None:
        """An outage would spoil the run: its figures show it."""

    def up(self, name: str) -> None:
        """All is well."""


async def serve(
    brokers: Brokers,
    settings: Settings,
    known: Known,
    *,
    num_requests: int,
    concurrency: int,
    recording: Recording | None = None,
) -> tuple[Spent, list[Answer]]:
    """What answering so many requests took, at all sites of `settings`, whose prefix nobody used before.

    Raises:
        Incomplete: an answer is not whole.
    """
    async with _deployed(settings, known, recording) as client:
        answers = list[Answer]()
        waiting = iter([_request(number) for number in range(num_requests)])

        async def user() -> None:
            for request in waiting:
                answers.append(await client.ask(request))

        async with brokers.metered() as spent, asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(user())
    require_complete(answers, SIZE.num_points, num_requests)
    return spent(), answers


def _request(number: int) -> Request:
    question = f"What should someone who moves into house {number} know about its garden?"
    sampling = Sampling(max_tokens=SIZE.num_points * (4 * SIZE.words + 64))
    return Request(f"r{number}", (Message("user", question),), sampling, mode="progressive")


@asynccontextmanager
async def _deployed(settings: Settings, known: Known, recording: Recording | None) -> AsyncIterator[Client]:
    """One cloud node, one collector and the sites, as services have them: patient, signed, counted."""
    async with open_ports(settings, Patience(_Undisturbed(), asyncio.Event())) as ports:
        names = list(settings.sites)
        await create_topics(settings)
        used = Ports(Recorder(ports.transport, recording), ports.store) if recording else ports
        engines = {name: InstantEngine(SIZE, "large" if name == CLOUD_SITE else "small", known) for name in _all(names)}
        for engine in engines.values():
            await engine.start()
        secret, telemetry, load = secrets.token_hex(32), PrometheusTelemetry(), Load()
        members = {name: Membership(site_key(secret, name), 1, telemetry) for name in engines}
        edges = [cloud_site(settings, used, engines[CLOUD_SITE], load, members[CLOUD_SITE])]
        for partition, name in enumerate(names):
            edges.append(edge_node(settings, used, name, partition, [(engines[name], Load())], members[name]))
        for edge in edges:
            await edge.announce()
        planner = EarliestFinish(SIZE.plan_policy())
        cloud = cloud_node(settings, used, planner, engines[CLOUD_SITE], load, telemetry)
        collecting = collector(settings, used, EarliestFinish(SIZE.plan_policy()), telemetry, secret)
        async with running([cloud.run, collecting.run, *(edge.run for edge in edges)]):
            client = Client(used.transport, used.store)
            await client.ask(_request(-1))
            yield client


def _all(names: Sequence[str]) -> list[str]:
    return [CLOUD_SITE, *names]
