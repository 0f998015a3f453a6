"""Records, events and sites in Redis: the store of services in several processes."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pice.core import (
    Answer,
    Candidate,
    Event,
    Failure,
    Placement,
    Plan,
    Point,
    Record,
    Request,
    Segment,
    SiteState,
    Span,
)
from pice.errors import Full
from pice.message.codec import encode
from pice.redis_client import RedisClient, Script
from pice.redis_lines import Word
from pice.store import redis_scripts as scripts
from pice.store.base import Chosen, Counted, chosen_event
from pice.store.redis_clock import RedisClock
from pice.store.redis_due import RedisDue
from pice.store.redis_events import AGAIN, follow
from pice.store.redis_keys import RedisKeys
from pice.store.redis_news import RedisNews, RedisNotices
from pice.store.redis_record import paired, record_of, sealed_fields, site_name
from pice.store.redis_sites import RedisSites
from pice.store.redis_unsure import Unsure

_MAX_EVENTS = 4096
_NEWS_OVERLAP_S = 0.05
"""News reach back by this, since the clock is not exact."""
_RETRY_S = 1.0


class RedisStore:
    """Records that many processes share; see `pice.store.base.Store`. Its clock is Redis's, once `start` has read it.

    Every change is one script, done wholly or not at all; one that raised `TransportError` may have been done. `Full`
    is raised by what needs memory when Redis has none left; requests can be ended all the same. Of a request's events
    about the latest 4,096 are kept. `client` stays open.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        prefix: str = "pice",
        max_open: int = 1024,
        record_ttl_s: float = 600.0,
        due_lease_s: float = 5.0,
    ) -> None:
        """`max_open` bounds open requests of all processes on one `prefix`, `record_ttl_s` is how long one can be read
        after it was closed, or after its deadline where nobody closed it, `due_lease_s` how long a taken request
        stays with the collector that took it."""
        self._client = client
        self._keys = RedisKeys(prefix)
        self._clock = RedisClock(client)
        self._due = RedisDue(client, self._keys, self._clock, lease_s=due_lease_s)
        self._sites = RedisSites(client, self._keys)
        self._news = RedisNews(client.line, [shard.news for shard in self._keys.shards])
        self._unsure = Unsure()
        self._max_open = max_open
        self._ttl_s = record_ttl_s
        self._is_closed = False
        self._closing = set[asyncio.Future[bool]]()

    async def start(self) -> None:
        """Reads Redis's clock, which `now` then tells. May be called again."""
        await self._clock.refresh()

    def now(self) -> float:
        return self._clock.now()

    async def open(self, request: Request) -> bool:
        await self._clock.refresh()
        request_id, payload = request.request_id, encode(request)
        if not await self._reserve(request_id, request.timeout_s + self._ttl_s):
            if await self._client.call("EXISTS", self._keys.shard(request_id).record(request_id)):
                return False
            raise Full(f"{self._max_open} requests are open, which is the limit", retry_after_s=_RETRY_S)
        words = (request_id, payload, request.timeout_s, self._ttl_s)
        with self._unsure.saying(payload) as is_repeat:
            try:
                found = await self._change(scripts.OPEN, request_id, *words)
            except Full:
                await self._give_back(request_id)
                raise
        if found == b"ended":
            await self._give_back(request_id)
        return bool(found == b"opened" or (found == b"same" and is_repeat))

    async def begin(self, request_id: str) -> Record | None:
        fields = await self._change(scripts.BEGIN, request_id, request_id)
        return record_of(paired(fields)) if fields else None

    async def planned(self, request_id: str, attempt: int, plan: Plan) -> bool:
        return bool(await self._change(scripts.PLANNED, request_id, attempt, encode(plan)))

    async def place(self, segment: Segment, placement: Placement) -> bool:
        name = site_name(placement.site, placement.model)
        words = (segment.attempt, segment.index, encode(segment), name, encode(placement))
        return bool(await self._change(scripts.PLACE, segment.request_id, *words))

    async def unplace(self, segment: Segment, placement: Placement) -> None:
        name = site_name(placement.site, placement.model)
        words = (segment.attempt, segment.index, name, encode(placement))
        await self._change(scripts.UNPLACE, segment.request_id, *words)

    async def seal(
        self,
        request_id: str,
        attempt: int,
        sketch: Sequence[Point],
        num_segments: int,
        *,
        num_prompt_tokens: int,
        num_output_tokens: int,
        cut: bool,
    ) -> bool:
        fields = sealed_fields(sketch, num_segments, num_prompt_tokens, num_output_tokens, cut=cut)
        return bool(await self._change(scripts.SEAL, request_id, request_id, attempt, *fields))

    async def add_candidate(self, candidate: Candidate) -> tuple[Counted, Record | None]:
        name = site_name(candidate.site, candidate.model)
        words = (candidate.attempt, candidate.index, name, encode(candidate))
        counted, *fields = await self._change(scripts.ADD_CANDIDATE, candidate.request_id, *words)
        return Counted(counted.decode()), record_of(paired(fields[0])) if fields else None

    async def choose(self, request_id: str, attempt: int, span: Span) -> Chosen:
        event = encode(chosen_event(request_id, attempt, span))
        words = (request_id, attempt, span.index, encode(span), event, _MAX_EVENTS)
        chosen: bytes = await self._change(scripts.CHOOSE, request_id, *words)
        return Chosen(chosen.decode())

    async def close_request(self, request_id: str, attempt: int | None, outcome: Answer | Failure) -> bool:
        """Ends the request wholly, also where the caller is cancelled on the way: the news of it may do that."""
        closing = asyncio.ensure_future(self._close_request(request_id, attempt, outcome))
        self._closing.add(closing)
        closing.add_done_callback(self._forget_closing)
        return await asyncio.shield(closing)

    async def _close_request(self, request_id: str, attempt: int | None, outcome: Answer | Failure) -> bool:
        fence: Word = "" if attempt is None else attempt
        words = (request_id, fence, encode(outcome), self._ttl_s, _MAX_EVENTS)
        ended: bytes = await self._change(scripts.CLOSE, request_id, *words)
        if ended != b"fenced":
            await self._give_back(request_id)
        return ended == b"closed"

    def _forget_closing(self, closing: "asyncio.Future[bool]") -> None:
        self._closing.discard(closing)
        if not closing.cancelled():
            closing.exception()  # told to the caller, if there still is one

    async def record(self, request_id: str) -> Record | None:
        fields = await self._client.call("HGETALL", self._keys.shard(request_id).record(request_id))
        return record_of(paired(fields)) if fields else None

    async def wanted(self, request_id: str, attempt: int, index: int) -> bool:
        key = self._keys.shard(request_id).wanted(request_id)
        known, choice = await self._client.call("HMGET", key, "attempt", f"x:{index}")
        return known is not None and int(known) == attempt and choice is None

    async def set_due(self, request_id: str, at_s: float) -> None:
        await self._change(scripts.SET_DUE, request_id, request_id, at_s)

    async def take_due(self, *, limit: int = 64) -> list[str]:
        return await self._due.take(limit)

    async def emit(self, event: Event) -> None:
        shard, payload = self._keys.shard(event.request_id), encode(event)
        with self._unsure.saying(payload) as is_repeat:
            words = (shard.wanted(event.request_id), event.attempt, payload, _MAX_EVENTS, *(AGAIN if is_repeat else ()))
            await self._client.run(scripts.EMIT, (shard.events(event.request_id),), words)

    def follow(self, request_id: str, *, until_s: float) -> AsyncGenerator[Event, None]:
        shard = self._keys.shard(request_id)

        def left_s() -> float:
            return 0.0 if self._is_closed else until_s - self.now()

        return follow(self._client.line(), shard.record(request_id), shard.events(request_id), left_s)

    def notices(self) -> RedisNotices:
        return self._news.listen(self.now() - _NEWS_OVERLAP_S)

    async def heartbeat(self, state: SiteState, *, ttl_s: float) -> None:
        await self._clock.refresh()
        await self._sites.heartbeat(state, ttl_s)

    async def sites(self) -> list[SiteState]:
        await self._clock.refresh()
        return await self._sites.alive()

    async def close(self) -> None:
        """Ends what follows events."""
        self._is_closed = True
        await self._due.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _change(self, script: Script, request_id: str, *words: Word) -> Any:
        return await self._client.run(script, self._keys.shard(request_id).keys(request_id), words)

    async def _reserve(self, request_id: str, span_s: float) -> bool:
        """Counts a request among the open ones, for no longer than it can be kept; False when there are too many."""
        return bool(await self._client.run(scripts.RESERVE, (self._keys.open,), (request_id, self._max_open, span_s)))

    async def _give_back(self, request_id: str) -> None:
        await self._client.call("ZREM", self._keys.open, request_id)
