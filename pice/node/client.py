"""The producer: opens a request, publishes it, and follows it to its end."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pice.core import Answer, Event, Failure, Request
from pice.errors import Cancelled, DeadlineExceeded, Full, Overloaded, RequestFailed, TransportError, Unavailable
from pice.message.codec import encode
from pice.store.base import Store
from pice.transport.base import REQUESTS, Transport

_GRACE_S = 5.0
"""How long past its deadline a request is waited for, before the client itself says that it is late."""


class Client:
    """Asks. Safe to use from any number of tasks of one event loop."""

    def __init__(self, transport: Transport, store: Store) -> None:
        self._transport = transport
        self._store = store

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events, the last being `answered` or `failed`. Closing the generator cancels the request
        (P11); a `request_id` that is known already is followed, not asked again.

        Raises:
            Overloaded: refused before anything was started; says when to come back.
            DeadlineExceeded: nobody ended the request in time.
        """
        await self._submit(request)
        ended = False
        until_s = self._store.now() + request.timeout_s + _GRACE_S
        try:
            async with aclosing(self._store.follow(request.request_id, until_s=until_s)) as events:
                async for event in events:
                    ended = event.kind in ("answered", "failed")
                    yield event
            if not ended:
                ended = True
                message = f"nothing ended the request within its {request.timeout_s:g} s: is a collector running?"
                await self._end(request, "deadline_exceeded", message)
                raise DeadlineExceeded(message)
        finally:
            if not ended:
                await self._end(request, "cancelled", "the client went away")

    async def ask(self, request: Request) -> Answer:
        """The answer.

        Raises:
            RequestFailed: it ended without one; `failure_code` names the cause.
        """
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                if event.answer is not None:
                    return event.answer
                if event.failure is not None:
                    raise as_error(event.failure)
        raise AssertionError("a stream ends with an outcome or raises")

    async def _submit(self, request: Request) -> None:
        try:
            if await self._store.open(request):
                await self._transport.publish(REQUESTS, encode(request), key=request.request_id)
        except Full as error:
            await self._end(request, error.code, str(error))
            raise Overloaded(str(error), retry_after_s=error.retry_after_s) from error
        except TransportError as error:
            await self._end(request, error.code, str(error))
            raise

    async def _end(self, request: Request, code: str, message: str) -> None:
        await self._store.close_request(request.request_id, None, Failure(request.request_id, code, message))


def as_error(failure: Failure) -> RequestFailed:
    """The exception that says the same as a failure."""
    if failure.code == DeadlineExceeded.code:
        return DeadlineExceeded(failure.message)
    if failure.code == Cancelled.code:
        return Cancelled(failure.message)
    kind = Unavailable if failure.retriable else RequestFailed
    return kind(failure.message, failure_code=failure.code)
