"""The drill's counting and verdicts, its junk, and its link that can be cut."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.drill_counts import (
    ALL,
    QUIET,
    Fate,
    Found,
    Heard,
    JobFate,
    Leftovers,
    Window,
    aims,
    dead_letters,
    fate_of,
    tallies,
    window_of,
)
from bench.drill_job import job_fate
from bench.drill_junk import FORGED, Known, Place, flood, known, places
from bench.drill_link import Link
from bench.drill_report import COLUMNS, Drilled, all_aims, draw, make_report, rows
from bench.report import ROOT, publish
from pice.config import load_settings
from pice.core import Answer, Candidate, Failure, Plan, Request, Segment
from pice.errors import DecodeError
from pice.message.codec import decode_as
from pice.message.signing import SIGNATURE, is_signed, site_key
from pice.transport.base import CANDIDATES, JOBS, REQUESTS, segments_topic
from tools.brokers.program import free_port

ANSWER = Answer("r", "text", "progressive", "stop", 1, Plan("progressive", "chosen"))
FAILURE = Failure("r", "deadline_exceeded", "the deadline of 60 s passed before its sketch was finished")
LATE = Failure("r", "deadline_exceeded", "nothing ended the request within its 60 s: is a collector running?")
GONE = Failure("r", "cancelled", "the client went away")
JOB = JobFate(3, (), (), {})
NOTHING = Leftovers({}, (), 0, (), (), (), ())
DEADLINE_S = 10.0


def fate(number: int, asked_s: float, ended_s: float, **given: Any) -> Fate:
    made: dict[str, Any] = {"accepted": True, "end": "answered"}
    return Fate(f"r{number}", asked_s, ended_s, **(made | given))


def test_answer_that_was_heard_and_kept_is_one_end() -> None:
    found = fate_of("r", 1.0, 3.5, Heard(num_events=4, outcomes=[ANSWER]), Found(True, ANSWER, 1))
    assert (found.accepted, found.end, found.num_ends, found.e2e_s, found.mode) == (
        True,
        "answered",
        1,
        2.5,
        "progressive",
    )


@pytest.mark.parametrize(
    ("heard", "found", "accepted", "end", "cause"),
    [
        (Heard(), Found(True, FAILURE, 1), True, "failed", "deadline_exceeded"),
        (Heard(outcomes=[FAILURE]), Found(False, None, 0), True, "failed", "deadline_exceeded"),
        (Heard(num_events=2), Found(True, None, 0), True, "lost", "no outcome"),
        (Heard(num_events=2), Found(False, None, 0), True, "lost", "no outcome"),
        (Heard(), Found(True, LATE, 1), True, "lost", LATE.message),
        (Heard(gave_up=True), Found(True, GONE, 1), True, "lost", GONE.message),
        (Heard(), Found(True, GONE, 1), True, "failed", "cancelled"),
        (Heard(refusal="queue_full"), Found(False, None, 0), False, "refused", "queue_full"),
        (Heard(), Found(False, None, 0), False, "refused", "not reached"),
        (Heard(refusal="transport_error"), Found(True, ANSWER, 1), True, "answered", ""),
    ],
    ids=[
        "kept though not heard",
        "heard though not kept",
        "open for ever",
        "vanished",
        "only the client ended it",
        "its asker gave up",
        "cancelled",
        "full",
        "never reached",
        "cut off before it heard",
    ],
)
def test_fate_of_a_request(heard: Heard, found: Found, accepted: bool, end: str, cause: str) -> None:
    fate = fate_of("r", 0.0, 1.0, heard, found)
    assert (fate.accepted, fate.end, fate.cause) == (accepted, end, cause)


@pytest.mark.parametrize(
    ("heard", "found"),
    [
        (Heard(outcomes=[ANSWER]), Found(True, ANSWER, 2)),
        (Heard(outcomes=[ANSWER]), Found(True, replace(ANSWER, text="other"), 1)),
        (Heard(outcomes=[ANSWER, FAILURE]), Found(True, ANSWER, 1)),
    ],
    ids=["two final events", "another answer is kept", "told twice, differently"],
)
def test_two_ends_are_counted(heard: Heard, found: Found) -> None:
    fate = fate_of("r", 0.0, 1.0, heard, found)
    assert fate.num_ends == 2
    assert next(aim for aim in aims([fate], JOB, NOTHING, 1) if "twice" in aim.name).met is False


def test_same_answer_heard_again_is_one_end() -> None:
    assert fate_of("r", 0.0, 1.0, Heard(outcomes=[ANSWER, ANSWER]), Found(True, ANSWER, 1)).num_ends == 1


WINDOWS = [Window("killed", 10.0, 20.0, 1.5), Window("paused", 30.0, 40.0, 0.0), Window("killed", 50.0, 60.0, 4.0)]


@pytest.mark.parametrize(
    ("asked_s", "ended_s", "fault"),
    [(1.0, 9.9, QUIET), (9.0, 10.0, "killed"), (15.0, 16.0, "killed"), (20.0, 35.0, "killed"), (21.0, 31.0, "paused")],
    ids=["before", "still open then", "within", "asked at its end", "open at the next"],
)
def test_request_counts_to_the_first_fault_in_its_life(asked_s: float, ended_s: float, fault: str) -> None:
    assert window_of(fate(0, asked_s, ended_s), WINDOWS) == fault


FATES = [
    fate(0, 0.0, 1.0),
    fate(1, 1.0, 4.0),
    fate(2, 11.0, 17.0, degraded=True),
    fate(3, 12.0, 19.0, end="failed", cause="deadline_exceeded"),
    fate(4, 13.0, 13.5, accepted=False, end="refused", cause="queue_full"),
    fate(5, 31.0, 41.0, end="lost", cause="no outcome"),
    fate(6, 51.0, 53.0, num_ends=2),
]


def test_tallies_add_up() -> None:
    quiet, killed, paused, whole = tallies(FATES, WINDOWS)
    assert [tally.name for tally in (quiet, killed, paused, whole)] == [QUIET, "killed", "paused", ALL]
    assert (quiet.num_asked, killed.num_asked, paused.num_asked, whole.num_asked) == (2, 4, 1, 7)
    assert (killed.num_accepted, killed.num_answered, killed.num_degraded, killed.num_twice) == (3, 2, 1, 1)
    assert (killed.failed, killed.refused) == ({"deadline_exceeded": 1}, {"queue_full": 1})
    assert (paused.num_lost, whole.num_lost, whole.num_accepted) == (1, 1, 6)


def test_row_says_how_much_longer_a_fault_made_it() -> None:
    table = {row[0]: dict(zip(COLUMNS, row, strict=False)) for row in rows(tallies(FATES, WINDOWS), WINDOWS)}
    assert table["killed"]["E2E p50 s"] == "4.00"
    assert table["killed"]["extra p50 s"] == "2.00"
    assert table["killed"]["ready after s"] == "4.00"
    assert table["killed"]["failed, by cause"] == "1 deadline_exceeded"
    assert table[QUIET]["extra p50 s"] == ""
    assert table["paused"]["E2E p50 s"] == ""


def test_every_row_has_every_column() -> None:
    assert {len(row) for row in rows(tallies(FATES, WINDOWS), WINDOWS)} == {len(COLUMNS)}


def test_dead_letters_are_compared_with_the_junk() -> None:
    missing, doubled, foreign = dead_letters(["a", "b", "b", "x"], ["a", "b", "c"])
    assert (missing, doubled, foreign) == (("c",), ("b",), ("x",))


@pytest.mark.parametrize(
    ("left", "missed"),
    [
        (NOTHING, []),
        (replace(NOTHING, lag={"g t/0": 3}), ["messages that a group of Kafka has not finished"]),
        (replace(NOTHING, keys=("k",)), ["keys of requests in Redis after their expiry"]),
        (replace(NOTHING, num_waiting=1), ["candidates left in Redis"]),
        (replace(NOTHING, missing_dead=("j",)), ["junk messages that are not on pice.dead"]),
        (replace(NOTHING, doubled_dead=("j",)), ["junk messages that are there twice"]),
        (replace(NOTHING, foreign_dead=("j",)), ["other messages on pice.dead"]),
        (replace(NOTHING, ended=("cloud ended with 1",)), ["services that ended by themselves"]),
    ],
    ids=["nothing", "lag", "keys", "candidates", "missing", "doubled", "foreign", "ended"],
)
def test_what_is_left_misses_its_aim(left: Leftovers, missed: list[str]) -> None:
    assert [aim.name for aim in aims([fate(0, 0.0, 1.0)], JOB, left, 1) if not aim.met] == missed


def test_lost_and_too_few_miss_their_aims() -> None:
    missed = [aim.name for aim in aims(FATES, JOB, NOTHING, 100) if not aim.met]
    assert missed == ["requests lost", "requests answered twice", "requests accepted"]


def test_every_line_of_a_job_has_one_result() -> None:
    lines = [b'{"custom_id": "a", "error": null}', b'{"custom_id": "b", "error": {"code": "cancelled"}}']
    assert job_fate(["a", "b"], lines) == JobFate(2, (), (), {"cancelled": 1})
    fate = job_fate(["a", "b", "c"], [*lines, lines[0]])
    assert (fate.missing, fate.doubled) == (("c",), ("a",))
    missed = [aim.name for aim in aims(FATES[:1], fate, NOTHING, 1) if not aim.met]
    assert missed == ["lines of the job without a result", "lines of the job with several"]


def drilled(**given: Any) -> Drilled:
    return replace(Drilled(FATES, WINDOWS, JOB, NOTHING, [], num_junk=9, timeout_s=60.0), **given)


def test_forged_answer_misses_its_aim() -> None:
    assert all_aims(drilled(forged=["r1"]), 1)[-1].met is False


def test_report_holds_every_request_with_its_fault(tmp_path: Path) -> None:
    publish(make_report(drilled(), 7), tmp_path / "drill.json", lambda figure: draw(figure, drilled()))
    written = json.loads((tmp_path / "drill.json").read_bytes())
    assert [run["fault"] for run in written["runs"]] == [window_of(fate, WINDOWS) for fate in FATES]
    assert written["detail"]["num_junk"] == 9


SECRET = "a secret"
FORGER = known(SECRET, "oslo", "lyon", "small", (["open-1"], ["done-1"]))
PLACES = places({"main": [0, 1], "cloud": [0]})


def test_every_place_that_nodes_read_is_flooded() -> None:
    topics = {(one.place.topic, one.place.partition) for one in flood(PLACES, FORGER, 0)}
    main, cloud = segments_topic("main"), segments_topic("cloud")
    assert topics == {(REQUESTS, None), (JOBS, None), (main, 0), (main, 1), (cloud, 0), (CANDIDATES, None)}


def test_junk_has_a_key_of_its_own() -> None:
    keys = [one.key for number in range(3) for one in flood(PLACES, FORGER, number)]
    assert len(keys) == len(set(keys))


def test_large_junk_comes_in_the_first_round_only() -> None:
    assert sum(one.is_large for one in flood(PLACES, FORGER, 0)) == len(PLACES)
    assert not any(one.is_large for one in flood(PLACES, FORGER, 1))


def test_junk_that_belongs_on_the_dead_topic_cannot_be_believed() -> None:
    kinds = {
        REQUESTS: Request,
        CANDIDATES: Candidate,
        segments_topic("main"): Segment,
        segments_topic("cloud"): Segment,
    }
    for number in range(20):
        for one in flood(PLACES, FORGER, number):
            if one.place.topic == JOBS:
                continue
            try:
                message: Any = decode_as(kinds[one.place.topic], one.payload)
            except DecodeError:
                assert one.buried
                continue
            if isinstance(message, Candidate) and one.buried:
                key = site_key(SECRET, message.site)
                assert not is_signed(key, one.payload, one.headers.get(SIGNATURE, b""))
            elif isinstance(message, Segment):
                assert one.buried
                assert message.site not in ("oslo", "lyon")


def test_forger_speaks_for_itself_only_of_what_is_over() -> None:
    believed = [one for one in flood([Place(CANDIDATES)], FORGER, 0) if not one.buried]
    (said,) = [decode_as(Candidate, one.payload) for one in believed]
    assert (said.request_id, said.site, said.text) == ("done-1", "oslo", FORGED)
    assert is_signed(site_key(SECRET, "oslo"), believed[0].payload, believed[0].headers[SIGNATURE])


def test_flood_comes_before_any_request_has_ended() -> None:
    nobody = Known("oslo", "small", "key", "lyon", (), ())
    assert len(list(flood(PLACES, nobody, 0))) == len(list(flood(PLACES, FORGER, 0)))


def test_configuration_of_the_drill_is_one() -> None:
    settings = load_settings(ROOT / "bench" / "drill.toml", [], environ={})
    assert set(settings.sites) == {"lyon", "oslo", "montreal"}


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, asyncio.Queue[asyncio.StreamWriter]]]:
    """A link to a server that echoes, and the server's ends of its connections."""
    arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    echoing = set[asyncio.Task[Any]]()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        echoing.add(task)
        arrived.put_nowait(writer)
        try:
            while chunk := await reader.read(100):
                writer.write(chunk)
        except ConnectionError:
            return
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = Link(free_port(), server.sockets[0].getsockname()[1])
    await link.mend()
    try:
        yield link, arrived
    finally:
        await link.cut()
        server.close()
        await asyncio.gather(*echoing)


async def has_ended(reader: asyncio.StreamReader) -> bool:
    try:
        return not await reader.read(1)
    except ConnectionError:
        return True


async def test_link_passes_on_both_ways() -> None:
    async with asyncio.timeout(DEADLINE_S), linked() as (link, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()


async def test_cut_link_breaks_connections_and_refuses_new_ones_until_it_is_mended() -> None:
    async with asyncio.timeout(DEADLINE_S), linked() as (link, arrived):
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        await arrived.get()
        await link.cut()
        assert await has_ended(reader)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", link.port)
        await link.mend()
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
        writer.close()


async def test_stalled_link_keeps_what_is_sent_and_passes_it_on_when_it_is_mended() -> None:
    async with asyncio.timeout(DEADLINE_S), linked() as (link, arrived):
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        await arrived.get()
        link.stall()
        writer.write(b"late")
        waiting = asyncio.ensure_future(reader.readexactly(4))
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", link.port)
        late_writer.write(b"new")
        assert arrived.empty()
        assert not waiting.done()
        await link.mend()
        assert await waiting == b"late"
        assert await late_reader.readexactly(3) == b"new"
        writer.close()
        late_writer.close()
