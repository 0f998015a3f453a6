"""Nodes, and a test that plays all that is around them."""

import asyncio
import math
from dataclasses import dataclass, field, replace
from typing import Any

from pice.answer.steps import EnsemblePolicy
from pice.core import (
    CLOUD_SITE,
    Answer,
    Candidate,
    Curve,
    Event,
    Failure,
    Message,
    ModelState,
    Placement,
    Plan,
    Point,
    Record,
    Request,
    Sampling,
    Segment,
    SiteState,
)
from pice.engine.base import Engine
from pice.message.codec import decode_as, encode
from pice.message.signing import SIGNATURE, signature, site_key
from pice.node.client import Client
from pice.node.cloud import CloudNode, CloudPolicy
from pice.node.collector import CollectorNode
from pice.node.edge import Address, EdgeNode, EdgePolicy
from pice.node.load import Load
from pice.node.telemetry import SILENT, Telemetry
from pice.plan.base import Planner
from pice.plan.planner import EarliestFinish, PlanPolicy
from pice.sketch.prompts import PromptSet, load_prompts
from pice.store.memory import MemoryStore
from pice.transport.base import CANDIDATES, DEAD, REQUESTS, Delivery, Subscription, segments_topic
from pice.transport.memory import MemoryTransport
from tests.node.scripted import FAST

POOL = "main"
SEGMENTS = segments_topic(POOL)
FOREVER_S = 1e9

Node = CloudNode | EdgeNode | CollectorNode


@dataclass(slots=True)
class Running:
    """A node that runs."""

    stopping: asyncio.Event
    task: asyncio.Task[None]
    node: Node | None = None

    async def stop(self) -> None:
        """Drains it. Raises what it raised."""
        self.stopping.set()
        await self.task

    async def kill(self) -> None:
        """Ends it in the midst of what it does; the queue gives what it had to others."""
        self.task.cancel()
        await asyncio.wait([self.task])


@dataclass(slots=True)
class Site:
    """A site that the test plays: it takes segments and sends candidates."""

    name: str
    model: str
    stage: "Stage"
    subscription: Subscription

    async def receive(self) -> Segment:
        delivery = await self.subscription.receive()
        await self.subscription.ack(delivery)
        return decode_as(Segment, delivery.payload)

    async def send(self, segment: Segment, text: str, *, error: str = "", num_output_tokens: int = 0) -> None:
        candidate = self.candidate(segment, text, error=error)
        if num_output_tokens:
            candidate = replace(candidate, num_output_tokens=num_output_tokens)
        await self.stage.send(candidate)

    def candidate(self, segment: Segment, text: str, *, error: str = "") -> Candidate:
        num_tokens = len(text.split())
        return Candidate(
            segment.request_id,
            segment.attempt,
            segment.index,
            self.name,
            self.model,
            text,
            num_output_tokens=num_tokens,
            error=error,
        )


async def time_passes(seconds: float) -> None:
    """Lets time pass: these tests run on a virtual clock, so none of it is waited for."""
    await asyncio.sleep(seconds)


@dataclass
class Stage:
    """One transport and one store, with nodes beside them. What is set here counts for nodes started later."""

    transport: MemoryTransport = field(default_factory=MemoryTransport)
    store: MemoryStore = field(default_factory=MemoryStore)
    prompts: PromptSet = field(default_factory=lambda: load_prompts("default"))
    plan: PlanPolicy = field(default_factory=PlanPolicy)
    telemetry: Telemetry = SILENT
    secret: str = ""
    running: list[Running] = field(default_factory=list)
    num_partitions: int = 0

    @property
    def client(self) -> Client:
        return Client(self.transport, self.store)

    def cloud(
        self, engine: Engine, *, load: Load | None = None, planner: Planner | None = None, **policy: Any
    ) -> Running:
        return self._start(
            CloudNode(
                transport=self.transport,
                store=self.store,
                engine=engine,
                load=load or Load(),
                planner=planner or EarliestFinish(self.plan),
                prompts=self.prompts,
                policy=CloudPolicy(**policy),
                telemetry=self.telemetry,
            )
        )

    def edge(self, site: str, *engines: Engine, load: Load | None = None, token: int = 0, **policy: Any) -> Running:
        return self._start(
            EdgeNode(
                Address(site, POOL, 0),
                transport=self.transport,
                store=self.store,
                engines=[(engine, load or Load(), self.prompts) for engine in engines],
                policy=EdgePolicy(**policy),
                key=site_key(self.secret, site) if self.secret else "",
                token=token,
                telemetry=self.telemetry,
            )
        )

    def collector(self, *, drain_s: float = 10.0, **policy: Any) -> Running:
        return self._start(
            CollectorNode(
                transport=self.transport,
                store=self.store,
                planner=EarliestFinish(self.plan),
                policy=EnsemblePolicy(**policy),
                drain_s=drain_s,
                secret=self.secret,
                telemetry=self.telemetry,
            )
        )

    async def site(self, name: str, model: str = "small", *, curve: Curve = FAST, context_tokens: int = 4096) -> Site:
        """A site that the test plays; its heartbeat stays."""
        pool, partition = (CLOUD_SITE, 0) if name == CLOUD_SITE else (POOL, self.num_partitions)
        self.num_partitions += name != CLOUD_SITE
        state = SiteState(name, pool, partition, (ModelState(model, context_tokens, 8, curve),), self.store.now())
        await self.store.heartbeat(state, ttl_s=FOREVER_S)
        subscription = await self.transport.subscribe(segments_topic(pool), group="edge", partition=partition)
        return Site(name, model, self, subscription)

    async def submit(self, request: Request) -> None:
        assert await self.store.open(request)
        await self.publish_request(request)

    async def publish_request(self, request: Request) -> None:
        await self.transport.publish(REQUESTS, encode(request), key=request.request_id)

    async def send(self, candidate: Candidate) -> None:
        """Signed with the key of the site that it names, where there is a secret."""
        payload = encode(candidate)
        signed = signature(site_key(self.secret, candidate.site), payload)
        headers = {SIGNATURE: signed} if self.secret else {}
        await self.transport.publish(CANDIDATES, payload, key=candidate.request_id, headers=headers)

    async def events(self, request_id: str) -> list[Event]:
        """All of a request's events, once it has ended."""
        return [event async for event in self.store.follow(request_id, until_s=math.inf)]

    async def answer(self, request_id: str = "r") -> Answer:
        """The answer to a request, once it has ended."""
        outcome = (await self.events(request_id))[-1].answer
        assert outcome is not None
        return outcome

    async def failure(self, request_id: str = "r") -> Failure:
        outcome = (await self.events(request_id))[-1].failure
        assert outcome is not None
        return outcome

    async def record(self, request_id: str = "r") -> Record:
        record = await self.store.record(request_id)
        assert record is not None
        return record

    async def sealed(self, *placements: tuple[str, str], num_segments: int = 1, **of_request: Any) -> list[Segment]:
        """A request whose sketch is finished, as a cloud node leaves it: each segment is placed at all of the given
        (site, model), and expected there after a second. The segments are returned, not published."""
        request = a_request(**of_request)
        await self.store.open(request)
        record = await self.store.begin(request.request_id)
        assert record is not None
        await self.store.planned(request.request_id, record.attempt, Plan("progressive", ""))
        points = tuple(Point(index, f"fact number {index} about tides", 10) for index in range(num_segments))
        segments = [a_segment(record, points, index) for index in range(num_segments)]
        now_s = self.store.now()
        for segment in segments:
            for site, model in placements:
                await self.store.place(segment, Placement(site, model, now_s, now_s + 1))
        await self.store.seal(
            request.request_id,
            record.attempt,
            points,
            num_segments,
            num_prompt_tokens=0,
            num_output_tokens=0,
            cut=False,
        )
        return segments

    async def dead(self) -> Delivery:
        """The next message that was put aside."""
        subscription = await self.transport.subscribe(DEAD, group="test")
        return await subscription.receive()

    async def close(self) -> None:
        """Drains what still runs. Raises what a node raised."""
        for running in self.running:
            running.stopping.set()
        for running in self.running:
            if not running.task.cancelled():
                await running.task
        await self.transport.close()

    def _start(self, node: Node) -> Running:
        stopping = asyncio.Event()
        running = Running(stopping, asyncio.ensure_future(node.run(stopping)), node)
        self.running.append(running)
        return running


def a_request(request_id: str = "r", question: str = "How do tides work?", **fields: Any) -> Request:
    return Request(request_id, (Message("user", question),), **fields)


def a_segment(record: Record, points: tuple[Point, ...], index: int) -> Segment:
    request = record.request
    own = points[index : index + 1]
    return Segment(
        request.request_id,
        record.attempt,
        index,
        "expand",
        request.messages,
        points,
        own,
        10,
        Sampling(max_tokens=64),
        record.deadline_s,
    )
