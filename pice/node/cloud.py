"""Requests -> plans -> direct answers, or sketches whose segments leave as soon as they are complete."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pice.core import Event, Failure, Plan, Record, Request
from pice.engine.base import Engine
from pice.errors import DecodeError, PiceError
from pice.message.codec import decode_as
from pice.node import context
from pice.node.bury import bury
from pice.node.consume import backoff_s, bare_transport_errors, check_deliveries, consume, insist
from pice.node.inflight import InFlight, Work
from pice.node.load import Load
from pice.node.placing import Placer
from pice.node.sites import SiteNews
from pice.node.sketching import Attempt, Tools
from pice.node.telemetry import SILENT, Telemetry
from pice.plan.base import Planner
from pice.sketch.prompts import PromptSet
from pice.store.base import Store
from pice.transport.base import REQUESTS, Delivery, Subscription, Transport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CloudPolicy:
    """Settings of a cloud node; see `pice.settings`."""

    max_inflight: int = 16
    max_deliveries: int = 5
    drain_s: float = 10.0
    max_points: int = 24
    eager: bool = True
    sketch_grammar: bool = False
    text_interval_s: float = 0.05
    site_news_age_s: float = 0.25
    sweep_s: float = 1.0


class CloudNode:
    """Serves `pice.requests` beside one cloud engine. Several may run; they share one consumer group."""

    def __init__(
        self,
        *,
        transport: Transport,
        store: Store,
        engine: Engine,
        load: Load,
        planner: Planner,
        prompts: PromptSet,
        policy: CloudPolicy,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._transport = transport
        self._store = store
        self._engine = engine
        self._planner = planner
        self._prompts = prompts
        self._policy = policy
        self._telemetry = telemetry
        self._num_in_hand = 0
        self._news = SiteNews(store, planner, max_age_s=policy.site_news_age_s)
        placer = Placer(transport, store, planner, telemetry)
        self._tools = Tools(
            store, engine, load, planner, placer, prompts, policy.max_points, policy.text_interval_s, telemetry
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set, then drains. May be called again when it has ended.

        Raises:
            TransportError: queue or store are gone; what was in hand goes to others.
        """
        with bare_transport_errors():
            subscription = await self._transport.subscribe(REQUESTS, group="cloud", prefetch=self._policy.max_inflight)
            try:
                await self._consume(subscription, InFlight(subscription), stopping)
            finally:
                await subscription.close()

    @property
    def num_in_hand(self) -> int:
        """How many requests it works on."""
        return self._num_in_hand

    async def plan(self, request: Request) -> Plan:
        """The plan this node would make now."""
        await self._news.refresh()
        num_prompt_tokens = await self._engine.count_tokens(self._prompts.answer(request.messages))
        return self._planner.decide(request, num_prompt_tokens)

    async def _consume(self, subscription: Subscription, inflight: InFlight, stopping: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = [
                tasks.create_task(inflight.watch(self._store)),
                tasks.create_task(inflight.sweep(self._store, every_s=self._policy.sweep_s)),
            ]
            serve = partial(self._serve, subscription, inflight)
            await consume(
                subscription,
                lambda delivery: insist(subscription, delivery, serve, self._telemetry),
                limit=self._policy.max_inflight,
                stopping=stopping,
                drain_s=self._policy.drain_s,
            )
            for task in watching:
                task.cancel()

    async def _serve(self, subscription: Subscription, inflight: InFlight, delivery: Delivery) -> float | None:
        context.request_id.set(delivery.key)
        try:
            request = decode_as(Request, delivery.payload)
            context.request_id.set(request.request_id)
            record = await self._store.begin(request.request_id)
        except DecodeError as error:
            await bury(self._transport, delivery, str(error), self._telemetry)
            await subscription.ack(delivery)
            return None
        if record is None:
            await subscription.ack(delivery)
            return None
        task = asyncio.current_task()
        assert task is not None
        work = Work(request.request_id, record.attempt, -1, delivery, task.cancel)
        inflight.add(work)
        self._num_in_hand += 1
        try:
            rest_s = await self._attempt(delivery, record, partial(inflight.remove, work))
        finally:
            self._num_in_hand -= 1
            inflight.remove(work)
        if rest_s is None:
            await subscription.ack(delivery)
        return rest_s

    async def _attempt(self, delivery: Delivery, record: Record, ending: Callable[[], object]) -> float | None:
        request_id = record.request.request_id
        try:
            check_deliveries(delivery, self._policy.max_deliveries)
            await self._answer(record, ending)
        except PiceError as error:
            if error.retriable and delivery.num_deliveries < self._policy.max_deliveries:
                log.warning("request %s attempt %d will be tried again: %s", request_id, record.attempt, error)
                return backoff_s(delivery.num_deliveries)
            log.warning("request %s failed: %s", request_id, error)
            if delivery.num_deliveries >= self._policy.max_deliveries:
                reason = f"failed {delivery.num_deliveries} times: {error}"
                await bury(self._transport, delivery, reason, self._telemetry)
            failure = Failure(request_id, error.code, str(error), error.retriable)
            ending()
            if await self._store.close_request(request_id, record.attempt, failure):
                self._telemetry.closed(failure)
        return None

    async def _answer(self, record: Record, ending: Callable[[], object]) -> None:
        request = record.request
        plan = await self.plan(request)
        if not await self._store.planned(request.request_id, record.attempt, plan):
            return
        self._telemetry.planned(plan)
        event = Event(request.request_id, "planned", self._store.now(), record.attempt, plan=plan)
        await self._store.emit(event)
        attempt = Attempt(self._tools, record, plan, ending)
        if plan.mode == "cloud":
            await attempt.answer_here()
        elif plan.mode == "edge":
            await attempt.answer_at_edge()
        else:
            constrained = self._policy.sketch_grammar
            await attempt.sketch(eager=self._policy.eager, constrained=constrained)
