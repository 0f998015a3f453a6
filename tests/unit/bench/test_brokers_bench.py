"""The figures of the benchmark on real brokers, on runs made up; and how its bare loop lets messages go."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bench.brokers_bare import Flow
from bench.brokers_costs import package_of
from bench.brokers_figures import COLUMNS, Kind, Load, Run, aims, as_run, compared, draw, make_report, table, took_s
from bench.brokers_host import Spent, cluster_packages, cpu_s
from bench.report import ROOT, publish
from pice.config import load_settings
from pice.core import Answer, Placement, Plan, Span
from pice.errors import ConfigError

DEADLINE_S = 10.0
LOAD = Load(num_busy=10, num_single=2)


def run_of(kind: Kind, num_sites: int, number: int, per_s: float, p50_ms: float = 1.0) -> Run:
    return Run(kind, num_sites, number, 80, per_s, 1e6 / per_s, 10.0, 5.0, p50_ms, 2 * p50_ms)


RUNS = [
    run_of("PICE", 1, 1, 80.0, 5.0),
    run_of("bare loop", 1, 1, 100.0, 1.0),
    run_of("bare loop", 1, 2, 200.0, 2.0),
    run_of("PICE", 1, 2, 100.0, 7.0),
    run_of("PICE", 1, 3, 90.0, 6.0),
    run_of("bare loop", 1, 3, 100.0, 1.0),
    run_of("PICE", 4, 1, 50.0),
    run_of("bare loop", 4, 1, 100.0),
]


def test_ratio_is_of_runs_of_the_same_round() -> None:
    one, four = compared(RUNS)
    assert (one.num_sites, four.num_sites) == (1, 4)
    assert [(run.kind, run.round) for run in one.runs["bare loop"]] == [("bare loop", n) for n in (1, 2, 3)]
    (aim, missed) = aims(RUNS)
    assert (aim.value, aim.met) == (0.8, True)
    assert (missed.value, missed.met) == (0.5, False)


def test_row_sets_pice_beside_the_bare_loop() -> None:
    (row, _) = table(RUNS).rows
    found = dict(zip(COLUMNS, row, strict=False))
    assert found["segments/s"] == "90 (80-100)"
    assert found["ratio"] == "0.800 (0.500-0.900)"
    assert row[COLUMNS.index("added p50")] == "5.0 (4.0-5.0)"
    assert len(row) == len(COLUMNS)


def test_report_holds_every_run_and_the_profile(tmp_path: Path) -> None:
    made = make_report(RUNS, LOAD, {"packages_us": {"pice": 1.0}})
    publish(made, tmp_path / "brokers.json", lambda figure: draw(figure, RUNS))
    written = json.loads((tmp_path / "brokers.json").read_bytes())
    assert len(written["runs"]) == len(RUNS)
    assert written["detail"]["profile"]["packages_us"] == {"pice": 1.0}


def test_figures_of_a_run_are_per_segment() -> None:
    run = as_run("PICE", 2, 1, 100, Spent(wall_s=2.0, cpu_s=1.0, kafka_s=0.5, redis_s=0.1), [0.001, 0.003])
    assert (run.per_s, run.cpu_us, run.kafka_us, run.redis_us) == pytest.approx((50.0, 10_000.0, 5000.0, 1000.0))
    assert (run.p50_ms, run.p99_ms) == pytest.approx((2.0, 2.98))


def test_segment_takes_from_its_first_placement_to_its_choice() -> None:
    placed = (Placement("s0", "small", 3.0, 4.0), Placement("s1", "small", 3.5, 4.0))
    span = Span(0, "text", "s0", "small", 0.9, placements=placed, chosen_s=3.25)
    answer = Answer("r", "text", "progressive", "stop", 1, Plan("progressive", ""), spans=(span,))
    assert took_s([answer]) == [0.25]


async def test_flow_lets_as_many_go_as_have_arrived() -> None:
    flow = Flow(4, 2, in_bursts=False)
    async with asyncio.timeout(DEADLINE_S):
        await flow.admit(0)
        await flow.admit(1)
        waiting = asyncio.ensure_future(flow.admit(2))
        await asyncio.sleep(0)
        assert not waiting.done()
        flow.arrived([1])
        await waiting
        flow.arrived([0, 2])
        await flow.admit(3)
        assert not flow.ended.is_set()
        flow.arrived([3])
        await flow.ended.wait()
    assert len(flow.took_s) == 4


async def test_burst_waits_until_all_of_the_one_before_have_arrived() -> None:
    flow = Flow(4, 2, in_bursts=True)
    async with asyncio.timeout(DEADLINE_S):
        await flow.admit(0)
        flow.arrived([0])
        await flow.admit(1)
        waiting = asyncio.ensure_future(flow.admit(2))
        await asyncio.sleep(0)
        assert not waiting.done()
        flow.arrived([1])
        await waiting


async def test_message_that_comes_twice_ends_the_run() -> None:
    flow = Flow(2, 2, in_bursts=False)
    await flow.admit(0)
    flow.arrived([0])
    with pytest.raises(KeyError):
        flow.arrived([0])


@pytest.mark.parametrize(
    ("file", "package"),
    [
        ("/usr/lib/python3.11/site-packages/aiokafka/conn.py", "aiokafka"),
        ("/usr/lib/python3.11/site-packages/typing_extensions.py", "typing_extensions"),
        (str(ROOT / "pice" / "node" / "edge.py"), "pice"),
        (str(ROOT / "bench" / "instant.py"), "bench"),
        ("/usr/lib/python3.11/asyncio/tasks.py", "asyncio"),
        ("<string>", "<string>"),
    ],
    ids=["library", "module", "node", "bench", "standard library", "no file"],
)
def test_function_counts_to_its_package(file: str, package: str) -> None:
    assert package_of(file) == package


def test_missing_client_of_a_broker_is_named() -> None:
    with pytest.raises(ConfigError, match="needs the package aiokafka"), cluster_packages():
        raise ModuleNotFoundError("No module named 'aiokafka'", name="aiokafka")


def test_process_that_is_gone_takes_no_time() -> None:
    assert cpu_s(2**30) == 0.0


def test_configuration_has_eight_sites() -> None:
    assert len(load_settings(ROOT / "bench" / "brokers.toml", [], environ={}).sites) == 8


def test_picture_can_be_drawn() -> None:
    figures = pytest.importorskip("matplotlib.figure", reason="pictures need matplotlib")
    figure: Any = figures.Figure()
    draw(figure, RUNS)
    assert len(figure.axes) == 1
