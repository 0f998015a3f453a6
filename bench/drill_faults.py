"""What is done to a deployment in a drill: one thing after another, each undone before the next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench.drill_junk import Junk, flood, known, places
from bench.drill_load import Load
from bench.drill_pour import pour
from bench.drill_service import Service
from bench.drill_stage import STANDBY, Stage
from pice.core import CLOUD_SITE

_PLAIN, _CUT_OFF = "oslo", "montreal"
"""A site that reaches the brokers as they are, and one with links of its own and nobody to stand by."""
_FORGERS_MODEL = "small"


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard it is made. `down_s` is how long something stays dead, `away_s` how long it is paused or cut off;
    that is longer than a lease, so that a standby takes over."""

    down_s: float
    away_s: float
    num_junk_rounds: int
    num_job_lines: int
    quiet_s: float


FULL = Pace(down_s=5.0, away_s=12.0, num_junk_rounds=40, num_job_lines=300, quiet_s=10.0)
QUICK = Pace(down_s=2.0, away_s=8.0, num_junk_rounds=5, num_job_lines=100, quiet_s=4.0)


class Trouble:
    """What can be done to a stage while a load is on it."""

    def __init__(self, stage: Stage, load: Load, pace: Pace) -> None:
        self._stage = stage
        self._load = load
        self._pace = pace

    async def kill_cloud_node(self) -> None:
        """The one that serves the cloud's own site too."""
        await self._kill([(await self._stage.until_held(CLOUD_SITE)).name])

    async def kill_site(self) -> None:
        await self._kill([_PLAIN])

    async def kill_collector(self) -> None:
        await self._kill(["collector-1"])

    async def kill_both_of_each(self) -> None:
        """No cloud node and no collector is left for a while."""
        await self._kill(["cloud-1", "cloud-2", "collector-1", "collector-2"])

    async def kill_redis(self) -> None:
        await asyncio.to_thread(self._stage.redis.kill)
        await asyncio.sleep(self._pace.down_s)
        await asyncio.to_thread(self._stage.redis.restart)

    async def pause_redis(self) -> None:
        self._stage.redis.pause()
        await asyncio.sleep(self._pace.away_s)
        self._stage.redis.resume()

    async def kill_kafka(self) -> None:
        await asyncio.to_thread(self._stage.kafka.kill)
        await asyncio.sleep(self._pace.down_s)
        await asyncio.to_thread(self._stage.kafka.restart)

    async def pause_kafka(self) -> None:
        self._stage.kafka.pause()
        await asyncio.sleep(self._pace.away_s)
        self._stage.kafka.resume()

    async def cut_site_off(self) -> None:
        """Its connections break and no new ones are made; nobody stands by."""
        for link in self._stage.links[_CUT_OFF]:
            await link.cut()
        await asyncio.sleep(self._pace.away_s)
        for link in self._stage.links[_CUT_OFF]:
            await link.mend()

    async def stall_site(self) -> None:
        """Its standby takes the site over, and then all that the one before had sent arrives."""
        before = await self._far_holder()
        for link in self._stage.links[STANDBY]:
            link.stall()
        await self._stage.until_held(STANDBY, by_other_than=before)
        await asyncio.sleep(self._pace.down_s)
        for link in self._stage.links[STANDBY]:
            await link.mend()

    async def _far_holder(self) -> Service:
        """The process whose links can be stalled holds the lease: else the other one is killed for it."""
        holder = await self._stage.until_held(STANDBY)
        if holder.name == STANDBY:
            return holder
        holder.kill()
        held = await self._stage.until_held(STANDBY, by_other_than=holder)
        holder.start()
        return held

    async def kill_holder(self) -> None:
        """It stays dead until its standby serves."""
        holder = await self._stage.until_held(STANDBY)
        holder.kill()
        await self._stage.until_held(STANDBY, by_other_than=holder)
        await asyncio.sleep(self._pace.down_s)
        holder.start()

    async def flood_with_junk(self) -> None:
        """Whatever should go to `pice.dead` is noted."""
        partitions: dict[str, list[int]] = {}
        for site in await self._stage.ports.registry.sites():
            partitions.setdefault(site.pool, []).append(site.partition)
        junk = list[Junk]()
        for number in range(self._pace.num_junk_rounds):  # whom there is to forge for changes all the time
            ids = (self._load.open_ids(), self._load.finished_ids())
            forger = known(self._stage.secret, _PLAIN, STANDBY, _FORGERS_MODEL, ids)
            batch = list(flood(places(partitions), forger, number))
            await pour(self._stage.ports, self._stage.settings, self._stage.address, batch)
            junk += batch
        self._stage.buried |= {one.key for one in junk if one.buried}
        self._stage.num_junk += len(junk)

    async def _kill(self, names: Sequence[str]) -> None:
        """As by `kill -9`, and starts them again after a while."""
        for name in names:
            self._stage.services[name].kill()
        await asyncio.sleep(self._pace.down_s)
        for name in names:
            self._stage.services[name].start()


Strike = Callable[[Trouble], Awaitable[None]]

FAULTS: Sequence[tuple[str, Strike]] = (
    ("cloud node killed", Trouble.kill_cloud_node),
    ("site killed", Trouble.kill_site),
    ("collector killed", Trouble.kill_collector),
    ("all clouds, collectors killed", Trouble.kill_both_of_each),
    ("Redis killed", Trouble.kill_redis),
    ("Redis paused", Trouble.pause_redis),
    ("Kafka killed", Trouble.kill_kafka),
    ("Kafka paused", Trouble.pause_kafka),
    ("site cut off", Trouble.cut_site_off),
    ("site stalled, standby", Trouble.stall_site),
    ("holder killed, standby", Trouble.kill_holder),
    ("junk on all topics", Trouble.flood_with_junk),
)
