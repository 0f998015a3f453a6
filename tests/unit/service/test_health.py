"""Ready or not, alive or stuck, and how often an outage is told of."""

import asyncio

import pytest

from pice.service.health import Health
from pice.simulation.clock import run_virtual
from tests.unit.service.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def test_service_is_ready_only_between_its_start_and_its_drain(health: Health) -> None:
    seen = [health.is_ready]
    for step in (health.started, health.draining):
        step()
        seen.append(health.is_ready)
    assert seen == [False, True, False]


def test_service_is_not_ready_while_one_of_its_components_is_down(health: Health) -> None:
    health.started()
    health.down("kafka", "kafka:9092 refuses")
    health.down("redis", "redis:6379 refuses")
    health.up("kafka")
    assert not health.is_ready
    assert health.outages == {"redis": "redis:6379 refuses"}
    assert health.components == {"kafka": True, "redis": False}
    health.up("redis")
    assert health.is_ready


def test_outage_that_is_reported_at_every_try_is_logged_once_with_its_length(
    health: Health, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for attempt in range(100):
        health.down("redis", f"redis:6379 refuses, try {attempt}")
        clock.passes(1.5)
    health.up("redis")
    health.up("redis")
    assert caplog.messages == ["redis is down: redis:6379 refuses, try 0", "redis is back after 150.0 s"]


def test_latest_cause_of_an_outage_is_shown(health: Health) -> None:
    health.down("redis", "redis:6379 refuses")
    health.down("redis", "redis:6379 is loading")
    assert health.outages == {"redis": "redis:6379 is loading"}


def test_component_that_comes_and_goes_is_logged_every_30_seconds_at_most(
    health: Health, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(61):
        health.down("redis", "full")
        health.up("redis")
        clock.passes(1)
    assert caplog.messages == ["redis is down: full", "redis is back after 0.0 s"] * 3


def test_long_outage_soon_after_a_short_one_is_logged_when_30_seconds_have_passed(
    health: Health, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    health.down("redis", "short")
    health.up("redis")
    for _ in range(40):
        clock.passes(1)
        health.down("redis", "long")
    health.up("redis")
    assert caplog.messages[2:] == ["redis is down: long", "redis is back after 39.0 s"]


def test_cause_cannot_break_out_of_its_line(health: Health, caplog: pytest.LogCaptureFixture) -> None:
    health.down("kafka", "no\nERROR all is lost \x1b[31m \udcff")
    assert caplog.messages == [r"kafka is down: no\nERROR all is lost \x1b[31m \udcff"]


def test_service_is_alive_until_its_loop_has_not_turned_for_15_seconds(health: Health, clock: Clock) -> None:
    seen = []
    for seconds in (14.9, 0.1):
        clock.passes(seconds)
        seen.append(health.is_live)
    health.beat()
    assert [*seen, health.is_live] == [True, False, True]


def test_loop_that_turns_beats_and_one_that_was_left_does_not(health: Health, clock: Clock) -> None:
    async def main() -> list[bool]:
        seen = []
        with health.beating():
            for _ in range(3):
                clock.passes(60)
                await asyncio.sleep(1.5)
                seen.append(health.is_live)
        clock.passes(60)
        await asyncio.sleep(60)
        return [*seen, health.is_live]

    assert run_virtual(main()) == [True, True, True, False]
