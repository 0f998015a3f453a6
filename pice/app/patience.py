"""Ports that outlast an outage: what cannot be done now is tried again until it can."""

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar, cast

from pice.errors import Full, TransportError

P = TypeVar("P")
T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class Outages(Protocol):
    """Is told what is away, and when it is back; both again and again."""

    def down(self, name: str, cause: str) -> None: ...

    def up(self, name: str) -> None: ...


class Patience:
    """How long a process waits for what is away: until `ended` is set. Then the first failure is raised."""

    def __init__(self, outages: Outages, ended: asyncio.Event) -> None:
        self._outages = outages
        self._ended = ended
        self._waiting = Counter[str]()

    async def insist(self, call: Callable[[], Awaitable[T]], name: str, *, waits_if_full: bool = False) -> T:
        """What `call` returns, once it does: a retriable `TransportError` is waited out, anything else is raised. What
        nobody waits for any more counts as back."""
        try:
            result = await call()
        except TransportError as error:
            self._note(error, name, waits_if_full)
        else:
            self._outages.up(name)
            return result
        self._waiting[name] += 1
        try:
            return await self._insist(call, name, waits_if_full)
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name] and not self._ended.is_set():
                self._outages.up(name)

    async def _insist(self, call: Callable[[], Awaitable[T]], name: str, waits_if_full: bool) -> T:
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                return await call()
            except TransportError as error:
                self._note(error, name, waits_if_full)

    def _note(self, error: TransportError, name: str, waits_if_full: bool) -> None:
        """Raises the error where it is not to be waited out."""
        if not error.retriable or (isinstance(error, Full) and not waits_if_full) or self._ended.is_set():
            raise error
        self._outages.down(name, str(error))

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._ended.wait()


def patient(port: P, name: str, patience: Patience) -> P:
    """The port, of which every coroutine method but `close` insists; what it calls must be safe to repeat. Waits also
    where a queue is full, but not where too many requests are open: that is for the caller to hear."""
    return cast("P", _Patient(port, name, patience))


class _Patient:
    def __init__(self, port: object, name: str, patience: Patience) -> None:
        self._port = port
        self._name = name
        self._patience = patience

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name != "close" and inspect.iscoroutinefunction(method):
            method = self._insisting(method, waits_if_full=name != "open")
        setattr(self, name, method)
        return method

    def _insisting(self, method: Callable[..., Any], *, waits_if_full: bool) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._patience.insist(lambda: method(*args, **kwargs), self._name, waits_if_full=waits_if_full)

        return call
