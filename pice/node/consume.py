"""Deliveries -> handlers, a bounded number at a time, until asked to stop; then drained."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from pice.errors import PiceError, TransportError
from pice.node.telemetry import Telemetry
from pice.transport.base import Delivery, Subscription

log = logging.getLogger(__name__)

Handle = Callable[[Delivery], Coroutine[Any, Any, None]]
Attempt = Callable[[Delivery], Coroutine[Any, Any, float | None]]
"""What is done about a delivery; may be made again. None when all is done, or how long it shall rest before it is
delivered again."""

_MAX_TRIES = 10
"""Of one delivery where queue or store are away: about half a minute."""


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


async def insist(subscription: Subscription, delivery: Delivery, attempt: Attempt, telemetry: Telemetry) -> None:
    """Makes an attempt at a delivery, again and again while queue or store let it down. Gives the delivery back when
    the attempt says so, or was let down too often: it may be that nothing but this one message meets the error.

    Raises:
        TransportError: it could not be given back, or perhaps it was; then it must not be worked on any more.
    """
    rest_s = await _until_done(delivery, attempt)
    if rest_s is not None:
        await subscription.release(delivery, delay_s=rest_s)
        telemetry.retried(delivery.topic)


async def _until_done(delivery: Delivery, attempt: Attempt) -> float | None:
    for num_tries in range(1, _MAX_TRIES + 1):
        try:
            return await attempt(delivery)
        except TransportError as error:
            log.warning("%s %d/%d: %s; try %d", delivery.topic, delivery.partition, delivery.position, error, num_tries)
            await asyncio.sleep(backoff_s(num_tries))
    return backoff_s(_MAX_TRIES)


@contextmanager
def bare_transport_errors() -> Iterator[None]:
    """Where all that came out of task groups is `TransportError`, one of them comes out as itself."""
    try:
        yield
    except ExceptionGroup as group:
        if group.split(TransportError)[1] is not None:
            raise
        raise _first(group) from group


def _first(group: ExceptionGroup[Exception]) -> Exception:
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


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
