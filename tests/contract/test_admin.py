"""What an operator does, on real brokers."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pice.config import load_settings
from pice.errors import InputError
from pice.settings import Settings
from pice.transport.base import CANDIDATES, DEAD, REQUESTS, Transport
from tests.brokers import redis_url
from tests.contract.kafka_transport import kafka_options, topics_deleted

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")
pytest.importorskip("redis", reason="redis is not installed: pip install 'pice[cluster]'")

from pice.app.admin import create_topics, describe_topics, list_dead, read_dead, replay_dead
from pice.app.cluster import open_ports

CONFIG = """\
[engines.big]
kind = "emulated"
curve = {{ batch = [1], step_s = [0.0] }}
[cloud]
engine = "big"
[sites.paris]
engines = ["big"]
[kafka]
bootstrap_servers = "{servers}"
prefix = "{prefix}"
num_partitions = 2
[redis]
url = "{redis}"
prefix = "{prefix}"
"""


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[Settings]:
    """Of a deployment of its own, with its topics."""
    options, config = kafka_options(), tmp_path / "cluster.toml"
    config.write_text(CONFIG.format(servers=options.bootstrap_servers, prefix=options.prefix, redis=redis_url()))
    settings = load_settings(config, environ={})
    async with topics_deleted(options):
        await create_topics(settings)
        yield settings


async def put_aside(transport: Transport, topic: str, payload: bytes, partition: int) -> None:
    headers = {"signature": b"s", "reason": payload, "topic": topic.encode(), "partition": str(partition).encode()}
    await transport.publish(DEAD, payload, key="r1", headers=headers | {"position": b"0"})


async def test_topics_of_the_settings_are_there_once_made(settings: Settings) -> None:
    states = await describe_topics(settings)
    assert {state.name: state.num_partitions for state in states} == {
        "pice.requests": 2,
        "pice.jobs": 2,
        "pice.dead": 1,
        "pice.segments.cloud": 1,
        "pice.segments.main": 1,
    }
    assert all(not state.faults for state in states)


async def test_dead_messages_go_back_to_the_queue_they_came_from(settings: Settings) -> None:
    async with open_ports(settings) as ports:
        await put_aside(ports.transport, REQUESTS, b"request", 1)
        await put_aside(ports.transport, CANDIDATES, b"candidate", 3)
        await put_aside(ports.transport, DEAD, b"nobody", 0)
        dead = {it.reason.encode(): it.dead_id for it in await list_dead(settings, 10, None)}
        assert [it.topic for it in await list_dead(settings, 10, CANDIDATES)] == [CANDIDATES]
        for topic, payload, partition in ((REQUESTS, b"request", 1), (CANDIDATES, b"candidate", 3)):
            await replay_dead(settings, dead[payload])
            subscription = await ports.transport.subscribe(topic, group=f"t{os.getpid()}")
            async with asyncio.timeout(20):
                delivery = await subscription.receive()
            assert (delivery.payload, delivery.partition, delivery.key) == (payload, partition, "r1")
            assert delivery.headers == {"signature": b"s"}
            assert (await read_dead(settings, dead[payload])).replayed
        with pytest.raises(InputError, match=r"only pice\.candidates, .* are known"):
            await replay_dead(settings, dead[b"nobody"])
