"""The testbed: who is asked in which mode, what a run comes to, and what is aimed at."""

from dataclasses import replace

import pytest

from bench.judged import DATA
from bench.testbed import QUICK_LOADS, Found, Plan
from bench.testbed_data import BATCH_SHAPE, asks, break_even_tokens, cloud_model, machines, questions, site_models
from bench.testbed_run import GATES, Cell, Figures, Gate, Line, World, figures, play_cell, suits
from bench.testbed_systems import ABLATIONS, SYSTEMS, System, deployed, met, policies
from pice.core import Curve, Mode
from pice.plan.base import TOKENS_PER_WORD
from pice.simulation.lengths import Known, Sketching
from pice.simulation.play import Ask, Deployment, Ended, Model, Played, Site

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the public data is not at {DATA} (PICE_DATA)")
MODEL = Model("m", Curve((1,), (0.01,)), max_inflight=1)
WHOLE = Deployment(MODEL, {"a": Site((MODEL,))}, policies(4))
TRAFFIC = [Ask(0.0, "a", Known(10, suits_sketch=True)), Ask(1.0, "b", Known(10, suits_sketch=False))]


def ended(ended_s: float, e2e_s: float, *, num_tokens: int = 10, error: str = "") -> Ended:
    return Ended(0.0, ended_s, "cloud", e2e_s, 0.5, 0.0, 0.0, 1, 10, 0, num_tokens, 0, error)


@pytest.mark.parametrize(
    ("system", "modes"),
    [
        ("cloud-only", ["cloud", "cloud"]),
        ("edge-only", ["edge", "edge"]),
        ("router", ["edge", "cloud"]),
        ("sot", ["progressive", "cloud"]),
        ("pice-paper", [None, None]),
        ("pice", [None, None]),
    ],
)
def test_system_leaves_the_mode_to_nobody_or_to_the_planner(system: System, modes: list[Mode | None]) -> None:
    assert [ask.mode for ask in met(system, TRAFFIC)] == modes


def test_only_the_cloud_itself_expands_for_sot_and_nobody_for_cloud_only() -> None:
    assert deployed("sot", WHOLE).expands_itself
    assert [len(deployed(system, WHOLE).sites) for system in SYSTEMS] == [0, 1, 1, 0, 1, 1]


def test_the_papers_scheme_waits_for_the_sketch_and_asks_two_models() -> None:
    paper = deployed("pice-paper", WHOLE).policies
    assert (paper.cloud.eager, paper.plan.candidates) == (False, 2)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_one_part(name: str) -> None:
    before = policies(4)
    after = ABLATIONS[name](before)
    parts = ("plan", "cloud", "edge", "ensemble")
    assert sum(getattr(before, part) != getattr(after, part) for part in parts) == 1


def test_rate_is_that_of_the_middle_of_a_run() -> None:
    ends = [0.0, *range(10, 20), 100.0]
    found = figures(_cell(), WHOLE, Played([ended(at_s, 1.0) for at_s in ends], 0, 0))
    assert found.answers_per_s == pytest.approx(1.0)


def test_goodput_leaves_out_what_is_late_and_what_failed() -> None:
    runs = [ended(1.0, 1.0), ended(2.0, 100.0), ended(3.0, 1.0), ended(4.0, 1.0, error="no_site"), ended(5.0, 1.0)]
    found = figures(_cell(), WHOLE, Played(runs, 100, 20))
    assert found.good_per_s == pytest.approx(found.answers_per_s * 3 / 4)
    assert (found.num_failed, found.cloud_tokens, found.edge_tokens) == (1, 100 / 40, 20 / 40)


def test_edge_use_is_of_what_the_sites_could_write() -> None:
    found = figures(_cell(), WHOLE, Played([ended(10.0, 1.0)], 0, 500))
    assert found.edge_use == pytest.approx(0.5)


def _cell(system: System = "pice") -> Cell:
    return Cell(system, "labels", World(1), 1.0, 0, 5)


@needs_data
def test_curves_only_rise_and_sites_are_of_each_kind_in_turn() -> None:
    cloud, sites = cloud_model(), site_models(4)
    assert cloud.curve.batch == (1, 2, 4, 8, 16, 32, 64)
    assert list(cloud.curve.step_s) == sorted(cloud.curve.step_s)
    assert [site.curve.step_s[0] for site in sites.values()] == [
        pytest.approx(1 / machine.decode_per_s) for machine in (*machines(), machines()[0])
    ]


@needs_data
def test_batching_scales_what_a_batch_costs_beyond_one() -> None:
    usual, dear = (site_models(1, batching=factor)["site-0000"].curve.step_s for factor in (1.0, 2.0))
    assert usual[0] == dear[0]
    assert dear[-1] / dear[0] == pytest.approx(1 + 2 * (BATCH_SHAPE[8] - 1))


@needs_data
def test_arrivals_have_the_rate_asked_for_and_the_same_for_a_seed() -> None:
    def never(_: object) -> bool:
        return False

    traffic = asks(questions(), never, 4000, 5.0, 1)
    assert traffic == asks(questions(), never, 4000, 5.0, 1)
    assert len(traffic) / traffic[-1].at_s == pytest.approx(5.0, rel=0.1)
    assert {ask.text for ask in traffic[:80]} == {question.text for question in questions()}


@needs_data
def test_gates_take_the_labelled_and_the_long() -> None:
    world = World()
    by_label, by_length = (sum(map(suits(gate, world), questions())) for gate in GATES)
    assert by_label == 37
    assert by_length > 70


def test_answer_is_worth_a_sketch_from_where_the_sites_are_sooner() -> None:
    slow, quick = (Model("m", Curve((1, 8), (step_s, step_s)), max_inflight=8) for step_s in (0.03, 0.001))
    cloud = Model("m", Curve((1,), (0.03,)), max_inflight=8)
    assert break_even_tokens(cloud, quick, Sketching(), 0.0) < break_even_tokens(cloud, slow, Sketching(), 0.0)
    assert break_even_tokens(cloud, slow, Sketching(), 0.0) > 55 * TOKENS_PER_WORD


@needs_data
def test_cell_is_played_the_same_again() -> None:
    cell = replace(_cell(), num_requests=12)
    assert play_cell(cell) == play_cell(cell)


def test_aims_are_the_medians_over_seeds_against_cloud_only() -> None:
    worlds: dict[Gate, World] = {gate: World(8) for gate in GATES}
    lines = [Line(system, gate, World(8), QUICK_LOADS) for gate in GATES for system in SYSTEMS]
    lines += [Line("pice", gate, World(n), QUICK_LOADS, label=f"pice, {n} sites") for gate in GATES for n in (0, 2)]
    found = Found(Plan(3, 1, 1, QUICK_LOADS, (8,), whole=False), 4.0, worlds, lines, _figures())
    report = found.report()
    aims = {aim.name: aim for aim in report.aims}
    assert aims["labels: throughput / cloud-only"].value == pytest.approx(2.0)
    assert aims["labels: throughput / cloud-only"].met
    assert aims["length: throughput / cloud-only"].value == pytest.approx(2.0)
    assert not aims["length: throughput / cloud-only"].met
    assert aims["labels, pice, 0 sites: median E2E / cloud-only, worst load"].value == pytest.approx(0.5)
    assert [row[1] for row in report.table.rows[:6]] == list(SYSTEMS)
    assert len(report.table.rows) == len(lines)


@needs_data
def test_share_of_suited_questions_can_be_given() -> None:
    assert [sum(map(suits("labels", World(suited=share)), questions())) for share in (0.0, 0.25, 1.0)] == [0, 20, 80]


@needs_data
def test_dying_sites_are_the_first() -> None:
    assert list(World(4, num_dying=2).deployment().deaths) == ["site-0000", "site-0001"]


def _figures() -> dict[Cell, Figures]:
    """PICE answers twice as many in half the time, in the median of three seeds; the others like the cloud."""
    found = {}
    for gate in GATES:
        worlds: list[tuple[System, World]] = [(system, World(8)) for system in SYSTEMS]
        for system, world in (*worlds, ("pice", World(0)), ("pice", World(2))):
            for load in (None, *QUICK_LOADS):
                for seed, drift in enumerate((0.5, 1.0, 7.0)):
                    factor = (2.0 if system == "pice" else 1.0) * drift
                    cell = Cell(system, gate, world, None if load is None else 4.0 * load, seed, 1)
                    time_s = 10.0 / factor
                    found[cell] = Figures(
                        cell,
                        answers_per_s=4.0 * factor,
                        e2e_p50_s=time_s,
                        e2e_p95_s=time_s,
                        ttft_p50_s=time_s,
                        ttft_p95_s=time_s,
                        good_per_s=3.0,
                        num_failed=0,
                        num_degraded=0,
                        progressive=0.5,
                        cloud_tokens=0.5,
                        edge_tokens=0.5,
                        edge_use=0.5,
                        prediction_error=0.1,
                    )
    return found
