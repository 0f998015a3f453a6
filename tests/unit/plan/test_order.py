import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.plan.order import Order, WaitingSegments

Item = tuple[int, float]


def popped(order: Order, items: list[Item], batch: int = 2) -> list[Item]:
    waiting: WaitingSegments[Item] = WaitingSegments(order, batch=batch)
    for words, deadline_s in items:
        waiting.push((words, deadline_s), words=words, deadline_s=deadline_s)
    return [waiting.pop() for _ in range(len(waiting))]


def test_first_come_first_served_keeps_the_order() -> None:
    items = [(50, 3.0), (10, 1.0), (400, 2.0)]
    assert popped("fcfs", items) == items


def test_longest_first_takes_the_longest() -> None:
    assert popped("longest", [(50, 3.0), (10, 1.0), (400, 2.0)]) == [(400, 2.0), (50, 3.0), (10, 1.0)]


def test_multilist_serves_one_length_by_deadline_then_the_list_that_waited_longest() -> None:
    items = [(100, 9.0), (10, 5.0), (101, 3.0), (102, 1.0), (11, 4.0)]
    assert popped("multilist", items) == [(102, 1.0), (101, 3.0), (100, 9.0), (11, 4.0), (10, 5.0)]


def test_no_list_starves_while_another_is_refilled() -> None:
    waiting: WaitingSegments[str] = WaitingSegments("multilist", batch=2)
    waiting.push("long", words=500, deadline_s=100.0)
    waiting.push("short", words=10, deadline_s=1.0)
    taken = []
    for _ in range(4):
        waiting.push("short", words=10, deadline_s=1.0)
        taken.append(waiting.pop())
    assert "long" in taken


def test_empty_queue_says_so() -> None:
    with pytest.raises(IndexError):
        WaitingSegments[str]("fcfs", batch=1).pop()


@given(st.sampled_from(["multilist", "fcfs", "longest"]), st.lists(st.tuples(st.integers(0, 999), st.floats(0, 9))))
def test_nothing_is_lost_or_doubled(order: Order, items: list[Item]) -> None:
    assert sorted(popped(order, items)) == sorted(items)
