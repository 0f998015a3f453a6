"""The pipeline benchmark on a few requests, and its figures on runs made up."""

from collections import Counter
from typing import Any

import pytest

from bench import instant
from bench.complete import Incomplete
from bench.instant import Call, Size, engines_alone, serve
from bench.pipeline import LoopName, Run, aims, as_profile, draw, make_report, measure, profiled
from pice.transport.base import CANDIDATES
from pice.transport.memory import MemoryTransport

SMALL = Size("small", 10, num_points=3)


def run_of(size: str, number: int, cpu_us: float, engine_us: float) -> Run:
    return Run(
        size, number, 5, 40, 10.0, 10.0, cpu_us, cpu_us, engine_us, engine_us, 1e6 / cpu_us, 1e6 / (cpu_us - engine_us)
    )


RUNS = [run_of("a", 0, 250.0, 100.0), run_of("a", 1, 300.0, 110.0), run_of("a", 2, 200.0, 40.0)]


async def test_every_point_becomes_one_chosen_segment_of_the_size_asked_for() -> None:
    _, answers = await serve(SMALL, num_requests=4, concurrency=2, num_sites=2)
    assert [len(answer.spans) for answer in answers] == [3, 3, 3, 3]
    words = [len(point.text.split()) for answer in answers for point in answer.sketch]
    assert set(words) == {10}
    assert {span.site for answer in answers for span in answer.spans} == {"site-0", "site-1"}


async def test_engines_alone_are_driven_with_what_the_pipeline_asked_of_them() -> None:
    calls = list[Call]()
    await serve(SMALL, num_requests=2, concurrency=2, num_sites=2, calls=calls)
    kinds = [(call.prompt.kind, call.sampling is None) for call in calls]
    assert sorted(kinds) == [("answer", True)] * 2 + [("expand", False)] * 6 + [("sketch", False)] * 2
    cost = await engines_alone(SMALL, calls, concurrency=2)
    assert cost.cpu_s > 0


async def test_message_left_over_spoils_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(MemoryTransport):
        async def close(self) -> None: ...

        def num_messages(self, topic: str) -> int:
            return 1 if topic == CANDIDATES else 0

    monkeypatch.setattr(instant, "MemoryTransport", Forgetful)
    with pytest.raises(Incomplete, match=f"1 messages were left on {CANDIDATES}"):
        await serve(SMALL, num_requests=1, concurrency=1, num_sites=1)


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


def test_aims_are_of_medians_with_and_without_the_engines_time() -> None:
    own, whole = aims(RUNS)
    assert [own.value, whole.value] == pytest.approx([1e6 / 160, 4000])
    assert (own.met, whole.met) == (True, False)


def test_report_gives_both_totals_and_every_run() -> None:
    report = make_report(RUNS, LoopName.asyncio, {})
    assert [run["pipeline_cpu_us"] for run in report.runs] == [150.0, 190.0, 160.0]
    assert report.table.rows == [
        ["a", "4,000 (3,333-5,000)", "6,250 (5,263-6,667)", "250 (200-300)", "100 (40-110)", "160 (150-190)",
         "250 (200-300)"]
    ]  # fmt: skip


def test_picture_can_be_drawn() -> None:
    figures = pytest.importorskip("matplotlib.figure", reason="pictures need matplotlib")
    figure: Any = figures.Figure()
    draw(figure, RUNS)
    assert len(figure.axes) == 1
