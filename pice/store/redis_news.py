"""News of unwanted work, read once for all who listen in this process."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from pice.errors import TransportError
from pice.redis_lines import RedisLine
from pice.store.base import Unwanted
from pice.store.redis_events import read_streams
from pice.store.redis_record import Fields

log = logging.getLogger(__name__)

_BLOCK_S = 0.5
_MOST_KEPT = 1024


class RedisNews:
    """Whoever waits first reads for all: no task is needed, and one that is cancelled leaves the reading to the next.
    Holds a line only while somebody listens."""

    def __init__(self, make_line: Callable[[], RedisLine], streams: Sequence[str]) -> None:
        self._make_line = make_line
        self._streams = streams
        self._line: RedisLine | None = None
        self._after: dict[str, bytes] = {}
        self._listeners = set[RedisNotices]()
        self._turn = asyncio.Lock()

    def listen(self, since_s: float) -> "RedisNotices":
        """A new listener to all that comes from then on, a time of Redis's clock."""
        if self._line is None:
            self._line = self._make_line()
            self._after = dict.fromkeys(self._streams, f"{since_s * 1000:.0f}".encode())
        listener = RedisNotices(self)
        self._listeners.add(listener)
        return listener

    async def read_unless(self, has_come: Callable[[], bool]) -> None:
        """Reads in turn, if nothing has come by then. Waits where Redis is away."""
        async with self._turn:
            if not has_come() and self._line is not None:
                try:
                    await self._read(self._line)
                except TransportError:
                    await asyncio.sleep(_BLOCK_S)

    async def leave(self, listener: "RedisNotices") -> None:
        """Nothing more is kept for this one. The line is given back when nobody reads or listens."""
        self._listeners.discard(listener)
        async with self._turn:
            if not self._listeners and self._line is not None:
                line, self._line = self._line, None
                await line.close()

    async def _read(self, line: RedisLine) -> None:
        for stream, entries in (await read_streams(line, self._after, _BLOCK_S)).items():
            self._after[stream] = entries[-1][0]
            news = [read for _, fields in entries if (read := _unwanted(fields))]
            for listener in self._listeners:
                listener.put(news)


class RedisNotices:
    """See `pice.store.base.Notices`. Keeps the latest 1,024; once closed, `receive` raises TransportError."""

    def __init__(self, news: RedisNews) -> None:
        self._news = news
        self._is_closed = False
        self._kept: deque[Unwanted] = deque(maxlen=_MOST_KEPT)

    def put(self, news: Iterable[Unwanted]) -> None:
        self._kept.extend(news)

    async def receive(self) -> Unwanted:
        while not self._kept:
            if self._is_closed:
                raise TransportError("nobody listens to news here any more")
            await self._news.read_unless(lambda: bool(self._kept) or self._is_closed)
        return self._kept.popleft()

    async def close(self) -> None:
        self._is_closed = True
        await self._news.leave(self)


def _unwanted(fields: Fields) -> Unwanted | None:
    try:
        index = int(fields[b"index"]) if fields[b"index"] else None
        return Unwanted(fields[b"id"].decode(), int(fields[b"attempt"]), index)
    except (KeyError, ValueError) as error:
        log.warning("expected news of unwanted work, got %d fields, which are passed over: %r", len(fields), error)
        return None
