"""One site's life in a service: registered, waiting for its lease, serving while it is held."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from pice.errors import TransportError
from pice.registry.base import Hold, Registry

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_RELEASE_WITHIN_S = 2.0


class SiteNode(Protocol):
    """What serves a site while its lease is held, such as `pice.node.edge.EdgeNode`."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves until `stopping` is set, then drains."""
        ...

    def set_draining(self, draining: bool) -> None:
        """Whether to announce that the site takes no new work; it goes on with what is in its partition."""
        ...


class SiteKeeper:
    """Keeps a site served by one process at a time, so that others of its name stand by.

    While the registry is away the node goes on, though another process may take the lease once it has lapsed, and then
    both read the partition until this one hears of it. Nothing is lost or counted twice by that: a candidate counts
    once (P3), and what either commits has its candidate published, so at worst segments are written twice. Heartbeats
    carry the token, so that the store drops those of the one who lost.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        pool: str,
        holder: str,
        make_node: Callable[[int, int], SiteNode],
        prepare: Callable[[str, int], Awaitable[None]],
        *,
        lease_s: float,
    ) -> None:
        """`holder` is a name no other process has. `make_node` is given the partition and the fencing token, `prepare`
        the pool and the partition, and makes sure that the pool's topic has it."""
        self._registry = registry
        self._name = name
        self._pool = pool
        self._holder = holder
        self._make_node = make_node
        self._prepare = prepare
        self._lease_s = lease_s
        self._look_every_s = lease_s / 4
        self._outage = _Outage(name, self._look_every_s)
        self._prepared: int | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Serves the site whenever it holds the lease, until `stopping` is set and the node has drained.

        Raises:
            ConfigError: the site is registered in another pool, or what `prepare` and the node raise that is no
                `TransportError`.
        """
        stands_by = False
        while not stopping.is_set():
            try:
                partition = await self._place()
                was_away = self._outage.ended()
                token = None if was_away else await self._acquire()
            except TransportError as error:
                await _wait(stopping, self._outage.noted(error))
                continue
            if token is not None:
                stands_by = False
                await self._serve(partition, token, stopping)
                continue
            if not stands_by and not was_away:
                stands_by = True
                log.info("site %s stands by: another process serves it", self._name)
            await _wait(stopping, self._look_every_s)

    async def _place(self) -> int:
        """The site's partition, which is there. Asked for again and again: the site may have been removed."""
        partition = await self._registry.register(self._name, self._pool)
        if partition != self._prepared:
            await self._prepare(self._pool, partition)
            self._prepared = partition
        return partition

    async def _acquire(self) -> int | None:
        return await self._registry.acquire(self._name, self._holder, lease_s=self._lease_s)

    async def _serve(self, partition: int, token: int, stopping: asyncio.Event) -> None:
        """Until the node has drained, or the lease is lost; what else ends the node comes out as itself."""
        log.info("site %s is served on partition %d of pool %s, token %d", self._name, partition, self._pool, token)
        service = _Service(lambda: self._make_node(partition, token), self._name)
        lost = False
        try:
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renew(token, service))
                serving = tasks.create_task(service.run(stopping))
                await asyncio.wait((serving, renewing), return_when=asyncio.FIRST_COMPLETED)
                lost = renewing.done()
                serving.cancel()
                renewing.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            if not lost:
                await self._release(token)

    async def _renew(self, token: int, service: "_Service") -> None:
        """Returns when the lease is lost."""
        while (hold := await self._hold(token)) != "lost":
            service.set_draining(hold == "draining")
            await asyncio.sleep(self._look_every_s)
        log.warning("site %s is not served here any more: it was removed, or another process serves it", self._name)

    async def _hold(self, token: int) -> Hold:
        """Asks for more of the lease until it is answered."""
        while True:
            try:
                hold = await self._registry.renew(self._name, token, lease_s=self._lease_s)
            except TransportError as error:
                await asyncio.sleep(self._outage.noted(error))
            else:
                self._outage.ended()
                return hold

    async def _release(self, token: int) -> None:
        try:
            async with asyncio.timeout(_RELEASE_WITHIN_S):
                await self._registry.release(self._name, token)
        except (TransportError, TimeoutError) as error:
            cause = str(error) or "no answer in time"
            log.warning("site %s: its lease could not be given back and will lapse: %s", self._name, cause)


class _Service:
    """The node of a lease; one that the absence of a broker ended is made anew."""

    def __init__(self, make_node: Callable[[], SiteNode], name: str) -> None:
        self._make_node = make_node
        self._name = name
        self._draining = False
        self._node: SiteNode | None = None

    def set_draining(self, draining: bool) -> None:
        if draining != self._draining:
            log.info("site %s %s", self._name, "takes no new work" if draining else "takes work again")
        self._draining = draining
        if self._node is not None:
            self._node.set_draining(draining)

    async def run(self, stopping: asyncio.Event) -> None:
        """Returns when a node has drained."""
        clock, pause_s = asyncio.get_running_loop(), _FIRST_PAUSE_S
        while not stopping.is_set():
            begun_s = clock.time()
            if await self._has_drained(stopping):
                return
            pause_s = _FIRST_PAUSE_S if clock.time() - begun_s > _LONGEST_PAUSE_S else pause_s
            await _wait(stopping, pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _has_drained(self, stopping: asyncio.Event) -> bool:
        """False if it was ended by a `TransportError`."""
        self._node = self._make_node()
        self._node.set_draining(self._draining)
        try:
            await self._node.run(stopping)
        except* TransportError as errors:
            causes = "; ".join(str(error) for error in errors.exceptions)
            log.warning("the node of site %s ended and is started again: %s", self._name, causes)
            self._node = None
        task = asyncio.current_task()
        if task and task.cancelling():
            raise asyncio.CancelledError  # a broker that was away while it cleaned up must not hide that
        return self._node is not None


class _Outage:
    """Tells once that the registry is away and once that it is back, and how long to wait meanwhile."""

    def __init__(self, name: str, longest_s: float) -> None:
        self._name = name
        self._longest_s = longest_s
        self._pause_s = 0.0

    def noted(self, error: TransportError) -> float:
        """Seconds until it may be tried again."""
        if not self._pause_s:
            log.warning("site %s waits for a broker: %s", self._name, error)
        self._pause_s = min(2 * self._pause_s or _FIRST_PAUSE_S, self._longest_s)
        return self._pause_s

    def ended(self) -> bool:
        """Whether there was one until now."""
        if was_away := self._pause_s > 0:
            log.info("site %s has its brokers again", self._name)
        self._pause_s = 0.0
        return was_away


async def _wait(event: asyncio.Event, delay_s: float) -> None:
    """Until the event is set, and no longer than `delay_s`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await event.wait()
