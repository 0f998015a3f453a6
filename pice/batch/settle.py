"""A line of a batch is asked until there is an answer, or an error to keep."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pice.batch.format import BatchItem, request_id_of
from pice.core import Answer, Request
from pice.errors import Overloaded, PiceError

WAIT_S = 1.0
"""Pause before a retriable error is tried again, where the error does not say how long to wait."""
MIN_WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a line, and the id of the request that said so."""

    request_id: str
    outcome: Answer | PiceError


async def settle(
    item: BatchItem,
    ask: Callable[[Request], Awaitable[Answer]],
    *,
    run_id: str,
    timeout_s: float,
    stopped_within: Callable[[float], Awaitable[bool]],
    first_try: int = 0,
) -> Settled | None:
    """The answer, or the error to keep; None when `stopped_within`, which waits, said so between two tries.

    A retriable error is tried again, until the line's own timeout (or `timeout_s`) has passed with tries and pauses.
    Those that end in `Overloaded` do not count: nothing was begun, and the batch itself may fill the queue. Each try
    has that timeout for itself, and a request id made from `run_id` and its number, counted from `first_try`.
    """
    clock = asyncio.get_running_loop().time
    number, left_s = first_try, item.timeout_s or timeout_s
    while True:
        request = item.request(request_id_of(run_id, item.custom_id, number), timeout_s=timeout_s)
        began_s = clock()
        try:
            return Settled(request.request_id, await ask(request))
        except PiceError as error:
            wait_s = max(getattr(error, "retry_after_s", WAIT_S), MIN_WAIT_S)
            if not isinstance(error, Overloaded):
                left_s -= clock() - began_s + wait_s
            if not error.retriable or left_s < 0:
                return Settled(request.request_id, error)
        if await stopped_within(wait_s):
            return None
        number += 1
