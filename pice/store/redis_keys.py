"""Where in Redis what is kept. All keys of a request share the hash tag of its shard, so one script may change them."""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

NUM_SHARDS = 16
"""Every process on one Redis must agree on it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The keys that the requests of a shard share."""

    tag: str

    @property
    def due(self) -> str:
        """Sorted set of open requests by when a collector shall look at them."""
        return f"{self.tag}:due"

    @property
    def wake(self) -> str:
        """List with a token at most, for collectors that wait: something is due sooner than they know."""
        return f"{self.tag}:wake"

    @property
    def news(self) -> str:
        """Stream of what is not wanted any more."""
        return f"{self.tag}:news"

    def record(self, request_id: str) -> str:
        """Hash of all that is known of a request."""
        return f"{self.tag}:record:{request_id}"

    def events(self, request_id: str) -> str:
        """Stream of a request's events."""
        return f"{self.tag}:events:{request_id}"

    def wanted(self, request_id: str) -> str:
        """Hash of an open request: its attempt, and which segments have their choice."""
        return f"{self.tag}:wanted:{request_id}"

    def keys(self, request_id: str) -> tuple[str, ...]:
        """KEYS of the scripts that change a request, in their order."""
        own = (self.record(request_id), self.wanted(request_id), self.events(request_id))
        return (*own, self.due, self.news, self.wake)


class RedisKeys:
    """All keys, each beginning with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.shards: Sequence[Shard] = tuple(Shard(f"{prefix}:{{{number:02}}}") for number in range(NUM_SHARDS))
        self.open = f"{prefix}:open"
        self.beating = f"{prefix}:{{sites}}:beating"
        """Set of the sites whose heartbeat may be alive."""
        self._state = f"{prefix}:{{sites}}:state:"

    def state(self, site: str) -> str:
        """Hash of a site's heartbeat."""
        return self._state + site

    def shard(self, request_id: str) -> Shard:
        """The one shard that a request is kept in."""
        return self.shards[crc32(request_id.encode()) % NUM_SHARDS]
