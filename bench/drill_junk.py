"""Messages that no node should ever get, for every topic, and what must become of each."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pice.core import Candidate, Event, JobLine, Message, Point, Request, Sampling, Segment
from pice.message.codec import MAX_BYTES, VERSION, encode, pack
from pice.message.signing import SIGNATURE, signature, site_key
from pice.transport.base import CANDIDATES, JOBS, REQUESTS, segments_topic

FORGED = "This text was forged."
"""Stands in every forged candidate, and must stand in no answer."""
_LARGE = pack({"v": VERSION, "t": "request", "padding": "x" * (2 * MAX_BYTES)})
_NOWHERE = "nowhere"

Wire = Request | Segment | Candidate | JobLine


@dataclass(frozen=True, slots=True)
class Place:
    """A topic that is read by nodes; `partition` None lets the key decide."""

    topic: str
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Junk:
    """One message. Its key is its name; `buried` says whether it belongs on `pice.dead`, else it is dropped."""

    key: str
    place: Place
    payload: bytes
    buried: bool
    headers: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_large(self) -> bool:
        return len(self.payload) > MAX_BYTES


@dataclass(frozen=True, slots=True)
class Known:
    """What a forger may have learned: the secret of the cluster is not among it, but a key of one site is."""

    site: str
    model: str
    key: str
    other_site: str
    open_ids: Sequence[str]
    finished_ids: Sequence[str]


def known(secret: str, site: str, other_site: str, model: str, ids: tuple[Sequence[str], Sequence[str]]) -> Known:
    """Of someone who has taken `site` over."""
    open_ids, finished_ids = ids
    return Known(site, model, site_key(secret, site), other_site, open_ids, finished_ids)


def places(partitions: Mapping[str, Sequence[int]]) -> list[Place]:
    """Every place that nodes read: requests, lines of jobs, each partition of each pool, candidates."""
    segments = [Place(segments_topic(pool), number) for pool, numbers in partitions.items() for number in numbers]
    return [Place(REQUESTS), Place(JOBS), *segments, Place(CANDIDATES)]


def flood(where: Sequence[Place], forger: Known, number: int) -> Iterator[Junk]:
    """Every kind of junk for every place, once; the large ones with number 0 alone. The number is the seed too."""
    rng = random.Random(number)
    for place in where:
        unreadable = [*_unreadable(_sample(place, _NOWHERE), rng), *([] if number else [("large", _LARGE)])]
        for kind, payload in unreadable:
            yield Junk(_key(place, kind, number), place, payload, buried=True, headers=_odd_headers(rng))
        yield from _unwanted(place, forger, number, rng)


def _key(place: Place, kind: str, number: int) -> str:
    where = place.topic if place.partition is None else f"{place.topic}-{place.partition}"
    return f"junk {where} {kind} {number}"


def _unreadable(sample: Wire, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """What no version of a node can read in that place, by kind."""
    whole = encode(sample)
    yield "random", rng.randbytes(rng.randint(1, 400))
    yield "empty", b""
    yield "truncated", whole[: rng.randrange(1, len(whole) - 1)]
    yield "unknown tag", pack({"v": VERSION, "t": "nonsense", "request_id": _NOWHERE})
    yield "newer", pack({"v": VERSION + 1, "t": "request", "request_id": _NOWHERE})
    yield "no map", pack((1, 2, 3))
    yield "wrong field", pack({"v": VERSION, "t": _TAGS[type(sample)], "request_id": rng.randint(0, 9), "job_id": 1})
    yield "wrong place", encode(Event(_NOWHERE, "planned", 0.0))


_TAGS: Mapping[type[Wire], str] = {
    Request: "request",
    Segment: "segment",
    Candidate: "candidate",
    JobLine: "job_line",
}


def _odd_headers(rng: random.Random) -> dict[str, bytes]:
    return {"request_id": b"\xff\xfe", "traceparent": rng.randbytes(9), SIGNATURE: b"\x00"}


def _sample(place: Place, request_id: str) -> Wire:
    if place.topic == REQUESTS:
        return Request(request_id, (Message("user", "Is this junk?"),))
    if place.topic == CANDIDATES:
        return Candidate(request_id, 1, 0, _NOWHERE, "small", FORGED)
    if place.topic == JOBS:
        return JobLine(request_id, 1, b"{}")
    return _segment(request_id, "")


def _segment(request_id: str, site: str) -> Segment:
    point = Point(0, "junk", 5)
    said = (Message("user", "Is this junk?"),)
    return Segment(request_id, 1, 0, "expand", said, (point,), (point,), 5, Sampling(), 1e12, site, "small")


def _unwanted(place: Place, forger: Known, number: int, rng: random.Random) -> Iterator[Junk]:
    """What can be read, and must not be believed, or comes too late to matter."""
    finished = rng.choice(forger.finished_ids) if forger.finished_ids else _NOWHERE
    if place.topic == REQUESTS:
        for kind, request_id in (("finished", finished), ("unknown", f"{_NOWHERE}-{number}")):
            yield Junk(_key(place, kind, number), place, encode(_sample(place, request_id)), buried=False)
    elif place.topic == CANDIDATES:
        yield from _forged(place, forger, finished, number, rng)
    elif place.topic != JOBS:
        payload = encode(_segment(finished, f"{_NOWHERE}-{number}"))
        yield Junk(_key(place, "wrong site", number), place, payload, buried=True)


def _forged(place: Place, forger: Known, finished: str, number: int, rng: random.Random) -> Iterator[Junk]:
    """Candidates of a site that was taken over, in its own name for what is over, and in another's for open requests;
    signed, not signed, and signed with the key that it has."""
    own = Candidate(finished, 1, 0, forger.site, forger.model, FORGED)
    yield _candidate(place, "finished", number, own, signature(forger.key, encode(own)), buried=False)
    request_id = rng.choice(forger.open_ids) if forger.open_ids else finished
    other = replace(own, request_id=request_id, site=forger.other_site)
    yield _candidate(place, "other's", number, other, signature(forger.key, encode(other)), buried=True)
    yield _candidate(place, "unsigned", number, other, b"", buried=True)
    yield _candidate(place, "garbled", number, other, rng.randbytes(64), buried=True)


def _candidate(place: Place, kind: str, number: int, candidate: Candidate, signed: bytes, *, buried: bool) -> Junk:
    headers = {SIGNATURE: signed} if signed else {}
    return Junk(_key(place, kind, number), place, encode(candidate), buried, headers)
