"""The demo benchmark's figures on runs made up; what the systems are."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

pytest.importorskip("rapidfuzz", reason="rapidfuzz is not installed: pip install 'pice[bench]'")

from bench.demo import aims, draw, make_load, make_report, quality, table
from bench.demo_run import Asked, Run, rouge_l
from bench.demo_systems import systems
from bench.report import document
from pice.demo.atlas import KINDS

OVERVIEW = Asked(
    question="overview-1",
    kind="overview",
    load="single",
    mode="progressive",
    reason="",
    e2e_s=0.2,
    ttft_s=0.1,
    sketch_s=0.1,
    first_segment_s=0.1,
    recall=0.9,
    town_recall=1.0,
    general_recall=0.8,
    precision=1.0,
    rouge_l=0.9,
    num_cloud_tokens=60,
    num_edge_tokens=450,
    num_answer_tokens=300,
    num_degraded=0,
    finish_reason="stop",
)


def run_of(system: str, mode: str, e2e_s: float, wall_s: float, *, recall: float = 0.96, at: int = 0) -> Run:
    asked = [
        replace(
            OVERVIEW, kind=kind, load=load, mode=mode if kind in ("overview", "comparison") else "cloud", recall=recall
        )
        for kind in KINDS
        for load in ("single", "overviews", "all kinds")
    ]
    asked = [replace(one, e2e_s=e2e_s) for one in asked]
    return Run(system, at, {"overviews": wall_s, "all kinds": wall_s}, asked)


RUNS = [
    run_of("cloud-only", "cloud", 0.8, 10.0),
    run_of("pice", "progressive", 0.2, 4.0),
    run_of("cloud-only", "cloud", 0.4, 10.0, at=1),
    run_of("pice", "progressive", 0.3, 8.0, at=1),
    run_of("edge-a alone", "edge", 0.1, 1.0, recall=0.2),
    run_of("pice with edge-a alone", "progressive", 0.2, 4.0, recall=0.9),
]


def test_aims_compare_round_by_round() -> None:
    found = {aim.name: (round(aim.value, 4), aim.met) for aim in aims(RUNS)}
    assert found["E2E of overviews, pice / cloud-only"] == (0.5, True)
    assert found["throughput of overviews, pice / cloud-only"] == (1.875, False)
    assert found["recall, pice / cloud-only"] == (1.0, True)
    assert found["recall, edge-a alone"] == (0.2, True)
    assert found["comparison questions answered progressive"] == (1.0, True)


def test_quality_is_the_mean_over_kinds_of_what_can_be_measured() -> None:
    fact = replace(OVERVIEW, kind="fact", recall=0.5, precision=0.4)
    silent = replace(OVERVIEW, precision=None)
    run = Run("pice", 0, {}, [silent, silent, fact])
    assert quality([run], "recall") == pytest.approx(0.7)
    assert quality([run], "precision") == pytest.approx(0.4)


def test_no_question_is_asked_twice_under_a_load() -> None:
    load = make_load(quick=False)
    asked = [load.first, *load.single, *(question for batch in load.batches.values() for question in batch)]
    assert len(set(asked)) == len(asked) == 1 + 40 + 64 + 64


def test_gate_that_errs_misses_its_aim() -> None:
    missed = [aim.name for aim in aims([RUNS[0], run_of("pice", "cloud", 0.2, 4.0)]) if not aim.met]
    assert [name for name in missed if "answered" in name] == [
        "overview questions answered progressive",
        "comparison questions answered progressive",
    ]


def test_table_has_a_row_for_each_system_with_the_tokens_it_cost() -> None:
    rows = table(RUNS).rows
    assert [row[0] for row in rows] == ["cloud-only", "pice", "edge-a alone", "pice with edge-a alone"]
    assert rows[1][-2:] == ["0.20", "1.50"]


def test_report_can_be_written() -> None:
    written = orjson.loads(orjson.dumps(document(make_report(RUNS, make_load(quick=True)))))
    assert written["load"]["overviews"] == 16
    assert len(written["runs"]) == len(RUNS)


def test_picture_has_a_bar_for_each_system_that_is_timed() -> None:
    matplotlib = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    figure: Any = matplotlib.Figure(layout="constrained")
    draw(figure, RUNS)
    assert [len(panel.patches) for panel in figure.axes] == [8, 4]


def test_systems_differ_in_what_they_are_compared_for() -> None:
    known = {system.name: system for system in systems()}
    assert known["cloud-only"].mode == "cloud"
    assert known["pice"].settings.planner.eager
    assert not known["pice-paper"].settings.planner.eager
    assert known["pice-paper"].settings.planner.candidates == 3
    assert not known["cloud-only"].settings.sites
    assert list(known["edge-b alone"].settings.sites) == ["west"]
    assert known["pice with edge-b alone"].settings.ensemble.max_candidates == 1


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [("a b c", "a b c", 1.0), ("a x b", "a b", 0.8), ("b a", "a b", 0.5), ("", "a", 0.0), ("", "", 1.0)],
)
def test_rouge_l_is_the_longest_common_subsequence(text: str, reference: str, expected: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(expected)
