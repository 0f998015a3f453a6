"""What Kafka's client logs."""

import logging

import pytest

from pice.transport.kafka_logs import hush


def test_what_is_said_all_the_time_is_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    hush()
    hush()
    kafka, others = logging.getLogger("aiokafka"), logging.getLogger("others")
    for number in range(3):
        kafka.error("no connection to node %d", number)
        others.error("others")
    kafka.error("something else")
    assert [it.getMessage() for it in caplog.records] == [
        "no connection to node 0",
        *["others"] * 3,
        "something else",
    ]


def test_what_was_said_long_ago_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    hush()
    kafka = logging.getLogger("aiokafka")
    for created_s in (1000.0, 1029.0, 1031.0, 5.0):
        record = kafka.makeRecord("aiokafka", logging.ERROR, "here", 1, "away", (), None)
        record.created = created_s
        kafka.handle(record)
    assert [it.created for it in caplog.records] == [1000.0, 1031.0, 5.0]
