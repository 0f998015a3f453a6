"""What was said to Redis and not answered, so that it may have been done."""

from collections.abc import Iterator
from contextlib import contextmanager

from pice.errors import TransportError

_MOST = 4096


class Unsure:
    """Remembers the latest 4,096 changes that raised, so that one that is said again is known for a repeat."""

    def __init__(self) -> None:
        self._kept: dict[bytes, None] = {}

    @contextmanager
    def saying(self, payload: bytes) -> Iterator[bool]:
        """Whether this was said before and never answered."""
        try:
            yield payload in self._kept
        except TransportError:
            self._kept[payload] = None
            if len(self._kept) > _MOST:
                del self._kept[next(iter(self._kept))]
            raise
        self._kept.pop(payload, None)
