"""Timing a model: what is evaluated and when the clock is read, on a model that only counts; and the process for it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from pice.engine.llama import measure_process
from pice.engine.llama.machine import this_machine
from pice.engine.llama.measure import Bench, Done, Loaded, Said, fits, line, measure
from pice.engine.llama.measure_process import Measured, fitted, measure_apart
from pice.engine.llama.options import LlamaOptions, num_cores
from pice.engine.llama.sequence import Change, Chunk, Forget, Share
from pice.engine.llama.waiting import waiting
from pice.engine.process_wire import fault_of
from pice.errors import ConfigError, DecodeError, EngineError, InputError, ModelLoadError, PromptTooLong
from pice.plan.curve import Run, Workload

WORKLOAD = Workload(num_prompt_tokens=100, num_tokens=10, sizes=(4, 1), num_runs=2)
OPTIONS = LlamaOptions(path=Path("some.gguf"), n_ctx=1024, n_seq_max=4, n_batch=64, n_threads=1)
WAIT_S = 60.0


@dataclass(eq=False)
class FakeSampler:
    freed: int = 0

    def free(self) -> None:
        self.freed += 1


@dataclass
class FakeModel:
    """Takes a second for a token, and always draws token 7."""

    num_cells: int = 1024
    context_tokens: int = 512
    window: float = float("inf")
    num_tokens: int = 50
    fails_at: float = float("inf")
    seconds: float = 0.0
    batches: list[list[Chunk]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    samplers: list[FakeSampler] = field(default_factory=list)
    cells: dict[int, int] = field(default_factory=dict)

    @property
    def vocabulary(self) -> "FakeModel":
        return self

    def sampler(self, *_: object) -> FakeSampler:
        self.samplers.append(FakeSampler())
        return self.samplers[-1]

    def decode(self, chunks: Sequence[Chunk]) -> bool:
        self.batches.append(list(chunks))
        self.seconds += sum(len(chunk.tokens) for chunk in chunks)
        for chunk in chunks:
            assert chunk.start == self.cells.get(chunk.sequence.seq_id, 0)
            self.cells[chunk.sequence.seq_id] = chunk.start + len(chunk.tokens)
        return self.seconds < self.fails_at

    def draw(self, samplers: Sequence[FakeSampler]) -> list[tuple[int, float] | None]:
        assert not any(sampler.freed for sampler in samplers)
        return [(7, -1.0)] * len(samplers)

    def change(self, changes: Sequence[Change]) -> None:
        self.changes += changes
        for change in changes:
            if isinstance(change, Share):
                self.cells[change.target_id] = change.num_tokens
            else:
                self.cells.pop(change.seq_id, None)


def bench(model: Any, workload: Workload = WORKLOAD) -> Bench:
    return Bench(model, OPTIONS, workload, lambda: model.seconds)


def sizes(batches: list[list[Chunk]]) -> list[list[int]]:
    return [[len(chunk.tokens) for chunk in batch] for batch in batches]


def test_shared_prompt_is_evaluated_once_and_every_step_has_all_sequences() -> None:
    model = FakeModel()
    assert bench(model).run(4, 10) == Run(4, half_s=50.0, first_s=100.0, prefill_s=100.0, decode_s=40.0)
    assert sizes(model.batches) == [[50], [64], [36], *[[1, 1, 1, 1]] * 10]
    assert [change.num_tokens for change in model.changes if isinstance(change, Share)] == [100, 100, 100]


def test_prompt_is_never_one_that_was_seen() -> None:
    model = FakeModel(num_tokens=1000)
    again = bench(model)
    again.run(1, 10)
    again.run(1, 10)
    prompts = [tuple(chunk.tokens) for batch in model.batches for chunk in batch if len(chunk.tokens) > 1]
    assert len(prompts) == len(set(prompts)) == 6


@pytest.mark.parametrize("window", [0, 100], ids=["a state for each", "attention to fewer tokens"])
def test_prompt_that_the_model_cannot_share_is_evaluated_for_each(window: float) -> None:
    model = FakeModel(window=window)
    assert not bench(model).shared
    assert bench(model).run(2, 10) == Run(2, half_s=50.0, first_s=100.0, prefill_s=200.0, decode_s=20.0)
    assert sizes(model.batches) == [[50], [64], [36], [64], [36], *[[1, 1]] * 10]


@pytest.mark.parametrize("fails_at", [float("inf"), 155.0], ids=["whole", "no room on the way"])
def test_run_leaves_nothing_behind(fails_at: float) -> None:
    model = FakeModel(fails_at=fails_at)
    if fails_at < float("inf"):
        with pytest.raises(EngineError, match="no room"):
            bench(model).run(4, 10)
    else:
        bench(model).run(4, 10)
    assert model.cells == {}
    assert any(isinstance(change, Forget) for change in model.changes)
    assert [sampler.freed for sampler in model.samplers] == [1] * 5


def test_model_that_leaves_no_token_to_draw_is_an_error() -> None:
    model = FakeModel()
    model.draw = lambda samplers: [None] * len(samplers)  # type: ignore[method-assign]  # numbers that are none
    with pytest.raises(EngineError, match="leave no token to draw"):
        bench(model).run(1, 10)


def test_workload_that_does_not_fit_the_model_is_refused_with_numbers() -> None:
    with pytest.raises(PromptTooLong, match="has 100 tokens and asks for 10 more, but some has a context of 109"):
        bench(FakeModel(context_tokens=109))
    bench(FakeModel(context_tokens=110))
    bench(FakeModel(num_cells=140))
    with pytest.raises(InputError, match=r"n_ctx must be >= 140 for a batch of 4 \(100 tokens of prompt and 4 x 10"):
        bench(FakeModel(num_cells=139))
    with pytest.raises(InputError, match=r"n_ctx must be >= 440 for a batch of 4 \(4 x 100 tokens .*, got 439"):
        bench(FakeModel(num_cells=439, window=0))


def test_options_get_a_place_for_each_sequence_and_the_memory_it_takes() -> None:
    open_options = replace(OPTIONS, n_ctx=None)
    assert (fitted(open_options, WORKLOAD).n_seq_max, fitted(open_options, WORKLOAD).n_ctx) == (4, 8192)
    assert fitted(open_options, replace(WORKLOAD, num_tokens=2048)).n_ctx == 100 + 4 * 2048
    with pytest.raises(InputError, match="batch must be <= 224, got 225"):
        fitted(OPTIONS, replace(WORKLOAD, sizes=(225,)))
    with pytest.raises(ConfigError, match=r"n_batch must be from n_seq_max \(65\) to 65536, got 64"):
        fitted(OPTIONS, replace(WORKLOAD, sizes=(65,)))
    with pytest.raises(InputError, match="n_ctx must be >= 1025 "):
        fitted(replace(OPTIONS, n_ctx=1024), replace(WORKLOAD, sizes=(37,), num_tokens=25))
    fits(WORKLOAD, 140)


def says(monkeypatch: pytest.MonkeyPatch, said: list[Said | str], then: str = "") -> None:
    """From now on the process says this, and does that."""
    lines = b"".join(each.encode() + b"\n" if isinstance(each, str) else line(each) for each in said)
    script = f"import os, signal, sys\nos.write(1, {lines!r})\n{then}"
    monkeypatch.setattr(measure_process, "PROGRAM", ("-c", script))


def watched_process(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Those that are begun from now on."""
    began, begun = list[subprocess.Popen[bytes]](), measure_process._begun

    def watched(*args: Any) -> subprocess.Popen[bytes]:
        began.append(begun(*args))
        return began[-1]

    monkeypatch.setattr(measure_process, "_begun", watched)
    return began


def apart(on_run: Callable[[Run], None] = lambda _: None) -> Measured:
    return measure_apart(OPTIONS, WORKLOAD, on_run)


RUNS = [Run(size, 0.5, 1.0, 1.0, 2.0) for size in (1, 4, 4, 1)]
FOREVER = "import time; time.sleep(30)"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def loaded() -> Loaded:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    return Loaded(0.25, 1 << 20, True, this_machine())


def test_what_the_process_says_comes_back_whole(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    says(monkeypatch, [loaded, *RUNS, Done(3 << 20)])
    told = list[Run]()
    measured = apart(told.append)
    assert told == RUNS
    assert (measured.loaded, measured.timing.runs, measured.rss_bytes) == (loaded, tuple(RUNS), 3 << 20)
    assert measured.summary() == "loaded in 0.25 s; memory 1 MiB before, 3 MiB after; 1 threads; medians of 2 runs"


def test_process_that_is_killed_names_the_signal(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    says(monkeypatch, [], f"os.write(2, b'bad\\x1b file\\n\\nvery bad\\n'); {KILLED}")
    with pytest.raises(ModelLoadError, match=r"^some.gguf: while it loaded .* ended by SIGKILL: bad  file; very bad$"):
        apart()
    says(monkeypatch, [loaded, RUNS[0]], KILLED)
    with pytest.raises(EngineError, match=r"^some.gguf: the measuring process ended by SIGKILL$"):
        apart()
    says(monkeypatch, [loaded], 'os.write(1, b\'["Run", {"ba\'); sys.exit(3)')
    with pytest.raises(EngineError, match=r"ended with exit code 3$"):
        apart()


def test_error_of_the_process_is_raised_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, [fault_of(InputError("n_ctx must be >= 440"))])
    with pytest.raises(InputError, match=r"^n_ctx must be >= 440$"):
        apart()


NONSENSE = {
    "empty": "",
    "no JSON": "{",
    "no pair": "[]",
    "no fields": '["Run", {}]',
    "wrong type": '["Done", {"rss_bytes": "5"}]',
    "unknown": '["Nothing", {}]',
    "too soon": '["Done", {"rss_bytes": 5}]',
    "endless": "x" * 70_000,
}


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE.keys())
def test_process_that_talks_nonsense_is_an_error(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    says(monkeypatch, [said], FOREVER)
    with pytest.raises(DecodeError):
        apart()


def test_runs_that_are_missing_are_an_error(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    says(monkeypatch, [loaded, *RUNS[:3], Done(5)])
    with pytest.raises(DecodeError, match="expected 2 runs of each size, got 3 in all"):
        apart()


GOOD = RUNS[0]
UNASKED = {
    "a size not asked for": (
        [replace(GOOD, batch=7)],
        r"expected 2 runs of each batch size of \[4, 1\] .*, got one more of 7",
    ),
    "too many of a size": ([GOOD] * 3, "expected 2 runs of each .*, got one more of 1"),
    "all of one size": ([GOOD] * 4, "got one more of 1"),
    "a time of 0": ([replace(GOOD, decode_s=0.0)], "expected times from 1e-09 to 1000000000.0 s .*decode_s=0.0"),
    "a time below 0": ([replace(GOOD, half_s=-1.0)], "expected times .*half_s=-1.0"),
    "a time whose rate is none": ([replace(GOOD, first_s=5e-324)], "expected times .*first_s=5e-324"),
    "a time without end": ([replace(GOOD, prefill_s=1e308)], "expected times .*prefill_s=1e\\+308"),
}


@pytest.mark.parametrize("name", UNASKED)
def test_runs_that_were_not_asked_for_or_cannot_be_are_an_error(
    monkeypatch: pytest.MonkeyPatch, loaded: Loaded, name: str
) -> None:
    runs, expected = UNASKED[name]
    says(monkeypatch, [loaded, *runs, Done(5)])
    told = list[Run]()
    with pytest.raises(DecodeError, match=expected) as refused:
        apart(told.append)
    assert str(refused.value).isprintable()
    assert told == [GOOD] * min(len(runs) - 1, 2)


def test_what_is_said_out_of_turn_is_an_error(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    for first in (GOOD, loaded):
        says(monkeypatch, [first, loaded], FOREVER)
        with pytest.raises(DecodeError, match="expected 2 runs of each size, got 0 in all"):
            apart()


def test_long_nonsense_is_told_in_a_few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, ['["' + r"x\u001b" * 5_000 + '", {}]'])
    with pytest.raises(DecodeError) as refused:
        apart()
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_process_that_goes_on_after_its_output_is_killed(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    monkeypatch.setattr(measure_process, "END_WAIT_S", 0.05)
    began = watched_process(monkeypatch)
    says(monkeypatch, [loaded, GOOD], f"os.close(1); {FOREVER}")
    with pytest.raises(DecodeError, match=r"to end with its output, but it went on for 0.05 s: it is killed"):
        apart()
    assert began[0].returncode == -signal.SIGKILL


def test_what_a_library_prints_is_not_taken_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from pice.engine.llama import measure as m\nm.measure = lambda *_: print('hello')\nm.main()"
    monkeypatch.setattr(measure_process, "PROGRAM", ("-c", script))
    with pytest.raises(ModelLoadError, match="ended with exit code 0: hello"):
        apart()


def test_process_is_gone_when_its_caller_is_interrupted(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    def interrupt(_: Run) -> None:
        raise KeyboardInterrupt

    says(monkeypatch, [loaded, *RUNS], FOREVER)
    began = watched_process(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        apart(interrupt)
    assert began[0].returncode == -signal.SIGKILL


def test_threads_wait_as_an_engines_do_unless_the_user_has_set_it() -> None:
    own = {"OMP_WAIT_POLICY": "active", "GGML_NO_BACKTRACE": "0"}
    assert measure_process._environment(own).items() >= own.items()
    assert "GOMP_SPINCOUNT" not in measure_process._environment(own)
    assert measure_process._environment({}).items() >= waiting({}, shares_cores=False).items()


# From here on with llama.cpp.


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model whose text usually ends after some 70 tokens."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")
    from tools.tiny_gguf import write_tiny_gguf

    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, seed=1)
    return path


def test_real_model_is_timed_past_the_ends_of_its_texts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pice.engine.llama.model import Model

    workload = replace(WORKLOAD, num_tokens=200, sizes=(1, 2), num_runs=1)
    said, seconds = list[Said](), iter(range(10**6))
    options = fitted(replace(OPTIONS, path=tiny), workload)
    ended, draw = list[bool](), Model.draw

    def watched(model: Any, samplers: Any) -> Any:
        drawn = draw(model, samplers)
        ended.extend(model.vocabulary.ends(choice[0]) for choice in drawn if choice)
        return drawn

    monkeypatch.setattr(Model, "draw", watched)
    measure(options, workload, lambda: float(next(seconds)), said.append)
    assert [type(each) for each in said] == [Loaded, Run, Run, Done]
    assert len(ended) == (2 + 2 * 8) + (2 + 200) + (2 + 2 * 200)
    assert any(ended)


def test_real_model_is_timed_in_a_process_of_its_own(tiny: Path) -> None:
    measured = measure_apart(replace(OPTIONS, path=tiny), replace(WORKLOAD, num_tokens=8), lambda _: None)
    assert [run.batch for run in measured.timing.runs] == [1, 4, 4, 1]
    assert measured.timing.shared
    assert min(min(run.half_s, run.first_s, run.decode_s) for run in measured.timing.runs) > 0
    assert 0 < measured.loaded.rss_bytes_before < measured.rss_bytes
    assert measured.loaded.machine.num_cores == num_cores()
    assert measured.timing.curve().batch == (1, 4)


def test_file_that_llama_cpp_dies_of_is_an_error_that_names_the_signal(tmp_path: Path, tiny: Path) -> None:
    from tools.tiny_gguf import PRESETS, write_tiny_gguf

    write_tiny_gguf(tmp_path / "none.gguf", seed=1, shape=replace(PRESETS["edge"], layers=0))
    with pytest.raises(
        ModelLoadError, match=r"none.gguf: while it loaded the model, .* ended by SIGABRT: .*GGML_ASSERT"
    ):
        measure_apart(replace(OPTIONS, path=tmp_path / "none.gguf"), WORKLOAD, lambda _: None)


def test_process_ends_with_its_standard_input(tiny: Path) -> None:
    workload = orjson.dumps({"options": {"n_ctx": 1024, "n_threads": 1}, "workload": replace(WORKLOAD, num_runs=10**6)})
    command = [sys.executable, *measure_process.PROGRAM, str(tiny), workload.decode()]
    environment = measure_process._environment(os.environ)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b'["Loaded"')
        process.stdin.close()
        try:
            assert process.wait(WAIT_S) == 1
        finally:
            process.kill()
