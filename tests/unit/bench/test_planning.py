"""The cost of decisions: what is timed is a decision, and its table says where the time goes."""

import random

import pytest

from bench.planning import SIZES, Run, a_segment, make_report, profile, run, states
from pice.core import CLOUD_SITE, Message, Request
from pice.plan.planner import EarliestFinish, PlanPolicy


def test_what_is_timed_is_a_plan_with_sites_and_a_placement_at_one() -> None:
    planner = EarliestFinish(PlanPolicy())
    planner.see(states(10, random.Random(0)))
    assert planner.decide(Request("r", (Message("user", "why"),)), 100).mode == "progressive"
    placement = planner.place(a_segment(), 0.0)
    assert placement is not None
    assert placement.site != CLOUD_SITE


def test_every_size_is_timed() -> None:
    found = run(1, 0)
    assert min(found.decide_s, found.place_s, found.see_s) > 0


def test_aims_are_those_of_a_hundred_sites() -> None:
    runs = [Run(size, number, size * 1e-5, size * 1e-6, 1e-6) for size in SIZES for number in range(3)]
    report = make_report(runs, 3)
    assert [aim.value for aim in report.aims] == pytest.approx([1e-3, 1e-4])
    assert [row[0] for row in report.table.rows] == ["1", "10", "100", "1000"]


def test_profile_names_the_functions_of_the_planner() -> None:
    assert any(line.startswith("finish_s ") for line in profile(100))
