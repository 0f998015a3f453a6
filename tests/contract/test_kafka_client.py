"""What Kafka refuses, and how that is said."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pice.errors import ConfigError, TransportError
from tests.contract.kafka_transport import kafka_options

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from aiokafka import errors as refusals

from pice.kafka_client import KafkaClient, KafkaOptions

NOWHERE = "127.0.0.1:1"
_CREATE_TOPICS = 19


async def check(options: KafkaOptions) -> None:
    async with asyncio.timeout(20):
        await KafkaClient(options).check()


@asynccontextmanager
async def broker_of_version(create_topics: int) -> AsyncIterator[str]:
    """The address of what knows only requests for versions, and itself supports this one of those to make topics."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = await reader.readexactly(12)
            await reader.readexactly(struct.unpack(">i", head[:4])[0] - 8)
            body = struct.pack(">ihihhh", *struct.unpack(">i", head[8:]), 0, 1, _CREATE_TOPICS, 0, create_topics)
            writer.write(struct.pack(">i", len(body)) + body)
        await reader.read()
        writer.close()
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await left.wait()


async def test_broker_that_takes_us_passes() -> None:
    await check(kafka_options())


async def test_brokers_that_are_not_there_are_named_with_the_cause() -> None:
    options = kafka_options("127.0.0.1:1,127.0.0.1:2")
    causes = r"127\.0\.0\.1:1: \[Errno \d+\] Connect.*; 127\.0\.0\.1:2: \[Errno \d+\] Connect"
    with pytest.raises(TransportError, match=f"Kafka cannot be reached: {causes}"):
        await check(options)


async def test_one_broker_that_is_there_is_enough() -> None:
    options = kafka_options()
    await check(replace(options, bootstrap_servers=f"{NOWHERE},{options.bootstrap_servers}"))


async def test_broker_that_is_too_old_is_refused() -> None:
    async with broker_of_version(3) as address:
        with pytest.raises(ConfigError, match=rf"{address}: Kafka 2\.4 or newer is needed, .*: upgrade the broker"):
            await check(kafka_options(address))


async def test_credentials_for_a_port_that_takes_none_are_refused() -> None:
    options = replace(kafka_options(), security_protocol="SASL_PLAINTEXT", username="cloud", password="secret")
    with pytest.raises(ConfigError, match=r"takes no SASL: check kafka\.security_protocol"):
        await check(options)


async def test_tls_to_a_port_that_takes_none_is_refused() -> None:
    """A broker hangs up on what it does not understand."""
    with pytest.raises((ConfigError, TransportError), match=r"127\.0\.0\.1:\d+"):
        await check(replace(kafka_options(), security_protocol="SSL"))


def test_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=r"kafka\.ca_file.*ca\.pem cannot be used"):
        KafkaClient(replace(kafka_options(NOWHERE), security_protocol="SSL", ca_file=missing))


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(replace(kafka_options(NOWHERE), password="secret"))


def test_errors_say_what_to_change_or_that_it_may_pass() -> None:
    kafka = KafkaClient(kafka_options(NOWHERE))
    for error, kind, words in [
        (refusals.TopicAuthorizationFailedError("t"), ConfigError, "right to the topic"),
        (refusals.GroupAuthorizationFailedError("g"), ConfigError, "right to the group"),
        (refusals.NotLeaderForPartitionError(), TransportError, "NotLeader"),
        (refusals.ConsumerStoppedError(), TransportError, "ConsumerStopped"),
        (TimeoutError(), TransportError, "no answer in time"),
        (ConnectionResetError("gone"), TransportError, "gone"),
    ]:
        with (
            pytest.raises(kind, match=rf"^Kafka at 127\.0\.0\.1:1: reading: .*{words}"),
            kafka.mapped("reading"),
        ):
            raise error
