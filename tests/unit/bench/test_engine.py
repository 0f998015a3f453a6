"""Figures of the engine's benchmark: rates from arrivals, ratios of the same round, aims, who takes part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")

from bench import engine
from bench.contenders import KINDS
from bench.engine import Omp, chosen, environment, make_report, runnable
from bench.engine_figures import BARE, CEILING, COLD, PICE, SEQUENTIAL, SERVER, WARM, Cell, Figures, Run, as_run
from bench.engine_run import Plan
from bench.engine_work import MAX_TOKENS, Asked, Done, Job, Unfair, Written, decode_per_s
from bench.report import document
from pice.errors import InputError

EIGHT, FOUR = Cell("half-b-q4_0", 8), Cell("half-b-q4_0", 4)
PLAN = Plan(["half-b-q4_0"], [4, 8], [PICE], [COLD, WARM], 2, 2, None, {"PATH": "/bin", "OMP_WAIT_POLICY": "passive"})


def run(
    contender: str, decode_per_s: float | None, wall_s: float = 1.0, *, phase: str = COLD, at: int = 0, **rest: Any
) -> Run:
    return Run(rest.pop("model", EIGHT.model), rest.pop("size", 8), contender, phase, at, decode_per_s, wall_s, **rest)


def aims(*runs: Run) -> Mapping[str, tuple[float, bool]]:
    return {aim.name.partition(": ")[2]: (aim.value, aim.met) for aim in Figures(runs).aims()}


def test_rate_is_of_the_time_when_all_segments_are_decoded() -> None:
    early, late = [0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 4.5, 5.0]
    assert decode_per_s([early, late]) == 2 * 2 / 2.0


def test_rate_of_a_single_segment_leaves_its_first_token_out() -> None:
    assert decode_per_s([[10.0, 10.5, 11.0]]) == 2.0


def test_segments_that_were_never_decoded_together_have_no_rate() -> None:
    assert decode_per_s([[0.0, 1.0], [2.0, 3.0]]) is None
    ceilings = [run(CEILING, 100.0, phase=CEILING, at=number) for number in (0, 1)]
    figures = Figures([run(PICE, None), run(PICE, 90.0, at=1), *ceilings])
    found = figures.measured(EIGHT, PICE, "decode_per_s"), figures.ratio(EIGHT, "decode_per_s", PICE, CEILING)
    assert [(each.median, each.num) for each in found if each] == [(90.0, 1), (0.9, 1)]


def test_job_without_the_tokens_asked_for_is_refused() -> None:
    job = Job((Asked("", "", (1, 2, 3)),), greedy=False, seed=0)
    whole = Written(0.1, 1.0, MAX_TOKENS, num_prompt_tokens=3, num_cached_tokens=2)
    Done(1.0, (whole,)).check(job)
    for short in (Written(0.1, 1.0, 5, 3, 2), Written(0.1, 1.0, MAX_TOKENS, 4, 2)):
        with pytest.raises(Unfair, match="expected"):
            Done(1.0, (short,)).check(job)


def test_done_comes_to_walls_rates_and_evaluated_tokens() -> None:
    segments = (Written(0.5, 4.0, 96, 220, 0), Written(0.7, 3.0, 96, 220, 200), Written(0.6, 3.0, 96, 220, 200))
    found = as_run(FOUR, PICE, WARM, 3, Done(80.0, segments))
    assert (found.wall_s, found.tokens_per_s, found.ttft_s, found.num_evaluated) == (4.0, 72.0, 0.6, 260)
    assert (found.size, found.phase, found.round, found.decode_per_s) == (4, WARM, 3, 80.0)


def test_ratios_are_of_the_same_round() -> None:
    runs = [run(PICE, 90.0, at=0), run(PICE, 40.0, at=1), run(PICE, 95.0, phase=WARM, at=0), run(PICE, 1.0, at=9)]
    ceilings = [run(CEILING, 100.0, phase=CEILING, at=0), run(CEILING, 50.0, phase=CEILING, at=1)]
    found = Figures(runs + ceilings).ratio(EIGHT, "decode_per_s", PICE, CEILING, COLD, WARM)
    assert found
    assert (found.median, found.low, found.high, found.num) == (0.9, 0.8, 0.95, 3)


def test_cold_and_warm_are_not_compared_with_each_other() -> None:
    figures = Figures([run(PICE, 1.0, 2.0), run(PICE, 1.0, 8.0, phase=WARM), run(SERVER, 1.0, 4.0, phase=WARM)])
    assert figures.ratio(EIGHT, "wall_s", SERVER, PICE, COLD) is None
    warm = figures.ratio(EIGHT, "wall_s", SERVER, PICE, WARM)
    assert warm
    assert warm.median == 0.5


def test_aims_at_eight_segments_are_checked() -> None:
    others = [run(SEQUENTIAL, 50.0, 2.1), run(SERVER, 90.0, 1.9), run(BARE, 100.0), run(CEILING, 100.0, phase=CEILING)]
    found = aims(run(PICE, 98.0), run(PICE, 99.0, phase=WARM), run(SERVER, 1.0, 0.9, phase=WARM), *others)
    assert {name: (round(value, 3), met) for name, (value, met) in found.items()} == {
        "decode / ceiling": (0.985, True),
        "decode with log-probabilities / without": (0.98, True),
        "cold wall, llama-server / pice": (1.9, True),
        "warm wall, llama-server / pice": (0.9, False),
        "cold wall, one by one / pice": (2.1, False),
    }


def test_other_sizes_and_contenders_that_did_not_run_have_no_aims() -> None:
    ceiling = run(CEILING, 100.0, phase=CEILING, size=4)
    assert list(aims(run(PICE, 98.0, size=4), ceiling, run(SERVER, 1.0, size=4))) == ["decode / ceiling"]
    assert aims(run(PICE, 98.0)) == {}


def test_contender_without_its_program_is_left_out_with_what_to_do() -> None:
    names, left_out = runnable([PICE, SERVER], tools=None)
    assert names == [PICE]
    assert left_out == ["left out: llama-server needs llama-server: python tools/llama_cpp_tools.py"]
    assert runnable([PICE, SERVER], tools=Path("bin")) == ([PICE, SERVER], [])


def test_names_are_chosen_by_comma_and_checked() -> None:
    assert chosen("", KINDS, else_=["pice"]) == ["pice"]
    assert chosen("llama-server,pice", KINDS, else_=[]) == ["llama-server", "pice"]
    with pytest.raises(InputError, match="got vllm"):
        chosen("pice,vllm", KINDS, else_=[])


@pytest.mark.parametrize("omp", list(Omp))
def test_contenders_see_no_settings_but_the_benchmarks_own(omp: Omp) -> None:
    own = {"PATH": "/bin", "OMP_NUM_THREADS": "7", "GOMP_SPINCOUNT": "1", "LLAMA_ARG_N_PARALLEL": "2"}
    assert environment(own, omp) == {"PATH": "/bin", **engine.WAITING[omp]}


def test_report_names_the_environment_and_who_was_left_out() -> None:
    figures = Figures([run(PICE, 98.0, step_shares={"evaluating": 0.97, "drawing": 0.02, "rest": 0.01})])
    found = document(make_report(figures, PLAN, ["left out: llama-server"]))
    assert found["load"]["environment"] == {"OMP_WAIT_POLICY": "passive"}
    assert found["load"]["left_out"] == ["left out: llama-server"]
    assert found["detail"]["cells"][0]["step_shares"]["evaluating"] == 0.97


def test_table_has_a_row_for_each_contender_that_ran() -> None:
    shares = {"evaluating": 0.97, "drawing": 0.02, "rest": 0.01}
    runs = [run(PICE, 98.0, 2.0, num_evaluated=360, step_shares=shares), run(PICE, 99.0, phase=WARM, num_evaluated=160)]
    rows = Figures([*runs, run(CEILING, 100.0, 0.0, phase=CEILING)]).table([]).rows
    assert [row[:2] for row in rows] == [[str(EIGHT), PICE], [str(EIGHT), CEILING]]
    assert rows[0][2:] == ["2.00 (2.00-2.00)", "1.00 (1.00-1.00)", "", "98 (98-99)", "0.98", "0.00", "360/160", "3.0%"]
    assert rows[1][2:] == ["", "", "", "100 (100-100)", "", "", "", ""]


def test_picture_has_a_line_for_each_contender() -> None:
    matplotlib = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    figure = matplotlib.Figure()
    Figures([run(PICE, 98.0), run(PICE, 50.0, size=4), run(CEILING, 100.0, phase=CEILING)]).draw(figure)
    rates, cold, warm = figure.axes
    assert [line.get_label() for line in rates.lines] == [PICE, CEILING]
    assert list(rates.lines[0].get_ydata()) == [50.0, 98.0]
    assert [len(axes.lines) for axes in (cold, warm)] == [1, 0]
