"""One consumer of one group of one topic in Redis: its keys, and what it asks of the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pice.errors import TransportError
from pice.redis_client import RedisClient, Script
from pice.redis_lines import RedisLine, Word
from pice.transport.base import Delivery
from pice.transport.redis_scripts import ACK, BEAT, JOIN, KEEP, LEAVE, RELEASE, TAKE

_BELL_WAIT_S = 2.0
_NUM_RINGS = 1024
_HEADER = "h:"


@dataclass(frozen=True, slots=True)
class Keys:
    """The names in Redis of one topic; those of one shard share a hash tag."""

    prefix: str
    topic: str

    def of(self, shard: int, kind: str, *rest: str) -> str:
        return ":".join((f"{self.prefix}:{{{shard:02d}}}:{kind}:{self.topic}", *rest))


@dataclass(frozen=True, slots=True)
class Taken:
    """What one look at a shard gave. `next_due_s` is when something that was released comes due there, if known."""

    deliveries: list[Delivery]
    next_due_s: float | None


class Member:
    """Stateless but for its name; every method raises `TransportError` when Redis does not answer."""

    def __init__(
        self, redis: RedisClient, keys: Keys, group: str, consumer: str, shards: Sequence[int], *, alive_s: float
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._group = group
        self._consumer = consumer
        self.shards = shards
        self.alive_s = alive_s

    @property
    def _alive_ms(self) -> int:
        return max(1, round(self.alive_s * 1000))

    async def join(self) -> None:
        """Makes the group where it is missing, at the start of the stream, and says that this consumer lives."""
        await self._all(JOIN, self.shards, ("stream", "alive"), self._alive_ms, with_name=False)

    async def beat(self, *, part_dead: bool) -> None:
        """Says that this consumer lives; with `part_dead` what the dead held is handed back."""
        keys = ("stream", "released", "bell", "alive")
        calls = [
            (self._named(shard, keys), (self._group, self._alive_ms, self._living(shard), int(part_dead)))
            for shard in self.shards
        ]
        await self._redis.run_all(BEAT, calls)

    async def take(self, shards: Sequence[int], count: int) -> dict[int, Taken | TransportError]:
        """At most `count` deliveries of each shard: first those handed back, then new ones in order; or why a shard's
        server did not say.

        Raises:
            TransportError: none did, or the group is gone; `GroupGone` then.
        """
        calls = [self._call(shard, ("stream", "released", "asleep"), count) for shard in shards]
        replies = await self._redis.run_each(TAKE, calls)
        if None in replies:
            raise GroupGone(
                f"group {self._group} of topic {self._keys.topic} is gone from Redis: it was deleted, or Redis lost "
                "its data; subscribe again to make it anew"
            )
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        for error in errors:
            if len(errors) == len(replies) or not isinstance(error, TransportError):
                raise error
        return {
            shard: reply if isinstance(reply, TransportError) else self._taken(shard, reply)
            for shard, reply in zip(shards, replies, strict=True)
        }

    async def ack(self, delivery: Delivery) -> None:
        keys = self._named(delivery.partition, ("stream",))
        await self._redis.run(ACK, keys, (self._group, stream_id(delivery.position)))

    async def release(self, delivery: Delivery, delay_s: float) -> None:
        """Hands back, unless another has taken it over."""
        keys = self._named(delivery.partition, ("stream", "released", "bell"))
        words = (stream_id(delivery.position), delivery.num_deliveries, round(delay_s * 1000))
        await self._redis.run(RELEASE, keys, (self._group, self._consumer, *words))

    async def keep(self, shard: int, positions: Sequence[int]) -> None:
        """Hands back what this consumer holds of a shard, but for these, as if it had never been delivered."""
        keys = self._named(shard, ("stream", "released", "bell"))
        await self._redis.run(KEEP, keys, (self._group, self._consumer, *map(stream_id, positions)))

    async def leave(self) -> None:
        """Hands everything back and is forgotten."""
        await self._all(LEAVE, self.shards, ("stream", "released", "bell", "alive"))

    async def rung(self, line: RedisLine, heard: dict[int, str]) -> list[int]:
        """The shards where something came up since what `heard` notes, which is brought up to date; waits for some,
        but not for long."""
        bells = {self._keys.of(shard, "bell"): shard for shard in self.shards}
        after = {name: heard.get(shard, "0") for name, shard in bells.items()}
        rung = await line.read(after, count=_NUM_RINGS, wait_s=_BELL_WAIT_S)
        found = {bells[name]: entries[-1][0].decode() for name, entries in rung.items()}
        heard.update(found)
        return list(found)

    async def _all(
        self, script: Script, shards: Sequence[int], kinds: Sequence[str], *words: Word, with_name: bool = True
    ) -> list[Any]:
        return await self._redis.run_all(
            script, [self._call(shard, kinds, *words, with_name=with_name) for shard in shards]
        )

    def _call(
        self, shard: int, kinds: Sequence[str], *words: Word, with_name: bool = True
    ) -> tuple[Sequence[str], Sequence[Word]]:
        """The keys and words of a script."""
        names = (self._group, self._consumer) if with_name else (self._group,)
        return self._named(shard, kinds), (*names, *words)

    def _named(self, shard: int, kinds: Sequence[str]) -> list[str]:
        return [self._name(shard, kind) for kind in kinds]

    def _name(self, shard: int, kind: str) -> str:
        if kind == "released":
            return self._keys.of(shard, kind, self._group)
        return self._living(shard) + self._consumer if kind == "alive" else self._keys.of(shard, kind)

    def _living(self, shard: int) -> str:
        return self._keys.of(shard, "alive", self._group, "")

    def _taken(self, shard: int, reply: Any) -> Taken:
        entries, due_ms = reply
        deliveries = [self._delivery(shard, *entry) for entry in entries]
        return Taken(deliveries, None if due_ms < 0 else due_ms / 1000)

    def _delivery(self, shard: int, name: bytes, num_deliveries: int, flat: Sequence[bytes]) -> Delivery:
        payload, key, headers = message(flat)
        return Delivery(self._keys.topic, shard, position(name.decode()), payload, key, headers, num_deliveries)


class GroupGone(TransportError):
    """The group is not there any more; waiting does not bring it back."""


def fields(payload: bytes, key: str, headers: Mapping[str, bytes]) -> list[Word]:
    """A message as the fields of a stream's entry, in a flat list."""
    flat: list[Word] = ["payload", payload]
    if key:
        flat += ["key", key]
    for name, value in headers.items():
        flat += [_HEADER + name, value]
    return flat


def message(flat: Sequence[bytes]) -> tuple[bytes, str, dict[str, bytes]]:
    """Payload, key and headers; whatever else stands there, an entry of somebody else has an empty payload."""
    pairs = {name.decode(errors="replace"): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
    headers = {name.removeprefix(_HEADER): value for name, value in pairs.items() if name.startswith(_HEADER)}
    return pairs.get("payload", b""), pairs.get("key", b"").decode(errors="replace"), headers


def position(name: str) -> int:
    """The number of an entry in its stream; grows as its id does, for up to a million entries in a millisecond."""
    ms, _, number = name.partition("-")
    return int(ms) << 20 | int(number)


def stream_id(position: int) -> str:
    """The id that `position` was made of."""
    return f"{position >> 20}-{position & 0xFFFFF}"
