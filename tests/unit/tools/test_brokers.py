"""`python -m tools.brokers`, and that what it starts are a real Kafka and a real Redis."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import brokers
from tools.brokers import __main__ as command
from tools.brokers import docker
from tools.brokers.errors import NoBrokers
from tools.brokers.program import Program, found

ROOT = Path(__file__).parents[3]
SHOW = "import os; print(*(os.environ.get(name, '-') for name in ('PICE_KAFKA', 'PICE_REDIS', 'PICE_NO_BROKERS')))"


def run(environ: Mapping[str, str], *, code: str = SHOW) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PICE_")}
    words = [sys.executable, "-m", "tools.brokers", "run", "--", sys.executable, "-c", code]
    return subprocess.run(
        words, cwd=ROOT, env=kept | dict(environ), capture_output=True, text=True, check=False, timeout=60
    )


KNOWN = {"PICE_KAFKA": "kafka.example:9092", "PICE_REDIS": "redis://redis.example/0"}


def test_brokers_that_are_named_are_used_and_the_commands_code_is_ours() -> None:
    assert run(KNOWN).stdout.split() == [*KNOWN.values(), "-"]
    assert run(KNOWN, code="raise SystemExit(7)").returncode == 7


def test_command_runs_without_brokers_and_is_told_why() -> None:
    ran = run({"PICE_KAFKA": "known:1", "PATH": "/nowhere"})
    assert ran.returncode == 0
    assert ran.stdout.startswith("known:1 - redis-server is needed")


def test_missing_brokers_are_a_failure_where_they_are_required() -> None:
    ran = run({"PICE_KAFKA": "known:1", "PATH": "/nowhere", "PICE_REQUIRE_BROKERS": "1"})
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "redis-server is needed" in ran.stderr


def test_program_that_is_nowhere_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoBrokers, match=r"no-such-program is needed .*\(Debian's package: nothing\)"):
        found("no-such-program", "nothing")


def test_program_that_ends_early_gives_its_last_words(tmp_path: Path) -> None:
    program = Program("broken", [sys.executable, "-c", "print('no port left'); raise SystemExit(3)"], tmp_path)
    with pytest.raises(NoBrokers, match=r"(?s)broken ended with 3:.*no port left"):
        program.wait_until(lambda: False)


def test_program_that_will_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.brokers.program._STOPPED_WITHIN_S", 0.2)
    ready = tmp_path / "ready"
    code = "import signal, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w'); signal.pause()"
    program = Program("stubborn", [sys.executable, "-c", code, str(ready)], tmp_path)
    program.wait_until(ready.exists)
    program.stop()
    assert program._process.returncode == -9


COUNTS_STARTS = """
import pathlib, signal, sys
starts = pathlib.Path(sys.argv[1])
with starts.open("a") as file: file.write("x")
signal.pause()
"""


def test_program_is_restarted_with_what_it_left(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    program = Program("keeper", [sys.executable, "-c", COUNTS_STARTS, str(starts)], tmp_path)
    program.wait_until(lambda: starts.exists() and starts.read_text() != "")
    first = program.pid
    program.restart()
    assert program.pid != first
    program.wait_until(lambda: starts.read_text() == "xx")
    program.kill()
    program.restart()
    program.wait_until(lambda: starts.read_text() == "xxx")
    program.stop()


def test_program_that_is_paused_can_be_stopped_and_goes_on_when_resumed(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    code = "import sys, time\nwhile True: open(sys.argv[1], 'ab').write(b'.'); time.sleep(0.01)"
    program = Program("beating", [sys.executable, "-c", code, str(beats)], tmp_path)
    program.wait_until(beats.exists)
    program.pause()
    os.waitid(os.P_PID, program._process.pid, os.WSTOPPED | os.WNOWAIT)
    size = beats.stat().st_size
    program.resume()
    program.wait_until(lambda: beats.stat().st_size > size)
    program.pause()
    program.stop()
    assert program._process.returncode == -15


DOCKER = """#!/bin/sh
echo "$@" >> "$DOCKER_LOG"
case "$1" in
  info) echo "$DOCKER_ENGINE" ;;
  run) echo container-1 ;;
  inspect) echo true ;;
esac
"""


@pytest.fixture
def docker_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for Docker, with an engine, was told."""
    program = tmp_path / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_LOG", str(tmp_path / "told"))
    monkeypatch.setenv("DOCKER_ENGINE", "28.0")
    return tmp_path / "told"


def test_docker_without_an_engine_is_not_used(docker_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert docker.has_engine()
    monkeypatch.setenv("DOCKER_ENGINE", "")
    assert not docker.has_engine()
    monkeypatch.setenv("PATH", "/nowhere")
    assert not docker.has_engine()


def test_containers_are_started_where_there_is_an_engine_and_removed(
    docker_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(docker, "listens", lambda port: True)
    monkeypatch.setattr("tools.brokers.redis_server.answers", lambda port: True)
    with command.brokers({"PICE_KAFKA": 7001, "PICE_REDIS": 7002}) as addresses:
        assert addresses == {"PICE_KAFKA": "127.0.0.1:7001", "PICE_REDIS": "redis://127.0.0.1:7002/0"}
    info, kafka, redis, *removed = docker_log.read_text().splitlines()
    assert info.startswith("info")
    assert kafka.startswith("run --detach --publish=127.0.0.1:7001:7001 ")
    assert " --env=KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://127.0.0.1:7001 " in kafka
    assert " --env=KAFKA_AUTO_CREATE_TOPICS_ENABLE=false " in kafka
    assert kafka.endswith(" apache/kafka:4.1.1")
    assert redis.startswith("run --detach --publish=127.0.0.1:7002:6379 redis:7.4 redis-server --save ")
    assert removed == ["rm --force --volumes container-1"] * 2


def test_container_is_restarted_paused_and_resumed(docker_log: Path) -> None:
    container = docker.Container(["image"], lambda: True)
    for act in (container.pause, container.resume, container.kill, container.restart):
        act()
    told = [line.split()[0] for line in docker_log.read_text().splitlines()]
    assert told == ["run", "pause", "unpause", "kill", "restart"]


def test_container_that_ends_early_is_no_broker(docker_log: Path, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(DOCKER.replace("inspect) echo true", "inspect) echo false"))
    with pytest.raises(NoBrokers, match="a container ended"):
        docker.Container(["image"], lambda: False).wait()


def test_docker_that_fails_is_quoted(docker_log: Path, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho no such image >&2\nexit 1\n")
    with pytest.raises(NoBrokers, match=r"docker run failed:\nno such image"):
        docker.Container(["image"], lambda: True)


def test_started_brokers_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []

    class Started:
        def __init__(self, name: str) -> None:
            self.name = name

        def stop(self) -> None:
            stopped.append(self.name)

    programs = {name: lambda folder, port, name=name: Started(name) for name in KNOWN}
    monkeypatch.setattr(command, "PROGRAMS", programs)
    monkeypatch.setattr(docker, "has_engine", lambda: False)
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    with command.brokers({"PICE_KAFKA": 7}) as addresses:
        assert addresses["PICE_KAFKA"] == "127.0.0.1:7"
        assert stopped == []
    assert stopped == ["PICE_REDIS", "PICE_KAFKA"]


async def test_kafka_keeps_a_message() -> None:
    aiokafka = pytest.importorskip("aiokafka", reason="aiokafka is not installed")
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    address, topic = brokers.kafka_address(), f"pice.brokers.{os.getpid()}"
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 2, 1)])
    async with aiokafka.AIOKafkaProducer(bootstrap_servers=address, enable_idempotence=True, acks="all") as producer:
        sent = await producer.send_and_wait(topic, b"kept", partition=1)
    assert (sent.partition, sent.offset) == (1, 0)
    await admin.delete_topics([topic])
    await admin.close()


async def test_redis_answers_and_evicts_nothing() -> None:
    redis = pytest.importorskip("redis.asyncio", reason="redis is not installed")
    client = redis.from_url(brokers.redis_url())
    assert await client.ping()
    assert (await client.config_get("maxmemory-policy")) == {"maxmemory-policy": "noeviction"}
    assert tuple(map(int, (await client.info("server"))["redis_version"].split(".")[:1])) >= (7,)
    await client.aclose()
