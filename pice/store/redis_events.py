"""Events of a request, and news of unwanted work, as they come."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any

from pice.core import Answer, Event, Failure
from pice.errors import DecodeError, TransportError
from pice.message.codec import decode_as
from pice.redis_client import RedisLine
from pice.store.base import Unwanted
from pice.store.redis_record import MAX_BYTES, Fields, outcome_of, paired

_BLOCK_S = 0.5
_NUM_AT_ONCE = 256


async def follow(line: RedisLine, record: str, stream: str, left_s: Callable[[], float]) -> AsyncGenerator[Event, None]:
    """A request's events as of `Store.follow`; waits for more while `left_s()` is above 0. Closes the line."""
    after, block_s = b"0", 0.0
    try:
        while True:
            wait_s = left_s()
            entries = await _read(line, {stream: after}, min(wait_s, block_s))
            for entry_id, fields in entries.get(stream, ()):
                after = entry_id
                if (event := await _event(line, record, fields)) is None:
                    return
                yield event
                if event.kind in ("answered", "failed"):
                    return
            if not entries and (wait_s <= 0 or not await line.call("EXISTS", record)):
                return
            block_s = _BLOCK_S
    finally:
        await line.close()


class RedisNotices:
    """See `pice.store.base.Notices`. Waits where Redis is away."""

    def __init__(self, line: RedisLine, streams: Sequence[str], since_s: float) -> None:
        self._line = line
        self._after = dict.fromkeys(streams, f"{since_s * 1000:.0f}".encode())
        self._kept: deque[Unwanted] = deque()

    async def receive(self) -> Unwanted:
        while not self._kept:
            try:
                found = await _read(self._line, self._after, _BLOCK_S)
            except TransportError:
                await asyncio.sleep(_BLOCK_S)
                continue
            for stream, entries in found.items():
                self._after[stream] = entries[-1][0]
                self._kept.extend(_unwanted(fields) for _, fields in entries)
        return self._kept.popleft()

    async def close(self) -> None:
        await self._line.close()


async def _read(line: RedisLine, after: Mapping[str, bytes], wait_s: float) -> dict[str, list[tuple[bytes, Fields]]]:
    """Entries of each stream that has any; waits for the first, where `wait_s` is above 0."""
    block = ("BLOCK", max(1, int(wait_s * 1000))) if wait_s > 0 else ()
    reply = await line.call("XREAD", "COUNT", _NUM_AT_ONCE, *block, "STREAMS", *after, *after.values())
    return {name.decode(): list(_entries(entries)) for name, entries in reply or ()}


def _entries(reply: Any) -> Iterator[tuple[bytes, Fields]]:
    for entry_id, fields in reply:
        yield entry_id, paired(fields)


async def _event(line: RedisLine, record: str, fields: Fields) -> Event | None:
    """The event; None for a final one whose record is gone."""
    if b"final" not in fields:
        return decode_as(Event, fields[b"event"], max_bytes=MAX_BYTES)
    payload = await line.call("HGET", record, "outcome")
    return _final_event(outcome_of(payload), fields[b"final"]) if payload else None


def _final_event(outcome: Answer | Failure, said: bytes) -> Event:
    """The last event of a request, of its outcome and the attempt and time that were noted."""
    attempt, at_s = said.split()
    if isinstance(outcome, Answer):
        return Event(outcome.request_id, "answered", float(at_s), int(attempt), answer=outcome)
    return Event(outcome.request_id, "failed", float(at_s), int(attempt), failure=outcome)


def _unwanted(fields: Fields) -> Unwanted:
    try:
        index = int(fields[b"index"]) if fields[b"index"] else None
        return Unwanted(fields[b"id"].decode(), int(fields[b"attempt"]), index)
    except (KeyError, ValueError) as error:
        raise DecodeError(f"expected news of unwanted work, got {len(fields)} fields: {error!r}") from error
