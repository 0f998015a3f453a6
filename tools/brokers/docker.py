"""Brokers as containers of a Docker engine, from the official images. Nobody has run this with a real engine yet: tests
run it with a stand-in for `docker` that notes what it is told."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence

from tools.brokers import kafka_server, redis_server
from tools.brokers.errors import NoBrokers
from tools.brokers.program import STARTED_WITHIN_S, listens

KAFKA = f"apache/kafka:{kafka_server.VERSION}"
REDIS = "redis:7.4"
_CONTROLLER = 29093
_ANSWERS_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.2


def has_engine() -> bool:
    """Whether there is a Docker engine that answers."""
    if shutil.which("docker") is None:
        return False
    command = ["docker", "info", "--format", "{{.ServerVersion}}"]
    try:
        asked = subprocess.run(
            command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=_ANSWERS_WITHIN_S
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0 and bool(asked.stdout.strip())


class Container:
    """A `tools.brokers.program.Broker` that is a container; stopping it removes it, with its data."""

    def __init__(self, options: Sequence[str], answers: Callable[[], bool]) -> None:
        self._answers = answers
        self._name = _docker("run", "--detach", *options).strip()

    def wait(self) -> None:
        """Returns once it answers.

        Raises:
            NoBrokers: it ended, or does not answer in time.
        """
        until_s = time.monotonic() + STARTED_WITHIN_S
        while not self._answers():
            if _docker("inspect", "--format", "{{.State.Running}}", self._name).strip() != "true":
                raise NoBrokers(f"a container ended:\n{_docker('logs', '--tail', '20', self._name)}")
            if time.monotonic() > until_s:
                self.stop()
                raise NoBrokers(f"a container did not answer within {STARTED_WITHIN_S:g} s")
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        _docker("rm", "--force", "--volumes", self._name)

    def kill(self) -> None:
        _docker("kill", self._name)

    def restart(self) -> None:
        _docker("restart", self._name)
        self.wait()

    def pause(self) -> None:
        _docker("pause", self._name)

    def resume(self) -> None:
        _docker("unpause", self._name)


def start_kafka(port: int) -> Container:
    """As `tools.brokers.kafka_server.start_kafka`."""
    settings = kafka_server.single_node(port, _CONTROLLER, host="0.0.0.0")
    environ = [f"--env={_variable(name)}={value}" for name, value in settings.items()]
    return _started([_published(port, port), *environ, KAFKA], lambda: listens(port))


def start_redis(port: int) -> Container:
    """As `tools.brokers.redis_server.start_redis`."""
    words = redis_server.as_words(redis_server.SETTINGS | {"appendonly": "no"})
    return _started([_published(port, 6379), REDIS, "redis-server", *words], lambda: redis_server.answers(port))


def _started(options: Sequence[str], answers: Callable[[], bool]) -> Container:
    container = Container(options, answers)
    container.wait()
    return container


def _published(port: int, inner: int) -> str:
    return f"--publish=127.0.0.1:{port}:{inner}"


def _variable(name: str) -> str:
    """How the image takes a setting of Kafka's."""
    return "KAFKA_" + name.replace("_", "___").replace("-", "__").replace(".", "_").upper()


def _docker(*words: str) -> str:
    """What it says.

    Raises:
        NoBrokers: it failed.
    """
    done = subprocess.run(
        ["docker", *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=os.environ
    )
    if done.returncode:
        raise NoBrokers(f"docker {words[0]} failed:\n{done.stderr.strip()}")
    return done.stdout
