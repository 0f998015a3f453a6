"""Text as it is written -> events, few enough that a store can bear them."""

import asyncio
from dataclasses import replace

from pice.core import Event
from pice.store.base import Store


class TextEvents:
    """Gathers text and emits it at most every `interval_s`, the first at once, as copies of `event`. Text that is not
    wanted is let go."""

    def __init__(self, store: Store, event: Event, *, interval_s: float, is_wanted: bool = True) -> None:
        self._store = store
        self._event = event
        self._interval_s = interval_s
        self._is_wanted = is_wanted
        self._held: list[str] = []
        self._next_s = 0.0
        self._now = asyncio.get_running_loop().time

    def hold(self, text: str) -> bool:
        """Keeps text until the next `flush`; True when that is due."""
        if text and self._is_wanted:
            self._held.append(text)
        return bool(self._held) and self._now() >= self._next_s

    async def write(self, text: str) -> None:
        if self.hold(text):
            await self.flush()

    async def flush(self) -> None:
        if self._held:
            text = "".join(self._held)
            self._held.clear()
            self._next_s = self._now() + self._interval_s
            await self._store.emit(replace(self._event, text=text, at_s=self._store.now()))
