"""A Redis Cluster of a test run's own: three nodes that take writes, and one that stands by for the first."""

import atexit
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from redis import Redis

from tests.brokers import redis_url
from tools.brokers.program import Program, found, free_port
from tools.brokers.redis_server import SETTINGS, answers, as_words

_NUM_PRIMARIES = 3
_NUM_SLOTS = 16384
_NODE_TIMEOUT_MS = 1000
_SETTINGS = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": str(_NODE_TIMEOUT_MS),
    "cluster-require-full-coverage": "no",
}
_KEPT = {"appendonly": "yes", "appendfsync": "always"}


class OwnCluster:
    """Runs from its making to `stop`."""

    def __init__(self, folder: Path, *, with_replica: bool = False) -> None:
        self.programs: list[Program] = []
        self._ports: list[int] = []
        try:
            self._start(folder, _NUM_PRIMARIES + with_replica)
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Of its last primary."""
        return f"redis://127.0.0.1:{self._ports[_NUM_PRIMARIES - 1]}/0"

    def stop(self) -> None:
        """May be called twice."""
        for program in self.programs:
            program.stop()

    def says(self, number: int, *words: Any) -> Any:
        """What a node replies to a command."""
        with Redis(port=self._ports[number], decode_responses=True) as node:
            node.response_callbacks.clear()
            return node.execute_command(*words)

    def until_up(self) -> None:
        """Returns when all nodes that have slots say that the Cluster is up."""
        self._until(lambda: all("cluster_state:ok" in self.says(number, "CLUSTER", "INFO") for number in range(3)))

    def move(self, key: str, source: int, target: int) -> None:
        """Moves a key from one node to the other, as whoever moves its slot does."""
        self.says(source, "MIGRATE", "127.0.0.1", self._ports[target], key, 0, 5000)

    def _start(self, folder: Path, num_nodes: int) -> None:
        for number in range(num_nodes):
            port, own = _port(), folder / f"node-{number}"
            own.mkdir()
            settings = SETTINGS | _SETTINGS | _KEPT | {"bind": "127.0.0.1", "port": str(port), "dir": str(own)}
            program = Program(f"redis-{number}", [found("redis-server", "redis-server"), *as_words(settings)], folder)
            self.programs.append(program)
            self._ports.append(port)
            program.wait_until(lambda port=port: answers(port))  # type: ignore[misc]
        for number in range(num_nodes):
            if number < _NUM_PRIMARIES:
                first, end = (_NUM_SLOTS * at // _NUM_PRIMARIES for at in (number, number + 1))
                self.says(number, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            self.says(number, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            self.says(number, "CLUSTER", "MEET", "127.0.0.1", self._ports[0])
        self._until(lambda: all(self._knows(number, num_nodes) for number in range(num_nodes)))
        if num_nodes > _NUM_PRIMARIES:
            self.says(_NUM_PRIMARIES, "CLUSTER", "REPLICATE", self.says(0, "CLUSTER", "MYID"))
            self._until(lambda: "master_link_status:up" in self.says(_NUM_PRIMARIES, "INFO", "replication"))

    def _knows(self, number: int, num_nodes: int) -> bool:
        state = self.says(number, "CLUSTER", "INFO")
        return "cluster_state:ok" in state and f"cluster_known_nodes:{num_nodes}" in state

    def _until(self, is_so: Callable[[], bool]) -> None:
        self.programs[-1].wait_until(is_so)


def _port() -> int:
    """One to which the bus of a Cluster's node, 10,000 above it, fits too."""
    while (port := free_port()) > 55535:
        continue
    return port


@cache
def _shared() -> OwnCluster:
    folder = tempfile.TemporaryDirectory(prefix="pice-cluster-")
    cluster = OwnCluster(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(cluster.stop)
    return cluster


def redis_cluster_url() -> str:
    """One that the tests of this run share; skips the test where there is no Redis."""
    redis_url()
    return _shared().url
