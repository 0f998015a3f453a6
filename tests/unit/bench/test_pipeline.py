"""The pipeline benchmark on a few requests, and its figures on runs made up."""

import gc
from collections import Counter
from typing import Any

import pytest

from bench import instant
from bench.complete import Incomplete
from bench.instant import Known, Size, measured, serve
from bench.pipeline import LoopName, Run, aims, as_profile, draw, make_report, measure, profiled
from pice.engine.emulated import EmulatedEngine
from pice.transport.base import CANDIDATES
from pice.transport.memory import MemoryTransport

SMALL = Size("small", 10, num_points=3)


def run_of(size: str, number: int, cpu_us: float) -> Run:
    return Run(size, number, 5, 40, 10.0, 10.0, cpu_us + 5, cpu_us, 1e6 / cpu_us)


RUNS = [run_of("a", 0, 250.0), run_of("a", 1, 320.0), run_of("b", 0, 200.0), run_of("a", 2, 160.0)]


async def test_every_point_becomes_one_chosen_segment_of_the_size_asked_for() -> None:
    _, answers = await serve(SMALL, {}, num_requests=4, concurrency=2, num_sites=2)
    assert [len(answer.spans) for answer in answers] == [3, 3, 3, 3]
    words = [len(point.text.split()) for answer in answers for point in answer.sketch]
    assert set(words) == {10}
    assert {span.site for answer in answers for span in answer.spans} == {"site-0", "site-1"}


async def test_engines_write_in_the_first_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    _, first = await serve(SMALL, known, num_requests=4, concurrency=2, num_sites=2)
    assert len(known) == 4 * (1 + 3)
    monkeypatch.delattr(EmulatedEngine, "generate")
    _, second = await serve(SMALL, known, num_requests=4, concurrency=3, num_sites=1)
    assert {one.request_id: one.text for one in first} == {one.request_id: one.text for one in second}


async def test_collector_passes_over_what_was_there_until_the_measurement_ends() -> None:
    async with measured():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


async def test_message_left_over_spoils_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(MemoryTransport):
        async def close(self) -> None: ...

        def num_messages(self, topic: str) -> int:
            return 1 if topic == CANDIDATES else 0

    monkeypatch.setattr(instant, "MemoryTransport", Forgetful)
    with pytest.raises(Incomplete, match=f"1 messages were left on {CANDIDATES}"):
        await serve(SMALL, {}, num_requests=1, concurrency=1, num_sites=1)


async def test_rounds_are_measured_size_by_size() -> None:
    sizes = (SMALL, Size("whole texts", 10, num_points=2, piece_tokens=64))
    runs = await measure(sizes, num_rounds=2, num_requests=2)
    assert [(run.size, run.round) for run in runs] == [
        ("small", 0),
        ("whole texts", 0),
        ("whole texts", 1),
        ("small", 1),
    ]
    assert [run.num_segments for run in runs] == [6, 4, 4, 6]


async def test_every_size_is_profiled() -> None:
    found = await profiled((SMALL,), num_requests=2)
    assert found.keys() == {"small"}


def test_profile_divides_the_cost_of_a_segment() -> None:
    encode, expand = ("pice/message/codec.py", "encode"), ("pice/node/edge.py", "EdgeNode._expand")
    found = as_profile(Counter({(encode, expand): 3, (expand,): 1}), 200.0)
    assert found["num_samples"] == 4
    assert found["modules_us"] == {"pice.message.codec": 150.0, "pice.node.edge": 50.0}
    assert found["functions"] == [
        {"where": "pice/message/codec.py encode", "own_us": 150.0, "whole_us": 150.0},
        {"where": "pice/node/edge.py EdgeNode._expand", "own_us": 50.0, "whole_us": 200.0},
    ]


def test_each_size_has_an_aim_of_its_median() -> None:
    found = aims(RUNS)
    assert [aim.value for aim in found] == pytest.approx([4000, 5000])
    assert [aim.met for aim in found] == [False, True]


def test_table_gives_the_median_of_each_size_and_its_spread() -> None:
    assert make_report(RUNS, LoopName.asyncio, {}).table.rows == [
        ["a", "4,000 (3,125-6,250)", "250 (160-320)", "255 (165-325)"],
        ["b", "5,000 (5,000-5,000)", "200 (200-200)", "205 (205-205)"],
    ]


def test_picture_can_be_drawn() -> None:
    figures = pytest.importorskip("matplotlib.figure", reason="pictures need matplotlib")
    figure: Any = figures.Figure()
    draw(figure, RUNS)
    assert len(figure.axes) == 1
