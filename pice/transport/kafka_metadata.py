"""Which topics a Kafka has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pice.kafka_client import MetadataRequest, for_code

_UNKNOWN_TOPIC, _NO_LEADER = 3, 5


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic as it is."""

    num_partitions: int
    num_copies: int


async def find_topics(admin: Any, names: Sequence[str]) -> dict[str, TopicFacts]:
    """Those of these topics that are there; none is made by looking. Raises Kafka's errors."""
    answer = await admin._send_request(MetadataRequest(list(names), False))  # noqa: SLF001 - its own looks make topics
    found = {}
    for topic in answer.to_object()["topics"]:
        raise_for(topic["error_code"], topic["topic"], but=(_UNKNOWN_TOPIC, _NO_LEADER))
        if partitions := topic["partitions"]:
            found[topic["topic"]] = TopicFacts(len(partitions), min(len(each["replicas"]) for each in partitions))
    return found


def raise_for(code: int, what: str, *, but: Sequence[int] = ()) -> None:
    """Raises Kafka's error of this code, unless it is 0 or one of `but`."""
    if code and code not in but:
        raise for_code(code)(what)
