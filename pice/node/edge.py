"""Segments of one site -> candidates, many at a time."""

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

from pice.core import Candidate, ModelState, Segment
from pice.engine.base import Engine
from pice.errors import DecodeError, MessageTooLarge, PiceError, TransportError
from pice.message.codec import decode_as
from pice.message.fields import shown
from pice.node import context
from pice.node.bury import bury
from pice.node.consume import backoff_s, bare_transport_errors, check_deliveries, drain, insist
from pice.node.expanding import Expansion, Model, expand
from pice.node.heartbeat import Address as Address
from pice.node.heartbeat import Heartbeat
from pice.node.inflight import InFlight
from pice.node.load import Load
from pice.node.outbox import Outbox
from pice.node.telemetry import SILENT, Telemetry
from pice.plan.base import TOKENS_PER_WORD
from pice.plan.order import Order, WaitingSegments
from pice.sketch.prompts import PromptSet
from pice.store.base import Store
from pice.transport.base import Delivery, Subscription, Transport, segments_topic

log = logging.getLogger(__name__)

_TAKEN_AT_ONCE = 16
"""Deliveries that are being looked at: their questions to the store travel together."""


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
class _Shift:
    """One run of a node."""

    tasks: asyncio.TaskGroup
    subscription: Subscription
    inflight: InFlight


class EdgeNode:
    """Reads one site's partition and expands what stands there. The cloud engine's own site is one too.

    With the site's `key` its candidates are signed. `token` is that of the lease under which it serves the site.
    """

    def __init__(
        self,
        address: Address,
        *,
        transport: Transport,
        store: Store,
        engines: list[tuple[Engine, Load, PromptSet]],
        policy: EdgePolicy,
        key: str = "",
        token: int = 0,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._address = address
        self._transport = transport
        self._store = store
        self._policy = policy
        self._telemetry = telemetry
        self._models = {
            engine.info.model: Model(
                engine, load, prompts, WaitingSegments(policy.order, batch=engine.info.max_inflight)
            )
            for engine, load, prompts in engines
        }
        self._outbox = Outbox(transport, telemetry, key=key)
        self._heartbeat = Heartbeat(
            address, store, self._busy, every_s=policy.heartbeat_s, ttl_s=policy.heartbeat_ttl_s, token=token
        )
        self._running: set[asyncio.Task[None]] = set()
        self._has_room = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set, then finishes what runs and gives the rest back. May be called again when it
        has ended.

        Raises:
            TransportError: queue or store are gone; what was in hand is delivered again to whoever serves next.
        """
        address = self._address
        with bare_transport_errors():
            self._heartbeat.leaving = False
            await self.announce()
            subscription = await self._transport.subscribe(
                segments_topic(address.pool),
                group="edge",
                partition=address.partition,
                prefetch=self._policy.window,
            )
            try:
                await self._serve(subscription, stopping)
            finally:
                self._forget_waiting()
                await subscription.close()

    async def announce(self) -> None:
        """Tells the store that this site lives, and how busy it is.

        Raises:
            TransportError: it could not be told.
        """
        await self._heartbeat.send()

    def set_draining(self, draining: bool) -> None:
        """Whether planners shall place nothing more here, as the next heartbeat says, at once. What stands in the
        partition is expanded all the same."""
        self._heartbeat.set_draining(draining)

    async def _serve(self, subscription: Subscription, stopping: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            shift = _Shift(tasks, subscription, InFlight(subscription))
            reading = [tasks.create_task(self._read(shift)), tasks.create_task(self._refill(shift))]
            background = [
                tasks.create_task(self._heartbeat.run()),
                tasks.create_task(shift.inflight.watch(self._store)),
                tasks.create_task(shift.inflight.sweep(self._store, every_s=self._policy.sweep_s)),
            ]
            await stopping.wait()
            for task in reading:
                task.cancel()
            await asyncio.wait(reading)  # what they still begin belongs to what is drained
            self._heartbeat.leaving = True
            await self._heartbeat.send_if_possible()
            await drain(self._running, self._policy.drain_s)
            for task in background:
                task.cancel()

    async def _read(self, shift: _Shift) -> None:
        """Takes several at once: each is asked about, and one that the store makes wait stops no other."""
        places = asyncio.Semaphore(_TAKEN_AT_ONCE)
        async with asyncio.TaskGroup() as taking:
            while True:
                await places.acquire()
                delivery = await shift.subscription.receive()
                task = taking.create_task(
                    insist(shift.subscription, delivery, partial(self._take, shift), self._telemetry)
                )
                task.add_done_callback(lambda _: places.release())

    async def _take(self, shift: _Shift, delivery: Delivery) -> float | None:
        context.request_id.set(delivery.key)
        if (segment := await self._accept(delivery)) is None:
            await shift.subscription.ack(delivery)
            return None
        if (model := self._models.get(segment.model)) is None:
            error = f"site has no model {shown(segment.model)}, only {', '.join(self._models)}"
            if (rest_s := await self._fail(delivery, segment, error)) is None:
                await shift.subscription.ack(delivery)
            return rest_s
        share = model.load.add(round(segment.words * TOKENS_PER_WORD))
        expansion = Expansion(segment, delivery, share, asyncio.get_running_loop().time())
        shift.inflight.add(expansion.work())
        model.waiting.push(expansion, words=segment.words, deadline_s=segment.deadline_s)
        self._fill(shift, model)
        return None

    async def _accept(self, delivery: Delivery) -> Segment | None:
        """The segment, if it is one, is for this site and is still wanted; else it is put aside or may be dropped."""
        try:
            segment = decode_as(Segment, delivery.payload)
            if segment.site != self._address.site:
                other = shown(segment.site)
                raise DecodeError(f"expected a segment for site {self._address.site}, got one for {other}")
        except DecodeError as error:
            await bury(self._transport, delivery, str(error), self._telemetry)
            return None
        wanted = await self._store.wanted(segment.request_id, segment.attempt, segment.index)
        return segment if wanted else None

    async def _refill(self, shift: _Shift) -> None:
        """Starts what waits as engines get room; a task of the group's own, so that none is begun once that ends."""
        while True:
            await self._has_room.wait()
            self._has_room.clear()
            for model in self._models.values():
                self._fill(shift, model)

    def _fill(self, shift: _Shift, model: Model) -> None:
        while model.has_work:
            expansion = model.waiting.pop()
            if not expansion.dropped:
                self._start(shift, model, expansion)

    def _start(self, shift: _Shift, model: Model, expansion: Expansion) -> None:
        def finished(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            model.num_running -= 1
            expansion.share.end()
            shift.inflight.remove(expansion.work())
            self._has_room.set()

        work = partial(self._work_on, shift, model, expansion)
        task = shift.tasks.create_task(insist(shift.subscription, expansion.delivery, work, self._telemetry))
        task.add_done_callback(finished)
        expansion.task = task
        model.num_running += 1
        self._running.add(task)

    def _forget_waiting(self) -> None:
        """What has not been started goes back with the subscription, and no longer counts as this site's load."""
        for model in self._models.values():
            while len(model.waiting):
                model.waiting.pop().share.end()

    async def _work_on(self, shift: _Shift, model: Model, expansion: Expansion, delivery: Delivery) -> float | None:
        context.request_id.set(expansion.segment.request_id)
        shift.inflight.add(expansion.work())
        rest_s = await self._expand(model, expansion)
        shift.inflight.remove(expansion.work())
        if rest_s is None:
            await shift.subscription.ack(delivery)
        return rest_s

    async def _expand(self, model: Model, expansion: Expansion) -> float | None:
        """Publishes the candidate. Only then may the segment be acknowledged (P2), or rest if that could not be."""
        segment, delivery = expansion.segment, expansion.delivery
        if await self._is_over(segment):
            return None
        try:
            check_deliveries(delivery, self._policy.max_deliveries)
            site, interval_s = self._address.site, self._policy.text_interval_s
            await self._outbox.send(await expand(model, expansion, site, self._store, text_interval_s=interval_s))
        except PiceError as error:
            if error.retriable and delivery.num_deliveries < self._policy.max_deliveries:
                log.info("segment %s/%d will be tried again: %s", segment.request_id, segment.index, error)
                return backoff_s(delivery.num_deliveries)
            return await self._fail(delivery, segment, str(error))
        return None

    async def _is_over(self, segment: Segment) -> bool:
        """Its time has passed, and the store wants it no more: the clock as read here may be wrong."""
        if segment.deadline_s > self._store.now():
            return False
        return not await self._store.wanted(segment.request_id, segment.attempt, segment.index)

    async def _fail(self, delivery: Delivery, segment: Segment, error: str) -> float | None:
        """Says that there will be no candidate, so that the collector need not wait for one."""
        log.warning("segment %s/%d failed: %s", segment.request_id, segment.index, error)
        site = self._address.site
        failed = Candidate(segment.request_id, segment.attempt, segment.index, site, segment.model, "", error=error)
        try:
            await self._outbox.send(failed)
        except MessageTooLarge as too_large:
            await bury(self._transport, delivery, f"{error}; {too_large}", self._telemetry)
        except TransportError:
            return backoff_s(delivery.num_deliveries)
        return None

    def _busy(self) -> tuple[ModelState, ...]:
        return tuple(model.load.state(model.engine.info) for model in self._models.values())
