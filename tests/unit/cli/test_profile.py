"""`pice profile`: the curve of an engine as it was made, what is drawn of it, and what is refused."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from pice.app.profile import profile
from pice.config import load_settings
from pice.errors import InputError
from pice.plan.curve import Run, Workload
from pice.simulation.clock import run_virtual
from tests.test_repo import ROOT

Pice = Callable[..., Any]
EMULATED = ROOT / "config" / "emulated.toml"
QUICK = """\
[engines.big]
kind = "emulated"
max_inflight = 3
curve = { batch = [1], step_s = [0.0005] }
style = { answer_words = [60, 60] }
[cloud]
engine = "big"
"""
WORKLOAD = Workload(200, 64, (1, 2, 8), 1)


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(QUICK, encoding="utf-8")
    return path


def test_measured_curve_is_the_one_that_the_engine_has() -> None:
    settings, runs = load_settings(EMULATED), list[Run]()
    found = run_virtual(profile(settings, "cloud", WORKLOAD, 0, runs.append))
    measured = found.timing.curve()
    assert measured.batch == (1, 2, 8)
    assert measured.step_s == pytest.approx((0.0297, 0.0300, 0.0314), rel=0.02)
    assert measured.prefill_s_per_token == pytest.approx(0.000116, rel=0.05)
    assert measured.base_s == pytest.approx(0.05, rel=0.05)
    assert [run.batch for run in runs] == [1, 2, 8]
    assert found.model == "llama2-70b"


@pytest.mark.parametrize(
    ("name", "workload", "message"),
    [
        ("huge", WORKLOAD, r"engines: expected one of cloud.*, got 'huge'"),
        ("workstation", WORKLOAD, r"engines\.workstation decodes 2 at once: .*got 8"),
        ("cloud", Workload(200, 9, (1,), 1), "8 times 1 texts were written at once for fewer than 4 tokens"),
        ("cloud", Workload(32, 64, (1,), 1), r"prompt_tokens must be >= \d+ for engines\.cloud.*got 32"),
    ],
    ids=["no such engine", "more at once than it decodes", "too few tokens", "prompts that are too short"],
)
def test_what_cannot_be_timed_is_refused(name: str, workload: Workload, message: str) -> None:
    settings = load_settings(EMULATED, ["engines.cloud.style.answer_words=[3, 3]"])
    with pytest.raises(InputError, match=message):
        run_virtual(profile(settings, name, workload, 0, lambda _: None))


def test_tables_of_a_configuration_are_printed_and_taken(pice: Pice, quick: Path) -> None:
    ran = pice("profile", "-c", str(quick), "--tokens", "24", "--repeat", "1", "--toml")
    assert ran.code == 0, ran.err
    curve = tomllib.loads(ran.out)["engines"]["big"]["curve"]
    assert curve["batch"] == [1, 2, 3], "the powers of two, and the most at once"
    again = pice(
        "profile",
        "show",
        "-c",
        str(quick),
        f"--set=engines.big.curve.step_s={curve['step_s']}",
        f"--set=engines.big.curve.batch={curve['batch']}",
    )
    assert again.code == 0, again.err
    assert [line.split()[0] for line in again.out.splitlines()[2:]] == ["1", "2", "3"]


def test_what_was_measured_before_a_fault_is_printed(pice: Pice, quick: Path) -> None:
    with quick.open("a", encoding="utf-8") as file:
        file.write('[engines.far]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "m"\n')
    ran = pice("profile", "-c", str(quick), "--tokens", "24", "--repeat", "1", "--batch", "1", "--json")
    assert ran.code == 1
    assert [each["engine"] for each in orjson.loads(ran.out)] == ["big"]


def test_every_run_is_in_the_json(pice: Pice, quick: Path) -> None:
    ran = pice("profile", "-c", str(quick), "--tokens", "24", "--repeat", "2", "--batch", "1,2", "--json")
    assert ran.code == 0, ran.err
    (found,) = orjson.loads(ran.out)
    assert (found["engine"], len(found["runs"]), found["curve"]["batch"]) == ("big", 4, [1, 2])


def test_bars_are_as_long_as_the_tokens_per_second(pice: Pice) -> None:
    ran = pice("profile", "show", "-c", str(EMULATED), "--engine", "cloud")
    lines = ran.out.splitlines()
    assert "0.116 ms for each token of the prompt" in lines[0]
    bars = [line.count("█") for line in lines[2:]]
    assert bars == sorted(bars)
    assert (bars[0], bars[-1]) == (1, 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "huge"), "--engine: expected one of"),
        (("--json", "--toml"), "expected --json or --toml, got both"),
        (("--batch", "1,x"), "batch must be whole numbers"),
        (("--engine", "cloud", "show"), "options stand after the command: pice profile show"),
    ],
)
def test_misuse_is_told_in_a_line(pice: Pice, words: tuple[str, ...], message: str) -> None:
    ran = pice("profile", "-c", str(EMULATED), *words) if "show" not in words else pice("profile", *words)
    assert ran.code == 2
    assert message in ran.err
