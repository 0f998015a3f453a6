"""Where the brokers are that `make test` starts, for tests that need real ones."""

import os

import pytest


def kafka_address() -> str:
    """`host:port`; skips the test where there is none, or fails it where there must be."""
    return _address("PICE_KAFKA", "Kafka")


def redis_url() -> str:
    """As `kafka_address`, a URL with a database."""
    return _address("PICE_REDIS", "Redis")


def _address(variable: str, name: str) -> str:
    if address := os.environ.get(variable):
        return address
    why = os.environ.get("PICE_NO_BROKERS", f"{variable} is not set; `make test` starts one")
    if os.environ.get("PICE_REQUIRE_BROKERS") == "1":
        pytest.fail(f"PICE_REQUIRE_BROKERS is 1, and there is no {name}: {why}")
    pytest.skip(f"needs a real {name}: {why}")
