"""Events of a request, as they come."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any

from pice.core import Answer, Event, Failure
from pice.errors import DecodeError, TransportError
from pice.message.codec import decode_as
from pice.redis_lines import RedisLine
from pice.store.redis_record import MAX_BYTES, Fields, outcome_of, paired

log = logging.getLogger(__name__)

_BLOCK_S = 0.5
_GATHER_S = 0.02
"""Events come in bursts: after some a reader waits, so that one reading finds many."""
_NUM_AT_ONCE = 256
_FINAL = ("answered", "failed")
AGAIN = ("again", "1")
"""Field of an event that may stand among the latest already."""
_NUM_LATEST = 256


async def follow(line: RedisLine, record: str, stream: str, left_s: Callable[[], float]) -> AsyncGenerator[Event, None]:
    """A request's events as of `Store.follow`; waits for more, and where Redis is away for its return, while
    `left_s()` is above 0. Closes the line."""
    reader, block_s = _EventReader(line, record, stream), 0.0
    try:
        while not reader.is_over:
            wait_s = left_s()
            try:
                events = await reader.read(min(wait_s, block_s))
            except TransportError as error:
                if wait_s <= 0:
                    raise
                log.info("events wait for Redis: %s", error)
                await asyncio.sleep(_BLOCK_S)
                continue
            for event in events:
                yield event
            if not events and wait_s <= 0:
                return
            if events and not reader.is_over:
                await asyncio.sleep(_GATHER_S)
            block_s = _BLOCK_S
    finally:
        await line.close()


class _EventReader:
    """Reads each event of a request once. The record alone says that it has ended, and how: a site may append events
    (docs/redis-acl.md), so what stands among them is not believed."""

    def __init__(self, line: RedisLine, record: str, stream: str) -> None:
        self._line = line
        self._record = record
        self._stream = stream
        self._after = b"0"
        self._latest = deque[bytes](maxlen=_NUM_LATEST)
        self.is_over = False

    async def read(self, wait_s: float) -> list[Event]:
        """What has come since; where it raises, the next call gives all of that."""
        entries = (await read_streams(self._line, {self._stream: self._after}, wait_s)).get(self._stream, [])
        events, is_over = list[Event](), not entries and not await self._line.call("EXISTS", self._record)
        for entry_id, fields in entries:
            if (event := await self._final(entry_id) if b"final" in fields else self._event(fields)) is None:
                continue
            events.append(event)
            if event.kind in _FINAL:
                is_over = True
                break
        self.is_over = is_over
        self._after = entries[-1][0] if entries else self._after
        return events

    def _event(self, fields: Fields) -> Event | None:
        """An event that was not seen yet."""
        payload = fields.get(b"event", b"")
        if b"again" in fields and payload in self._latest:
            return None
        self._latest.append(payload)
        return _decoded(payload)

    async def _final(self, entry_id: bytes) -> Event | None:
        """The last event of a request, if that is the one that stands there."""
        names = ("attempt", "closed", "outcome", "final")
        attempt, closed, outcome, final = await self._line.call("HMGET", self._record, *names)
        return _final_event(outcome_of(outcome), float(closed), int(attempt)) if final == entry_id else None


async def read_streams(
    line: RedisLine, after: Mapping[str, bytes], wait_s: float
) -> dict[str, list[tuple[bytes, Fields]]]:
    """Entries of each stream that has any; waits for the first, where `wait_s` is above 0."""
    found = await line.read(after, count=_NUM_AT_ONCE, wait_s=wait_s)
    return {name: list(_entries(entries)) for name, entries in found.items()}


def _entries(reply: Any) -> Iterator[tuple[bytes, Fields]]:
    for entry_id, fields in reply:
        yield entry_id, paired(fields)


def _decoded(payload: bytes) -> Event | None:
    try:
        event = decode_as(Event, payload, max_bytes=MAX_BYTES)
        if event.kind in _FINAL:
            raise DecodeError(f"expected an event of a request that goes on, got {event.kind}")
    except DecodeError as error:
        log.warning("an event is passed over: %s", error)
        return None
    return event


def _final_event(outcome: Answer | Failure, at_s: float, attempt: int) -> Event:
    if isinstance(outcome, Answer):
        return Event(outcome.request_id, "answered", at_s, attempt, answer=outcome)
    return Event(outcome.request_id, "failed", at_s, attempt, failure=outcome)
