"""A cloud and a fleet of equal sites on a virtual clock: the real nodes, emulated engines, links with a round trip."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache

from bench.report import ROOT
from pice.config import load_settings
from pice.core import Curve, Prompt, Sampling
from pice.engine.base import Piece
from pice.engine.emulated import EmulatedEngine, TextStyle
from pice.node.cloud import CloudPolicy
from pice.plan.base import TOKENS_PER_WORD
from pice.plan.estimate import step_s
from pice.plan.planner import PlanPolicy
from pice.settings import EmulatedSettings
from pice.simulation.cluster import Cluster, Policies
from pice.simulation.links import Links
from pice.sketch.prompts import load_prompts
from pice.store.memory import MemoryStore
from pice.transport.base import segments_topic

CONFIG = ROOT / "config" / "emulated.toml"
CLOUD_ENGINE, SITE_ENGINE = "cloud", "workstation"
"""The engines of `CONFIG` whose measured curves are used; their sources stand there."""
CLOUD_INFLIGHT, SITE_INFLIGHT = 64, 8
RTT_S = 0.04
WORDS_PER_POINT = (30, 80)


@dataclass(frozen=True, slots=True)
class Fleet:
    """How a fleet is set up. With `eager` a segment leaves when its points are complete, else with the whole sketch;
    with `single` every point is a segment, else short ones are merged as the default is."""

    num_sites: int
    num_points: int
    single: bool
    eager: bool
    seed: int

    @property
    def answer_tokens(self) -> float:
        """Of an average answer; an emulated token is a word."""
        return self.num_points * sum(WORDS_PER_POINT) / 2

    def capacity_per_s(self) -> float:
        """Requests per second whose expansions would keep every slot of every site busy."""
        return self.num_sites * SITE_INFLIGHT / step_s(curve(SITE_ENGINE), SITE_INFLIGHT) / self.answer_tokens

    def policies(self) -> Policies:
        """The defaults, but for the release, the segments' size and an answer length that is known from the start."""
        plan = PlanPolicy(assumed_answer_words=round(self.answer_tokens / TOKENS_PER_WORD))
        if self.single:
            plan = replace(plan, segment_words=1, max_segments=self.num_points)
        return Policies(plan=plan, cloud=CloudPolicy(eager=self.eager, max_inflight=CLOUD_INFLIGHT))


@cache
def curve(name: str) -> Curve:
    """Of an engine of the example configuration."""
    settings = load_settings(CONFIG, ()).engines[name]
    assert isinstance(settings, EmulatedSettings)
    return settings.curve.curve()


class WatchedLinks(Links):
    """Notes when segments were published."""

    def __init__(self, rtts_s: Mapping[str, float]) -> None:
        super().__init__(rtts_s)
        self.segments_s: list[float] = []

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        if topic == segments_topic("main"):
            self.segments_s.append(asyncio.get_running_loop().time())
        await super().publish(topic, payload, key=key, partition=partition, headers=headers)


class WatchedEngine(EmulatedEngine):
    """Notes when each line of a sketch was written."""

    lines_s: list[float]

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, deadline_s: float = math.inf
    ) -> AsyncGenerator[Piece, None]:
        async with aclosing(super().generate(prompt, sampling, deadline_s=deadline_s)) as pieces:
            async for piece in pieces:
                now_s = asyncio.get_running_loop().time()
                self.lines_s.extend(now_s for _ in range(piece.text.count("\n")))
                yield piece


@asynccontextmanager
async def running(fleet: Fleet) -> AsyncIterator[tuple[Cluster, WatchedLinks, WatchedEngine]]:
    """The fleet's cluster, started, until the block ends."""
    style = TextStyle(points=(fleet.num_points, fleet.num_points), words_per_point=WORDS_PER_POINT)
    cloud = WatchedEngine(
        model="large",
        curve=curve(CLOUD_ENGINE),
        seed=fleet.seed,
        context_tokens=32_768,
        max_inflight=CLOUD_INFLIGHT,
        style=style,
    )
    cloud.lines_s = []
    sites = {f"site-{number:02}": _small_engine(fleet.seed) for number in range(fleet.num_sites)}
    rtts_s = dict.fromkeys(sites, RTT_S)
    links = WatchedLinks(rtts_s)
    cluster = Cluster(
        links,
        MemoryStore(),
        load_prompts("default"),
        fleet.policies(),
        cloud=cloud,
        sites={name: [engine] for name, engine in sites.items()},
        rtts_s=rtts_s,
    )
    for engine in (cloud, *sites.values()):
        await engine.start()
    await cluster.start()
    yield cluster, links, cloud
    await cluster.stop()


def _small_engine(seed: int) -> EmulatedEngine:
    """All sites have the same model, so no segment gets a second opinion."""
    return EmulatedEngine(
        model="small", curve=curve(SITE_ENGINE), seed=seed, max_inflight=SITE_INFLIGHT, piece_tokens=8
    )
