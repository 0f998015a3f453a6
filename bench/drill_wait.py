"""Waiting for what nobody announces."""

import asyncio
from collections.abc import Callable

_LOOK_EVERY_S = 0.1


async def until(seen: Callable[[], bool]) -> None:
    """Returns once it is so."""
    while True:
        if seen():
            return
        await asyncio.sleep(_LOOK_EVERY_S)
