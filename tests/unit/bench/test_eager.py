"""The eager benchmark on a few requests, and its figures on runs made up."""

from typing import Any

import pytest

from bench.eager import Cell, Run, Trace, aims, cells_of, compare, draw, make_report, play, trace
from bench.fleet import RTT_S

CELL = Cell(5, 2, "unloaded")
SINGLE = Cell(5, 2, "loaded", single=True)


def run_of(cell: Cell, seed: int, eager: bool, *e2e_s: float) -> Run:
    return Run(cell, seed, eager, 5, 5, e2e_s, tuple(value / 2 for value in e2e_s), tuple(value / 4 for value in e2e_s))


RUNS = [
    run_of(CELL, 0, False, 4.0, 8.0),
    run_of(CELL, 0, True, 2.0, 4.0),
    run_of(CELL, 1, False, 2.0, 4.0),
    run_of(CELL, 1, True, 3.0, 3.0),
]
EARLY = Trace(0, 1.0, (0.5, 1.0, 1.5))
LATE = Trace(1, 1.5, (0.5, 1.0, 1.5))


def test_releases_are_compared_seed_by_seed() -> None:
    found = compare(RUNS, CELL, "e2e_s", 50)
    assert (found.whole.low, found.whole.high) == (3.0, 6.0)
    assert (found.eager.median, found.ratio.low, found.ratio.high) == (3.0, 0.5, 1.0)
    assert found.ratio.median == 0.75


def test_worst_setting_decides_an_aim() -> None:
    slower = [run_of(SINGLE, 0, False, 2.0), run_of(SINGLE, 0, True, 2.5)]
    assert [aim.met for aim in aims(RUNS, [EARLY])] == [True, True, True, True]
    assert [(aim.met, aim.value) for aim in aims([*RUNS, *slower], [EARLY])][:3] == [(False, 1.25)] * 3


def test_segment_published_with_the_third_point_is_not_early() -> None:
    assert aims(RUNS, [EARLY, LATE])[-1].value == 0.5


def test_every_setting_is_compared() -> None:
    cells = cells_of((5, 10), (2, 4))
    assert len(cells) == len(set(cells)) == 16


@pytest.mark.parametrize("cell", [CELL, SINGLE], ids=["unloaded", "loaded"])
def test_same_seed_gives_the_same_run(cell: Cell) -> None:
    first = play(cell, 3, eager=True, num_requests=2)
    assert first == play(cell, 3, eager=True, num_requests=2)
    assert len(first.e2e_s) == 2
    assert min(first.first_segment_s) > RTT_S


def test_eager_release_shows_text_sooner_than_waiting_for_the_sketch() -> None:
    eager, whole = (play(CELL, 0, eager=eager, num_requests=2) for eager in (True, False))
    assert max(eager.first_segment_s) < min(whole.first_segment_s)


def test_first_segment_is_published_before_the_third_point_is_written() -> None:
    found = trace(Cell(20, 2, "unloaded"), 0)
    assert len(found.points_written_s) == 20
    assert found.is_early()


def test_report_holds_every_run_with_its_requests() -> None:
    report = make_report(RUNS, [EARLY])
    assert [run["e2e_s"] for run in report.runs] == [(4.0, 8.0), (2.0, 4.0), (2.0, 4.0), (3.0, 3.0)]
    assert report.table.rows[0][:4] == ["5 x 2, unloaded, merged", "4.50", "3.00", "0.75 (0.50-1.00)"]


def test_picture_can_be_drawn() -> None:
    figures = pytest.importorskip("matplotlib.figure", reason="pictures need matplotlib")
    figure: Any = figures.Figure()
    draw(figure, [*RUNS, *(run_of(Cell(5, 2, "loaded"), 0, eager, 1.0) for eager in (False, True))])
    assert len(figure.axes) == 2
