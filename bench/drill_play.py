"""Plays a whole drill: the stage, the load, every fault, and what is left."""

import asyncio
import sys
from pathlib import Path

from bench.drill_after import dead_keys, num_waiting, request_keys, until_no_lag
from bench.drill_counts import Leftovers, Window, dead_letters
from bench.drill_faults import FAULTS, Pace, Strike, Trouble
from bench.drill_job import submit
from bench.drill_load import Auditor, Load
from bench.drill_report import PER_S, Drilled
from bench.drill_stage import Stage, staged
from bench.drill_wait import until
from pice.app import open_pipeline
from pice.store.redis_keys import RedisKeys

_NO_LAG_WITHIN_S = 30.0
_NO_KEYS_AFTER_S = 5.0
"""How long after the last record's expiry Redis may take to forget it."""


async def drill(num_wanted: int, pace: Pace, kept: Path | None) -> Drilled:
    """Plays every fault, asks until enough was asked, and looks at what is left. Logs stay in the folder `kept`.

    Raises:
        ConfigError: there are no brokers to be had, or a service does not come up again.
    """
    async with staged(kept) as stage, open_pipeline(stage.settings) as pipeline:
        load = Load(pipeline, Auditor(stage.ports, RedisKeys(_prefix(stage))), per_s=PER_S)
        watching = asyncio.create_task(stage.watch())
        job = await submit(stage, pace.num_job_lines)
        async with load.asking():
            windows = [await _play(name, strike, stage, load, pace) for name, strike in FAULTS]
            await until(lambda: load.num_asked >= num_wanted)
        watching.cancel()
        ended = await job.fate()
        left = await _leftovers(stage)
        timeout_s = stage.settings.limits.request_timeout_s
        return Drilled(load.fates, windows, ended, left, load.forged, stage.num_junk, timeout_s)


async def _play(name: str, strike: Strike, stage: Stage, load: Load, pace: Pace) -> Window:
    """A quiet time, then one fault, until all that it met is over."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(pace.quiet_s)
    _say(f"{name} ...")
    begin_s = loop.time()
    await strike(Trouble(stage, load, pace))
    ready_s = await stage.all_ready()
    await load.settled()
    _say(f"{name}: {loop.time() - begin_s:.0f} s, ready after {ready_s:.1f} s, {load.num_asked} asked so far")
    return Window(name, begin_s, loop.time(), ready_s)


async def _leftovers(stage: Stage) -> Leftovers:
    """While the services still run, but for how they end."""
    _say("waiting until nothing is left ...")
    lag = await until_no_lag(stage.address, _NO_LAG_WITHIN_S)
    waiting = await num_waiting(stage.ports.redis, _prefix(stage))
    await asyncio.sleep(stage.settings.limits.record_ttl_s + _NO_KEYS_AFTER_S)
    keys = await request_keys(stage.ports.redis, _prefix(stage))
    missing, doubled, foreign = dead_letters(await dead_keys(stage.address), stage.buried)
    codes = {service.name: await service.stop() for service in stage.services.values()}
    ended = (
        *stage.ended,
        *(f"{name} was asked to end and did so with {code}" for name, code in codes.items() if code != 0),
    )
    return Leftovers(lag, tuple(keys), waiting, missing, doubled, foreign, ended)


def _prefix(stage: Stage) -> str:
    assert stage.settings.redis is not None
    return stage.settings.redis.prefix


def _say(text: str) -> None:
    print(f"drill: {text}", file=sys.stderr, flush=True)
