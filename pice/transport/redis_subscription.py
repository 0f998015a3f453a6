"""A group member on Redis Streams: what it has taken, and the tasks that take and say that it lives."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from pice.errors import TransportError
from pice.redis_lines import RedisLine
from pice.transport.base import Delivery
from pice.transport.redis_member import GroupGone, Member

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0
"""How often a shard is looked at where no bell rings."""
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class RedisSubscription:
    """See `pice.transport.base.Subscription`. Takes one message at a time, and more at once the longer it finds some
    and is asked for more; what it took counts as outstanding. Redis may be away for up to `patience_s`."""

    def __init__(
        self,
        member: Member,
        line: RedisLine,
        *,
        prefetch: int,
        patience_s: float,
        forget: Callable[["RedisSubscription"], None],
    ) -> None:
        self._member = member
        self._line = line
        self._prefetch = prefetch
        self._patience_s = patience_s
        self._forget = forget
        self._unread: deque[Delivery] = deque()
        self._outstanding: dict[tuple[int, int], Delivery] = {}
        self._unsure: set[int] = set()
        self._being_taken: set[int] = set()
        self._making_sure = asyncio.Lock()
        self._mending: asyncio.Task[None] | None = None
        self._look_at_s = dict.fromkeys(member.shards, 0.0)
        self._batch = 1
        self._num_waiting = 0
        self._has_left = False
        self._failure: BaseException | None = None
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._listening = self._start(self._listen())
        self._taking = self._start(self._take())
        self._beating = self._start(self._beat())

    async def receive(self) -> Delivery:
        self._num_waiting += 1
        try:
            while not self._unread:
                self._check_open()
                self._changed.set()
                self._arrived.clear()
                await self._arrived.wait()
            self._check_open()
            return self._unread.popleft()
        except asyncio.CancelledError:
            self._has_left = self._num_waiting == 1
            self._changed.set()
            raise
        finally:
            self._num_waiting -= 1

    async def ack(self, delivery: Delivery) -> None:
        await self._settle(delivery, lambda: self._member.ack(delivery))

    async def release(self, delivery: Delivery, *, delay_s: float = 0.0) -> None:
        await self._settle(delivery, lambda: self._member.release(delivery, delay_s))

    async def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._changed.set()
        self._arrived.set()
        self._forget(self)
        await asyncio.wait([self._taking, self._beating, *([self._mending] if self._mending else [])])
        try:
            await self._hand_back_unread()
            await self._member.leave()
        except TransportError as error:
            log.warning("what was outstanding goes to others once the heartbeat lapses: %s", error)
        self._outstanding.clear()
        await asyncio.wait([self._listening])  # leaving rang the bell; if not, it waits for a moment only
        await self._line.close()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise TransportError("the subscription is closed")
        if self._failure is not None:
            raise self._failure

    async def _settle(self, delivery: Delivery, tell: Callable[[], Awaitable[None]]) -> None:
        """Until Redis was told, a delivery stays outstanding; it may have come here again by then."""
        place = (delivery.partition, delivery.position)
        if (told := self._outstanding.get(place)) is not None:
            await self._insist(tell)
            if self._outstanding.get(place) is told:
                del self._outstanding[place]
            self._changed.set()

    async def _insist(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Tries again and again while Redis is away, as long as patience lasts."""
        pause_s, until_s = _FIRST_PAUSE_S, asyncio.get_running_loop().time() + self._patience_s
        while True:
            try:
                return await tell()
            except GroupGone:
                raise
            except TransportError:
                if asyncio.get_running_loop().time() + pause_s > until_s or self._closing.is_set():
                    raise
            await _wait(self._closing, pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _take(self) -> None:
        """Fills `_unread` while somebody waits."""
        while not self._closing.is_set():
            self._changed.clear()
            await self._insist(self._take_once)

    async def _take_once(self) -> None:
        if self._has_left and not self._num_waiting:
            self._drop_unread()
        self._has_left = False
        ready = self._ready()
        if len(self._unsure) == len(self._member.shards):
            await self._make_sure()
        elif self._unsure and (self._mending is None or self._mending.done()):
            self._mending = self._start(self._mend())
        elif self._wants_more() and ready:
            await self._fill(ready)
        else:
            await self._rest()

    def _wants_more(self) -> bool:
        return self._num_waiting > len(self._unread) and len(self._outstanding) < self._prefetch

    def _ready(self) -> list[int]:
        """The shards worth a look, the one that has waited longest first."""
        now = asyncio.get_running_loop().time()
        ready = [shard for shard, at_s in self._look_at_s.items() if at_s <= now and shard not in self._unsure]
        return sorted(ready, key=self._look_at_s.__getitem__)

    async def _rest(self) -> None:
        delay_s = None
        if self._wants_more():
            self._batch = 1
            sure = [at_s for shard, at_s in self._look_at_s.items() if shard not in self._unsure]
            delay_s = max(0.0, min(sure, default=0.0) - asyncio.get_running_loop().time())
        await _wait(self._changed, delay_s)

    async def _fill(self, ready: list[int]) -> None:
        count = min(self._batch, self._prefetch - len(self._outstanding))
        shards = ready[:count]
        self._look_at_s |= dict.fromkeys(shards, asyncio.get_running_loop().time() + _LOOK_EVERY_S)
        self._unsure.update(shards)
        self._being_taken = set(shards)
        share = count // len(shards)
        try:
            found = await self._member.take(shards, share)
        except TransportError:
            self._batch = self._prefetch  # all others at once: they may be of another server
            raise
        finally:
            self._being_taken = set()
        for shard, taken in found.items():
            if isinstance(taken, TransportError):
                continue
            self._unsure.discard(shard)
            self._keep(taken.deliveries)
            self._look_again(shard, 0.0 if len(taken.deliveries) == share else taken.next_due_s)
        is_partly_away = any(isinstance(taken, TransportError) for taken in found.values())
        self._batch = self._prefetch if is_partly_away else min(2 * self._batch, self._prefetch)

    def _keep(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._outstanding[delivery.partition, delivery.position] = delivery
        self._unread.extend(deliveries)
        self._arrived.set()

    def _look_again(self, shard: int, delay_s: float | None) -> None:
        """No later than in `delay_s`, and no later than was known before."""
        if delay_s is not None:
            at_s = asyncio.get_running_loop().time() + delay_s
            self._look_at_s[shard] = min(self._look_at_s[shard], at_s)

    def _drop_unread(self) -> None:
        """What was taken for one who left goes back to the group."""
        for delivery in self._unread:
            del self._outstanding[delivery.partition, delivery.position]
            self._unsure.add(delivery.partition)
        self._unread.clear()

    async def _make_sure(self) -> bool:
        """Redis keeps for this member what it knows of, and nothing that got lost on the way here. Whether every server
        said so; shards of one that did not, or of which something was given back meanwhile, stay unsure. Raises where
        none did."""
        async with self._making_sure:
            shards = list(self._unsure - self._being_taken)
            kept = [self._positions(shard) for shard in shards]
            told = await asyncio.gather(*map(self._member.keep, shards, kept), return_exceptions=True)
            for shard, positions, error in zip(shards, kept, told, strict=True):
                if error is None and self._positions(shard) == positions:
                    self._unsure.discard(shard)
                    self._look_again(shard, 0.0)
        errors = [error for error in told if error is not None]
        for error in errors:
            if len(errors) == len(told) or not isinstance(error, TransportError):
                raise error
        return not errors

    def _positions(self, shard: int) -> list[int]:
        return [position for where, position in self._outstanding if where == shard]

    async def _mend(self) -> None:
        """Until all shards are sure again, but for those that are being taken from; the others go on meanwhile."""
        while self._unsure - self._being_taken and not self._closing.is_set():
            is_told = False
            with suppress(TransportError):
                is_told = await self._make_sure()
            if not is_told:
                await _wait(self._closing, _LONGEST_PAUSE_S)
        self._changed.set()

    async def _hand_back_unread(self) -> None:
        self._drop_unread()
        await self._make_sure()

    async def _beat(self) -> None:
        """The dead are parted only by who was in touch with Redis for as long as a heartbeat lasts: when Redis was
        away, everybody's may have lapsed."""
        clock, alive_s = asyncio.get_running_loop(), self._member.alive_s
        steady_since_s = clock.time()
        while not self._closing.is_set():
            begun_s = clock.time()
            try:
                await self._member.beat(part_dead=begun_s - steady_since_s >= alive_s)
                is_steady = clock.time() - begun_s < alive_s / 2
            except TransportError as error:
                log.warning("no heartbeat: %s", error)
                is_steady = False
            steady_since_s = min(steady_since_s, begun_s) if is_steady else math.inf
            await _wait(self._closing, alive_s / 4)

    async def _listen(self) -> None:
        heard: dict[int, str] = {}
        while not self._closing.is_set():
            try:
                for shard in await self._member.rung(self._line, heard):
                    self._look_again(shard, 0.0)
                self._changed.set()
            except TransportError:
                await _wait(self._closing, _LONGEST_PAUSE_S)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Whoever receives is told why nothing comes any more."""
        if not task.cancelled() and (error := task.exception()):
            self._failure = error
            self._arrived.set()


async def _wait(event: asyncio.Event, delay_s: float | None) -> None:
    """Until the event is set, and no longer than `delay_s`."""
    try:
        async with asyncio.timeout(delay_s):
            await event.wait()
    except TimeoutError:
        pass
