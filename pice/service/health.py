"""What a service can say of itself: whether it lives, whether it is of use now, and if not, why."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from pice.service.printable import printable

log = logging.getLogger(__name__)

State = Literal["starting", "serving", "draining"]

_BEAT_S = 1.0
_STALL_S = 15.0
"""A loop that has not turned for so long is taken for stuck."""
_QUIET_S = 30.0
"""A component's outages are logged no more often than that."""


@dataclass(frozen=True, slots=True)
class Outage:
    """Why a component is down and since when, in seconds of the health's clock."""

    cause: str
    since_s: float
    is_logged: bool = False


class Health:
    """Changed from the event loop's thread alone, read from any.

    A component is whatever the service needs and may lose: a broker, an engine, a node. `clock` gives seconds that
    only go forward, also while the loop is stuck: the loop's own clock may not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._state: State = "starting"
        self._known: frozenset[str] = frozenset()
        self._outages: Mapping[str, Outage] = {}
        self._quiet_until_s: dict[str, float] = {}
        self._beat_s = clock()

    def down(self, name: str, cause: str) -> None:
        """A component is away; `cause` names host and reason. May be said at every try: an outage is logged once, and
        a component that comes and goes every 30 s at most."""
        now_s = self._clock()
        outage = replace(self._outages.get(name) or Outage("", now_s), cause=printable(cause))
        if not outage.is_logged and now_s >= self._quiet_until_s.get(name, now_s):
            self._quiet_until_s[name] = now_s + _QUIET_S
            outage = replace(outage, is_logged=True)
            log.warning("%s is down: %s", name, outage.cause)
        self._known |= {name}
        self._outages = {**self._outages, name: outage}

    def up(self, name: str) -> None:
        """A component serves; may be said as often as it does. The end of an outage that was logged is logged too."""
        if name not in self._known:
            self._known |= {name}
        if (outage := self._outages.get(name)) is not None:
            self._outages = {other: it for other, it in self._outages.items() if other != name}
            if outage.is_logged:
                log.warning("%s is back after %.1f s", name, self._clock() - outage.since_s)

    def started(self) -> None:
        """All that the service consists of is there."""
        self._state = "serving"

    def draining(self) -> None:
        """It takes nothing new, and will end."""
        self._state = "draining"

    def beat(self) -> None:
        """The loop turns."""
        self._beat_s = self._clock()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """The running loop beats every second, as long as it turns and the block lasts."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def turn() -> None:
            nonlocal timer
            self.beat()
            timer = loop.call_later(_BEAT_S, turn)

        turn()
        try:
            yield
        finally:
            timer.cancel()

    @property
    def state(self) -> State:
        return self._state

    @property
    def outages(self) -> Mapping[str, str]:
        """What is down, and why."""
        return {name: outage.cause for name, outage in self._outages.items()}

    @property
    def components(self) -> Mapping[str, bool]:
        """Everything that was ever spoken of, and whether it serves."""
        known, outages = self._known, self._outages
        return {name: name not in outages for name in sorted(known)}

    @property
    def is_ready(self) -> bool:
        """Whether work should be sent here."""
        return self._state == "serving" and not self._outages

    @property
    def is_live(self) -> bool:
        """False when only a restart can help: the loop is stuck."""
        return self.stalled_s < _STALL_S

    @property
    def stalled_s(self) -> float:
        """Seconds since the loop last turned; up to one where all is well."""
        return self._clock() - self._beat_s
