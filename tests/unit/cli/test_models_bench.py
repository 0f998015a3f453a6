"""`pice models bench`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from pice.config import load_settings
from pice.core import Curve
from pice.engine.llama.machine import Machine
from pice.engine.llama.measure import Loaded
from pice.engine.llama.measure_process import Measured
from pice.engine.llama.options import LlamaOptions
from pice.plan.curve import Run, Timing, Workload

Pice = Callable[..., Any]

CONFIG = """\
[engines.small]
kind = "llama_cpp"
path = "m.gguf"
{}
[cloud]
engine = "small"
"""
PRINTED = """\
|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|   200 |     64 |    1 |    264 |    2.500 |    80.00 |    2.000 |    32.00 |    4.500 |    58.67 |
|   200 |     64 |    8 |    712 |    2.500 |    80.00 |    4.000 |   128.00 |    6.500 |   109.54 |
loaded in 0.25 s; memory 32 MiB before, 512 MiB after; 2 threads; medians of 3 runs

# in the table [engines.NAME] of this model
curve = { batch = [1, 8], step_s = [0.0312, 0.0625], prefill_s_per_token = 0.01, base_s = 0.5 }
"""
CURVE = Curve(batch=(1, 8), step_s=(0.0312, 0.0625), prefill_s_per_token=0.01, base_s=0.5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is measured is always the same; what was asked for stands here."""
    asked: dict[str, Any] = {}

    def bench_model(options: LlamaOptions, workload: Workload, on_run: Callable[[Run], None]) -> Measured:
        asked.update(workload=workload, options=options)
        loaded = Loaded(0.25, 32 << 20, True, Machine("a CPU", 2, "a library", {"OMP_NUM_THREADS": "2"}))
        runs = [Run(size, 1.5, 2.5, 2.5, 2.0 if size == 1 else 4.0) for size in workload.sizes * 3]
        if workload.num_runs == 4:
            runs.append(Run(8, 1.5, 2.5, 2.5, 7.2))
        return Measured(
            LlamaOptions(path=options.path, n_threads=2, n_ctx=8192),
            loaded,
            Timing(workload, True, tuple(runs)),
            512 << 20,
        )

    monkeypatch.setattr("pice.cli.bench.bench_model", bench_model)
    return asked


def test_bench_prints_a_table_and_the_curve(pice: Pice, asked: dict[str, Any]) -> None:
    ran = pice("models", "bench", "m.gguf", "--batch", "8,1")
    assert (ran.code, ran.out, ran.err) == (0, PRINTED, "")


def test_printed_curve_is_what_a_configuration_takes(pice: Pice, asked: dict[str, Any], tmp_path: Path) -> None:
    ran = pice("models", "bench", "m.gguf", "--batch", "1,8", "--toml")
    assert (ran.code, ran.out) == (0, PRINTED.splitlines(keepends=True)[-1])
    path = tmp_path / "pice.toml"
    path.write_text(CONFIG.format(ran.out), encoding="utf-8")
    curve = load_settings(path, environ={}).engines["small"].curve
    assert curve is not None
    assert curve.curve() == CURVE


def test_bench_prints_every_run_as_json(pice: Pice, asked: dict[str, Any]) -> None:
    ran = pice("models", "bench", "m.gguf", "--batch", "1,8", "--json")
    assert ran.code == 0
    said = orjson.loads(ran.out)
    assert said["machine"] == {
        "cpu": "a CPU",
        "num_cores": 2,
        "library": "a library",
        "omp": {"OMP_NUM_THREADS": "2"},
    }
    assert [run["batch"] for run in said["timing"]["runs"]] == [1, 8] * 3
    assert (said["path"], said["load_s"], said["rss_bytes"]) == ("m.gguf", 0.25, 512 << 20)
    assert (said["options"]["n_ctx"], said["options"]["n_threads"], said["options"]["kv_type"]) == (8192, 2, "f16")
    assert [row["num_cells"] for row in said["rows"]] == [264, 712]
    assert said["curve"]["step_s"] == list(CURVE.step_s)


@pytest.mark.parametrize("form", ["", "--json", "--toml"])
def test_runs_that_differ_much_are_told_beside_what_is_printed(pice: Pice, asked: dict[str, Any], form: str) -> None:
    ran = pice("models", "bench", "m.gguf", "--batch", "1,8", "--repeat", "4", *form.split())
    assert ran.code == 0
    assert ran.err.startswith("the runs of one batch size differ 1.8-fold")
    assert ran.err.count("\n") == 1


def test_defaults_are_those_of_the_engine_and_sizes_of_segments(pice: Pice, asked: dict[str, Any]) -> None:
    pice("models", "bench", "m.gguf")
    assert asked["workload"] == Workload(200, 64, (1, 2, 4, 8, 16), 3)
    assert asked["options"] == LlamaOptions(path=Path("m.gguf"))


def test_options_have_the_names_of_llama_cpp_too(pice: Pice, asked: dict[str, Any]) -> None:
    names = "-npp 40 -ntg 9 -npl 3 -t 1 -c 2048 -b 64 -ub 32 -fa on -ngl 7 --kv-type q8_0 --repeat 2"
    ran = pice("models", "bench", "m.gguf", *names.split())
    assert ran.code == 0
    assert asked["workload"] == Workload(40, 9, (3,), 2)
    assert asked["options"] == LlamaOptions(
        Path("m.gguf"),
        n_threads=1,
        n_ctx=2048,
        n_batch=64,
        n_ubatch=32,
        flash_attn="on",
        n_gpu_layers=7,
        kv_type="q8_0",
    )


REFUSED = [
    ("--batch 1,two", "batch must be whole numbers with commas between them, as 1,2,4, got '1,two'"),
    ("--batch 0", "batch must be >= 1, got [0]"),
    ("--batch 225", "batch must be <= 224, got 225"),
    ("--prompt-tokens 31", "prompt_tokens must be >= 32, got 31"),
    ("--tokens 7", "tokens must be >= 8, got 7"),
    ("--n-ctx 1000", "n_ctx must be >= 1224 for a batch of 16 (200 tokens of prompt and 16 x 64 after it), got 1000"),
    ("--batch 64 --n-batch 32", "n_batch must be from n_seq_max (64) to 65536, got 32"),
    ("--json --toml", "expected --json or --toml, got both"),
    ("", "m.gguf: cannot be read: No such file or directory"),
]


@pytest.mark.parametrize(("options", "expected"), REFUSED, ids=[options or "no file" for options, _ in REFUSED])
def test_what_cannot_be_measured_gives_2_and_one_line(
    pice: Pice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, expected: str
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    monkeypatch.chdir(tmp_path)
    ran = pice("models", "bench", "m.gguf", *options.split())
    assert (ran.code, ran.out, ran.err) == (2, "", f"error: {expected}\n")


def test_file_that_is_no_model_gives_2_and_one_line(pice: Pice, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    for data, expected in ((b"text", "expected a GGUF model, got b'text'"), (b"GGUF\x03\0\0\0", "failed to")):
        path = tmp_path / "m.gguf"
        path.write_bytes(data)
        ran = pice("models", "bench", str(path))
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"error: {path}: ")
        assert expected in ran.err
        assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    "options", ["--threads 0", "--n-batch 31", "--kv-type f64", "--flash-attn maybe", "--repeat 0"]
)
def test_options_out_of_range_are_wrong_usage(pice: Pice, options: str) -> None:
    ran = pice("models", "bench", "m.gguf", *options.split())
    assert ran.code == 2
    assert "Usage" in ran.err


def test_interrupted_measurement_gives_130(pice: Pice, monkeypatch: pytest.MonkeyPatch) -> None:
    def bench_model(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pice.cli.bench.bench_model", bench_model)
    ran = pice("models", "bench", "m.gguf")
    assert (ran.code, ran.out, ran.err) == (130, "", "interrupted\n")
