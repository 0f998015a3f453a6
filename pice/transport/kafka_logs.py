"""What Kafka's client logs, made bearable."""

import logging

_LOUD = (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
    "aiokafka.producer.sender",
)
_SELDOM_S = 30.0


def hush() -> None:
    """From now on one record of each kind is logged in 30 s: while a broker is away there are ten a second. May be
    called twice."""
    for name in _LOUD:
        logging.getLogger(name).addFilter(_SELDOM)


_NOT_YET = "[Error 15] GroupCoordinatorNotAvailableError"
"""What a Kafka says that is making its own topic of groups; clients ask again at once."""


class _Seldom(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._seen_s: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if _NOT_YET in record.getMessage():
            return False
        kind = (record.pathname, record.lineno)
        if abs(record.created - self._seen_s.get(kind, -_SELDOM_S)) < _SELDOM_S:
            return False
        self._seen_s[kind] = record.created
        return True


_SELDOM = _Seldom()
