"""Candidates of one site -> `pice.candidates`, signed with its key."""

from pice.core import Candidate
from pice.message.codec import encode
from pice.message.signing import SIGNATURE, signature
from pice.message.trace import headers
from pice.node.telemetry import Telemetry
from pice.transport.base import CANDIDATES, Transport

Identity = tuple[str, int, int, str, str]

_NUM_KNOWN = 4096


class Outbox:
    """Publishes candidates, and tells of each once, however often it is published. Without a `key` none is signed."""

    def __init__(self, transport: Transport, telemetry: Telemetry, *, key: str) -> None:
        self._transport = transport
        self._telemetry = telemetry
        self._key = key
        self._known: dict[Identity, None] = {}

    async def send(self, candidate: Candidate) -> None:
        """Returns once it is stored.

        Raises:
            TransportError: as `Transport.publish`.
            InputError: it cannot be put in a message.
        """
        payload = encode(candidate)
        where = (candidate.attempt, candidate.index, candidate.site, candidate.model)
        said = dict(headers(candidate.request_id, CANDIDATES, *where))
        if self._key:
            said[SIGNATURE] = signature(self._key, payload)
        await self._transport.publish(CANDIDATES, payload, key=candidate.request_id, headers=said)
        if (identity := (candidate.request_id, *where)) not in self._known:
            self._know(identity)
            self._telemetry.written(candidate)

    def _know(self, identity: Identity) -> None:
        self._known[identity] = None
        if len(self._known) > _NUM_KNOWN:
            del self._known[next(iter(self._known))]
