"""A Kafka and a Redis of a benchmark's own, and what they and this process spend."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.instant import measured
from pice.errors import ConfigError
from tools.brokers.errors import NoBrokers
from tools.brokers.kafka_server import start_kafka
from tools.brokers.program import Program, free_port
from tools.brokers.redis_server import start_redis


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of the clock, and of CPU time: this process's and the brokers'."""

    wall_s: float
    cpu_s: float
    kafka_s: float
    redis_s: float


@dataclass(frozen=True, slots=True)
class Brokers:
    """Both, and where they are: HOST:PORT, and a URL."""

    kafka: Program
    redis: Program
    kafka_address: str
    redis_url: str

    @asynccontextmanager
    async def metered(self) -> AsyncIterator[Callable[[], Spent]]:
        """Measures the block; what it took is known when it has ended."""
        before = [cpu_s(program.pid) for program in (self.kafka, self.redis)]
        spent = list[Spent]()
        async with measured() as cost:
            yield lambda: spent[0]
        kafka_s, redis_s = (cpu_s(it.pid) - was for it, was in zip((self.kafka, self.redis), before, strict=True))
        spent.append(Spent(cost().wall_s, cost().cpu_s, kafka_s, redis_s))


@contextmanager
def started() -> Iterator[Brokers]:
    """Both, until the block ends.

    Raises:
        ConfigError: they cannot be had.
    """
    with TemporaryDirectory(prefix="pice-brokers-") as name:
        folder, port, redis_port = Path(name), free_port(), free_port()
        try:
            redis = start_redis(folder, redis_port)
        except NoBrokers as error:
            raise ConfigError(str(error)) from error
        try:
            kafka = start_kafka(folder, port)
        except NoBrokers as error:
            redis.stop()
            raise ConfigError(str(error)) from error
        try:
            yield Brokers(kafka, redis, f"127.0.0.1:{port}", f"redis://127.0.0.1:{redis_port}/0")
        finally:
            kafka.stop()
            redis.stop()


@contextmanager
def cluster_packages() -> Iterator[None]:
    """For imports of what needs the clients of Kafka and Redis.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs the package {error.name}: pip install 'pice[cluster]'") from error


def cpu_s(pid: int) -> float:
    """CPU time that a process has taken, in all its threads; 0 where the system does not say."""
    path = Path(f"/proc/{pid}/stat")
    if not path.exists():
        return 0.0
    fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
