"""What the queue on Redis does beside the contract: the dead, the slow, a server that goes away."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

pytest.importorskip("redis", reason="redis is not installed: pip install 'pice[cluster]'")

from pice.errors import ConfigError, Full, TransportError
from pice.redis_client import RedisClient, connect_redis
from pice.transport.base import Delivery, Subscription
from pice.transport.redis import RedisTransport
from pice.transport.redis_member import Member, Taken
from pice.transport.redis_subscription import RedisSubscription
from tests.brokers import redis_url
from tests.contract.own_redis import OwnRedis

TOPIC = "pice.candidates"
ALIVE_S = 0.8
Make = Callable[..., RedisTransport]


@pytest.fixture
async def client() -> AsyncIterator[RedisClient]:
    client = await connect_redis(redis_url())
    yield client
    await client.close()


@pytest.fixture
async def prefix(client: RedisClient) -> AsyncIterator[str]:
    prefix = f"pice-test-{uuid4().hex}"
    yield prefix
    if keys := await client.call("KEYS", f"{prefix}:*"):
        await client.call("DEL", *keys)


@pytest.fixture
async def make(client: RedisClient, prefix: str) -> AsyncIterator[Make]:
    made: list[RedisTransport] = []

    def make(**options: float) -> RedisTransport:
        given = {"alive_s": ALIVE_S, "num_shards": 4, **options}
        made.append(RedisTransport(client, prefix=prefix, **given))  # type: ignore[arg-type]  # some are integers
        return made[-1]

    yield make
    for transport in made:
        await transport.close()


async def take(subscription: Subscription, count: int = 1) -> list[Delivery]:
    async with asyncio.timeout(10):
        return [await subscription.receive() for _ in range(count)]


def heartbeats(subscription: Subscription) -> list[str]:
    """The keys that say a subscriber lives."""
    assert isinstance(subscription, RedisSubscription)
    member = subscription._member
    return [member._name(shard, "alive") for shard in member.shards]


async def die(subscription: Subscription) -> None:
    """As if its process were killed: nothing is handed back, and its heart stops."""
    assert isinstance(subscription, RedisSubscription)
    for task in (subscription._taking, subscription._beating, subscription._listening):
        task.cancel()
    await asyncio.wait([subscription._taking, subscription._beating, subscription._listening])
    subscription._forget(subscription)
    await subscription._line.close()


async def test_work_of_the_dead_is_taken_over_once_its_heartbeat_has_lapsed(make: Make, client: RedisClient) -> None:
    transport = make()
    dying = await transport.subscribe(TOPIC, group="g")
    await transport.publish(TOPIC, b"a", key="k", headers={"h": b"1"})
    (lost,) = await take(dying)
    await die(dying)
    heir = await transport.subscribe(TOPIC, group="g")
    (again,) = await take(heir)
    assert (again.payload, again.key, again.headers) == (b"a", "k", {"h": b"1"})
    assert (again.position, again.num_deliveries) == (lost.position, 2)
    assert await client.call("EXISTS", *heartbeats(dying)) == 0


async def test_work_is_left_alone_while_its_heartbeat_stands(make: Make, client: RedisClient) -> None:
    transport = make()
    silent, dying = [await transport.subscribe(TOPIC, group="g", partition=shard) for shard in (0, 1)]
    for shard in (0, 1):
        await transport.publish(TOPIC, b"%d" % shard, partition=shard)
    await take(silent)
    await take(dying)
    await die(silent)
    await die(dying)
    for key in heartbeats(silent):
        await client.call("PEXPIRE", key, 60_000)
    heir = await transport.subscribe(TOPIC, group="g")
    assert [delivery.payload for delivery in await take(heir)] == [b"1"]
    assert not heir._unread  # type: ignore[attr-defined]  # the adapter's own
    await client.call("DEL", *heartbeats(silent))
    assert [delivery.payload for delivery in await take(heir)] == [b"0"]


async def test_slow_subscriber_that_lives_keeps_its_work(make: Make) -> None:
    transport = make()
    slow = await transport.subscribe(TOPIC, group="g")
    await transport.publish(TOPIC, b"slow", partition=0)
    (held,) = await take(slow)
    heir = await transport.subscribe(TOPIC, group="g")
    for _ in range(2):  # each death takes a whole heartbeat to be noticed
        dying = await transport.subscribe(TOPIC, group="g", partition=0)
        await transport.publish(TOPIC, b"dead", partition=0)
        await take(dying)
        await die(dying)
        (inherited,) = await take(heir)
        assert inherited.payload == b"dead"
        await heir.ack(inherited)
    await slow.ack(held)
    await slow.close()
    await transport.publish(TOPIC, b"next", partition=0)
    assert [delivery.payload for delivery in await take(heir)] == [b"next"]


async def test_two_transports_on_one_redis_share_a_group(make: Make) -> None:
    here, there = make(), make()
    one, two = [await transport.subscribe(TOPIC, group="g", prefetch=1) for transport in (here, there)]
    for number in range(4):
        await here.publish(TOPIC, b"%d" % number, key=f"key {number}")
    first = [*await take(one), *await take(two)]
    await one.ack(first[0])
    await two.ack(first[1])
    rest = [*await take(one), *await take(two)]
    assert sorted(delivery.payload for delivery in first + rest) == [b"0", b"1", b"2", b"3"]


async def test_messages_of_one_key_share_a_shard_and_come_in_order(make: Make) -> None:
    transport = make()
    for number in range(40):
        await transport.publish(TOPIC, b"%d" % number, key=f"key {number % 5}")
    subscription = await transport.subscribe(TOPIC, group="g")
    taken = await take(subscription, 40)
    for key in {delivery.key for delivery in taken}:
        own = [delivery for delivery in taken if delivery.key == key]
        assert len({delivery.partition for delivery in own}) == 1
        assert [int(delivery.payload) for delivery in own] == sorted(int(delivery.payload) for delivery in own)
    assert len({delivery.partition for delivery in taken}) > 1


async def test_acknowledged_message_is_deleted_once_every_group_is_done(
    make: Make, client: RedisClient, prefix: str
) -> None:
    transport = make()
    one, two = [await transport.subscribe(TOPIC, group=group) for group in ("one", "two")]
    await transport.publish(TOPIC, b"a")
    stream = f"{prefix}:{{00}}:stream:{TOPIC}"
    (first,) = await take(one)
    await one.ack(first)
    assert await client.call("XLEN", stream) == 1
    (second,) = await take(two)
    await two.ack(second)
    assert await client.call("XLEN", stream) == 0


async def test_what_nobody_received_goes_back_uncounted(make: Make) -> None:
    transport = make()
    leaving = await transport.subscribe(TOPIC, group="g")
    for number in range(9):
        await transport.publish(TOPIC, b"%d" % number)
    await take(leaving, 4)
    assert leaving._unread  # type: ignore[attr-defined]  # the adapter's own
    await leaving.close()
    heir = await transport.subscribe(TOPIC, group="g")
    again = await take(heir, 9)
    assert {int(delivery.payload): delivery.num_deliveries for delivery in again} == {
        number: 2 if number < 4 else 1 for number in range(9)
    }


async def test_message_given_back_while_redis_is_told_what_is_here_comes_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = await make().subscribe(TOPIC, group="g")
    assert isinstance(subscription, RedisSubscription)
    await make().publish(TOPIC, b"a")
    async with asyncio.timeout(5):
        delivery = await subscription.receive()
        whole, told, may_tell = Member.keep, asyncio.Event(), asyncio.Event()

        async def keep_late(member: Member, shard: int, positions: Sequence[int]) -> None:
            told.set()
            await may_tell.wait()
            await whole(member, shard, positions)

        monkeypatch.setattr(Member, "keep", keep_late)
        subscription._unsure.add(delivery.partition)
        again = asyncio.ensure_future(subscription.receive())
        await told.wait()
        subscription._unread.append(delivery)
        subscription._drop_unread()
        may_tell.set()
        assert (await again).payload == b"a"


async def test_shards_that_are_being_taken_from_are_not_made_sure_of_meanwhile(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever makes sure would try for ever without a pause, and nothing else would run."""
    subscription = await make().subscribe(TOPIC, group="g")
    assert isinstance(subscription, RedisSubscription)
    whole, make_sure, num_tried = Member.take, subscription._make_sure, 0
    taking, may_take = asyncio.Event(), asyncio.Event()

    async def take_late(member: Member, shards: Sequence[int], count: int) -> dict[int, Taken | TransportError]:
        taking.set()
        await may_take.wait()
        return await whole(member, shards, count)

    async def counted() -> bool:
        nonlocal num_tried
        num_tried += 1
        assert num_tried < 10
        return await make_sure()

    monkeypatch.setattr(Member, "take", take_late)
    monkeypatch.setattr(subscription, "_make_sure", counted)
    waiting = asyncio.ensure_future(subscription.receive())
    async with asyncio.timeout(5):
        await taking.wait()
        await subscription._mend()
        may_take.set()
        await make().publish(TOPIC, b"a")
        assert (await waiting).payload == b"a"


async def test_message_lost_on_its_way_here_is_taken_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = make()
    whole, asked = Member.take, asyncio.Event()

    async def take_and_lose(member: Member, shards: Sequence[int], count: int) -> dict[int, Taken | TransportError]:
        taken = await whole(member, shards, count)
        if any(isinstance(it, Taken) and it.deliveries for it in taken.values()) and not asked.is_set():
            asked.set()
            raise TransportError("the reply was lost")
        return taken

    monkeypatch.setattr(Member, "take", take_and_lose)
    subscription = await transport.subscribe(TOPIC, group="g")
    await transport.publish(TOPIC, b"a")
    (delivery,) = await take(subscription)
    assert asked.is_set()
    assert (delivery.payload, delivery.num_deliveries) == (b"a", 1)


async def test_message_that_is_back_before_its_release_was_confirmed_can_be_acknowledged(
    make: Make, client: RedisClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = await make().subscribe(TOPIC, group="g")
    await make().publish(TOPIC, b"a")
    (delivery,) = await take(subscription)
    whole, is_back = Member.release, asyncio.Event()

    async def release_slowly(member: Member, delivery: Delivery, delay_s: float) -> None:
        await whole(member, delivery, delay_s)
        await is_back.wait()

    monkeypatch.setattr(Member, "release", release_slowly)
    releasing = asyncio.ensure_future(subscription.release(delivery))
    (again,) = await take(subscription)
    is_back.set()
    await releasing
    await subscription.ack(again)
    assert await client.call("XLEN", f"{prefix}:{{00}}:stream:{TOPIC}") == 0


async def test_dead_are_parted_only_after_a_whole_heartbeat_in_touch_with_redis(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted, is_away = Member.beat, asyncio.Queue[bool](), asyncio.Event()

    async def beat(member: Member, *, part_dead: bool) -> None:
        parted.put_nowait(part_dead)
        if is_away.is_set():
            is_away.clear()
            raise TransportError("Redis is away")
        await whole(member, part_dead=part_dead)

    monkeypatch.setattr(Member, "beat", beat)
    await make().subscribe(TOPIC, group="g")
    async with asyncio.timeout(20):
        assert not await parted.get()
        while not await parted.get():
            pass
        is_away.set()
        await parted.get()
        assert [await parted.get(), await parted.get()] == [False, False]
        while not await parted.get():
            pass


@pytest.mark.parametrize("gone", ["group", "stream"])
async def test_vanished_group_or_stream_is_an_error(make: Make, client: RedisClient, prefix: str, gone: str) -> None:
    transport = make()
    subscription = await transport.subscribe(TOPIC, group="g", partition=2)
    waiting = asyncio.ensure_future(subscription.receive())
    await asyncio.sleep(0)
    stream = f"{prefix}:{{02}}:stream:{TOPIC}"
    await client.call(*(("XGROUP", "DESTROY", stream, "g") if gone == "group" else ("DEL", stream)))
    with pytest.raises(TransportError, match=r"group g of topic pice\.candidates is gone.*subscribe again"):
        async with asyncio.timeout(10):
            await waiting
    with pytest.raises(TransportError, match="is gone"):
        await subscription.receive()


async def test_limit_of_a_topic_is_shared_among_its_shards(make: Make, client: RedisClient, prefix: str) -> None:
    transport = make(max_messages=9)
    for shard in range(4):
        for payload in (b"a", b"b"):
            await transport.publish(TOPIC, payload, partition=shard)
        with pytest.raises(Full, match=rf"shard {shard} of pice\.candidates holds its limit of 2 messages"):
            await transport.publish(TOPIC, b"c", partition=shard)
    assert await client.call("XLEN", f"{prefix}:{{03}}:stream:{TOPIC}") == 2


async def test_partition_that_is_no_shard_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="partitions 0 to 3, got 4"):
        await make().publish(TOPIC, b"a", partition=4)


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[OwnRedis]:
    redis_url()  # where there must be no broker, this test has none either
    own = OwnRedis(tmp_path, keeps=True)
    await own.start()
    yield own
    await own.stop()


async def test_restart_of_redis_is_survived(own_redis: OwnRedis) -> None:
    client = await connect_redis(own_redis.url)
    transport = RedisTransport(client, num_shards=2, patience_s=30)
    subscription = await transport.subscribe(TOPIC, group="g")
    await transport.publish(TOPIC, b"held")
    await transport.publish(TOPIC, b"stored")
    (held,) = await take(subscription)
    await own_redis.stop()
    acking = asyncio.ensure_future(subscription.ack(held))
    await own_redis.start()
    async with asyncio.timeout(30):
        await acking
        assert (await subscription.receive()).payload == b"stored"
        waiting = asyncio.ensure_future(subscription.receive())
        await transport.publish(TOPIC, b"later")
        assert (await waiting).payload == b"later"
    await transport.close()
    await client.close()


async def test_redis_that_stays_away_ends_a_receive(own_redis: OwnRedis) -> None:
    client = await connect_redis(own_redis.url)
    transport = RedisTransport(client, num_shards=2, patience_s=0.2)
    subscription = await transport.subscribe(TOPIC, group="g")
    waiting = asyncio.ensure_future(subscription.receive())
    await asyncio.sleep(0)
    await own_redis.stop()
    with pytest.raises(TransportError, match="does not answer"):
        async with asyncio.timeout(30):
            await waiting
    await transport.close()
    await client.close()


async def test_full_redis_refuses_messages_and_lets_work_be_finished(own_redis: OwnRedis) -> None:
    client = await connect_redis(own_redis.url)
    transport = RedisTransport(client, num_shards=2)
    subscription = await transport.subscribe(TOPIC, group="g")
    for payload in (b"a", b"b"):
        await transport.publish(TOPIC, payload)
    await client.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(Full) as refused:
        await transport.publish(TOPIC, b"c")
    assert refused.value.retry_after_s > 0
    first, second = await take(subscription, 2)
    await subscription.ack(first)
    await subscription.release(second)
    assert [delivery.payload for delivery in await take(subscription)] == [second.payload]
    await transport.close()
    await client.close()


@pytest.mark.parametrize("kind", ["stream", "bell"])
async def test_shard_whose_last_id_somebody_took_is_an_outage_of_that_shard_until_it_is_deleted(
    client: RedisClient, prefix: str, make: Make, kind: str
) -> None:
    transport = make(num_shards=2)
    subscription = await transport.subscribe(TOPIC, group="g")
    await transport.publish(TOPIC, b"other shard", partition=0)
    assert [it.payload for it in await take(subscription)] == [b"other shard"]
    await client.call("SET", f"{prefix}:{{01}}:asleep:{TOPIC}", 1)
    spent = f"{prefix}:{{01}}:{kind}:{TOPIC}"
    await client.call("DEL", spent)
    await client.call("XADD", spent, f"{2**64 - 1}-{2**64 - 1}", "payload", "evil")
    with pytest.raises(TransportError, match="cannot serve now"):
        await transport.publish(TOPIC, b"too late", partition=1)
    await transport.publish(TOPIC, b"still served", partition=0)
    await subscription.close()
    await client.call("DEL", spent)
    subscription = await transport.subscribe(TOPIC, group="g")
    await transport.publish(TOPIC, b"again", partition=1)
    async with asyncio.timeout(10):
        while (await subscription.receive()).payload != b"again":
            pass
