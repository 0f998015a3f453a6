"""The producer: opens a request, publishes it, and follows it to its end."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from math import inf

from pice.core import Answer, Event, Failure, Request
from pice.errors import (
    Cancelled,
    DeadlineExceeded,
    DecodeError,
    Full,
    InputError,
    Overloaded,
    RequestFailed,
    TransportError,
    Unavailable,
)
from pice.message.codec import MAX_ITEMS, decode_as, encode
from pice.message.trace import headers
from pice.store.base import Store
from pice.transport.base import REQUESTS, Transport

_GRACE_S = 5.0
"""How long past its deadline a request is waited for, before the client itself says that it is late."""
_CLOSED = "the pipeline is closed"
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

log = logging.getLogger(__name__)


class Client:
    """Asks. Safe to use from any number of tasks of one event loop."""

    def __init__(self, transport: Transport, store: Store) -> None:
        self._transport = transport
        self._store = store
        self._open = set[str]()
        self._closed = False

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events, the last being `answered` or `failed`. Closing the generator cancels the request
        (P11). A `request_id` that is known already is followed, not asked again, and goes on when a follower leaves.
        Its text is shown if whoever asked first wanted it (`Request.stream`).

        Raises:
            InputError: no node could read the request, or the client is closed. Nothing was started.
            Overloaded: refused before anything was started; says when to come back.
            DeadlineExceeded: nobody ended the request in time.
        """
        began_s = self._store.now()
        opened = await self._submit(request)
        ended, until_s = False, began_s + request.timeout_s + _GRACE_S
        try:
            async with aclosing(self._store.follow(request.request_id, until_s=until_s)) as events:
                async for event in events:
                    ended = event.kind in ("answered", "failed")
                    yield event
            if not ended and self._closed:
                raise Cancelled(_CLOSED)
            if not ended:
                message = f"nothing ended the request within its {request.timeout_s:g} s: do cloud and collector run?"
                if opened:
                    await self._end(request.request_id, "deadline_exceeded", message)
                raise DeadlineExceeded(message)
        finally:
            if opened:
                self._open.discard(request.request_id)
            if opened and not ended:
                await self._end(request.request_id, "cancelled", "the client went away")

    async def ask(self, request: Request) -> Answer:
        """The answer. Its text is not sent as it is written, which spares the store that work.

        Raises:
            RequestFailed: it ended without one; `failure_code` names the cause.
        """
        async with aclosing(self.stream(replace(request, stream=False))) as events:
            async for event in events:
                if event.answer is not None:
                    return event.answer
                if event.failure is not None:
                    raise as_error(event.failure)
        raise AssertionError("a stream ends with an outcome or raises")

    async def close(self) -> None:
        """Ends every request that was opened here and still runs, as `cancelled`; none is taken from now on."""
        self._closed = True
        for request_id in list(self._open):
            await self._end(request_id, "cancelled", _CLOSED)

    async def _submit(self, request: Request) -> bool:
        """False if the request is known already; it is published again then if nothing has begun it."""
        if self._closed:
            raise InputError(f"{_CLOSED}: ask before it is, inside its `async with` block")
        payload, read = _as_sent(request)
        is_ours = True
        try:
            is_ours = await self._store.open(read)
            if is_ours:
                self._open.add(request.request_id)
            elif not await self._waits_to_begin(request.request_id):
                return False
            await self._publish(request, payload)
        except TransportError as error:
            self._open.discard(request.request_id)
            if is_ours:
                await self._end(request.request_id, error.code, str(error))
            if isinstance(error, Full):
                raise Overloaded(str(error), retry_after_s=error.retry_after_s) from error
            raise
        return is_ours

    async def _publish(self, request: Request, payload: bytes) -> None:
        """Tries again while the queue is away, as long as the request has time."""
        clock, pause_s = asyncio.get_running_loop().time, _FIRST_PAUSE_S
        until_s = clock() + request.timeout_s
        key, trace = request.request_id, headers(request.request_id, REQUESTS)
        while True:
            try:
                return await self._transport.publish(REQUESTS, payload, key=key, headers=trace)
            except TransportError as error:
                if isinstance(error, Full) or not error.retriable or self._closed or clock() + pause_s > until_s:
                    raise
                if pause_s == _FIRST_PAUSE_S:
                    log.warning("request %s waits to be published: %s", key, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _waits_to_begin(self, request_id: str) -> bool:
        """Whether a request that is known was perhaps never published: whoever opened it may have died before, or
        the reply that it was opened was lost. Publishing it again repeats at most the beginning of its work."""
        record = await self._store.record(request_id)
        return record is not None and record.outcome is None and record.attempt == 0

    async def _end(self, request_id: str, code: str, message: str) -> None:
        await self._store.close_request(request_id, None, Failure(request_id, code, message))


def as_error(failure: Failure) -> RequestFailed:
    """The exception that says the same as a failure."""
    if failure.code == DeadlineExceeded.code:
        return DeadlineExceeded(failure.message)
    if failure.code == Cancelled.code:
        return Cancelled(failure.message)
    kind = Unavailable if failure.retriable else RequestFailed
    return kind(failure.message, failure_code=failure.code)


def _as_sent(request: Request) -> tuple[bytes, Request]:
    """The request's message, and the request as every node will read it.

    Raises:
        InputError: none could; the message says why.
    """
    if isinstance(request.timeout_s, int | float) and not 0 < request.timeout_s < inf:
        raise InputError(f"timeout_s: expected a finite number of seconds above 0, got {request.timeout_s}")
    try:
        payload = encode(request)
        return payload, decode_as(Request, payload, max_bytes=len(payload))
    except (TypeError, AttributeError) as error:
        raise InputError(f"a field of the request is of a wrong type: {error}") from error
    except DecodeError as error:
        if len(request.messages) > MAX_ITEMS:
            raise InputError(f"messages: expected at most {MAX_ITEMS}, got {len(request.messages)}") from None
        raise InputError(f"no node could read this request: {error}") from error
