"""What every job store promises; adapters are parameters of the `make` fixture."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pice.core import Job
from pice.errors import Full, TransportError
from pice.jobs import redis as redis_module
from pice.jobs.base import JobStore, Result
from pice.jobs.memory import MemoryJobs
from pice.redis_client import RedisClient
from pice.redis_lines import Word
from pice.simulation.clock import run_virtual
from tests.brokers import redis_url
from tests.contract.own_cluster import redis_cluster_url
from tests.contract.own_redis import OwnRedis
from tests.contract.redis_jobs import jobs_of, redis_jobs
from tests.contract.redis_stores import keys_of

DEADLINE_S = 5.0
JOB = Job("job_1", "nightly", "ab" * 32, 3)
Make = Callable[[float], JobStore]


@pytest.fixture(params=["memory", "redis", "redis-cluster"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes a store that keeps jobs for so many seconds."""
    if request.param == "memory":
        yield lambda keep_s: MemoryJobs(keep_s=keep_s)
        return
    url = redis_cluster_url() if request.param == "redis-cluster" else redis_url()
    async with redis_jobs(url) as (client, prefix):
        yield lambda keep_s: jobs_of(client, prefix, keep_s)


@pytest.fixture
async def jobs(make: Make) -> JobStore:
    return make(60.0)


def result(name: str, *, answered: bool = True, line: bytes = b"{}\n") -> Result:
    return Result(name, line, answered)


async def known(jobs: JobStore, job_id: str = "job_1") -> Job:
    job = await jobs.job(job_id)
    assert job is not None
    return job


async def found(jobs: JobStore, job_id: str = "job_1") -> list[Result]:
    async with aclosing(jobs.results(job_id)) as results:
        return sorted([each async for each in results], key=lambda each: each.name)


async def forgotten(jobs: JobStore) -> None:
    """Returns when the job is."""
    for _ in range(int(DEADLINE_S / 0.005)):
        if await jobs.job("job_1") is None:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it is still known")


async def test_job_is_made_once_open_and_without_results(jobs: JobStore) -> None:
    await jobs.create(JOB)
    await jobs.create(replace(JOB, name="other", num_lines=7))
    job = await known(jobs)
    assert job == replace(JOB, created_s=job.created_s)
    assert job.created_s > 0
    assert (job.is_open, job.num_left, await found(jobs)) == (True, 3, [])


async def test_unknown_job_is_refused_everywhere(jobs: JobStore) -> None:
    assert await jobs.job("job_9") is None
    assert not await jobs.seal("job_9")
    assert not await jobs.cancel("job_9")
    assert not await jobs.wanted("job_9", "a")
    assert not await jobs.add_result("job_9", result("a"))
    assert (await jobs.job("job_9"), await jobs.jobs(), await found(jobs, "job_9")) == (None, [], [])


async def test_first_result_of_a_name_stands(jobs: JobStore) -> None:
    await jobs.create(JOB)
    assert await jobs.wanted("job_1", "a")
    assert await jobs.add_result("job_1", result("a", line=b"first"))
    assert not await jobs.add_result("job_1", result("a", line=b"second", answered=False))
    assert not await jobs.wanted("job_1", "a")
    assert await jobs.wanted("job_1", "b")
    assert await found(jobs) == [result("a", line=b"first")]
    job = await known(jobs)
    assert (job.num_answered, job.num_failed, job.num_left) == (1, 0, 2)


async def test_of_results_that_come_at_once_one_stands(jobs: JobStore) -> None:
    await jobs.create(JOB)
    kept = await asyncio.gather(*(jobs.add_result("job_1", result("a", line=b"%d" % at)) for at in range(9)))
    assert kept.count(True) == 1
    assert [each.line for each in await found(jobs)] == [b"%d" % kept.index(True)]
    assert (await known(jobs)).num_answered == 1


async def test_last_result_ends_the_job(jobs: JobStore) -> None:
    await jobs.create(JOB)
    await jobs.seal("job_1")
    for name in "abc":
        assert (await known(jobs)).is_open
        assert await jobs.add_result("job_1", result(name, answered=name != "b"))
    job = await known(jobs)
    assert job.ended_s is not None
    assert (job.is_open, job.num_answered, job.num_failed, job.num_left) == (False, 2, 1, 0)
    assert not await jobs.wanted("job_1", "d")
    assert not await jobs.add_result("job_1", result("d"))
    assert not await jobs.cancel("job_1")
    assert await known(jobs) == job


async def test_job_is_sealed_once(jobs: JobStore) -> None:
    await jobs.create(JOB)
    assert (await known(jobs)).sealed_s is None
    assert await jobs.seal("job_1")
    sealed_s = (await known(jobs)).sealed_s
    assert sealed_s is not None
    assert await jobs.seal("job_1")
    assert (await known(jobs)).sealed_s == sealed_s


async def test_cancelled_job_keeps_its_results_and_takes_none(jobs: JobStore) -> None:
    await jobs.create(JOB)
    await jobs.add_result("job_1", result("a"))
    assert await jobs.cancel("job_1")
    job = await known(jobs)
    assert job.cancelled_s is not None
    assert not job.is_open
    assert not await jobs.wanted("job_1", "b")
    assert not await jobs.add_result("job_1", result("b"))
    assert not await jobs.seal("job_1")
    assert await jobs.cancel("job_1")
    assert (await known(jobs), await found(jobs)) == (job, [result("a")])


async def test_all_results_are_read_once_whatever_is_in_them(jobs: JobStore) -> None:
    names = [f"id:{number}" for number in range(300)] + ["line:7", "id:{ü}* [", "id:" + "x" * 5000]
    kept = [Result(name, name.encode() * 10 + b"\xff\0\n", len(name) % 2 == 0) for name in names]
    await jobs.create(replace(JOB, num_lines=len(kept)))
    for each in kept:
        assert await jobs.add_result("job_1", each)
    assert await found(jobs) == sorted(kept, key=lambda each: each.name)


async def test_results_that_come_while_others_are_read_do_no_harm(jobs: JobStore) -> None:
    await jobs.create(replace(JOB, num_lines=400))
    for number in range(100):
        await jobs.add_result("job_1", result(f"early {number}", line=b"x" * 100))
    seen = []
    async with aclosing(jobs.results("job_1")) as results:
        async for each in results:
            seen.append(each.name)
            await jobs.add_result("job_1", result(f"late {len(seen)}", line=b"x" * 100))
    assert len(seen) == len(set(seen))
    assert {f"early {number}" for number in range(100)} <= set(seen)


async def test_jobs_do_not_mix_and_the_newest_is_listed_first(jobs: JobStore) -> None:
    for name in ("job_1", "job_2", "job_3"):
        await jobs.create(replace(JOB, job_id=name))
    await jobs.add_result("job_2", result("a"))
    listed = await jobs.jobs()
    assert [(job.job_id, job.num_answered) for job in listed] == [("job_3", 0), ("job_2", 1), ("job_1", 0)]
    assert listed[0] == await known(jobs, "job_3")
    assert (await found(jobs, "job_1"), await found(jobs, "job_2")) == ([], [result("a")])


@pytest.mark.parametrize("end", ["ended", "cancelled", "abandoned"])
async def test_job_is_forgotten_some_time_after_its_last_change(make: Make, end: str) -> None:
    jobs = make(0.1)
    await jobs.create(replace(JOB, num_lines=1 if end == "ended" else 2))
    await jobs.add_result("job_1", result("a"))
    if end == "cancelled":
        await jobs.cancel("job_1")
    await forgotten(jobs)
    assert (await jobs.jobs(), await found(jobs)) == ([], [])
    assert not await jobs.wanted("job_1", "b")


def test_change_makes_a_job_in_memory_be_kept_longer() -> None:
    async def lives() -> None:
        jobs = MemoryJobs(keep_s=10)
        await jobs.create(replace(JOB, num_lines=1000))
        for number in range(5):
            await asyncio.sleep(9)
            assert await jobs.add_result("job_1", result(f"{number}"))
        await asyncio.sleep(9)
        assert await jobs.cancel("job_1")
        await asyncio.sleep(9)
        assert (await known(jobs)).num_answered == 5
        await asyncio.sleep(1)
        assert await jobs.job("job_1") is None

    run_virtual(lives())


async def test_memory_that_is_full_refuses_and_keeps_what_it_has() -> None:
    jobs = MemoryJobs(max_bytes=10)
    await jobs.create(JOB)
    assert await jobs.add_result("job_1", result("a", line=b"x" * 8))
    with pytest.raises(Full) as refused:
        await jobs.add_result("job_1", result("b", line=b"x" * 8))
    assert refused.value.retry_after_s > 0
    assert ((await known(jobs)).num_answered, await jobs.wanted("job_1", "b")) == (1, True)


@pytest.fixture
async def client_and_prefix() -> AsyncIterator[tuple[RedisClient, str]]:
    async with redis_jobs(redis_url()) as both:
        yield both


async def test_redis_holds_nothing_of_forgotten_jobs(client_and_prefix: tuple[RedisClient, str]) -> None:
    client, prefix = client_and_prefix
    jobs = jobs_of(client, prefix, keep_s=0.05)
    await jobs.create(JOB)
    await jobs.add_result("job_1", result("a"))
    assert len(await keys_of(client, f"{prefix}:*")) == 3
    await forgotten(jobs)
    assert await jobs.jobs() == []
    assert await keys_of(client, f"{prefix}:*") == []


async def test_change_makes_a_job_in_redis_be_kept_longer(client_and_prefix: tuple[RedisClient, str]) -> None:
    client, prefix = client_and_prefix
    jobs, keys = jobs_of(client, prefix, keep_s=1000), [f"{prefix}:{{job_1}}:{kind}" for kind in ("job", "results")]
    await jobs.create(JOB)
    for change in (jobs.add_result("job_1", result("a")), jobs.seal("job_1"), jobs.cancel("job_1")):
        for key in keys:
            await client.call("PEXPIRE", key, 50_000)
        await change
        left_ms = [await client.call("PTTL", key) for key in keys]
        assert min(left_ms) > 900_000


async def test_no_more_than_the_latest_jobs_are_listed(
    client_and_prefix: tuple[RedisClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "_MAX_LISTED", 3)
    jobs = jobs_of(*client_and_prefix)
    for number in range(5):
        await jobs.create(replace(JOB, job_id=f"job_{number}"))
    assert [job.job_id for job in await jobs.jobs()] == ["job_4", "job_3", "job_2"]
    assert await jobs.job("job_0") is not None


async def test_keys_of_a_job_share_a_hash_tag(client_and_prefix: tuple[RedisClient, str]) -> None:
    client, prefix = client_and_prefix
    jobs = jobs_of(client, prefix)
    await jobs.create(JOB)
    await jobs.add_result("job_1", result("a"))
    assert await keys_of(client, f"{prefix}:*{{job_1}}:*") == [
        f"{prefix}:{{job_1}}:job".encode(),
        f"{prefix}:{{job_1}}:results".encode(),
    ]


async def test_scan_that_repeats_itself_gives_each_result_once(
    client_and_prefix: tuple[RedisClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Redis may while it makes a hash larger or smaller."""
    (client, prefix), cursors = client_and_prefix, []
    jobs, call = jobs_of(client, prefix), client.call

    async def repeating(*words: Word) -> Any:
        if words[0] != "HSCAN":
            return await call(*words)
        cursors.append(words[2])
        reply = await call("HSCAN", words[1], 0)
        return [b"7", reply[1]] if len(cursors) == 1 else reply

    await jobs.create(JOB)
    for name in "ab":
        await jobs.add_result("job_1", result(name))
    monkeypatch.setattr(client, "call", repeating)
    assert await found(jobs) == [result("a"), result("b")]
    assert cursors == [0, b"7"]


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    redis_url()
    own = OwnRedis(tmp_path)
    await own.start()
    yield own
    await own.stop()


async def test_full_redis_refuses_results_and_lets_jobs_be_sealed_cancelled_and_read(own_redis: OwnRedis) -> None:
    async with redis_jobs(own_redis.url) as (client, prefix):
        jobs = jobs_of(client, prefix)
        await jobs.create(replace(JOB, num_lines=1000))
        assert await jobs.add_result("job_1", result("first"))
        await client.call("CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(Full) as refused:
            await jobs.add_result("job_1", result("second"))
        assert refused.value.retry_after_s > 0
        assert await jobs.wanted("job_1", "second")
        assert await jobs.seal("job_1")
        assert (await known(jobs)).num_answered == 1
        assert await found(jobs) == [result("first")]
        assert await jobs.cancel("job_1")
        await client.call("CONFIG", "SET", "maxmemory", "0")


async def test_redis_that_is_gone_is_told_as_such(own_redis: OwnRedis) -> None:
    async with redis_jobs(own_redis.url) as (client, prefix):
        jobs = jobs_of(client, prefix)
        await jobs.create(JOB)
        await own_redis.stop()
        for call in (jobs.create(JOB), jobs.job("job_1"), jobs.jobs(), jobs.add_result("job_1", result("a"))):
            with pytest.raises(TransportError, match=r"127\.0\.0\.1"):
                await call
        await own_redis.start()
