"""The books of one Kafka partition."""

from hypothesis import given
from hypothesis import strategies as st

from pice.transport.kafka_ledger import MAX_METADATA, Ledger, read_ledger


def begun(num: int, *finished: int) -> Ledger:
    ledger = Ledger(0)
    for offset in range(num):
        ledger.begin(offset)
    for offset in finished:
        ledger.finish(offset)
    return ledger


def test_position_is_the_first_that_is_not_finished() -> None:
    assert begun(5).position() == 0
    assert begun(5, 1, 2).position() == 0
    assert begun(5, 0, 1, 3).position() == 2
    assert begun(5, 0, 1, 2, 3, 4).position() == 5


def test_position_moves_over_offsets_that_hold_no_message() -> None:
    ledger = Ledger(0)
    for offset in (3, 7):
        ledger.begin(offset)
    ledger.finish(3)
    assert ledger.position() == 7
    ledger.finish(7)
    assert ledger.position() == 8


def test_what_is_finished_is_forgotten_once_the_position_is_past_it() -> None:
    ledger = begun(1000, *range(999))
    assert (ledger.position(), ledger.times) == (999, {999: 1})


def test_finishing_twice_or_what_never_began_changes_nothing() -> None:
    ledger = begun(2, 1, 1, 9)
    assert (ledger.position(), ledger.times) == (0, {0: 1, 1: 0})


def test_what_was_released_is_counted_when_it_is_begun_again() -> None:
    ledger = begun(1)
    assert (ledger.begin(0), ledger.begin(0)) == (2, 3)


def test_metadata_that_does_not_fit_is_left_out() -> None:
    ledger = begun(5000, *range(1, 5000))
    assert len(ledger.metadata()) <= MAX_METADATA
    left = read_ledger(0, ledger.metadata())
    assert left.times[0] == 1
    assert 100 < len(left.times) < 5000


def test_metadata_of_others_says_nothing() -> None:
    for metadata in ("", "hello", "1:x 2", ":", "-1:2", "1:2:3"):
        assert read_ledger(4, metadata).times == {}


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans())))
def test_ledger_survives_its_commit(steps: list[tuple[int, bool]]) -> None:
    ledger = Ledger(0)
    for offset, finish in steps:
        if ledger.is_finished(offset) or offset < ledger.position():
            continue
        ledger.begin(offset)
        if finish:
            ledger.finish(offset)
    position = ledger.position()
    left = read_ledger(position, ledger.metadata())
    assert left.times == ledger.times
    assert left.position() == min((at for at, times in left.times.items() if times), default=left.next_offset)
