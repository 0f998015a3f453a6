"""One request on its way: drawn on a terminal until it has ended."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext

from rich.console import Console
from rich.live import Live

from pice.cli.show import Screen
from pice.core import Answer, Event, Failure
from pice.errors import RequestFailed

REFRESH_S = 0.1


async def watch(events: AsyncIterator[Event], console: Console | None) -> Answer | Failure:
    """How the request ends; meanwhile it is drawn on `console`."""
    screen = Screen()
    live = Live(screen, console=console, auto_refresh=False, transient=True) if console else None
    loop = asyncio.get_running_loop()
    next_s = loop.time()
    outcome: Answer | Failure | None = None
    with live or nullcontext():
        async for event in events:
            screen.feed(event)
            outcome = event.answer or event.failure
            if live and loop.time() >= next_s:
                live.refresh()
                next_s = loop.time() + REFRESH_S
    if outcome is None:
        raise RequestFailed("the request's events ended without an answer or an error: see the log of its nodes")
    return outcome


def terminal() -> Console | None:
    """Where progress can be drawn: standard output, or beside a pipe standard error."""
    if sys.stdout.isatty():
        return Console()
    return Console(stderr=True) if sys.stderr.isatty() else None
