"""A Kafka of a test's own, to be stopped, paused and started, and to be told who may do what."""

import os
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.brokers import kafka_address
from tools.brokers.errors import NoBrokers
from tools.brokers.kafka_server import ADMIN, start_kafka
from tools.brokers.program import Program, free_port

if TYPE_CHECKING:
    from pice.kafka_client import KafkaOptions

_TOPIC, _GROUP = 2, 3
_OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Alter": 7, "Describe": 8, "DescribeConfigs": 10}
_PATTERNS = {"literal": 3, "prefixed": 4}
_ALLOW = 3
"""Kafka's numbers for what its command names."""


@dataclass(frozen=True)
class OwnKafka:
    """Runs until its block ends. With `users`, passwords by name, it asks who one is."""

    program: Program
    address: str
    users: Mapping[str, str]

    def options(self, user: str = "", **others: Any) -> "KafkaOptions":
        """To connect as one of the users."""
        from pice.kafka_client import KafkaOptions

        if not user:
            return KafkaOptions(self.address, **others)
        known = {"security_protocol": "SASL_PLAINTEXT", "username": user, "password": self.users.get(user, "")}
        return KafkaOptions(self.address, **(known | others))

    async def allow(self, *rules: str) -> None:
        """Gives users rights, each as `kafka-acls.sh` takes it after `--allow-principal`."""
        from aiokafka.protocol.admin import CreateAclsRequest

        from pice.kafka_client import KafkaClient

        async with KafkaClient(self.options(ADMIN)).admin() as admin:
            for right in (right for rule in rules for right in _rights(rule)):
                answer = await admin._send_request(CreateAclsRequest(*right))
                assert [code for code, _ in answer.creation_responses] == [0]


def _rights(rule: str) -> Iterator[tuple[Any, ...]]:
    parser = ArgumentParser()
    parser.add_argument("principal")
    parser.add_argument("--operation", action="append")
    parser.add_argument("--topic")
    parser.add_argument("--group")
    parser.add_argument("--resource-pattern-type", default="literal")
    said = parser.parse_args(shlex.split(rule))
    kind, name = (_TOPIC, said.topic) if said.topic else (_GROUP, said.group)
    for operation in said.operation:
        pattern = _PATTERNS[said.resource_pattern_type]
        yield kind, name, pattern, said.principal, "*", _OPERATIONS[operation], _ALLOW


@contextmanager
def own_kafka(
    folder: Path, users: Mapping[str, str] | None = None, *, settings: Mapping[str, str] | None = None
) -> Iterator[OwnKafka]:
    """Skips the test, or fails it, where the brokers that tests share would; and where none can be started here."""
    pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")
    kafka_address()
    port = free_port()
    try:
        program = start_kafka(folder, port, users=users, settings=settings, quick=True)
    except NoBrokers as error:
        if os.environ.get("PICE_REQUIRE_BROKERS") == "1":
            pytest.fail(str(error))
        pytest.skip(f"needs a Kafka of its own: {error}")
    try:
        yield OwnKafka(program, f"127.0.0.1:{port}", users or {})
    finally:
        program.stop()
