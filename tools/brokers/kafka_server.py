"""Apache Kafka from its Maven artifacts: one node in KRaft mode, broker and controller in one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tools.brokers.errors import NoBrokers
from tools.brokers.program import Program, found, free_port, listens

VERSION = "4.1.1"
CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
ADMIN = "admin"
"""The user who may do anything, where there are users."""
_JAVA = ("-Xmx512m",)
_QUICK = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_POM = """\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>pice</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{version}</version>
    </dependency>
  </dependencies>
</project>
"""
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


def start_kafka(
    folder: Path,
    port: int,
    *,
    users: Mapping[str, str] | None = None,
    advertised: Mapping[int, int] | None = None,
    settings: Mapping[str, str] | None = None,
    quick: bool = False,
) -> Program:
    """A Kafka on an empty log, once it answers. Topics are not made by themselves.

    With `users`, passwords by name, it takes SASL alone (SASL_PLAINTEXT, by PLAIN or SCRAM-SHA-512) and obeys access
    lists: `admin` may do anything, everyone else what was allowed. To clients that come to one of the ports in
    `advertised` it says that it is found at the other port, where something stands between. `settings` go last. A
    `quick` one is there in half the time, and slower at work.

    Raises:
        NoBrokers: there is no Java, its artifacts cannot be had, or it does not start.
    """
    java, jars = found("java", "openjdk-17-jre-headless"), _jars()
    run = [java, *_JAVA, *(_QUICK if quick else ()), "-cp", f"{jars}/*"]
    controller = free_port()
    known = single_node(port, controller) | {"log.dirs": f"{folder}/data"}
    known |= _guarded(port, controller, users) if users else {}
    known |= _with_doors(known, advertised or {}) | dict(settings or {})
    file = folder / "kafka.properties"
    file.write_text("".join(f"{name}={value}\n" for name, value in known.items()), encoding="utf-8")
    _format([*run, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(file)], users or {})
    program = Program("kafka", [*run, "kafka.Kafka", str(file)], folder)
    program.wait_until(lambda: listens(port))
    return program


def single_node(port: int, controller: int, *, host: str = "127.0.0.1") -> dict[str, str]:
    """Settings of a broker that is its own controller, on two ports. It listens on `host` and is found at loopback."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
    }


def _guarded(port: int, controller: int, users: Mapping[str, str]) -> dict[str, str]:
    """By which clients must say who they are. The broker itself uses a port of its own, as ANONYMOUS."""
    own = free_port()
    known = " ".join(f'user_{name}="{password}"' for name, password in users.items())
    return {
        "listeners": f"CLIENT://127.0.0.1:{port},OWN://127.0.0.1:{own},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{port},OWN://127.0.0.1:{own}",
        "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,OWN:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "OWN",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.client.plain.sasl.jaas.config": f"{_PLAIN} required {known};",
        "listener.name.client.scram-sha-512.sasl.jaas.config": f"{_SCRAM} required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{ADMIN};User:ANONYMOUS",
    }


def _with_doors(known: Mapping[str, str], advertised: Mapping[int, int]) -> dict[str, str]:
    """The listeners, and one more for each port in `advertised`."""
    doors = {f"DOOR{number}": ports for number, ports in enumerate(advertised.items())}
    more = {
        "listeners": [f"{name}://127.0.0.1:{port}" for name, (port, _) in doors.items()],
        "advertised.listeners": [f"{name}://127.0.0.1:{found_at}" for name, (_, found_at) in doors.items()],
        "listener.security.protocol.map": [f"{name}:PLAINTEXT" for name in doors],
    }
    return {name: ",".join([known[name], *values]) for name, values in more.items()}


def _format(command: list[str], users: Mapping[str, str]) -> None:
    """Makes the log, and the users in it that are known by SCRAM."""
    for name, password in users.items():
        command = [*command, "--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
    formatted = subprocess.run(command, capture_output=True, text=True, check=False)
    if formatted.returncode:
        raise NoBrokers(f"Kafka could not format its folder:\n{formatted.stdout}{formatted.stderr}")


def _jars() -> Path:
    """The folder of Kafka's jars; fetched by Maven once, into the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pice" / f"kafka-{VERSION}"
    if not cache.is_dir():
        _fetch(cache)
    return cache


def _fetch(cache: Path) -> None:
    maven = found("mvn", "maven")
    print(f"brokers: fetching Kafka {VERSION} into {cache}", file=sys.stderr)
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        (part / "pom.xml").write_text(_POM.format(version=VERSION), encoding="utf-8")
        command = [maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={part}"]
        fetched = subprocess.run(command, cwd=part, capture_output=True, text=True, check=False)
        if fetched.returncode:
            raise NoBrokers(f"Maven could not fetch Kafka {VERSION}:\n{fetched.stdout}{fetched.stderr}")
        (part / "pom.xml").unlink()
        part.rename(cache)
    finally:
        shutil.rmtree(part, ignore_errors=True)
