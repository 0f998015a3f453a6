"""Jobs in Redis, for services and terminals that share them."""

from collections.abc import AsyncGenerator
from typing import Any

from pice.core import Job
from pice.jobs import redis_scripts as scripts
from pice.jobs.base import Result
from pice.redis_client import RedisClient, Script
from pice.redis_lines import Word

_MAX_LISTED = 1000
_NUM_AT_ONCE = 32
_ANSWER, _FAILURE = b"+", b"-"


class RedisJobs:
    """See `pice.jobs.base.JobStore`. Both keys of a job share a hash tag, and each change is one script. The clock is
    Redis's. The latest 1,000 jobs are listed; older ones are found by their id."""

    def __init__(self, client: RedisClient, *, prefix: str = "pice", keep_s: float = 604_800.0) -> None:
        """A job is kept for `keep_s` after its last change."""
        self._client = client
        self._prefix = prefix
        self._keep_s = keep_s
        self._index = f"{prefix}:jobs"

    async def create(self, job: Job) -> None:
        await self._run(scripts.CREATE, job.job_id, self._keep_s, job.name, job.source, job.num_lines)
        created: bytes | None = await self._client.call("HGET", self._key(job.job_id), "created")
        if created is not None:
            add = ("ZADD", self._index, created, job.job_id)
            await self._client.call_all([add, ("ZREMRANGEBYRANK", self._index, 0, -1 - _MAX_LISTED)])

    async def seal(self, job_id: str) -> bool:
        return bool(await self._run(scripts.SEAL, job_id, self._keep_s))

    async def wanted(self, job_id: str, name: str) -> bool:
        return bool(await self._run(scripts.WANTED, job_id, name))

    async def add_result(self, job_id: str, result: Result) -> bool:
        kind = _ANSWER if result.answered else _FAILURE
        return bool(await self._run(scripts.ADD_RESULT, job_id, self._keep_s, result.name, kind, result.line))

    async def cancel(self, job_id: str) -> bool:
        return bool(await self._run(scripts.CANCEL, job_id, self._keep_s))

    async def job(self, job_id: str) -> Job | None:
        return _job(job_id, await self._client.call("HGETALL", self._key(job_id)))

    async def jobs(self) -> list[Job]:
        ids = [each.decode(errors="replace") for each in await self._client.call("ZRANGE", self._index, 0, -1, "REV")]
        replies = await self._client.call_all([("HGETALL", self._key(job_id)) for job_id in ids]) if ids else []
        found = [(job_id, _job(job_id, reply)) for job_id, reply in zip(ids, replies, strict=True)]
        if gone := [job_id for job_id, job in found if job is None]:
            await self._client.call("ZREM", self._index, *gone)
        return [job for _, job in found if job is not None]

    async def results(self, job_id: str) -> AsyncGenerator[Result, None]:
        """A scan of a hash may give a field twice; what was given is remembered by its name."""
        given = set[bytes]()
        cursor = b""
        while cursor != b"0":
            cursor, fields = await self._client.call(
                "HSCAN", self._results_key(job_id), cursor or 0, "COUNT", _NUM_AT_ONCE
            )
            for name, value in zip(fields[::2], fields[1::2], strict=True):
                if name not in given:
                    given.add(name)
                    yield Result(name.decode(), value[1:], value[:1] == _ANSWER)

    async def _run(self, script: Script, job_id: str, *words: Word) -> Any:
        return await self._client.run(script, (self._key(job_id), self._results_key(job_id)), words)

    def _key(self, job_id: str) -> str:
        return f"{self._prefix}:{{{job_id}}}:job"

    def _results_key(self, job_id: str) -> str:
        return f"{self._prefix}:{{{job_id}}}:results"


def _job(job_id: str, reply: list[bytes]) -> Job | None:
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    if not fields:
        return None

    def seconds(name: bytes) -> float | None:
        return float(fields[name]) if name in fields else None

    return Job(
        job_id,
        name=fields[b"name"].decode(),
        source=fields[b"source"].decode(),
        num_lines=int(fields[b"lines"]),
        created_s=float(fields[b"created"]),
        sealed_s=seconds(b"sealed"),
        ended_s=seconds(b"ended"),
        cancelled_s=seconds(b"cancelled"),
        num_answered=int(fields.get(b"answered", 0)),
        num_failed=int(fields.get(b"failed", 0)),
    )
