"""`pice simulate`: figures of both deployments, the same for a seed, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from pice.app.simulate import Traffic, asks, deployment_of, read_trace
from pice.config import load_settings
from tests.test_repo import ROOT

Run = Callable[..., Any]
CONFIG = ROOT / "config" / "emulated.toml"
HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(HEAD + "".join(f"{2 * number},100,{200 + 20 * number}\n" for number in range(12)), encoding="utf-8")
    return path


def simulated(pice: Run, trace: Path, *options: str) -> Any:
    ran = pice("simulate", str(trace), "-c", str(CONFIG), *options)
    assert ran.code == 0, ran.err
    return ran.out


def as_json(pice: Run, trace: Path, *options: str) -> Any:
    return orjson.loads(simulated(pice, trace, "--json", *options))


def test_both_deployments_stand_side_by_side(pice: Run, trace: Path) -> None:
    out = simulated(pice, trace, "--slo", "e2e_p95=8", "--cloud-price", "10").splitlines()
    assert out[0].split() == ["cloud", "alone", "PICE"]
    rows = {line[:32].strip(): line[32:].split() for line in out[1:]}
    assert rows["requests"] == ["12", "12"]
    assert {"e2e_p50", "ttft_p99", "within the SLO/s", "edge use", "cost of 1,000"} <= rows.keys()
    assert rows["edge use"][0] == "0%"


def test_same_seed_gives_the_same_figures_and_another_others(pice: Run, trace: Path) -> None:
    one, again, other = (as_json(pice, trace, "--suited", "0.5", "--seed", seed) for seed in ("1", "1", "2"))
    assert one == again
    assert one["forecasts"] != other["forecasts"]


def test_what_suits_is_sketched_and_nothing_else(pice: Run, trace: Path) -> None:
    none, every = (as_json(pice, trace, "--suited", share)["forecasts"]["PICE"] for share in ("0", "1"))
    assert (none["progressive"], none["edge_tokens"]) == (0.0, 0.0)
    assert every["progressive"] == 1.0
    assert every["times_s"]["e2e_p50"] < none["times_s"]["e2e_p50"]


def test_trace_is_begun_again_and_its_rate_can_be_another(pice: Run, trace: Path) -> None:
    found = as_json(pice, trace, "--requests", "30", "--rate", "0.1", "--sites", "1")
    assert found["sites"] == 1
    cloud = found["forecasts"]["cloud alone"]
    assert cloud["num_requests"] == 30
    assert cloud["answers_per_s"] == pytest.approx(0.1, rel=0.1)


def test_fewest_sites_that_keep_the_bound_are_found(pice: Run, trace: Path) -> None:
    options = ("--suited", "1", "--rate", "2", "--requests", "40")
    found = as_json(pice, trace, "--find", "sites", "--slo", "e2e_p95=6", *options)
    assert found["sites"] > 1
    assert found["forecasts"]["PICE"]["times_s"]["e2e_p95"] <= 6
    fewer = as_json(pice, trace, "--sites", str(found["sites"] - 1), *options)
    assert fewer["forecasts"]["PICE"]["times_s"]["e2e_p95"] > 6


def test_prompt_that_does_not_fit_is_a_failure_by_its_cause(pice: Run, trace: Path) -> None:
    trace.write_text(HEAD + "0,100,200\n1,9000,200\n", encoding="utf-8")
    found = as_json(pice, trace)["forecasts"]
    assert [it["failures"] for it in found.values()] == [{"context_length_exceeded": 1}] * 2
    assert "failed: context_length_exceeded" in simulated(pice, trace)


def test_prompt_that_the_cloud_refuses_is_not_held_against_sites(pice: Run, trace: Path) -> None:
    text = HEAD + "0,9000,200\n" + "".join(f"{number},100,400\n" for number in range(1, 12))
    trace.write_text(text, encoding="utf-8")
    ran = pice("simulate", str(trace), "-c", str(CONFIG), "--suited", "1", "--find", "sites", "--slo", "e2e_p95=8")
    assert ran.code == 0
    assert "not counted, since the cloud alone fails too: 1 context_length_exceeded" in ran.err


def test_rate_is_of_the_requests_that_are_played(pice: Run, trace: Path) -> None:
    """The first half of this trace is ten times as slow as the second."""
    times = [*range(0, 100, 10), *range(100, 110)]
    trace.write_text(HEAD + "".join(f"{at_s},50,100\n" for at_s in times), encoding="utf-8")
    traffic = Traffic(read_trace(trace), rate=1.0, num_requests=10)
    asked = asks(load_settings(CONFIG, ()), traffic, 0)
    assert asked[-1].at_s == pytest.approx(9.0)


def test_sites_of_a_kind_are_named_anew(tmp_path: Path) -> None:
    settings = load_settings(CONFIG, ('sites.lyon-2.engines=["workstation"]',))
    names = list(deployment_of(settings, 9).sites)
    assert len(set(names)) == 9
    assert names[:4] == list(settings.sites)


def test_placement_sees_how_long_prompts_are(trace: Path) -> None:
    asked = asks(load_settings(CONFIG, ()), Traffic(read_trace(trace)), 0)
    assert len(asked[0].text) == 4 * 100


def test_sketches_have_their_ratio_whatever_length_is_assumed(pice: Run, trace: Path) -> None:
    def ratio(words: str) -> float:
        options = ("--suited", "1", "--rate", "0.05", "--set", f"planner.assumed_answer_words={words}")
        return float(as_json(pice, trace, *options)["forecasts"]["PICE"]["cloud_tokens"])

    assert ratio("100") == pytest.approx(0.2, abs=0.04)
    assert ratio("1000") == pytest.approx(ratio("100"), abs=0.01)


def test_cloud_that_cannot_fill_its_engine_is_warned_of(pice: Run, trace: Path) -> None:
    ran = pice("simulate", str(trace), "-c", str(CONFIG), "--set", "cloud.max_inflight=16")
    assert "cloud.max_inflight = 16" in ran.err
    assert pice("simulate", str(trace), "-c", str(CONFIG)).err == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--find", "sites"), "got no --slo"),
        (("--find", "sites", "--slo", "e2e_p95=8", "--sites", "3"), "--find or --sites"),
        (("--slo", "soon"), "like e2e_p95=8"),
        (("--find", "sites", "--slo", "e2e_p50=0.001"), "no number of sites keeps that"),
        (("--set", "sites={}", "--sites", "3"), "sites: expected one at least"),
    ],
)
def test_what_makes_no_sense_is_refused(
    pice: Run, trace: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr("pice.cli.simulate.MOST_SITES", 4)
    ran = pice("simulate", str(trace), "-c", str(CONFIG), *options)
    assert ran.code == 2
    assert says in ran.err


def test_engine_without_a_curve_is_named(pice: Run, trace: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[engines.big]\nkind = "llama_cpp"\npath = "m.gguf"\n[cloud]\nengine = "big"\n', encoding="utf-8")
    ran = pice("simulate", str(trace), "-c", str(config))
    assert ran.code == 2
    assert "engines.big.curve" in ran.err
    assert "pice profile --engine big" in ran.err
