"""Connections to Redis: what is refused at start, and what becomes of a call that fails or is given up."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pice.errors import ConfigError, DecodeError, TransportError
from pice.redis_client import Script, connect_redis
from pice.redis_servers import Address
from tests.brokers import redis_url
from tests.contract.own_redis import OwnRedis, make_certificates, saying


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    redis_url()
    own = OwnRedis(tmp_path)
    await own.start()
    yield own
    await own.stop()


async def test_wrong_password_is_refused_at_start(own_redis: OwnRedis) -> None:
    admin = await connect_redis(own_redis.url)
    await admin.call("CONFIG", "SET", "requirepass", "right")
    for password in ("", ":wrong@"):
        with pytest.raises(ConfigError, match="check user, password and ACL") as refused:
            await connect_redis(own_redis.url.replace("//", f"//{password}"))
        assert "wrong" not in str(refused.value).replace("WRONGPASS", "")
    for url, password in ((own_redis.url.replace("//", "//:right@"), ""), (own_redis.url, "right")):
        client = await connect_redis(url, password=password)
        assert await client.call("GET", "a") is None
        line = client.line()
        assert await line.call("GET", "a") is None
        await line.close()
        await client.close()
    await admin.close()


async def test_user_of_the_url_logs_in_with_the_password_beside_it(own_redis: OwnRedis) -> None:
    admin = await connect_redis(own_redis.url)
    await admin.call("ACL", "SETUSER", "site/paris", "on", ">p@ss/w:rd%", "+info", "+get", "~a")
    url = own_redis.url.replace("//", "//site%2Fparis@")
    with pytest.raises(ConfigError, match="check user, password and ACL") as refused:
        await connect_redis(url, password="p@ss")
    assert "p@ss" not in str(refused.value)
    client = await connect_redis(url, password="p@ss/w:rd%")
    assert await client.call("GET", "a") is None
    with pytest.raises(ConfigError, match="refuses us"):
        await client.call("GET", "b")
    assert "p@ss" not in f"{client!r} {client._servers!r}"
    await client.close()
    await admin.close()


@pytest.mark.parametrize("url", ["redis://user:pa/ss@host:6379/0", "redis://:pass@host:pass/0", "http://u:pass@host"])
async def test_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an address like") as refused:
        await connect_redis(url)
    assert "pa" not in str(refused.value)


async def test_server_that_quotes_what_it_was_sent_gives_no_password_away() -> None:
    async with saying("", refusal="ERR unknown command 'AUTH', with args beginning with: 'secret'") as url:
        with pytest.raises(ConfigError, match="lacks a command") as refused:
            await connect_redis(url, password="secret")
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


async def test_certificates_that_are_none_or_of_no_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected an address like rediss://"):
        await connect_redis("redis://127.0.0.1:1/0", ca_file=tmp_path)
    (tmp_path / "junk.pem").write_text("no certificate", encoding="utf-8")
    for name in ("none.pem", "junk.pem"):
        with pytest.raises(ConfigError, match=rf"ca_file of Redis must hold certificates.*{name}"):
            await connect_redis("rediss://127.0.0.1:1/0", ca_file=tmp_path / name)


async def test_tls_with_a_certificate_that_is_trusted_and_with_one_that_is_not(tmp_path: Path) -> None:
    redis_url()
    certificates = make_certificates(tmp_path)
    own = OwnRedis(tmp_path, certificates=certificates)
    await own.start()
    try:
        client = await connect_redis(own.url, ca_file=certificates.ca)
        assert await client.call("ECHO", "a") == b"a"
        line = client.line()
        assert await line.call("ECHO", "b") == b"b"
        await line.close()
        await client.close()
        with pytest.raises(ConfigError, match=r"certificate we do not trust.*check ca_file"):
            await connect_redis(own.url)
        with pytest.raises(ConfigError, match="certificate we do not trust"):
            await connect_redis(own.url.replace("127.0.0.1", "localhost"), ca_file=certificates.ca)
        with pytest.raises(TransportError, match="does not answer"):
            await connect_redis(own.url.replace("rediss:", "redis:"))
    finally:
        await own.stop()


async def test_redis_that_evicts_is_refused_at_start(own_redis: OwnRedis) -> None:
    admin = await connect_redis(own_redis.url)
    await admin.call("CONFIG", "SET", "maxmemory", "64mb")
    await admin.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigError, match=r"allkeys-lru.*set maxmemory-policy noeviction"):
        await connect_redis(own_redis.url)
    await admin.close()


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("redis_version:6.2.14\r\nmaxmemory:0\r\n", "expected Redis 7.0 or newer, got 6.2.14: upgrade"),
        ("# Server\r\n", "expected Redis 7.0 or newer, got of no version"),
        ("redis_version:7.4.0\r\nredis_mode:sentinel\r\n", "expected a Redis, got a Sentinel: give an address"),
    ],
    ids=["old", "not Redis", "sentinel"],
)
async def test_server_that_will_not_do_is_refused_at_start(info: str, message: str) -> None:
    async with saying(info) as url:
        with pytest.raises(ConfigError, match=message):
            await connect_redis(url)


async def test_address_that_is_none_is_refused_and_one_where_nobody_is_may_be_tried_again() -> None:
    with pytest.raises(ConfigError, match=r"redis://host:6379/0"):
        await connect_redis("localhost:6379")
    async with saying("") as url:
        pass
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:\d+ does not answer"):
        await connect_redis(url)


async def test_call_given_up_leaves_its_reply_to_nobody() -> None:
    client = await connect_redis(redis_url())
    for number in range(20):
        given_up = [asyncio.ensure_future(client.call("ECHO", f"{number} {n}")) for n in range(8)]
        for _ in range(number % 5):
            await asyncio.sleep(0)
        for call in given_up:
            call.cancel()
        replies = await asyncio.gather(*(client.call("ECHO", n) for n in range(8)))
        assert replies == [str(n).encode() for n in range(8)]
        await asyncio.gather(*given_up, return_exceptions=True)
    await client.close()


async def test_call_given_up_while_it_connects_is_cancelled() -> None:
    client = await connect_redis(redis_url())
    for number in range(20):
        line = client.line()
        waiting = asyncio.ensure_future(line.call("BLPOP", "pice-test-nothing", 0.05))
        for _ in range(number):
            await asyncio.sleep(0)
        assert waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        await line.close()
    await client.close()


async def test_line_whose_wait_was_given_up_goes_on() -> None:
    client = await connect_redis(redis_url())
    line = client.line()
    async with asyncio.timeout(10):
        waiting = asyncio.ensure_future(line.call("BLPOP", "pice-test-nothing", 5))
        while not waiting.done():
            if b"cmd=blpop" in await client.call("CLIENT", "LIST"):
                waiting.cancel()
            await asyncio.wait([waiting], timeout=0)
        assert await line.call("ECHO", "a") == b"a"
    await line.close()
    await line.close()
    await client.close()


async def test_line_that_was_closed_serves_the_next_who_asks() -> None:
    client = await connect_redis(redis_url())
    ids = []
    for _ in range(3):
        line = client.line()
        ids.append(await line.call("CLIENT", "ID"))
        await line.close()
        await line.close()
    assert len(set(ids)) == 1
    both = [client.line(), client.line()]
    assert len({await line.call("CLIENT", "ID") for line in both}) == 2, "one that was closed twice is there once"
    for line in both:
        await line.close()
    await client.close()


async def test_line_that_redis_dropped_meanwhile_is_made_anew() -> None:
    admin, client = await connect_redis(redis_url()), await connect_redis(redis_url())
    line = client.line()
    dropped = await line.call("CLIENT", "ID")
    await line.close()
    await admin.call("CLIENT", "KILL", "ID", dropped)
    line = client.line()
    assert await line.call("CLIENT", "ID") != dropped
    await line.close()
    await client.close()
    await admin.close()


async def test_line_given_up_in_a_wait_serves_the_next_without_that_reply() -> None:
    client = await connect_redis(redis_url())
    for number in range(20):
        line = client.line()
        waiting = asyncio.ensure_future(line.call("ECHO", f"old {number}"))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await line.close()
        line = client.line()
        assert await line.call("ECHO", f"new {number}") == f"new {number}".encode()
        await line.close()
    await client.close()


async def test_line_closed_after_its_client_is_gone_for_good() -> None:
    admin, client = await connect_redis(redis_url()), await connect_redis(redis_url())
    lent, idle = client.line(), client.line()
    ids = [await line.call("CLIENT", "ID") for line in (lent, idle)]
    await idle.close()
    await client.close()
    assert await lent.call("ECHO", "a") == b"a"
    await lent.close()
    async with asyncio.timeout(5):
        while _has_any(await admin.call("CLIENT", "LIST"), ids):
            continue
    await admin.close()


def _has_any(listed: bytes, ids: Sequence[int]) -> bool:
    return any(b"id=%d " % number in listed for number in ids)


async def test_script_that_redis_forgot_is_sent_again() -> None:
    client = await connect_redis(redis_url())
    script = Script("#!lua\nreturn {KEYS[1], ARGV[1], 7}")
    for _ in range(2):
        assert await client.run(script, ["a"], ["b"]) == [b"a", b"b", 7]
        await client.call("SCRIPT", "FLUSH")
    await client.close()


async def test_redis_that_is_only_a_replica_may_be_tried_again(own_redis: OwnRedis) -> None:
    client = await connect_redis(own_redis.url)
    await client.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(TransportError, match=r"cannot serve now: .*read only replica"):
        await client.call("SET", "a", "b")
    await client.call("REPLICAOF", "NO", "ONE")
    assert await client.call("SET", "a", "b") == b"OK"
    await client.close()


async def test_more_calls_than_connections_wait_for_one() -> None:
    client = await connect_redis(redis_url())
    async with asyncio.timeout(30):
        replies = await asyncio.gather(*(client.call("ECHO", n) for n in range(300)))
    assert replies == [str(n).encode() for n in range(300)]
    await client.close()


@pytest.mark.parametrize(
    "before", ["", "Command # 1 (EVALSHA a) of pipeline caused error: ('"], ids=["alone", "one of many"]
)
async def test_refusal_of_a_redis_that_cannot_serve_now_may_be_tried_again(before: str) -> None:
    from redis.exceptions import ResponseError

    from pice.redis_errors import mapped

    with pytest.raises(TransportError, match="cannot serve now"), mapped("Redis"):
        raise ResponseError(f"{before}MISCONF cannot write to disk")
    with pytest.raises(ResponseError, match="syntax"), mapped("Redis"):
        raise ResponseError(f"{before}ERR syntax error, not BUSY")


async def test_what_tasks_say_at_the_same_time_is_sent_together(monkeypatch: pytest.MonkeyPatch) -> None:
    client = await connect_redis(redis_url())
    sent, replies = list[int](), client._servers.replies

    async def counted(server: Address, together: Sequence[Any]) -> list[Any]:
        sent.append(len(together))
        return await replies(server, together)

    monkeypatch.setattr(client._servers, "replies", counted)
    try:
        assert await asyncio.gather(*[client.call("ECHO", number) for number in range(300)]) == [
            str(number).encode() for number in range(300)
        ]
    finally:
        await client.close()
    assert (sum(sent), len(sent)) == (300, 3)


async def test_command_among_others_is_refused_alone() -> None:
    client = await connect_redis(redis_url())
    try:
        replies = await asyncio.gather(
            client.call("PING"), client.call("NOSUCH"), client.call("PING"), return_exceptions=True
        )
    finally:
        await client.close()
    assert (replies[0], replies[2]) == (b"PONG", b"PONG")
    assert isinstance(replies[1], ConfigError)


async def test_command_whose_caller_is_cancelled_is_done_and_disturbs_no_other() -> None:
    client = await connect_redis(redis_url())
    key = f"test:{uuid4().hex}"
    try:
        calls = [asyncio.create_task(client.call("INCR", key)) for _ in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert (replies[0], replies[2]) == (1, 3)
        assert isinstance(replies[1], asyncio.CancelledError)
    finally:
        await client.call("DEL", key)
        await client.close()


async def test_what_was_said_before_the_close_is_done() -> None:
    client = await connect_redis(redis_url())
    calls = [asyncio.create_task(client.call("ECHO", "said")) for _ in range(1000)]
    await asyncio.sleep(0)
    await client.close()
    assert await asyncio.gather(*calls) == [b"said"] * 1000
    with pytest.raises(TransportError, match="closed"):
        await client.call("PING")


async def test_connection_that_breaks_as_something_is_sent_is_an_outage() -> None:
    from pice.redis_errors import mapped

    with pytest.raises(TransportError, match="does not answer"), mapped("Redis"):
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
    with pytest.raises(RuntimeError, match="a fault of ours"), mapped("Redis"):
        raise RuntimeError("a fault of ours")


async def test_key_of_another_kind_is_none_of_ours() -> None:
    client = await connect_redis(redis_url())
    key = f"test:{uuid4().hex}"
    try:
        await client.call("SET", key, "a string")
        with pytest.raises(DecodeError, match="something else under a key of ours"):
            await client.call("HGETALL", key)
    finally:
        await client.call("DEL", key)
        await client.close()
