"""Poison -> `pice.dead`, with where it came from and why (P6)."""

import logging
from collections.abc import Mapping

from pice.errors import Full, MessageTooLarge
from pice.message.signing import SIGNATURE
from pice.message.trace import REQUEST_ID, TRACEPARENT
from pice.node.telemetry import Telemetry
from pice.transport.base import DEAD, Delivery, Transport

log = logging.getLogger(__name__)

CUT = "cut"
"""Header of a dead message of which only the head is kept: how many bytes it had."""
REPLAYED = "replayed"
"""Header that only who replays a dead message may set."""
_HEAD_BYTES = 1024
_WORD_BYTES = 256
_REASON_CHARS = 500


async def bury(transport: Transport, delivery: Delivery, reason: str, telemetry: Telemetry) -> None:
    """Puts a poisoned message aside, whole, under the headers it had and `reason`, `topic`, `partition`, `position`.
    Of one that `pice.dead` finds too large its head is kept, and the header `cut` says so; where no more can be kept
    at all it is logged and lost: poison must not stop a partition. The caller acknowledges it.

    Raises:
        TransportError: it may not have been stored; try again.
    """
    where = f"{delivery.topic} {delivery.partition}/{delivery.position}"
    reason = reason[:_REASON_CHARS]
    try:
        kept = await _store(transport, delivery, _provenance(delivery, reason))
    except (Full, MessageTooLarge) as error:
        log.error("%s is lost, %s cannot keep it: %s: %s", where, DEAD, reason, error)  # noqa: TRY400 - it says it all
        return
    telemetry.buried(delivery.topic)
    log.warning("%s put aside, %s: %s", where, kept, reason)


async def _store(transport: Transport, delivery: Delivery, provenance: Mapping[str, bytes]) -> str:
    """How much of it was kept."""
    try:
        headers = {name: value for name, value in delivery.headers.items() if name not in (CUT, REPLAYED)}
        await transport.publish(DEAD, delivery.payload, key=delivery.key, headers={**headers, **provenance})
    except MessageTooLarge:
        num_bytes = len(delivery.payload)
        headers = {**_short(delivery.headers), **provenance, CUT: str(num_bytes).encode()}
        await transport.publish(DEAD, delivery.payload[:_HEAD_BYTES], key=delivery.key[:_WORD_BYTES], headers=headers)
        return f"the first {min(num_bytes, _HEAD_BYTES)} of its {num_bytes} bytes"
    return "whole"


def _provenance(delivery: Delivery, reason: str) -> dict[str, bytes]:
    return {
        "reason": reason.encode(errors="replace"),
        "topic": delivery.topic.encode(),
        "partition": str(delivery.partition).encode(),
        "position": str(delivery.position).encode(),
    }


def _short(headers: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those that are ours: the others may be what is too large."""
    return {name: headers[name][:_WORD_BYTES] for name in (REQUEST_ID, TRACEPARENT, SIGNATURE) if name in headers}
