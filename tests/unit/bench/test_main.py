"""How benchmarks are started: by name, and as files."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from bench import pipeline
from bench.__main__ import app
from bench.instant import Size
from bench.report import ROOT
from pice.errors import ConfigError


@pytest.mark.parametrize("args", [["--quick", "pipeline"], ["pipeline", "--quick"]], ids=["before", "after"])
def test_quick_may_stand_before_or_after_the_name(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SIZES", (Size("small", 10, num_points=1),))
    ran = CliRunner().invoke(app, [*args, "--json", str(tmp_path / "found.json")], catch_exceptions=False)
    assert ran.exit_code == 0
    runs = orjson.loads((tmp_path / "found.json").read_bytes())["runs"]
    assert [run["num_requests"] for run in runs] == [60] * 5


@pytest.mark.parametrize(
    "name", ["pipeline", "eager", "engine", "agreement", "threads", "demo", "ensemble", "brokers", "drill"]
)
def test_benchmark_can_be_started_as_a_file(name: str) -> None:
    ran = subprocess.run([sys.executable, f"bench/{name}.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "quick" in ran.stdout


def test_benchmark_that_lacks_what_it_needs_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def lacking(*, quick: bool) -> None:
        raise ConfigError("no models")

    def noting(*, quick: bool) -> None:
        ran.append("two")

    monkeypatch.setattr("bench.__main__.COMMANDS", {"one": lacking, "two": noting})
    result = CliRunner().invoke(app, ["--quick"], catch_exceptions=False)
    assert (result.exit_code, ran) == (0, ["two"])
    assert "one is left out: no models" in result.output
