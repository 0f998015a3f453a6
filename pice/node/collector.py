"""Candidates -> choices -> answers; and what is overdue -> another place."""

import asyncio
import logging
from collections.abc import Collection
from functools import partial

from pice.answer.normalise import ModelStats
from pice.answer.steps import Choose, Close, EnsemblePolicy, Place, Step, next_steps
from pice.core import Answer, Candidate, Placement, Record, Segment
from pice.errors import DecodeError, TransportError
from pice.message.codec import decode_as
from pice.message.fields import shown
from pice.message.signing import SIGNATURE, is_signed, site_key
from pice.node import context
from pice.node.bury import bury
from pice.node.consume import bare_transport_errors, consume, insist
from pice.node.placing import Placer
from pice.node.sites import SiteNews
from pice.node.telemetry import SILENT, Telemetry
from pice.plan.base import Planner, Target, Where
from pice.store.base import Chosen, Counted, Store
from pice.transport.base import CANDIDATES, Delivery, Subscription, Transport

log = logging.getLogger(__name__)

_AT_ONCE = 64
_RETRY_S = 0.5
_PLACE_WITHIN_S = 2.0
"""Longer than a queue takes that is there. One that is away must not keep a collector from what else is due."""


class CollectorNode:
    """Counts candidates, settles segments, closes requests. Several may run; they share one consumer group. With the
    cluster's `secret` a candidate counts only if it is signed with the key of the site it names (P10)."""

    def __init__(
        self,
        *,
        transport: Transport,
        store: Store,
        planner: Planner,
        policy: EnsemblePolicy,
        drain_s: float = 10.0,
        site_news_age_s: float = 0.25,
        secret: str = "",
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._transport = transport
        self._store = store
        self._planner = planner
        self._policy = policy
        self._drain_s = drain_s
        self._secret = secret
        self._telemetry = telemetry
        self._stats = ModelStats()
        self._placer = Placer(transport, store, planner, telemetry, within_s=_PLACE_WITHIN_S)
        self._news = SiteNews(store, planner, max_age_s=site_news_age_s)

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set, then drains. May be called again when it has ended.

        Raises:
            TransportError: queue or store are gone; what was in hand goes to others.
        """
        with bare_transport_errors():
            subscription = await self._transport.subscribe(CANDIDATES, group="collectors", prefetch=2 * _AT_ONCE)
            try:
                async with asyncio.TaskGroup() as tasks:
                    overdue = tasks.create_task(self._serve_due())
                    serve = partial(self._serve, subscription)
                    await consume(
                        subscription,
                        lambda delivery: insist(subscription, delivery, serve, self._telemetry),
                        limit=_AT_ONCE,
                        stopping=stopping,
                        drain_s=self._drain_s,
                    )
                    overdue.cancel()
            finally:
                await subscription.close()

    async def _serve(self, subscription: Subscription, delivery: Delivery) -> None:
        """Counts one candidate. It is acknowledged after all that follows from it was done, so a repeat of it
        does again what a collector that died had left."""
        context.request_id.set(delivery.key)
        try:
            candidate = decode_as(Candidate, delivery.payload)
            context.request_id.set(candidate.request_id)
            if self._is_genuine(candidate, delivery):
                await self._count(delivery, candidate)
            else:
                reason = f"it is not signed with the key of site {shown(candidate.site)}, which it names"
                await bury(self._transport, delivery, reason, self._telemetry)
                self._telemetry.forged(candidate.site)
        except DecodeError as error:
            await bury(self._transport, delivery, str(error), self._telemetry)
        await subscription.ack(delivery)

    def _is_genuine(self, candidate: Candidate, delivery: Delivery) -> bool:
        if not self._secret:
            return True
        key = site_key(self._secret, candidate.site)
        return is_signed(key, delivery.payload, delivery.headers.get(SIGNATURE, b""))

    async def _count(self, delivery: Delivery, candidate: Candidate) -> None:
        await self._news.refresh()
        counted, record = await self._store.add_candidate(candidate)
        self._telemetry.counted(candidate, counted)
        name = f"{candidate.request_id}/{candidate.index}"
        if counted is Counted.FOREIGN:
            reason = f"site {shown(candidate.site)} was never given segment {name}"
            await bury(self._transport, delivery, reason, self._telemetry)
        if counted is Counted.STALE:
            log.info("candidate for %.80s attempt %d came too late from %.40s", name, candidate.attempt, candidate.site)
        if counted is Counted.NEW:
            self._planner.finished(candidate)
            if candidate.logprob_mean is not None and not candidate.error:
                self._stats.observe(candidate.model, candidate.logprob_mean)
        if record is not None:
            await self._advance(candidate.request_id, record, only=candidate.index)

    async def _serve_due(self) -> None:
        """Some at once, so that one that waits for the queue keeps no other from its deadline."""
        slots = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            while True:
                for request_id in await self._take_due():
                    await slots.acquire()
                    task = tasks.create_task(self._advance_if_possible(request_id))
                    task.add_done_callback(lambda _: slots.release())

    async def _take_due(self) -> list[str]:
        try:
            return await self._store.take_due()
        except TransportError as error:
            log.warning("it cannot be seen what is due: %s", error)
            await asyncio.sleep(_RETRY_S)
            return []

    async def _advance_if_possible(self, request_id: str) -> None:
        """What could not be done now is due again after the store's lease."""
        context.request_id.set(request_id)
        try:
            await self._news.refresh()
            await self._advance(request_id, await self._store.record(request_id))
        except (TransportError, DecodeError) as error:
            log.warning("request %s: %s", request_id, error)

    async def _advance(self, request_id: str, record: Record | None, *, only: int | None = None) -> None:
        """Takes every step that the record allows now, then says when to look again. A candidate by which its segment
        (`only`) is chosen is news of no other, and what is due for those stays so. When to look again is told from a
        record that was read for that: what is due is what was said last, and a seal makes it due at once."""
        while record is not None and record.outcome is None:
            now_s = self._store.now()
            steps, wake_s = next_steps(record, now_s, self._policy, self._stats, self._place, only=only)
            if not steps:
                if only is None:
                    return await self._store.set_due(request_id, wake_s)
                if _is_chosen(record, only):
                    return None
                only, record = None, await self._store.record(request_id)
                continue
            try:
                taken = [await self._take(request_id, record.attempt, step) for step in steps]
            except TransportError as error:
                log.warning("request %s: %s", request_id, error)
                return await self._store.set_due(request_id, now_s + _RETRY_S)
            if only is not None and taken == [Chosen.MADE]:
                return None
            if any(isinstance(step, Place) for step in steps):
                only = None
            record = await self._store.record(request_id)
        return None

    async def _take(self, request_id: str, attempt: int, step: Step) -> Chosen | None:
        match step:
            case Choose(span):
                chosen = await self._store.choose(request_id, attempt, span)
                if chosen is not Chosen.REFUSED:
                    self._telemetry.chosen(span)
                return chosen
            case Place(segment, placement):
                await self._placer.send(segment, placement)
            case Close(outcome):
                if await self._store.close_request(request_id, attempt, outcome):
                    self._telemetry.closed(outcome)
                    if isinstance(outcome, Answer):
                        self._planner.learn(outcome)
        return None

    def _place(
        self,
        segment: Segment,
        exclude: Collection[Target],
        exclude_models: Collection[str],
        where: Where,
        reason: str,
    ) -> Placement | None:
        return self._planner.place(
            segment,
            self._store.now(),
            exclude=exclude,
            exclude_models=exclude_models,
            where=where,
            reason=reason,
        )


def _is_chosen(record: Record, index: int) -> bool:
    return index in record.segments and record.segments[index].choice is not None
