"""Routing of commands to servers that are played: what waits for what, and what becomes of it at a close."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from pice.errors import TransportError
from pice.redis_client import RedisClient
from pice.redis_library import ConnectionPool, refusals
from pice.redis_lines import RedisLine, Word
from pice.redis_servers import Address, ClusterServers, OneServer, Servers

HERE, THERE = ("here", 1), ("there", 1)


class Played(Servers):
    """Every command has the server `owner`; one at HERE replies once it `may`."""

    name = "played"

    def __init__(self) -> None:
        self.owner = HERE
        self.may, self.was_asked = asyncio.Event(), asyncio.Event()
        self.sent: list[tuple[Address, int]] = []

    def server(self, words: Sequence[Word]) -> Address:
        return self.owner

    async def replies(self, server: Address, commands: Sequence[Sequence[Word]]) -> list[Any]:
        self.sent.append((server, len(commands)))
        self.was_asked.set()
        if server == HERE:
            await self.may.wait()
        return [b"ok"] * len(commands)

    def line(self) -> RedisLine:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def a_cluster(url: str = "redis://first:1/0") -> ClusterServers:
    read = ConnectionPool.from_url(url)
    return ClusterServers(OneServer(read.connection_class, read.connection_kwargs, 1))


async def test_what_has_another_server_by_the_time_it_is_sent_goes_there() -> None:
    servers = Played()
    client = RedisClient(servers)
    first = [client.begin("GET", "a") for _ in range(4 * 128)]
    rest = [client.begin("GET", "a") for _ in range(3)]
    async with asyncio.timeout(5):
        await servers.was_asked.wait()
        servers.owner = THERE
        servers.may.set()
        assert set(await asyncio.gather(*first, *rest)) == {b"ok"}
    assert (THERE, 3) in servers.sent
    await client.close()


async def test_caller_of_a_client_whose_close_is_cancelled_is_told() -> None:
    servers = Played()
    client = RedisClient(servers)
    call = client.begin("GET", "a")
    await servers.was_asked.wait()
    closing = asyncio.ensure_future(client.close())
    for _ in range(5):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    servers.may.set()
    async with asyncio.timeout(5):
        assert await call == b"ok"


async def test_redirected_commands_are_followed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, begun, may = a_cluster(), list[Address](), asyncio.Event()

    async def exchange(address: Address, commands: Sequence[Sequence[Word]]) -> list[Any]:
        if address == HERE:
            return [refusals.MovedError(f"{number} there:1") for number in range(len(commands))]
        begun.append(address)
        if len(begun) == 3:
            may.set()
        await may.wait()
        return [b"ok"] * len(commands)

    monkeypatch.setattr(cluster, "_exchange", exchange)
    async with asyncio.timeout(5):
        assert await cluster.replies(HERE, [("GET", "a"), ("GET", "b"), ("GET", "c")]) == [b"ok"] * 3
    await cluster.close()


@pytest.mark.parametrize("host", [None, b"", b"?"])
async def test_node_that_names_no_host_is_where_it_was_asked(
    host: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = a_cluster()

    async def exchange(_: Sequence[Sequence[Word]]) -> list[Any]:
        return [[[0, 16383, [host, 7001, b"id"]]]]

    monkeypatch.setattr(cluster._first, "exchange", exchange)
    await cluster.learn()
    assert cluster.server(("GET", "a")) == ("first", 7001)
    await cluster.close()


async def test_close_closes_all_nodes_though_one_comes_to_it_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, closed = a_cluster(), list[OneServer]()
    nodes = [cluster._node(("node", number)) for number in range(3)]

    async def close(self: OneServer) -> None:
        cluster._learn_soon(("node", 0))
        closed.append(self)
        await asyncio.sleep(0)
        cluster._node(("late", len(closed)))
        if len(closed) == 1:
            raise TransportError("broke")

    monkeypatch.setattr(OneServer, "close", close)
    await cluster.close()
    assert set(closed) >= {cluster._first, *nodes}
