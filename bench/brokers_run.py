"""Runs of PICE and of the bare loop on the same brokers, alternating."""

from collections.abc import Sequence
from itertools import product
from typing import Any
from uuid import uuid4

from bench.brokers_bare import BareLoop
from bench.brokers_costs import LibrarySampler
from bench.brokers_figures import CONCURRENCY, KINDS, SIZE, Load, Run, as_run, took_s
from bench.brokers_host import Brokers, Spent
from bench.brokers_ours import Recording, serve
from bench.instant import Known
from bench.pipeline import as_profile, num_segments
from bench.report import ROOT, alternating
from pice.config import load_settings
from pice.core import Answer
from pice.settings import Settings

CONFIG = ROOT / "bench" / "brokers.toml"


class Bench:
    """Both kinds on one pair of brokers. `known` is what the engines have written so far."""

    def __init__(self, brokers: Brokers, load: Load) -> None:
        self._brokers = brokers
        self._load = load
        self._known: Known = {}
        self._recording = Recording()

    async def rehearse(self) -> None:
        """A run in which the engines write their texts, and whose messages the bare loop will send."""
        await self._serve(1, self._load.num_busy, CONCURRENCY, self._recording)

    async def measure(self, sites: Sequence[int], num_rounds: int) -> list[Run]:
        """Every run, the kinds alternating. A first round is not measured: it warms the brokers."""
        runs = []
        for number, (num_sites, kind) in alternating(list(product(sites, KINDS)), num_rounds + 1):
            play = self._play_ours if kind == "PICE" else self._play_bare
            run = await play(num_sites, number)
            runs += [run] if number else []
        return runs

    async def profile(self, num_sites: int) -> dict[str, Any]:
        """Where the time of one run goes: by module and function of pice, and by package."""
        with LibrarySampler() as sampler:
            spent, answers = await self._serve(num_sites, self._load.num_busy, CONCURRENCY)
        cpu_us, num_samples = 1e6 * spent.cpu_s / num_segments(answers), sampler.packages.total()
        packages = {name: cpu_us * num / num_samples for name, num in sampler.packages.most_common()}
        return as_profile(sampler.stacks, cpu_us) | {"packages_us": packages}

    async def _play_ours(self, num_sites: int, number: int) -> Run:
        spent, answers = await self._serve(num_sites, self._load.num_busy, CONCURRENCY)
        _, single = await self._serve(num_sites, self._load.num_single, 1)
        return as_run("PICE", num_sites, number, num_segments(answers), spent, took_s(single))

    async def _play_bare(self, num_sites: int, number: int) -> Run:
        busy = BareLoop(self._brokers, _name(), self._recording, num_sites, CONCURRENCY * SIZE.num_points)
        spent, _ = await busy.run(self._load.num_busy * SIZE.num_points, in_bursts=False)
        single = BareLoop(self._brokers, _name(), self._recording, num_sites, SIZE.num_points)
        _, single_s = await single.run(self._load.num_single * SIZE.num_points, in_bursts=True)
        return as_run("bare loop", num_sites, number, self._load.num_busy * SIZE.num_points, spent, single_s)

    async def _serve(
        self, num_sites: int, num_requests: int, concurrency: int, recording: Recording | None = None
    ) -> tuple[Spent, list[Answer]]:
        settings = _settings(self._brokers, num_sites)
        return await serve(
            self._brokers,
            settings,
            self._known,
            num_requests=num_requests,
            concurrency=concurrency,
            recording=recording,
        )


def _settings(brokers: Brokers, num_sites: int) -> Settings:
    """On topics and keys that nobody used before."""
    prefix = _name()
    values = {
        "kafka.bootstrap_servers": brokers.kafka_address,
        "kafka.prefix": f"{prefix}.",
        "redis.url": brokers.redis_url,
        "redis.prefix": prefix,
    }
    settings = load_settings(CONFIG, [f"{name}={value}" for name, value in values.items()], environ={})
    return settings.model_copy(update={"sites": dict(list(settings.sites.items())[:num_sites])})


def _name() -> str:
    return f"b{uuid4().hex[:10]}"
