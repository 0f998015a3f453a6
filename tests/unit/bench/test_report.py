"""What benchmarks share: medians, aims, and a file from which every figure can be checked."""

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from bench import report
from bench.report import Aim, Measured, Report, Table, alternating, at_least, at_most, over, publish
from pice.errors import InputError

FOUND = Report(
    name="sums",
    load={"num_requests": 3},
    runs=[{"round": 0, "per_s": 4.0}, {"round": 1, "per_s": 6.0}],
    aims=[at_least("sums per second", 5.0, 6.0)],
    table=Table("Sums", ("size", "sums/s"), [["small", over([4.0, 6.0]).text()]], notes=("A note.",)),
)


def nothing_drawn(figure: Any) -> None:
    figure.subplots()


@pytest.mark.parametrize(
    ("values", "measured"),
    [
        ([7.0], Measured(7.0, 7.0, 7.0, 1)),
        ([9.0, 1.0, 5.0], Measured(5.0, 1.0, 9.0, 3)),
        ([4.0, 1.0, 2.0, 8.0], Measured(3.0, 1.0, 8.0, 4)),
    ],
    ids=["one", "odd", "even"],
)
def test_runs_come_to_their_median_and_extremes(values: list[float], measured: Measured) -> None:
    assert over(values) == measured


def test_no_runs_come_to_nothing() -> None:
    with pytest.raises(InputError, match="at least one run"):
        over([])


def test_spread_is_printed_beside_the_median() -> None:
    assert over([1234.4, 999.0, 2000.0]).text() == "1,234 (999-2,000)"
    assert over([0.5, 0.25]).text(2) == "0.38 (0.25-0.50)"


@pytest.mark.parametrize(
    ("aim", "met"),
    [
        (at_least("rate", 5000.0, 5000), True),
        (at_least("rate", 4999.9, 5000), False),
        (at_least("rate", float("nan"), 5000), False),
        (at_most("ratio", 1.0, 1), True),
        (at_most("ratio", 1.001, 1), False),
        (at_most("ratio", float("nan"), 1), False),
    ],
)
def test_aim_is_met_up_to_its_bound_and_never_by_what_is_no_number(aim: Aim, met: bool) -> None:
    assert aim.met is met


def test_aim_says_its_bound() -> None:
    assert (at_least("rate", 1.0, 5000).aim, at_most("ratio", 2.0, 0.5).aim) == (">= 5000", "<= 0.5")


def test_variants_alternate_and_turn_round_each_round() -> None:
    assert list(alternating("ab", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_file_holds_command_machine_commit_every_run_and_aims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python3", "-m", "bench", "sums", "--json", "a file"])
    publish(FOUND, tmp_path / "new" / "sums.json", nothing_drawn)
    written = orjson.loads((tmp_path / "new" / "sums.json").read_bytes())
    assert set(written) == {"benchmark", "command", "machine", "commit", "load", "runs", "aims"}
    assert written["command"] == "python -m bench sums --json 'a file'"
    assert written["runs"] == list(FOUND.runs)
    assert written["aims"] == [{"name": "sums per second", "value": 5.0, "aim": ">= 6", "met": False}]
    assert {"cpu", "cores", "memory_bytes", "python", "platform"} <= set(written["machine"])
    assert written["machine"]["cpu"]
    assert set(written["commit"]) == {"revision", "dirty"}
    assert (tmp_path / "new" / "sums.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "5 (4-6)" in printed
    assert "MISSED: sums per second >= 6: 5" in printed


def test_commit_is_unknown_where_there_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.commit() == {"revision": None, "dirty": None}


def test_figures_are_written_where_no_picture_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    publish(FOUND, tmp_path / "sums.json", nothing_drawn)
    assert [path.name for path in tmp_path.iterdir()] == ["sums.json"]
    assert "pip install 'pice[bench]'" in capsys.readouterr().out
