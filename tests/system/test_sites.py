"""`pice sites` on a real Redis."""

import asyncio
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from typer.testing import CliRunner, Result

from pice.cli.session import INTERRUPTED
from pice.cli.sites import commands
from pice.core import Curve, ModelState, SiteState
from pice.errors import InputError, TransportError
from pice.redis_client import RedisClient, connect_redis
from pice.registry.redis import RedisRegistry
from pice.store.redis import RedisStore
from tests.brokers import redis_url
from tests.system.command import COMMAND, environment, killed_at_the_deadline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prefix() -> Iterator[str]:
    prefix = f"pice-test-{uuid4().hex}"
    asyncio.run(_prepared(prefix))
    yield prefix
    asyncio.run(_cleaned(prefix))


async def _prepared(prefix: str) -> None:
    """Two sites, of which one is served and alive."""
    client = await connect_redis(redis_url())
    registry, store = RedisRegistry(client, prefix), RedisStore(client, prefix=prefix)
    for name in ("paris", "rome"):
        await registry.register(name, "main")
    await registry.acquire("paris", "host.1", lease_s=60)
    model = ModelState("small", 4096, 4, Curve((1,), (0.1,)), 2, 300)
    await store.heartbeat(SiteState("paris", "main", 0, (model,), 0.0, token=1), ttl_s=60)
    await client.close()


async def _cleaned(prefix: str) -> None:
    client = await connect_redis(redis_url())
    await client.call("DEL", *await _keys(client, prefix))
    await client.close()


async def _keys(client: RedisClient, prefix: str) -> list[bytes]:
    found: list[bytes] = await client.call("KEYS", f"{prefix}:*")
    return found


def options(prefix: str, url: str = "") -> list[str]:
    config = ["--config", str(ROOT / "config" / "emulated.toml"), "--set", f"redis.prefix={prefix}"]
    return [*config, "--set", "kafka.bootstrap_servers=127.0.0.1:1", "--set", f"redis.url={url or redis_url()}"]


def pice_sites(prefix: str, *words: str, url: str = "") -> Result:
    return CliRunner().invoke(commands, [*words, *options(prefix, url)])


def shown(prefix: str) -> dict[str, dict[str, object]]:
    lines: list[dict[str, object]] = orjson.loads(pice_sites(prefix, "--json").output)
    return {str(line["name"]): line for line in lines}


def test_sites_are_listed_as_text_and_as_json(prefix: str) -> None:
    head, paris, rome = pice_sites(prefix).output.splitlines()
    assert head.split() == [
        "SITE",
        "POOL",
        "PARTITION",
        "STATUS",
        "HOLDER",
        "LEASE",
        "OUTSTANDING",
        "BACKLOG",
        "MODELS",
    ]
    assert paris.split()[:5] == ["paris", "main", "0", "up", "host.1"]
    assert rome.split() == ["rome", "main", "1", "silent", "-", "-", "0", "0", "tokens", "-"]
    line = shown(prefix)["paris"]
    left_s = line.pop("lease_left_s")
    assert isinstance(left_s, float)
    assert 0 < left_s <= 60
    assert line == {
        "name": "paris",
        "pool": "main",
        "partition": 0,
        "models": ["small"],
        "holder": "host.1",
        "status": "up",
        "num_outstanding": 2,
        "backlog_tokens": 300,
    }


def test_site_is_drained_and_taken_back(prefix: str) -> None:
    assert pice_sites(prefix, "drain", "paris").output == "paris: is given no more work\n"
    assert shown(prefix)["paris"]["status"] == "draining"
    assert pice_sites(prefix, "drain", "paris", "--undo").output == "paris: takes work again\n"
    assert shown(prefix)["paris"]["status"] == "up"


def test_site_is_removed_unless_a_process_serves_it(prefix: str) -> None:
    assert pice_sites(prefix, "remove", "rome").output == "rome: removed\n"
    refused = pice_sites(prefix, "remove", "paris").exception
    assert isinstance(refused, InputError)
    assert "served by host.1" in str(refused)
    assert list(shown(prefix)) == ["paris"]


def test_unknown_site_and_a_redis_that_is_not_there_are_errors(prefix: str) -> None:
    assert isinstance(pice_sites(prefix, "drain", "oslo").exception, InputError)
    assert isinstance(pice_sites(prefix, url="redis://127.0.0.1:1/0").exception, TransportError)


def test_watching_draws_what_changes_until_it_is_interrupted(prefix: str) -> None:
    ours, theirs = pty.openpty()
    command, env = [*COMMAND, "sites", "--watch", *options(prefix)], environment() | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    with killed_at_the_deadline(process):
        _read_until(ours, b"host.1")
        assert pice_sites(prefix, "drain", "paris").exit_code == 0
        _read_until(ours, b"draining")
        process.send_signal(signal.SIGINT)
        assert process.wait() == INTERRUPTED
    os.close(ours)


def _read_until(terminal: int, text: bytes) -> None:
    """Fails when the terminal is closed before."""
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 65_536)


def test_watching_needs_a_terminal(prefix: str) -> None:
    refused = pice_sites(prefix, "--watch").exception
    assert isinstance(refused, InputError)
    assert "standard output is none" in str(refused)
