"""Settings of engines that share a machine: what is compared, what is read from the system, what is the best."""

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import orjson
import pytest

pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")

import pice
from bench import threads, threads_isolation, threads_load
from bench.engine_work import Unfair
from bench.report import ROOT, document
from bench.threads_figures import (
    ENGINES,
    VARIABLES,
    Figures,
    Load,
    Run,
    Setting,
    Waiting,
    chosen_by_pice,
    chosen_for_one,
    compared,
    waiting_of_pice,
)
from bench.threads_isolation import PROCESS, THREAD, Hosted, ratios
from bench.threads_load import EXPANSIONS, SKETCHES, Texts, Writing, read_at_loading, ticks_of
from bench.threads_run import Plan, pid_of
from pice.app import engines as app_engines
from pice.core import Curve, Prompt, Sampling
from pice.engine.base import Engine, Piece
from pice.engine.emulated import EmulatedEngine
from pice.engine.llama.options import LlamaOptions
from pice.engine.llama.waiting import waiting
from pice.engine.process import ProcessEngine, environment
from pice.errors import InputError

READ_BY_OPENMP = ("OMP_", "GOMP_")
ONES = Setting((1, 1, 1), Waiting.passive)
PASSIVE, SPINNING = Setting((2, 2, 2), Waiting.passive), Setting((2, 2, 2), Waiting.spin_3000)
MIXED = Setting((2, 1, 1), Waiting.passive)
PLAN = Plan(dict.fromkeys(ENGINES, Path("small.gguf")), [ONES, PASSIVE], 2, warm_s=0.1, window_s=10.0)


def run(setting: Setting, load: Load, *num_tokens: int, at: int = 0, **more_cpu_s: float) -> Run:
    tokens = dict(zip(("edge-a",) if load == Load.edge else ENGINES, num_tokens, strict=False))
    cpu_s = {"cloud": 4.0, "edge-a": 2.0, "edge-b": 2.0} if load == Load.together else dict.fromkeys(ENGINES, 0.0)
    return Run(
        setting, load, at, 10.0, tokens, cpu_s | {name.replace("_", "-"): taken for name, taken in more_cpu_s.items()}
    )


def alone(at: int = 0) -> list[Run]:
    """One thread: 10, 50 and 8 tok/s; two: 20, 100 and 10; spinning: 1."""
    loads = {Load.cloud: (100, 200, 10), Load.edge: (500, 1000, 10), Load.beside: (80, 100, 10)}
    settings = (ONES, PASSIVE, SPINNING)
    return [run(settings[index], load, loads[load][index], at=at) for load in loads for index in range(3)]


def figures(*runs: Run, num_cores: int = 2) -> Figures:
    return Figures([*runs, *alone()], list(dict.fromkeys(each.setting for each in runs)), num_cores)


TOGETHER = (run(ONES, Load.together, 60, 300, 240), run(PASSIVE, Load.together, 100, 200, 200))
"""60 and 50 tok/s; 0.84 and 0.9 of what they have alone."""


@pytest.mark.parametrize("num_cores", [1, 2, 6, 8])
async def test_setting_that_counts_as_pices_is_what_the_app_chooses(
    monkeypatch: pytest.MonkeyPatch, num_cores: int
) -> None:
    told: set[tuple[int, bool]] = set()

    def make(settings: object, rng: object, *, num_threads: int, shares_cores: bool) -> EmulatedEngine:
        told.add((num_threads, shares_cores))
        return EmulatedEngine(model="m", curve=Curve((1,), (0.0,)), seed=0)

    monkeypatch.setattr(app_engines, "make_engine", make)
    monkeypatch.setattr("pice.app.engines.num_cores", lambda: num_cores)
    async with pice.open(ROOT / "config" / "llama.toml"):
        pass
    ((num_threads, shares_cores),) = told
    chosen = Setting((num_threads,) * 3, waiting_of_pice(shares_cores=shares_cores))
    assert chosen_by_pice(num_cores) == chosen.under(Load.together)


@pytest.mark.parametrize(("shares_cores", "expected"), [(True, Waiting.passive), (False, Waiting.spin_3000)])
def test_waiting_that_counts_as_pices_is_what_its_engines_get(shares_cores: bool, expected: Waiting) -> None:
    assert waiting_of_pice(shares_cores=shares_cores) == expected
    assert waiting({}, shares_cores=shares_cores) == VARIABLES[expected]


@pytest.mark.parametrize("compared_waiting", list(Waiting))
def test_engines_add_no_other_waiting_to_the_compared_one(compared_waiting: Waiting) -> None:
    given = environment(VARIABLES[compared_waiting])
    assert {name: given[name] for name in given if name.startswith(READ_BY_OPENMP)} == VARIABLES[compared_waiting]
    assert waiting(given, shares_cores=True) == {}


def test_what_is_the_same_is_compared_once() -> None:
    on_two = compared(2, Waiting)
    assert len(on_two) == len(set(on_two)) == 1 + 2 * len(Waiting)
    assert [str(setting) for setting in compared(2, [Waiting.passive])] == [
        "1/1/1",
        "2/1/1 passive",
        "2/2/2 passive",
        "2/2/2 spin 3000",
    ]


@pytest.mark.parametrize("num_cores", [1, 2, 3, 16])
def test_what_pice_chooses_is_compared(num_cores: int) -> None:
    settings = compared(num_cores, [Waiting.spin_3000])
    assert chosen_by_pice(num_cores) in settings
    assert chosen_for_one(num_cores) in settings
    assert len({str(setting) for setting in settings}) == len(settings)


def test_only_threads_of_engines_that_write_tell_settings_apart() -> None:
    assert MIXED.under(Load.cloud) == PASSIVE.under(Load.cloud) != ONES.under(Load.cloud)
    assert MIXED.under(Load.edge) == replace(SPINNING, threads=(1, 1, 1)).under(Load.edge)
    assert PASSIVE.under(Load.cloud) != SPINNING.under(Load.cloud)
    assert len({setting.under(Load.together) for setting in (ONES, MIXED, PASSIVE, SPINNING)}) == 4


def test_run_stands_for_all_settings_that_are_the_same_under_its_load() -> None:
    found = figures(*TOGETHER, run(MIXED, Load.together, 1, 1, 1))
    assert found.measured(Run.per_s, MIXED, Load.cloud).median == 20.0
    assert found.measured(Run.per_s, MIXED, Load.edge).median == 50.0


def test_shares_of_the_best_are_of_the_same_round() -> None:
    first = (run(ONES, Load.together, 60, 300, 240), run(PASSIVE, Load.together, 100, 200, 100))
    later = (run(ONES, Load.together, 150, 150, 150, at=1), run(PASSIVE, Load.together, 100, 200, 200, at=1))
    found = figures(*first, *later)
    assert found.best(Run.per_s, Load.together) == ONES
    share = found.to_best(Run.per_s, PASSIVE, Load.together)
    assert [share.low, share.high] == pytest.approx([40 / 60, 50 / 45])


def test_progress_weighs_each_engine_by_its_best_rate_alone() -> None:
    found = figures(*TOGETHER)
    assert [round(found.progress(each), 6) for each in TOGETHER] == [0.84, 0.9]
    assert found.best(Run.per_s, Load.together) == ONES
    assert found.best(found.progress, Load.together) == PASSIVE


def test_aims_compare_pices_setting_with_the_best_and_look_at_the_idle() -> None:
    found = {aim.name.partition(":")[0]: (round(aim.value, 4), aim.met) for aim in figures(*TOGETHER).aims()}
    assert found == {
        "all busy, tok/s": (0.8333, False),
        "all busy, progress": (1.0, True),
        "share of a core that an idle engine takes, highest": (0.0, True),
    }
    not_idle = run(ONES, Load.cloud, 100, edge_b=0.2)
    assert [(aim.value, aim.met) for aim in figures(*TOGETHER, not_idle).aims()][-1] == (0.02, False)


def test_cpu_time_per_token_is_of_the_engines_that_write() -> None:
    assert TOGETHER[0].cpu_ms_per_token() == pytest.approx(8000 / 600)
    assert run(ONES, Load.cloud, 100, cloud=1.0, program=9.0).cpu_ms_per_token() == pytest.approx(10.0)


def test_engine_that_stands_still_takes_time_for_nothing() -> None:
    assert run(PASSIVE, Load.cloud, 0, cloud=1.0).cpu_ms_per_token() == math.inf


def test_table_marks_pices_setting_and_says_what_it_costs() -> None:
    table = figures(*TOGETHER).table(["A note."])
    assert list(table.rows[0]) == [
        *("1/1/1", "60.0 (60.0-60.0)", "1.00", "6.0", "54.0", "0.84", "0.93"),
        *("10.0 (10.0-10.0)", "50.0 (50.0-50.0)", "8.0 (8.0-8.0)", "13/0.0/0.0/0.0"),
    ]
    assert [row[0] for row in table.rows] == ["1/1/1", "2/2/2 passive *"]
    shares = "all 0.83 of 1/1/1, cloud alone 1.00 of 2 passive, edge alone 1.00 of 2 passive, cloud, program 1.00 of"
    assert shares in table.notes[1]
    assert "2 spin 3000: cloud alone 0.05 of 2 passive" in table.notes[2]


def test_report_can_be_written_and_checked() -> None:
    found = figures(*TOGETHER)
    written = orjson.loads(orjson.dumps(document(threads.make_report(found, PLAN))))
    assert written["runs"][0]["setting"] == {"threads": [1, 1, 1], "waiting": "passive"}
    assert written["load"]["waiting"]["passive"] == {"OMP_WAIT_POLICY": "passive"}
    assert {each["load"] for each in written["detail"]["medians"]} == {load.value for load in Load}


def test_picture_has_a_bar_for_each_engine_that_writes() -> None:
    matplotlib = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    figure = matplotlib.Figure(layout="constrained")
    figures(*TOGETHER).draw(figure)
    assert [len(panel.patches) for panel in figure.axes] == [6, 2, 2, 2]


def test_time_of_a_process_is_read_whatever_its_name() -> None:
    assert ticks_of("7 (a) b (c) S 1 7 7 0 -1 4194560 9 0 0 0 120 34 5 6 20 0 1 0 100 1 1") == 154


def test_processes_find_only_the_variables_that_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")
    before = dict(os.environ)
    with read_at_loading({"OMP_WAIT_POLICY": "passive"}):
        inside = dict(os.environ)
    assert inside["OMP_WAIT_POLICY"] == "passive"
    assert not inside.keys() & {"OMP_NUM_THREADS", "GOMP_SPINCOUNT"}
    assert inside["PATH"] == before["PATH"]
    assert dict(os.environ) == before


class Endless:
    """Writes as many tokens as asked for, one at a time, and notes what it was asked for and what runs."""

    def __init__(self) -> None:
        self.asked = list[tuple[Prompt, Sampling]]()
        self.six_asked = asyncio.Event()
        self.num_running = 0
        self.num_counted = 0
        self.error: InputError | None = None

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, deadline_s: float = math.inf
    ) -> AsyncGenerator[Piece, None]:
        if self.error:
            raise self.error
        self.asked.append((prompt, sampling))
        if len(self.asked) == 6:
            self.six_asked.set()
        self.num_running += 1
        try:
            for _ in range(sampling.max_tokens):
                await asyncio.sleep(0)
                yield Piece("a", num_tokens=1)
        finally:
            self.num_running -= 1

    async def count_tokens(self, prompt: Prompt) -> int:
        assert self.num_running == 0
        self.num_counted += 1
        return 1


async def test_texts_follow_one_another_and_are_dropped_at_the_end() -> None:
    engine = Endless()
    writing = Writing(cast("Engine", engine), Texts(2, shared_tokens=5, own_tokens=3, max_tokens=4))
    async with asyncio.timeout(5), writing.going_on():
        assert writing.num_tokens >= 2
        await engine.six_asked.wait()
        assert engine.num_running
    assert (engine.num_running, engine.num_counted) == (0, 1)
    assert [sampling.max_tokens for _, sampling in engine.asked[:2]] == [2, 4]
    assert {sampling.max_tokens for _, sampling in engine.asked[2:]} == {4}
    systems, users = zip(*(prompt.messages for prompt, _ in engine.asked), strict=True)
    assert len(set(systems)) == 1
    assert len(set(users)) == len(users)


async def test_engine_that_fails_ends_the_run() -> None:
    engine = Endless()
    engine.error = InputError("broken")
    writing = Writing(cast("Engine", engine), replace(SKETCHES, num=1))
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(5), writing.going_on():
            pytest.fail("nothing was written")
    assert caught.value.exceptions == (engine.error,)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
async def test_what_is_counted_is_what_came_in_the_window() -> None:
    engine = Endless()
    writing = Writing(cast("Engine", engine), EXPANSIONS)
    async with asyncio.timeout(10):
        window = await threads_load.watched({"e": writing}, {"own": os.getpid()}, warm_s=0.0, seconds=0.05)
    assert 0 < window.num_tokens["e"] < writing.num_tokens
    assert window.seconds >= 0.05
    assert window.cpu_s["own"] >= 0
    assert threads_load.memory_bytes(os.getpid()) > 1 << 20


async def test_engine_without_a_process_is_unfair() -> None:
    engine = ProcessEngine(LlamaOptions(Path("none.gguf"), "cloud"))
    with pytest.raises(Unfair, match="cloud"):
        pid_of("cloud", engine)


def hosted(kind: str, at: int, per_s: float, memory: Mapping[str, int]) -> Hosted:
    loads = {"8": {"tokens_per_s": per_s, "cpu_ms_per_token": 2.0}}
    return Hosted(kind, at, 0.5, 0.01, loads, memory)


HOSTED = [
    hosted(THREAD, 0, 100.0, {"host": 4 << 20}),
    hosted(PROCESS, 0, 90.0, {"host": 2 << 20, "engine": 4 << 20}),
    hosted(PROCESS, 1, 60.0, {"host": 2 << 20, "engine": 4 << 20}),
    hosted(THREAD, 1, 50.0, {"host": 4 << 20}),
]


def test_process_is_compared_with_the_thread_of_its_round() -> None:
    found = ratios(HOSTED)
    assert (found["tok/s, 8 at once"].low, found["tok/s, 8 at once"].high) == (0.9, 1.2)
    assert found["memory MiB"].median == 1.5


def test_report_of_isolation_has_a_row_for_each_kind() -> None:
    plan = threads_isolation.Plan(Path("small.gguf"), 2, 2, 0.1, 1.0)
    report = threads_isolation.make_report(HOSTED, plan)
    assert [row[0] for row in report.table.rows] == ["in a thread", "in a process", "process / thread"]
    assert {len(row) for row in report.table.rows} == {len(report.table.columns)}
    assert orjson.loads(orjson.dumps(document(report)))["runs"][1]["memory MiB"] == 6.0


def test_system_without_proc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(InputError, match="Linux"):
        threads.require_proc()


def test_benchmark_can_be_started_as_a_file() -> None:
    ran = subprocess.run([sys.executable, "bench/threads.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "isolation" in ran.stdout
