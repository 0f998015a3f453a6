"""The real nodes in one process, with engines that take no time."""

import asyncio
import gc
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from bench.complete import Incomplete, require_complete
from pice.answer.steps import EnsemblePolicy
from pice.core import CLOUD_SITE, Answer, Curve, Message, Prompt, Request, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.engine.emulated import EmulatedEngine, TextStyle
from pice.node.client import Client
from pice.node.cloud import CloudNode, CloudPolicy
from pice.node.collector import CollectorNode
from pice.node.edge import Address, EdgeNode, EdgePolicy
from pice.node.load import Load
from pice.plan.base import TOKENS_PER_WORD
from pice.plan.planner import EarliestFinish, PlanPolicy
from pice.sketch.prompts import load_prompts
from pice.store.memory import MemoryStore
from pice.transport.base import CANDIDATES, REQUESTS, segments_topic
from pice.transport.memory import MemoryTransport

NO_TIME = Curve(batch=(1,), step_s=(0.0,))
CLAIMED = Curve(batch=(1, 32), step_s=(0.001, 0.004))
POOL = "main"
MAX_INFLIGHT = 32


@dataclass(frozen=True, slots=True)
class Size:
    """How long texts are: every sketch has `num_points` points of about `point_words` words, every expansion about
    `words`, which come `piece_tokens` at a time."""

    name: str
    words: int
    num_points: int = 8
    point_words: int = 10
    piece_tokens: int = 1

    def plan_policy(self) -> PlanPolicy:
        """Such that every point is a segment, and the sketch prompt asks for points of that many words."""
        answer_words = self.num_points * self.words / TOKENS_PER_WORD
        return PlanPolicy(
            segment_words=1,
            max_segments=self.num_points,
            assumed_answer_words=round(answer_words),
            sketch_ratio=(self.num_points * self.point_words + 2) / answer_words,
            sketch_flex=0.0,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What some work took, of the clock and of this process's share of a core."""

    wall_s: float
    cpu_s: float


Known = dict[tuple[str, Prompt, Sampling], list[Piece]]
"""What each model wrote for a prompt."""


class InstantEngine(EmulatedEngine):
    """Takes no time once it has met a prompt: what the emulated engine wrote the first time is kept in `known`.

    It says of itself that it takes some: were all sites equal however busy, the planner would give everything to the
    first."""

    def __init__(self, size: Size, model: str, known: Known) -> None:
        style = TextStyle(points=(size.num_points, size.num_points), words_per_point=(size.words, size.words))
        super().__init__(
            model=model,
            curve=NO_TIME,
            seed=0,
            context_tokens=65_536,
            max_inflight=MAX_INFLIGHT,
            piece_tokens=size.piece_tokens,
            style=style,
        )
        self._claimed = replace(super().info, curve=CLAIMED)
        self._known = known

    @property
    def info(self) -> EngineInfo:
        return self._claimed

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        deadline_s: float = math.inf,  # noqa: ARG002  (nothing waits)
    ) -> AsyncGenerator[Piece, None]:
        key = (self._claimed.model, prompt, sampling)
        if key not in self._known:
            self._known[key] = [piece async for piece in super().generate(prompt, sampling)]
        await asyncio.sleep(0)
        for piece in self._known[key]:
            yield piece


@asynccontextmanager
async def measured() -> AsyncIterator[Callable[[], Cost]]:
    """Measures the block; the cost is known when it has ended. Python's garbage collector passes over what was there
    before, above all the texts that engines keep."""
    gc.collect()
    gc.freeze()
    cpu_s, wall_s, ends = time.process_time(), time.perf_counter(), list[Cost]()
    yield lambda: ends[0]
    ends.append(Cost(time.perf_counter() - wall_s, time.process_time() - cpu_s))
    gc.unfreeze()


async def serve(
    size: Size, known: Known, *, num_requests: int, concurrency: int, num_sites: int
) -> tuple[Cost, list[Answer]]:
    """What answering so many progressive requests took, at most `concurrency` of them at once. Engines take time for
    what is not in `known` yet, and add it.

    Raises:
        Incomplete: an answer is not whole, or a message was left over.
    """
    async with _deployed(size, known, num_sites) as (client, transport):
        answers = list[Answer]()
        waiting = _requests(num_requests, size)

        async def user() -> None:
            for request in waiting:
                answers.append(await client.ask(request))

        async with measured() as cost, asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(user())
    _require_nothing_left(transport)
    require_complete(answers, size.num_points, num_requests)
    return cost(), answers


def _requests(num_requests: int, size: Size) -> Iterator[Request]:
    """Different questions of some 12 words, with tokens enough for every point."""
    sampling = Sampling(max_tokens=size.num_points * (4 * size.words + 64))
    for number in range(num_requests):
        question = f"What should someone who moves into house {number} know about its garden?"
        yield Request(f"r{number}", (Message("user", question),), sampling, mode="progressive")


@asynccontextmanager
async def _deployed(size: Size, known: Known, num_sites: int) -> AsyncIterator[tuple[Client, MemoryTransport]]:
    """One cloud node, one collector and the sites, as `pice.app` sets them up, but for the engines."""
    transport, store, prompts = MemoryTransport(), MemoryStore(), load_prompts("default")
    names = (CLOUD_SITE, *(f"site-{i}" for i in range(num_sites)))
    engines = {name: InstantEngine(size, "large" if name == CLOUD_SITE else "small", known) for name in names}
    load, policy = Load(), size.plan_policy()
    edges = [
        EdgeNode(
            Address(name, CLOUD_SITE if name == CLOUD_SITE else POOL, max(0, number - 1)),
            transport=transport,
            store=store,
            engines=[(made, load if name == CLOUD_SITE else Load(), prompts)],
            policy=EdgePolicy(),
        )
        for number, (name, made) in enumerate(engines.items())
    ]
    cloud = CloudNode(
        transport=transport,
        store=store,
        engine=engines[CLOUD_SITE],
        load=load,
        planner=EarliestFinish(policy),
        prompts=prompts,
        policy=CloudPolicy(),
    )
    collector = CollectorNode(
        transport=transport, store=store, planner=EarliestFinish(policy), policy=EnsemblePolicy(max_candidates=1)
    )
    stopping = asyncio.Event()
    for made in engines.values():
        await made.start()
    for edge in edges:
        await edge.announce()
    async with asyncio.TaskGroup() as tasks:
        for run in (cloud.run, collector.run, *(edge.run for edge in edges)):
            tasks.create_task(run(stopping))
        yield Client(transport, store), transport
        stopping.set()


def _require_nothing_left(transport: MemoryTransport) -> None:
    for topic in (REQUESTS, CANDIDATES, segments_topic(POOL), segments_topic(CLOUD_SITE)):
        if left := transport.num_messages(topic):
            raise Incomplete(f"{left} messages were left on {topic}")
