"""How many threads an engine computes with, on an imagined machine."""

from collections.abc import Callable

import pytest

from pice.engine.llama.pace import LAST_TRIAL_S, Pace

StepS = Callable[[int, int], float]
"""Seconds of a step, by threads and sequences."""


def quiet(threads: int, num_tokens: int) -> float:
    return (0.008 + 0.002 * num_tokens) / float(threads**0.7)


def contended(threads: int, num_tokens: int) -> float:
    """Another program has a core: a thread too many and the barriers wait for it."""
    return quiet(threads, num_tokens) * (100 if threads > 1 else 1.1)


class Machine:
    """Makes steps for a while and counts their time by threads."""

    def __init__(self, num_threads: int) -> None:
        self.pace = Pace(num_threads)
        self.now_s = 0.0
        self.num_steps = 0

    def run(self, step_s: StepS, seconds: float, num_tokens: int = 4) -> float:
        """Steps made, over those that the best setting would have made in that time."""
        end_s, num_before = self.now_s + seconds, self.num_steps
        while self.now_s < end_s:
            threads = self.pace.now_threads
            took_s = step_s(threads, num_tokens)
            self.now_s += took_s
            self.num_steps += 1
            self.pace.observe(num_tokens, took_s, self.now_s)
        best_s = min(step_s(threads, num_tokens) for threads in range(1, self.pace.num_threads + 1))
        return (self.num_steps - num_before) * best_s / seconds


@pytest.mark.parametrize(
    ("num_threads", "ladder"),
    [(1, (1,)), (2, (2, 1)), (3, (3, 1)), (4, (4, 3, 2, 1)), (8, (8, 6, 4, 1)), (16, (16, 12, 8, 1))],
)
def test_settings_are_all_threads_some_fewer_and_one(num_threads: int, ladder: tuple[int, ...]) -> None:
    assert Pace(num_threads).ladder == ladder


def test_alone_on_its_cores_an_engine_keeps_all_threads_at_almost_no_cost() -> None:
    machine = Machine(2)
    assert machine.run(quiet, 60.0) > 0.98
    assert machine.pace.ladder[machine.pace.rung] == 2


def test_core_taken_from_the_start_is_noticed_within_some_steps() -> None:
    machine = Machine(2)
    assert machine.run(contended, 60.0) > 0.8
    assert machine.pace.ladder[machine.pace.rung] == 1


def test_core_taken_later_is_noticed_after_two_steps() -> None:
    machine = Machine(2)
    machine.run(quiet, 10.0)
    machine.run(contended, 3 * contended(2, 4))
    assert machine.pace.ladder[machine.pace.rung] == 1


def test_core_given_back_is_used_again() -> None:
    machine = Machine(2)
    machine.run(quiet, 10.0)
    machine.run(contended, 30.0)
    machine.run(quiet, LAST_TRIAL_S)
    assert machine.pace.ladder[machine.pace.rung] == 2
    assert machine.run(quiet, 10.0) > 0.98


def test_lasting_contention_costs_little_in_trials() -> None:
    machine = Machine(2)
    machine.run(contended, 60.0)
    assert machine.run(contended, 300.0) > 0.97


def test_one_slow_step_changes_nothing() -> None:
    machine = Machine(2)
    machine.run(quiet, 0.5)
    machine.run(lambda threads, num_tokens: 1.0, 0.5)
    machine.run(quiet, 0.2)
    assert machine.pace.now_threads == 2


def test_batch_that_changes_during_a_trial_leaves_it_undecided() -> None:
    machine = Machine(2)
    while machine.pace.now_threads == 2:
        machine.run(quiet, 0.001)
    machine.pace.observe(5, 1e-9, machine.now_s)
    assert machine.pace.now_threads == 2
    machine.run(quiet, 0.05)
    assert machine.pace.rung == 0


def test_growing_batch_is_not_taken_for_contention() -> None:
    machine = Machine(2)
    machine.run(quiet, 0.3, num_tokens=1)
    for num_tokens in range(2, 60):
        machine.run(quiet, 0.01, num_tokens=num_tokens)
        assert machine.pace.rung == 0


def test_of_many_threads_as_few_are_given_up_as_need_be() -> None:
    def one_core_taken(threads: int, num_tokens: int) -> float:
        return quiet(threads, num_tokens) * (50 if threads > 7 else 1)

    machine = Machine(8)
    machine.run(one_core_taken, 30.0)
    assert machine.pace.ladder[machine.pace.rung] == 6


def test_one_thread_stays_one() -> None:
    machine = Machine(1)
    machine.run(contended, 5.0)
    assert machine.pace.now_threads == 1
