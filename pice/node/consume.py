"""Deliveries -> handlers, a bounded number at a time, until asked to stop; then drained."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from pice.errors import Full, MessageTooLarge, PiceError
from pice.transport.base import DEAD, Delivery, Subscription, Transport

log = logging.getLogger(__name__)

Handle = Callable[[Delivery], Coroutine[Any, Any, None]]


async def consume(
    subscription: Subscription, handle: Handle, *, limit: int, stopping: asyncio.Event, drain_s: float
) -> None:
    """Runs `handle` for each delivery, up to `limit` at once. Returns when `stopping` is set and the handlers have
    finished, or were cancelled after `drain_s`. An error that a handler lets out ends everything, loudly."""
    running: set[asyncio.Task[None]] = set()
    slots = asyncio.Semaphore(limit)

    def finished(task: asyncio.Task[None]) -> None:
        running.discard(task)
        slots.release()

    async with asyncio.TaskGroup() as tasks:

        async def read() -> None:
            while True:
                await slots.acquire()
                task = tasks.create_task(handle(await subscription.receive()))
                running.add(task)
                task.add_done_callback(finished)

        reader = tasks.create_task(read())
        await stopping.wait()
        reader.cancel()
        await drain(running, drain_s)


async def drain(running: set[asyncio.Task[None]], drain_s: float) -> None:
    """Waits for tasks to finish, and cancels those that have not after `drain_s`."""
    if running:
        _, late = await asyncio.wait(running, timeout=drain_s)
        for task in late:
            task.cancel()


async def bury(transport: Transport, delivery: Delivery, reason: str) -> None:
    """Puts a poisoned message aside, whole, with where it came from and why (P6). The caller acknowledges it. Where
    no more can be kept it is logged and lost: poison must not stop a partition."""
    log.warning("%s %d/%d put aside: %s", delivery.topic, delivery.partition, delivery.position, reason)
    headers = dict(delivery.headers) | {
        "reason": reason.encode(),
        "topic": delivery.topic.encode(),
        "partition": str(delivery.partition).encode(),
        "position": str(delivery.position).encode(),
    }
    try:
        await transport.publish(DEAD, delivery.payload, key=delivery.key, headers=headers)
    except (Full, MessageTooLarge) as error:
        log.error("%s cannot keep it: %s", DEAD, error)  # noqa: TRY400 - the message says it all


def check_deliveries(delivery: Delivery, max_deliveries: int) -> None:
    """Refuses a message that was begun as often as it may be: it can be what ends the nodes it comes to (P6).

    Raises:
        PiceError: it was delivered `max_deliveries` times before.
    """
    if delivery.num_deliveries > max_deliveries:
        raise PiceError(f"it was delivered {delivery.num_deliveries - 1} times before and never finished")


def backoff_s(num_deliveries: int) -> float:
    """How long a failed delivery rests before it is tried again: 0.1 s, doubled each time, at most 5 s."""
    return min(5.0, 0.05 * 2.0 ** min(num_deliveries, 10))
