"""A deployment and its traffic -> what came of every request. The real nodes, emulated engines, a virtual clock."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pice.core import Answer, Curve, Message, Mode, Request, Sampling
from pice.engine.base import Engine
from pice.errors import PiceError, RequestFailed
from pice.plan.estimate import step_s
from pice.simulation.clock import run_virtual
from pice.simulation.cluster import Cluster, Policies
from pice.simulation.lengths import Known, LengthEngine, NotedPlanner, Sketching, numbered
from pice.simulation.links import Links
from pice.sketch.prompts import load_prompts
from pice.store.memory import MemoryStore

ITSELF = "itself"
"""The site that stands for the cloud's own engine where it expands."""
_PIECE_TOKENS = 16
_TOKENS_TO_SPARE = 128


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: when it is made, in seconds from the beginning, and what its answer comes to. `mode` None leaves it
    to the planner."""

    at_s: float
    text: str
    known: Known
    mode: Mode | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model on a machine: `curve` is measured or assumed."""

    name: str
    curve: Curve
    max_inflight: int
    context_tokens: int = 8192

    @property
    def most_per_s(self) -> float:
        """Tokens per second with all its sequences at work."""
        seconds = step_s(self.curve, self.max_inflight)
        return self.max_inflight / seconds if seconds else math.inf


@dataclass(frozen=True, slots=True)
class Site:
    """The models of a site, and the round trip to it."""

    models: tuple[Model, ...]
    rtt_s: float = 0.03


@dataclass(frozen=True, slots=True)
class Deployment:
    """A cloud model and its sites. With `expands_itself` the cloud's own engine is the only site. `deaths`
    says when a site dies, in seconds from the beginning; it stays dead. More requests at once than `max_open`, where
    that is given, are refused."""

    cloud: Model
    sites: Mapping[str, Site] = field(default_factory=dict)
    policies: Policies = field(default_factory=Policies)
    sketching: Sketching = field(default_factory=Sketching)
    bits_per_s: float = 50e6
    expands_itself: bool = False
    deaths: Mapping[str, float] = field(default_factory=dict)
    max_open: int | None = None

    @property
    def edge_tokens_per_s(self) -> float:
        """What all sites write together when nothing waits for anything."""
        return sum(model.most_per_s for site in self.sites.values() for model in site.models)


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of one request: seconds since it was made (`ended_s` since the beginning), tokens; of one without an
    answer `error` is the cause's code. `expected_s` is when the planner said it would end."""

    asked_s: float
    ended_s: float
    mode: str
    e2e_s: float
    ttft_s: float
    sketch_s: float
    expected_s: float
    num_segments: int
    num_cloud_tokens: int
    num_edge_tokens: int
    num_answer_tokens: int
    num_degraded: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Played:
    """All of them in the order asked, and all tokens that were decoded by cloud and sites, whatever became of them."""

    ended: Sequence[Ended]
    num_cloud_tokens: int
    num_edge_tokens: int

    @property
    def span_s(self) -> float:
        """From the beginning to the last end."""
        return max((each.ended_s for each in self.ended), default=0.0)


def play(
    deployment: Deployment,
    asks: Sequence[Ask],
    seed: int,
    *,
    timeout_s: float = 600.0,
    num_at_once: int | None = None,
    on_end: Callable[[], object] = lambda: None,
) -> Played:
    """Plays the traffic to its end. With `num_at_once` so many clients ask one after another, whatever `Ask.at_s`.
    `on_end` is called as each request ends."""
    return run_virtual(_play(deployment, asks, seed, timeout_s, num_at_once, on_end))


async def _play(
    deployment: Deployment,
    asks: Sequence[Ask],
    seed: int,
    timeout_s: float,
    num_at_once: int | None,
    on_end: Callable[[], object],
) -> Played:
    known = {number: ask.known for number, ask in enumerate(asks)}
    flexed = dict[int, float]()

    def engine(model: Model) -> LengthEngine:
        return LengthEngine(
            known,
            deployment.sketching,
            flexed,
            model=model.name,
            curve=model.curve,
            seed=seed,
            context_tokens=model.context_tokens,
            max_inflight=model.max_inflight,
            piece_tokens=_PIECE_TOKENS,
        )

    cloud = engine(deployment.cloud)
    edges = {name: [engine(model) for model in site.models] for name, site in deployment.sites.items()}
    at_edge = [each for engines in edges.values() for each in engines]
    rtts_s = {name: site.rtt_s for name, site in deployment.sites.items()}
    sites: dict[str, list[Engine]] = {name: [*engines] for name, engines in edges.items()}
    if deployment.expands_itself:
        sites, rtts_s = {ITSELF: [cloud]}, {ITSELF: 0.0}
    for each in (cloud, *at_edge):
        await each.start()
    cluster = Cluster(
        Links(rtts_s, bits_per_s=deployment.bits_per_s),
        MemoryStore(max_open=deployment.max_open or max(1, len(asks))),
        load_prompts("default"),
        deployment.policies,
        cloud=cloud,
        sites=sites,
        rtts_s=rtts_s,
        new_planner=lambda policy: NotedPlanner(policy, flexed),
    )
    await cluster.start()
    for name, at_s in deployment.deaths.items():
        asyncio.get_running_loop().call_later(at_s, cluster.nodes[f"site-{name}"].life.kill)
    ended = await _ask_all(cluster, asks, timeout_s, num_at_once, on_end)
    await cluster.stop()
    return Played(ended, cloud.num_written, sum(each.num_written for each in at_edge))


async def _ask_all(
    cluster: Cluster, asks: Sequence[Ask], timeout_s: float, num_at_once: int | None, on_end: Callable[[], object]
) -> list[Ended]:
    clock = asyncio.get_running_loop()
    began_s = clock.time()
    slots = asyncio.Semaphore(num_at_once or len(asks))

    async def one(number: int, ask: Ask) -> Ended:
        if num_at_once is None:
            await asyncio.sleep(began_s + ask.at_s - clock.time())
        async with slots:
            asked_s = clock.time() - began_s
            message = Message("user", numbered(number, ask.text))
            request = Request(
                f"req{number}",
                (message,),
                Sampling(max_tokens=2 * ask.known.num_tokens + _TOKENS_TO_SPARE, seed=number),
                timeout_s,
                ask.mode,
            )
            try:
                answer = await cluster.client.ask(request)
            except PiceError as error:
                now_s = clock.time() - began_s
                code = error.failure_code if isinstance(error, RequestFailed) else error.code
                return Ended(asked_s, now_s, "", now_s - asked_s, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, code)
            finally:
                on_end()
            return _ended(answer, asked_s, clock.time() - began_s)

    return await asyncio.gather(*(one(number, ask) for number, ask in enumerate(asks)))


def _ended(answer: Answer, asked_s: float, ended_s: float) -> Ended:
    plan, usage, times = answer.plan, answer.usage, answer.times
    expected_s = {"cloud": plan.t_cloud_s, "edge": plan.t_edge_s, "progressive": plan.t_progressive_s}[answer.mode]
    return Ended(
        asked_s,
        ended_s,
        answer.mode,
        ended_s - asked_s,
        times.ttft_s,
        times.sketch_s,
        expected_s,
        len(answer.spans),
        usage.num_cloud_output_tokens,
        usage.num_edge_output_tokens,
        usage.num_answer_tokens,
        len(answer.degraded),
    )
