"""Asks at a steady rate, whatever becomes of the answers; follows every request to its end and looks it up then."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from bench.drill_counts import Fate, Found, Heard, fate_of
from bench.drill_junk import FORGED
from bench.drill_report import GRACE_S
from bench.drill_wait import until
from pice.app.cluster import ClusterPorts
from pice.core import Answer, Mode, Request, Sampling
from pice.errors import Overloaded, RequestFailed, TransportError
from pice.pipeline import Pipeline
from pice.store.redis_keys import RedisKeys

_LOOK_UP_AFTER_S = 5.0
_RETRY_S = 0.5
_MODES: tuple[Mode | None, ...] = ("progressive", None, "progressive", "edge", "progressive", "cloud")
_SAMPLING = Sampling(max_tokens=1024)


@dataclass(frozen=True, slots=True)
class Auditor:
    """Reads what the store keeps of a request, however long Redis is away."""

    ports: ClusterPorts
    keys: RedisKeys

    async def find(self, request_id: str) -> Found:
        while True:
            try:
                record = await self.ports.store.record(request_id)
                stream = self.keys.shard(request_id).events(request_id)
                entries = await self.ports.redis.call("XRANGE", stream, "-", "+")
            except TransportError:
                await asyncio.sleep(_RETRY_S)
                continue
            num_finals = sum(fields[0] == b"final" for _, fields in entries)
            return Found(record is not None, record.outcome if record else None, num_finals)


class Load:
    """The requests of a drill. `fates` holds those that are over, `forged` the answers that contain forged text."""

    def __init__(self, pipeline: Pipeline, auditor: Auditor, *, per_s: float) -> None:
        self._pipeline = pipeline
        self._auditor = auditor
        self._per_s = per_s
        self._open: dict[str, float] = {}
        self.fates: list[Fate] = []
        self.forged: list[str] = []
        self.num_asked = 0

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Asks while the block runs, and then waits until all that was asked is over and looked up."""
        async with asyncio.TaskGroup() as tasks:
            asker = tasks.create_task(self._ask_steadily(tasks))
            yield
            asker.cancel()

    def open_ids(self) -> list[str]:
        """Requests that somebody waits for."""
        return list(self._open)

    def finished_ids(self) -> list[str]:
        """Requests that have ended, the latest last."""
        return [fate.request_id for fate in self.fates]

    async def settled(self) -> None:
        """Returns when all that was asked before now is over."""
        now_s = asyncio.get_running_loop().time()
        await until(lambda: all(asked_s > now_s for asked_s in self._open.values()))

    async def _ask_steadily(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            at_s = began_s + self.num_asked / self._per_s
            await asyncio.sleep(at_s - loop.time())
            tasks.create_task(self._see_through(self._request(self.num_asked), at_s))
            self.num_asked += 1

    def _request(self, number: int) -> Request:
        question = f"What should someone who moves into house {number} know about its garden and its neighbours?"
        return self._pipeline.new_request(question, mode=_MODES[number % len(_MODES)], sampling=_SAMPLING)

    async def _see_through(self, request: Request, asked_s: float) -> None:
        loop, request_id, heard = asyncio.get_running_loop(), request.request_id, Heard()
        self._open[request_id] = asked_s
        await self._follow(request, heard, asked_s + request.timeout_s + GRACE_S)
        ended_s = loop.time()
        del self._open[request_id]
        await asyncio.sleep(_LOOK_UP_AFTER_S)
        self.fates.append(fate_of(request_id, asked_s, ended_s, heard, await self._auditor.find(request_id)))
        if any(FORGED in text for text in _texts(heard)):
            self.forged.append(request_id)

    async def _follow(self, request: Request, heard: Heard, until_s: float) -> None:
        """As a user would who tries again while the brokers are away: the same request, which is asked once."""
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            try:
                async with asyncio.timeout_at(until_s), aclosing(self._pipeline.stream(request)) as events:
                    async for event in events:
                        heard.num_events += 1
                        if outcome := event.answer or event.failure:
                            heard.outcomes.append(outcome)
            except Overloaded as error:
                heard.refusal = error.code
                return
            except RequestFailed:
                return
            except TransportError as error:
                heard.num_cut_off += 1
                heard.refusal = error.code
                await asyncio.sleep(_RETRY_S)
            except TimeoutError:
                heard.gave_up = True
                return
            else:
                return


def _texts(heard: Heard) -> Iterator[str]:
    return (outcome.text for outcome in heard.outcomes if isinstance(outcome, Answer))
