"""An outage is waited out, and told of; what waiting does not mend is raised."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import pairwise

import pytest

from pice.app.patience import Patience, patient
from pice.errors import ConfigError, Full, InputError, MessageTooLarge, PiceError, TransportError

GONE = TransportError("redis at 127.0.0.1:6379 does not answer")
FULL = Full("the stream is full", retry_after_s=7.0)


class Told:
    """What became known of outages, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.is_told = asyncio.Event()

    def down(self, name: str, cause: str) -> None:
        self.is_told.set()
        self.events.append(("down", name, cause))

    def up(self, name: str) -> None:
        self.events.append(("up", name))


class Port:
    """Raises what it is given, one by one, and then does what it is asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls: list[tuple[object, ...]] = []
        self.at_s: list[float] = []

    def now(self) -> float:
        return 5.0

    async def publish(self, topic: str, payload: bytes, *, key: str = "") -> str:
        self.calls.append((topic, payload, key))
        self.at_s.append(asyncio.get_running_loop().time())
        self._fail()
        return "stored"

    async def open(self, name: str) -> str:
        self._fail()
        return f"opened {name}"

    async def follow(self) -> AsyncGenerator[str, None]:
        self._fail()
        yield "event"

    async def close(self) -> None:
        self._fail()

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


def patience(told: Told | None = None, ended: asyncio.Event | None = None) -> Patience:
    return Patience(told or Told(), ended or asyncio.Event())


async def test_what_is_away_is_waited_for_and_told_of_until_it_is_back() -> None:
    told, port = Told(), Port(GONE, GONE)
    assert await patient(port, "redis", patience(told)).publish("topic", b"x", key="k") == "stored"
    assert port.calls == [("topic", b"x", "k")] * 3
    assert told.events == [("down", "redis", str(GONE))] * 2 + [("up", "redis")]


async def test_pauses_between_tries_grow_up_to_a_bound() -> None:
    port = Port(*[GONE] * 8)
    await patient(port, "redis", patience()).publish("topic", b"")
    pauses = [later - earlier for earlier, later in pairwise(port.at_s)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    "error",
    [ConfigError("wrong password"), MessageTooLarge("1 MB"), InputError("no"), ValueError("a bug")],
    ids=lambda error: type(error).__name__,
)
async def test_what_waiting_does_not_mend_is_raised_at_once(error: Exception) -> None:
    told, port = Told(), Port(error, GONE)
    with pytest.raises(type(error)) as raised:
        await patient(port, "redis", patience(told)).publish("topic", b"")
    assert raised.value is error
    assert (len(port.calls), told.events) == (1, [])


async def test_full_queue_is_waited_for() -> None:
    told, port = Told(), Port(FULL, GONE, FULL)
    assert await patient(port, "candidates", patience(told)).publish("topic", b"") == "stored"
    assert [event[0] for event in told.events] == ["down", "down", "down", "up"]
    assert told.events[0] == ("down", "candidates", str(FULL))


async def test_request_too_many_is_refused_and_nobody_waits() -> None:
    told = Told()
    with pytest.raises(Full):
        await patient(Port(FULL), "redis", patience(told)).open("r1")
    assert told.events == []
    assert await patient(Port(GONE), "redis", patience(told)).open("r1") == "opened r1"


async def test_no_room_at_the_start_is_not_waited_for() -> None:
    with pytest.raises(Full):
        await patience().insist(Port(FULL).close, "redis")


@pytest.mark.parametrize("error", [GONE, FULL], ids=["away", "full"])
async def test_patience_that_has_ended_lets_the_first_failure_out(error: PiceError) -> None:
    told, port, ended = Told(), Port(error, error), asyncio.Event()
    ended.set()
    with pytest.raises(type(error)):
        await patient(port, "redis", patience(told, ended)).publish("topic", b"")
    assert (len(port.calls), told.events) == (1, [])


async def test_patience_that_ends_is_not_waited_for() -> None:
    port, ended = Port(*[GONE] * 1000), asyncio.Event()
    clock = asyncio.get_running_loop()
    clock.call_later(60.0, ended.set)
    with pytest.raises(TransportError):
        await patient(port, "redis", patience(ended=ended)).publish("topic", b"")
    assert clock.time() == pytest.approx(60.0)


async def test_closing_is_tried_once() -> None:
    told = Told()
    with pytest.raises(TransportError):
        await patient(Port(GONE), "redis", patience(told)).close()
    assert told.events == []


@pytest.mark.parametrize("errors", [[], [GONE]], ids=["there", "away"])
async def test_what_is_no_plain_call_goes_through_as_it_is(errors: Sequence[PiceError]) -> None:
    """The clock, and streams: to read one again from its beginning is for its reader to decide."""
    port = patient(Port(*errors), "redis", patience())
    assert port.now() == 5.0
    if errors:
        with pytest.raises(TransportError):
            await anext(port.follow())
    else:
        assert [event async for event in port.follow()] == ["event"]


async def test_what_nobody_waits_for_any_more_counts_as_back() -> None:
    told, port = Told(), Port(*[GONE] * 1000)
    held = patience(told)
    waiting = [asyncio.ensure_future(patient(port, "redis", held).publish("topic", b"")) for _ in range(2)]
    for one, events in zip(waiting, (["down"], ["up"]), strict=True):
        await asyncio.sleep(60)
        one.cancel()
        await asyncio.wait([one])
        assert [event[0] for event in told.events[-1:]] == events


async def test_waiting_ends_when_it_is_cancelled() -> None:
    port = Port(*[GONE] * 1000)
    waiting = asyncio.ensure_future(patient(port, "redis", patience()).publish("topic", b""))
    await asyncio.sleep(60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    num_tried = len(port.calls)
    await asyncio.sleep(60)
    assert len(port.calls) == num_tried > 20


async def test_outage_that_nobody_waits_for_any_more_counts_as_over() -> None:
    told, port = Told(), Port(*[GONE] * 1000)
    waiting = asyncio.create_task(patient(port, "redis", Patience(told, asyncio.Event())).publish("t", b""))
    async with asyncio.timeout(5):
        await told.is_told.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert told.events[0] == ("down", "redis", str(GONE))
    assert told.events[-1] == ("up", "redis")
