"""Where profiled time is booked."""

import pytest

from bench.costs import LOOP, Function, Stats, by_module, hottest
from bench.report import ROOT

EDGE: Function = (f"{ROOT}/pice/node/edge.py", 10, "_write")
CLOUD: Function = (f"{ROOT}/pice/node/cloud.py", 20, "_serve")
COPY: Function = ("/usr/lib/python3/dataclasses.py", 5, "replace")
LEN: Function = ("~", 0, "<built-in method builtins.len>")
SELECT: Function = ("~", 0, "<method 'poll' of 'select.epoll' objects>")

STATS: Stats = {
    EDGE: (2, 2, 1.0, 5.0, {}),
    CLOUD: (1, 1, 2.0, 3.0, {}),
    # Called from both for as long: 4 s of its own, 1 s in len.
    COPY: (4, 4, 4.0, 5.0, {EDGE: (3, 3, 3.0, 4.0), CLOUD: (1, 1, 1.0, 1.0)}),
    LEN: (9, 9, 1.0, 1.0, {COPY: (9, 9, 1.0, 1.0)}),
    SELECT: (1, 1, 0.5, 0.5, {}),
}


def test_foreign_time_is_booked_to_the_module_that_called_for_it() -> None:
    found = by_module(STATS)
    assert found["pice.node.edge"] == pytest.approx(1.0 + 3.0 + 0.8)
    assert found["pice.node.cloud"] == pytest.approx(2.0 + 1.0 + 0.2)


def test_no_time_is_lost_and_the_rest_is_the_loops() -> None:
    found = by_module(STATS)
    assert found[LOOP] == pytest.approx(0.5)
    assert sum(found.values()) == pytest.approx(sum(entry[2] for entry in STATS.values()))


def test_functions_that_call_each_other_outside_pice_end_somewhere() -> None:
    one, other = ("a.py", 1, "one"), ("a.py", 2, "other")
    stats: Stats = {
        one: (1, 1, 1.0, 2.0, {other: (1, 1, 1.0, 2.0)}),
        other: (1, 1, 1.0, 2.0, {one: (1, 1, 1.0, 2.0)}),
    }
    assert by_module(stats) == {LOOP: pytest.approx(2.0)}


def test_hottest_functions_come_first_with_what_they_called() -> None:
    first, second = hottest(STATS, 5)
    assert (first.where, first.num_calls, first.all_s) == ("pice/node/edge.py:10 _write", 2, 5.0)
    assert first.own_s == pytest.approx(4.8)
    assert second.where == "pice/node/cloud.py:20 _serve"
