"""Text as it is written -> events, few enough that a store can bear them."""

import asyncio
from dataclasses import replace

from pice.core import Event
from pice.store.base import Store


class TextEvents:
    """Gathers text and emits it at most every `interval_s`, the first at once, as copies of `event`."""

    def __init__(self, store: Store, event: Event, *, interval_s: float) -> None:
        self._store = store
        self._event = event
        self._interval_s = interval_s
        self._held: list[str] = []
        self._next_s = 0.0

    async def write(self, text: str) -> None:
        if text:
            self._held.append(text)
            if asyncio.get_running_loop().time() >= self._next_s:
                await self.flush()

    async def flush(self) -> None:
        if self._held:
            text = "".join(self._held)
            self._held.clear()
            self._next_s = asyncio.get_running_loop().time() + self._interval_s
            await self._store.emit(replace(self._event, text=text, at_s=self._store.now()))
