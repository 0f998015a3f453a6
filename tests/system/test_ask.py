"""`pice ask`, `plan`, `doctor` and `config` as a user runs them, from the terminal to the model and back."""

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from pice import __version__
from tests.system.command import ROOT, curve, emulated, environment, pice
from tools.tiny_gguf import PRESETS, write_tiny_gguf

QUESTION = "What should I know before adopting a cat?"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three models of config/llama.toml."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, preset) in enumerate(
        {"tiny-cloud": "cloud", "tiny-edge-a": "edge", "tiny-edge-b": "edge"}.items()
    ):
        write_tiny_gguf(folder / f"{name}.gguf", seed=seed, shape=PRESETS[preset])
    return folder


def llama(models: Path) -> tuple[str, ...]:
    """Options for the shipped llama.cpp configuration with these models."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    paths = {"cloud": "tiny-cloud", "edge-a": "tiny-edge-a", "edge-b": "tiny-edge-b"}
    config = ("--config", str(ROOT / "config" / "llama.toml"))
    return (*config, *(f"--set=engines.{engine}.path={models / name}.gguf" for engine, name in paths.items()))


def check_record(record: dict[str, Any]) -> None:
    """Every part of the answer says who wrote it, who else was asked, and when."""
    times = record["times"]
    assert 0 <= times["queue_s"] <= times["ttft_s"] <= times["e2e_s"]
    assert record["spans"]
    assert [span["index"] for span in record["spans"]] == list(range(len(record["spans"])))
    for span in record["spans"]:
        assert span["text"].strip()
        writers = {(scored["candidate"]["site"], scored["candidate"]["model"]) for scored in span["candidates"]}
        assert (span["site"], span["model"]) in writers
        assert {(place["site"], place["model"]) for place in span["placements"]} >= writers
        for scored in span["candidates"]:
            candidate = scored["candidate"]
            assert candidate["request_id"] == record["request_id"]
            assert candidate["num_output_tokens"] > 0
            assert candidate["service_s"] >= 0 <= candidate["queue_s"]
            assert 0 <= scored["confidence"] <= 1


def test_pipe_gets_the_answer_and_nothing_else() -> None:
    ran = pice("ask", *emulated(), "--max-tokens", "12", QUESTION)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith("\n")
    assert len(ran.out.split()) >= 8
    assert ran.out.count("\n") == 1


def test_progressive_answer_says_where_each_part_came_from() -> None:
    ran = pice("ask", *emulated(0.0005), "--mode", "progressive", "--json", QUESTION)
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(ran.out)
    check_record(record)
    assert (record["mode"], record["degraded"]) == ("progressive", [])
    assert len({span["site"] for span in record["spans"]}) > 1
    assert {span["site"] for span in record["spans"]} <= {"lyon", "oslo", "montreal", "cloud"}
    assert [point["index"] for span in record["spans"] for point in span["points"]] == [
        point["index"] for point in record["sketch"]
    ]
    assert record["times"]["sketch_s"] <= record["times"]["e2e_s"]
    assert record["usage"]["num_edge_output_tokens"] > 0


def test_llama_cpp_writes_sketch_and_segments(models: Path) -> None:
    ran = pice("ask", *llama(models), "--mode", "progressive", "--max-tokens", "96", "--seed", "1", "--json", QUESTION)
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(ran.out)
    check_record(record)
    assert record["mode"] == "progressive"
    assert len(record["sketch"]) >= 2
    written = [scored["candidate"] for span in record["spans"] for scored in span["candidates"]]
    assert {candidate["model"] for candidate in written} <= {"tiny-edge-a", "tiny-edge-b"}
    assert all(candidate["logprob_mean"] < 0 and candidate["service_s"] > 0 for candidate in written)
    assert record["usage"]["num_cloud_output_tokens"] > 0


@pytest.mark.parametrize("mode", ["cloud", "edge"])
def test_one_llama_cpp_model_answers_the_whole_question(models: Path, mode: str) -> None:
    odd = "🏳️‍🌈 \u202e שלום\0?"
    ran = pice("ask", *llama(models), "--mode", mode, "--max-tokens", "16", "--json", "-", stdin=odd.encode())
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(ran.out)
    assert record["mode"] == mode
    assert 0 < record["usage"]["num_answer_tokens"] <= 16


def test_plan_predicts_without_answering() -> None:
    ran = pice("plan", "--config", ROOT / "config" / "emulated.toml", "--json", QUESTION)
    plan = json.loads(ran.out)
    assert (ran.code, plan["mode"]) == (0, "progressive")
    assert 0 < plan["t_progressive_s"] < plan["t_cloud_s"]


def test_doctor_finds_models_that_load(models: Path) -> None:
    ran = pice("doctor", *llama(models))
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines() if " engine " in line] == ["ok"] * 3


def test_doctor_names_the_model_that_does_not_load(models: Path, tmp_path: Path) -> None:
    ran = pice("doctor", *llama(models), f"--set=engines.edge-b.path={tmp_path / 'none.gguf'}")
    assert (ran.code, ran.err) == (1, "")
    (line,) = [line for line in ran.out.splitlines() if line.startswith("MISSING")]
    assert "engine edge-b" in line
    assert "No such file" in line


def test_version_is_the_same_by_either_name() -> None:
    script = Path(sysconfig.get_path("scripts")) / "pice"
    if not script.exists():
        pytest.skip("pice is not installed")
    ran = subprocess.run([script, "--version"], check=False, capture_output=True, timeout=60, env=environment())
    assert ran.stdout.decode() == pice("--version").out == f"pice {__version__}\n"


def test_config_check_names_an_unknown_key() -> None:
    ran = pice("config", "check", *emulated(), "--set", "planner.margn=0.2")
    assert ran.code == 2
    assert ran.refusal == "--set planner.margn: planner.margn is not known: did you mean margin?"
    assert pice("config", "check", *emulated()).code == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([""], 2, "the question is empty"),
        (["-"], 2, "the question is empty"),
        (
            ["word " * 5_000],
            1,
            "the prompt has 5000 tokens and asks for 1024 more, but llama2-70b has a context of 4096",
        ),
        ([QUESTION, "--max-tokens", "5000"], 1, "asks for 5000 more, but llama2-70b has a context of 4096"),
        ([QUESTION, "--timeout", "0.2", "--mode", "cloud", curve("cloud", 60.0)], 1, "0.2 s"),
        ([QUESTION, "--set", "nonsense"], 2, "--set must look like"),
        ([QUESTION, "--set", "cloud.prompts=nope"], 2, "expected the name of a built-in set"),
        (["caf\udce9"], 2, "the question must be UTF-8 text, got a byte that is none at character 3"),
    ],
    ids=["empty", "empty input", "too long", "too many asked", "too late", "setting", "prompt set", "bytes"],
)
def test_what_cannot_be_answered_is_said_in_one_line(args: list[str], code: int, message: str) -> None:
    ran = pice("ask", *emulated(0.0001), *args)
    assert ran.code == code
    assert message in ran.refusal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "expected a GGUF model, got an empty file"),
        (b"#!/bin/sh\n", "expected a GGUF model, got b'#!/b'"),
        (100_000, "cut.gguf: "),
    ],
    ids=["missing", "empty", "script", "cut off"],
)
def test_model_file_that_is_none_is_named(
    models: Path, tmp_path: Path, content: bytes | int | None, message: str
) -> None:
    path = tmp_path / "cut.gguf"
    if isinstance(content, int):
        content = (models / "tiny-cloud.gguf").read_bytes()[:content]
    if content is not None:
        path.write_bytes(content)
    ran = pice("ask", *llama(models), f"--set=engines.cloud.path={path}", QUESTION)
    assert ran.code == 2
    assert message in ran.refusal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not valid TOML"),
        (b"\0\xff\x8a\x01" * 50, "is not valid TOML"),
        (b"", "no engine is configured"),
    ],
    ids=["folder", "junk", "empty"],
)
def test_configuration_that_is_none_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.toml"
    if content is None:
        path.mkdir()
        message = "x.toml: cannot be read: Is a directory"
    else:
        path.write_bytes(content)
    ran = pice("ask", "-c", path, QUESTION)
    assert ran.code == 2
    assert message in ran.refusal
