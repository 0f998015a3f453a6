"""Lines of batch jobs -> requests -> results."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pice.batch.format import name_of, read_line, request_id_of
from pice.core import Failure, JobLine
from pice.errors import Cancelled, DecodeError, PiceError, TransportError
from pice.jobs.base import JobStore, Result
from pice.message.codec import decode_as
from pice.node import context
from pice.node.bury import bury
from pice.node.client import Client
from pice.node.consume import backoff_s, bare_transport_errors, check_deliveries, consume
from pice.node.job_line import LineInHand
from pice.node.telemetry import SILENT, Telemetry
from pice.store.base import Store
from pice.transport.base import JOBS, Delivery, Subscription, Transport

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobsPolicy:
    """How a runner works. A line that names no timeout has `timeout_s`. `max_deliveries` is larger than of other
    messages: a line that waits long outlives many runners, and each of them counts."""

    max_inflight: int = 64
    timeout_s: float = 120.0
    max_deliveries: int = 20
    drain_s: float = 10.0
    sweep_s: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    job_id: str
    delivery: Delivery
    line: LineInHand
    task: asyncio.Task[None]


class JobsNode:
    """Serves `pice.jobs`: a line is acknowledged after its result is kept. Several may run; they share one group.

    A line that comes again while its request runs, here or elsewhere, follows that; one whose request has ended reads
    its outcome. Of two results of a line the first stands.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        store: Store,
        jobs: JobStore,
        client: Client,
        policy: JobsPolicy,
        wall_s: Callable[[], float],
        telemetry: Telemetry = SILENT,
    ) -> None:
        """`wall_s` gives the wall time in seconds, for the `created` of completions."""
        self._transport = transport
        self._store = store
        self._jobs = jobs
        self._client = client
        self._policy = policy
        self._wall_s = wall_s
        self._telemetry = telemetry
        self._in_hand: set[_Work] = set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set, then drains; what is unfinished goes to others. May be called again when it
        has ended.

        Raises:
            TransportError: the queue is gone; what was in hand goes to others.
        """
        with bare_transport_errors():
            subscription = await self._transport.subscribe(JOBS, group="jobs", prefetch=self._policy.max_inflight)
            try:
                await self._consume(subscription, stopping)
            finally:
                await subscription.close()

    async def _consume(self, subscription: Subscription, stopping: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            sweeping = tasks.create_task(self._sweep(subscription))
            await consume(
                subscription,
                lambda delivery: self._serve(subscription, delivery),
                limit=self._policy.max_inflight,
                stopping=stopping,
                drain_s=self._policy.drain_s,
            )
            sweeping.cancel()

    async def _serve(self, subscription: Subscription, delivery: Delivery) -> None:
        context.request_id.set(delivery.key)
        try:
            line = decode_as(JobLine, delivery.payload)
        except DecodeError as error:
            await self._bury(delivery, str(error))
        else:
            await self._run_line(delivery, line)
        await subscription.ack(delivery)

    async def _run_line(self, delivery: Delivery, job_line: JobLine) -> None:
        """Does nothing for a line that has its result, or whose job takes none."""
        line = read_line(job_line.raw, job_line.number)
        name = name_of(line.key)
        context.request_id.set(request_id_of(job_line.job_id, line.key))
        if not await _until_done(lambda: self._jobs.wanted(job_line.job_id, name)):
            return
        task = asyncio.current_task()
        assert task is not None
        in_hand = LineInHand(job_line.job_id, line, self._client, self._store, self._policy.timeout_s)
        work = _Work(job_line.job_id, delivery, in_hand, task)
        self._in_hand.add(work)
        try:
            result = await _until_done(lambda: self._result(delivery, in_hand))
            await _until_done(lambda: self._jobs.add_result(job_line.job_id, result))
        finally:
            self._in_hand.discard(work)

    async def _result(self, delivery: Delivery, line: LineInHand) -> Result:
        try:
            check_deliveries(delivery, self._policy.max_deliveries)
        except PiceError as error:
            await self._bury(delivery, str(error))
            return line.failure(error)
        return await line.result(self._wall_s)

    async def _sweep(self, subscription: Subscription) -> None:
        """Drops what nobody wants: the lines of jobs that were cancelled or forgotten. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._policy.sweep_s)
            for job_id in {work.job_id for work in self._in_hand}:
                job = await _until_done(partial(self._jobs.job, job_id))
                if job is None or not job.is_open:
                    await self._drop(subscription, job_id)

    async def _drop(self, subscription: Subscription, job_id: str) -> None:
        for work in [work for work in self._in_hand if work.job_id == job_id]:
            self._in_hand.discard(work)
            request_id = work.line.request_id
            work.task.cancel()
            await subscription.ack(work.delivery)
            if request_id:
                failure = Failure(request_id, Cancelled.code, f"{job_id} was cancelled")
                await _until_done(partial(self._store.close_request, request_id, None, failure))

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        await _until_done(lambda: bury(self._transport, delivery, reason, self._telemetry))


async def _until_done(call: Callable[[], Awaitable[T]]) -> T:
    """What `call` returns. While it cannot be done now, or there is no room, it is tried again: an outage is no fault
    of a line, and a line that is given back would be counted as begun."""
    num_tries = 0
    while True:
        try:
            return await call()
        except TransportError as error:
            if not error.retriable:
                raise
            num_tries += 1
            log.warning("%s; try %d", error, num_tries)
            await asyncio.sleep(getattr(error, "retry_after_s", backoff_s(num_tries)))
