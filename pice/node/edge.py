"""Segments of one site -> candidates, many at a time."""

import asyncio
import logging
import math
from contextlib import aclosing
from dataclasses import dataclass

from pice.core import Candidate, Event, Segment, SiteState
from pice.engine.base import Engine, Piece
from pice.errors import DecodeError, PiceError, TransportError
from pice.message.codec import decode_as, encode
from pice.node.consume import backoff_s, bury, check_deliveries, drain
from pice.node.inflight import InFlight, Work
from pice.node.load import Load, Share
from pice.node.text import TextEvents
from pice.plan.base import TOKENS_PER_WORD
from pice.plan.order import Order, WaitingSegments
from pice.sketch.prompts import PromptSet
from pice.store.base import Store
from pice.transport.base import CANDIDATES, Delivery, Subscription, Transport, segments_topic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EdgePolicy:
    """Settings of an edge node; see `pice.settings`."""

    window: int = 32
    order: Order = "multilist"
    max_deliveries: int = 5
    drain_s: float = 10.0
    heartbeat_s: float = 1.0
    heartbeat_ttl_s: float = 5.0
    text_interval_s: float = 0.1
    sweep_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Who a site is: its name, the pool whose topic it reads, its partition there and the round trip to it."""

    site: str
    pool: str
    partition: int
    rtt_s: float = 0.0


@dataclass(slots=True)
class Model:
    """One engine of the site and what waits for it."""

    engine: Engine
    load: Load
    prompts: PromptSet
    waiting: WaitingSegments["_Job"]
    num_running: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    segment: Segment
    delivery: Delivery
    share: Share
    queued_s: float
    dropped: bool = False
    task: asyncio.Task[None] | None = None

    def work(self) -> Work:
        segment = self.segment
        return Work(segment.request_id, segment.attempt, segment.index, self.delivery, self.drop)

    def drop(self) -> None:
        self.dropped = True
        self.share.end()
        if self.task is not None:
            self.task.cancel()


class EdgeNode:
    """Reads one site's partition and expands what stands there. The cloud engine's own site is one too."""

    def __init__(
        self,
        address: Address,
        *,
        transport: Transport,
        store: Store,
        engines: list[tuple[Engine, Load, PromptSet]],
        policy: EdgePolicy,
    ) -> None:
        self._address = address
        self._transport = transport
        self._store = store
        self._policy = policy
        self._models = {
            engine.info.model: Model(
                engine, load, prompts, WaitingSegments(policy.order, batch=engine.info.max_inflight)
            )
            for engine, load, prompts in engines
        }
        self._running: set[asyncio.Task[None]] = set()
        self._draining = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set, then finishes what runs and gives the rest back."""
        address = self._address
        await self.announce()
        subscription = await self._transport.subscribe(
            segments_topic(address.pool),
            group="edge",
            partition=address.partition,
            prefetch=self._policy.window,
        )
        inflight = InFlight(subscription)
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._heartbeats()),
                    tasks.create_task(inflight.watch(self._store.notices())),
                    tasks.create_task(inflight.sweep(self._store, every_s=self._policy.sweep_s)),
                    tasks.create_task(self._read(tasks, subscription, inflight)),
                ]
                await stopping.wait()
                self._draining = True
                background.pop().cancel()
                await self.announce()
                await drain(self._running, self._policy.drain_s)
                for task in background:
                    task.cancel()
        finally:
            self._draining = True
            self._forget_waiting()
            await subscription.close()

    async def announce(self) -> None:
        """Tells the store that this site lives, and how busy it is."""
        address = self._address
        state = SiteState(
            address.site,
            address.pool,
            address.partition,
            tuple(model.load.state(model.engine.info) for model in self._models.values()),
            self._store.now(),
            address.rtt_s,
            self._draining,
        )
        await self._store.heartbeat(state, ttl_s=self._policy.heartbeat_ttl_s)

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._policy.heartbeat_s)
            await self.announce()

    async def _read(self, tasks: asyncio.TaskGroup, subscription: Subscription, inflight: InFlight) -> None:
        while True:
            delivery = await subscription.receive()
            if (segment := await self._accept(subscription, delivery)) is not None:
                model = self._models[segment.model]
                self._queue(model, segment, delivery, inflight)
                self._start(tasks, model, subscription, inflight)

    async def _accept(self, subscription: Subscription, delivery: Delivery) -> Segment | None:
        """The segment, if it is one, is for this site and is still wanted; else it is put aside or dropped."""
        try:
            segment = decode_as(Segment, delivery.payload)
            if segment.site != self._address.site:
                raise DecodeError(f"expected a segment for site {self._address.site}, got one for {segment.site!r}")
        except DecodeError as error:
            await bury(self._transport, delivery, str(error))
            await subscription.ack(delivery)
            return None
        if not await self._store.wanted(segment.request_id, segment.attempt, segment.index):
            await subscription.ack(delivery)
            return None
        if segment.model not in self._models:
            known = ", ".join(self._models)
            await self._fail(subscription, delivery, segment, f"site has no model {segment.model!r}, only {known}")
            return None
        return segment

    def _queue(self, model: Model, segment: Segment, delivery: Delivery, inflight: InFlight) -> None:
        share = model.load.add(round(segment.words * TOKENS_PER_WORD))
        job = _Job(segment, delivery, share, asyncio.get_running_loop().time())
        inflight.add(job.work())
        model.waiting.push(job, words=segment.words, deadline_s=segment.deadline_s)

    def _start(self, tasks: asyncio.TaskGroup, model: Model, subscription: Subscription, inflight: InFlight) -> None:
        """Starts what waits while the engine has room."""
        while not self._draining and len(model.waiting) and model.num_running < model.engine.info.max_inflight:
            job = model.waiting.pop()
            if job.dropped:
                continue
            model.num_running += 1
            job.task = tasks.create_task(self._expand(model, job, subscription))
            self._running.add(job.task)

            def finished(task: asyncio.Task[None], job: _Job = job) -> None:
                self._running.discard(task)
                model.num_running -= 1
                job.share.end()
                inflight.remove(job.work())
                if job.dropped or not (task.cancelled() or task.exception()):
                    self._start(tasks, model, subscription, inflight)

            job.task.add_done_callback(finished)

    def _forget_waiting(self) -> None:
        """What has not been started goes back with the subscription, and no longer counts as this site's load."""
        for model in self._models.values():
            while len(model.waiting):
                model.waiting.pop().share.end()

    async def _expand(self, model: Model, job: _Job, subscription: Subscription) -> None:
        """Publishes the candidate, and only then acknowledges the segment (P2). One that waited past its deadline is
        dropped."""
        segment, delivery = job.segment, job.delivery
        if segment.deadline_s <= self._store.now():
            await subscription.ack(delivery)
            return
        try:
            check_deliveries(delivery, self._policy.max_deliveries)
            candidate = await self._write(model, job)
            await self._transport.publish(CANDIDATES, encode(candidate), key=segment.request_id)
        except PiceError as error:
            if error.retriable and delivery.num_deliveries < self._policy.max_deliveries:
                log.info("segment %s/%d will be tried again: %s", segment.request_id, segment.index, error)
                await subscription.release(delivery, delay_s=backoff_s(delivery.num_deliveries))
            else:
                await self._fail(subscription, delivery, segment, str(error))
            return
        await subscription.ack(delivery)

    async def _fail(self, subscription: Subscription, delivery: Delivery, segment: Segment, error: str) -> None:
        """Says that there will be no candidate, so that the collector need not wait for one."""
        log.warning("segment %s/%d failed: %s", segment.request_id, segment.index, error)
        failed = Candidate(
            segment.request_id, segment.attempt, segment.index, self._address.site, segment.model, "", error=error
        )
        try:
            await self._transport.publish(CANDIDATES, encode(failed), key=segment.request_id)
        except TransportError:
            await subscription.release(delivery, delay_s=backoff_s(delivery.num_deliveries))
        else:
            await subscription.ack(delivery)

    async def _write(self, model: Model, job: _Job) -> Candidate:
        segment, clock = job.segment, asyncio.get_running_loop()
        started_s, num_tokens = clock.time(), 0
        events = self._text_events(segment)
        text, logprobs, last = list[str](), list[float](), Piece("")
        deadline_s = started_s + segment.deadline_s - self._store.now()
        prompt = model.prompts.expand(segment)
        async with aclosing(model.engine.generate(prompt, segment.sampling, deadline_s=deadline_s)) as pieces:
            async for piece in pieces:
                num_tokens += piece.num_tokens
                job.share.wrote(piece.num_tokens)
                text.append(piece.text)
                logprobs.extend(piece.logprobs)
                if piece.finish_reason is None and events.hold(piece.text):
                    await events.flush()
                last = piece
        return Candidate(
            segment.request_id,
            segment.attempt,
            segment.index,
            self._address.site,
            segment.model,
            "".join(text),
            last.finish_reason or "stop",
            last.num_prompt_tokens,
            last.num_cached_tokens,
            num_tokens,
            math.fsum(logprobs) / len(logprobs) if logprobs else None,
            min(logprobs, default=None),
            queue_s=started_s - job.queued_s + last.queue_s,
            service_s=clock.time() - started_s - last.queue_s,
        )

    def _text_events(self, segment: Segment) -> TextEvents:
        event = Event(
            segment.request_id,
            "segment_text",
            0.0,
            segment.attempt,
            segment.index,
            site=self._address.site,
            model=segment.model,
        )
        return TextEvents(self._store, event, interval_s=self._policy.text_interval_s)
