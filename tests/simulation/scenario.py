"""A seed -> a cluster, its traffic and its faults -> what it broke. The same seed always gives the same run."""

import asyncio
import math
import random
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from pice.answer.steps import EnsemblePolicy
from pice.core import CLOUD_SITE, Answer, Candidate, Curve, Message, Mode, Request, Sampling
from pice.engine.base import Engine
from pice.engine.emulated import EmulatedEngine, TextStyle
from pice.errors import Overloaded, RequestFailed
from pice.message.codec import encode
from pice.message.signing import SIGNATURE, signature, site_key
from pice.node.cloud import CloudPolicy
from pice.node.edge import EdgePolicy
from pice.plan.planner import PlanPolicy
from pice.simulation.clock import run_virtual
from pice.simulation.cluster import Cluster, Policies, seeded
from pice.simulation.faults import Faults, FaultyTransport
from pice.sketch.prompts import load_prompts
from pice.transport.base import CANDIDATES, REQUESTS, segments_topic
from tests.simulation.promises import FORGED, IMPOSTURE, NEWS_S, SWEEP_S, Auditor, WatchedStore, broken_by_answer

TIMEOUT_S = 60.0
GRACE_S = 6.0
NUM_ASKED = 50
"""How many calls, one after another, may stand between the end of a request and a site that hears of it."""
QUESTIONS = ("How do tides work?", "What makes a good garden?", "Compare rail and road.", "Why is the sky blue?")


@dataclass(slots=True)
class Result:
    """How a scenario ended: each request's outcome, and every promise that was broken."""

    answers: dict[str, Answer] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    ended_s: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    kills: int = 0


def play(seed: int) -> Result:
    """Runs one scenario to its end on a virtual clock."""
    return run_virtual(Scenario(seed).play())


class Scenario:
    """Draws everything from one seed, part by part."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.result = Result()
        draw = seeded(seed, "shape")
        self.num_clouds, self.num_collectors = draw.choice([1, 1, 2]), draw.choice([1, 1, 2])
        self.sites = [f"s{i}" for i in range(draw.randint(1, 4))]
        self.num_cuts = draw.choice([0, 1, 2])
        self.lost_notices = draw.choice([0.0, 0.0, 0.5])
        draw = seeded(seed, "brokers")
        self.num_outages, self.secret = draw.choice([0, 0, 1, 2]), draw.choice(["", "between us"])
        self.reply_s = draw.choice([0.0, 0.0, 0.002, 0.02])
        self.faults = self._faults(seeded(seed, "faults"))

    async def play(self) -> Result:
        store = WatchedStore(max_open=64, rng=seeded(self.seed, "store"), lost_notices=self.lost_notices)
        news_s = (SWEEP_S if self.lost_notices else NEWS_S) + NUM_ASKED * self.reply_s
        auditor = Auditor(store, idle_s=math.inf if self.num_cuts or self.num_outages else news_s)
        transport = FaultyTransport(seeded(self.seed, "transport"), self.faults, witness=auditor)
        engines = self._engines()
        cluster = Cluster(
            transport,
            store,
            load_prompts("default"),
            self._policies(),
            cloud=engines[CLOUD_SITE][0],
            sites={name: engines[name] for name in self.sites},
            reply_s=self.reply_s,
            secret=self.secret,
        )
        for engine in (engine for site in engines.values() for engine in site):
            await engine.start()
        await cluster.start(num_clouds=self.num_clouds, num_collectors=self.num_collectors)
        async with asyncio.TaskGroup() as tasks:
            for number, request in enumerate(self._requests()):
                tasks.create_task(self._client(cluster, request, number))
            tasks.create_task(self._kill_and_restart(cluster))
            tasks.create_task(self._cut_and_pause(cluster))
            tasks.create_task(self._break_connections(cluster))
            tasks.create_task(self._throw_junk(cluster))
            tasks.create_task(self._impersonate(cluster, store))
        transport.quiet()
        await asyncio.sleep(30)
        await cluster.stop()
        self.result.broken += [*auditor.broken, *self._judge(cluster, store, auditor)]
        return self.result

    def _faults(self, draw: random.Random) -> Faults:
        def rate() -> float:
            return draw.choice([0.0, 0.02, 0.2])

        return Faults(duplicate=rate(), late=rate(), late_s=draw.choice([0.2, 3.0, 8.0]), lost_ack=rate())

    def _policies(self) -> Policies:
        draw = seeded(self.seed, "policies")
        return Policies(
            plan=PlanPolicy(
                margin=draw.choice([0.0, 0.1]),
                segment_words=draw.choice([1, 30, 60]),
                max_segments=draw.choice([1, 4, 16]),
            ),
            cloud=CloudPolicy(eager=draw.random() < 0.8, sketch_grammar=False),
            edge=EdgePolicy(order=draw.choice(["multilist", "fcfs", "longest"]), window=draw.choice([2, 32])),
            ensemble=EnsemblePolicy(
                max_candidates=draw.choice([1, 2, 3]), second_opinion_below=draw.choice([0.0, 0.35, 0.8])
            ),
        )

    def _engines(self) -> dict[str, list[Engine]]:
        draw = seeded(self.seed, "engines")
        engines: dict[str, list[Engine]] = {CLOUD_SITE: [self._engine(draw, "big", 0.03, faulty=False)]}
        for name in self.sites:
            models = draw.sample(["tiny", "small", "other"], draw.choice([1, 1, 2]))
            engines[name] = [self._engine(draw, model, draw.choice([0.01, 0.04, 0.1]), faulty=True) for model in models]
        return engines

    def _engine(self, draw: random.Random, model: str, step_s: float, *, faulty: bool) -> Engine:
        def rate() -> float:
            return draw.choice([0.0, 0.0, 0.1]) if faulty else 0.0

        style = TextStyle(
            points=(1, 9),
            direct_rate=draw.choice([0.0, 0.2]),
            fidelity=draw.random(),
            error_rate=rate(),
            empty_rate=rate(),
            loop_rate=rate(),
            malformed_rate=0.1,
        )
        curve = Curve((1, 8), (step_s, 2 * step_s), prefill_s_per_token=0.0005, base_s=0.02)
        return EmulatedEngine(
            model=model, curve=curve, seed=self.seed, max_inflight=draw.choice([1, 4, 8]), piece_tokens=8, style=style
        )

    def _requests(self) -> list[Request]:
        draw = seeded(self.seed, "requests")
        modes: list[Mode | None] = [None, None, "progressive", "progressive", "edge", "cloud"]
        return [
            Request(
                f"r{i}",
                (Message("user", draw.choice(QUESTIONS)),),
                Sampling(max_tokens=draw.choice([40, 1024]), seed=draw.randrange(100)),
                TIMEOUT_S,
                draw.choice(modes),
            )
            for i in range(draw.randint(2, 8))
        ]

    async def _client(self, cluster: Cluster, request: Request, number: int) -> None:
        draw = seeded(self.seed, f"client-{number}")
        await asyncio.sleep(draw.uniform(0, 5))
        patience_s = draw.uniform(0.1, 4) if draw.random() < 0.15 else None
        started_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(patience_s), aclosing(cluster.client.stream(request)) as events:
                async for event in events:
                    if event.answer is not None:
                        self.result.answers[request.request_id] = event.answer
                    if event.failure is not None:
                        self.result.failures[request.request_id] = f"{event.failure.code}: {event.failure.message}"
        except TimeoutError:
            self.result.cancelled.add(request.request_id)
        except (Overloaded, RequestFailed) as error:
            self.result.failures[request.request_id] = f"{error.failure_code}: {error}"
        self.result.ended_s[request.request_id] = asyncio.get_running_loop().time() - started_s

    async def _kill_and_restart(self, cluster: Cluster) -> None:
        """Nodes die after a number of port calls, so that a death falls between any two of them, and come back."""
        draw = seeded(self.seed, "kills")
        for _ in range(draw.choice([0, 1, 2, 3])):
            await asyncio.sleep(draw.uniform(0, 3))
            name = draw.choice(list(cluster.nodes))
            running = cluster.nodes[name]
            running.life.die_after(draw.randint(1, 30))
            await asyncio.sleep(draw.uniform(0, 3))
            running.life.kill()
            self.result.kills += 1
            await asyncio.sleep(draw.uniform(0, 4))
            cluster.spawn(name)

    async def _cut_and_pause(self, cluster: Cluster) -> None:
        draw = seeded(self.seed, "cuts")
        for _ in range(self.num_cuts):
            await asyncio.sleep(draw.uniform(0, 4))
            name = draw.choice(self.sites)
            node, engines = cluster.nodes[f"site-{name}"], cluster.engines(name)
            paused = [engine for engine in engines if isinstance(engine, EmulatedEngine) and draw.random() < 0.5]
            node.life.cut()
            for engine in paused:
                engine.pause()
            await asyncio.sleep(draw.uniform(0.5, 8))
            node.life.mend()
            for engine in paused:
                engine.resume()

    async def _break_connections(self, cluster: Cluster) -> None:
        """For a while the brokers refuse what one node asks, or their replies are lost."""
        draw = seeded(self.seed, "outages")
        for _ in range(self.num_outages):
            await asyncio.sleep(draw.uniform(0, 4))
            life = cluster.nodes[draw.choice(list(cluster.nodes))].life
            life.refuse()
            await asyncio.sleep(draw.uniform(0.3, 6))
            life.mend()

    async def _throw_junk(self, cluster: Cluster) -> None:
        """Bytes that are no message, messages on the wrong topic, and candidates that nobody asked for."""
        draw = seeded(self.seed, "junk")
        forged = Candidate("r0", 1, 0, "s0" if draw.random() < 0.5 else "mallory", FORGED, "I was never asked.")
        junk = [
            b"",
            b"\xc1",
            draw.randbytes(40),
            encode(forged),
            encode(Request("stray", (Message("user", "On no record."),))),
        ]
        for _ in range(draw.choice([0, 2, 6])):
            await asyncio.sleep(draw.uniform(0, 2))
            topic = draw.choice([REQUESTS, CANDIDATES, segments_topic("main")])
            await cluster.transport.publish(topic, draw.choice(junk), partition=0)

    async def _impersonate(self, cluster: Cluster, store: WatchedStore) -> None:
        """Candidates for segments that are waited for, in the name of the site that was asked, by who lacks its key."""
        draw = seeded(self.seed, "impostors")
        for _ in range(draw.choice([0, 4, 12]) if self.secret else 0):
            await asyncio.sleep(draw.uniform(0, 1.5))
            if not (awaited := store.awaited()):
                continue
            segment, placement = draw.choice(awaited)
            site, model = placement.site, placement.model
            payload = encode(Candidate(segment.request_id, segment.attempt, segment.index, site, model, IMPOSTURE))
            headers = {SIGNATURE: draw.choice(list(self._false_signatures(site, payload)))}
            await cluster.transport.publish(CANDIDATES, payload, key=segment.request_id, headers=headers)

    def _false_signatures(self, site: str, payload: bytes) -> Iterator[bytes]:
        yield b""
        yield signature(site_key("a guess", site), payload)
        yield signature(site_key(self.secret, site), payload + b" ")
        for other in (CLOUD_SITE, *self.sites):
            if other != site:
                yield signature(site_key(self.secret, other), payload)

    def _judge(self, cluster: Cluster, store: WatchedStore, auditor: Auditor) -> Iterator[str]:
        result = self.result
        for request in self._requests():
            yield from self._judge_request(request.request_id, store)
        for answer in result.answers.values():
            yield from broken_by_answer(answer)
        yield from (f"P3: {key} was counted {count} times" for key, count in store.counted.items() if count > 1)
        if any(span.model == FORGED for answer in result.answers.values() for span in answer.spans):
            yield "P10: a forged candidate stands in an answer"
        if store.num_impostures:
            yield f"P10: {store.num_impostures} candidates signed with another key than their site's came to be counted"
        if store.most_open > 64:
            yield f"P7: {store.most_open} requests were open, the limit is 64"
        for topic in (REQUESTS, CANDIDATES, segments_topic("main"), segments_topic(CLOUD_SITE)):
            if left := cluster.transport.num_messages(topic):
                yield f"P2: {left} messages stand on {topic} after everything ended"
        for site, loads in cluster.loads().items():
            if left := sum(load.num_outstanding for load in loads):
                yield f"P11: {left} generations still run at {site}"

    def _judge_request(self, name: str, store: WatchedStore) -> Iterator[str]:
        result = self.result
        if store.ends[name] != 1:
            yield f"P1: request {name} ended {store.ends[name]} times"
        if name not in result.answers and name not in result.failures and name not in result.cancelled:
            yield f"P1: the client of {name} was told nothing"
        if result.ended_s[name] > TIMEOUT_S + GRACE_S:
            yield f"P1: request {name} ended {result.ended_s[name]:.1f} s after it was asked"
        if name in result.failures:
            yield f"P2, P8: request {name} was lost: {result.failures[name]}"
