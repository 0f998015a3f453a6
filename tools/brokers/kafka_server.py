"""Apache Kafka from its Maven artifacts: one node in KRaft mode, broker and controller in one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.brokers.errors import NoBrokers
from tools.brokers.program import Program, found, free_port, listens

VERSION = "4.1.1"
CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
_HEAP = "-Xmx512m"
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
_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
"""


def start_kafka(folder: Path, port: int) -> Program:
    """A Kafka on an empty log, once it answers. Topics are not made by themselves.

    Raises:
        NoBrokers: there is no Java, its artifacts cannot be had, or it does not start.
    """
    java, jars = found("java", "openjdk-17-jre-headless"), _jars()
    settings = folder / "kafka.properties"
    settings.write_text(_SETTINGS.format(port=port, controller=free_port(), folder=folder), encoding="utf-8")
    run = [java, _HEAP, "-cp", f"{jars}/*"]
    formatted = subprocess.run(
        [*run, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    if formatted.returncode:
        raise NoBrokers(f"Kafka could not format its folder:\n{formatted.stdout}{formatted.stderr}")
    program = Program("kafka", [*run, "kafka.Kafka", str(settings)], folder)
    program.wait_until(lambda: listens(port))
    return program


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
