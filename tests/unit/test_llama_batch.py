"""Which sequences run and what a step evaluates, without a model."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pice.engine.llama.batch import MIN_RESTING_TOKENS, MIN_SHARED_TOKENS, PREFILL_TOKENS, Batch
from pice.engine.llama.sequence import Change, Chunk, Sequence, Share, num_common_tokens

PREFIX = list(range(1000, 1100))


class Memory:
    """What a model's memory would hold: the cells of each sequence, by its id, and the tokens in them."""

    def __init__(self) -> None:
        self.cells: dict[int, list[int]] = {}
        self.tokens: dict[int, int] = {}
        self._new = itertools.count()

    def change(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, Share):
                assert not self.cells.get(change.target_id)
                taken = self.cells[change.source_id][: change.num_tokens]
                assert len(taken) == change.num_tokens
                self.cells[change.target_id] = taken
            else:
                del self.cells.get(change.seq_id, [])[change.num_tokens :]

    @property
    def num_used(self) -> int:
        return len({cell for cells in self.cells.values() for cell in cells})

    def step(self, batch: Batch) -> list[Chunk]:
        """One step as the owner makes it, checked as llama.cpp would check it."""
        self.change(batch.admit())
        held = [*batch.running, *batch.resting]
        assert len({sequence.seq_id for sequence in held}) == len(held)
        assert len(batch.running) <= batch.n_seq_max
        assert all(sequence.seq_id < batch.n_seq_max + batch.num_resting for sequence in held)
        chunks = batch.chunks()
        assert bool(chunks) == bool(batch.running)
        assert sum(len(chunk.tokens) for chunk in chunks) <= batch.n_batch
        for chunk in chunks:
            cells = self.cells.setdefault(chunk.sequence.seq_id, [])
            assert chunk.start == len(cells)
            assert chunk.tokens
            assert chunk.tokens == chunk.sequence.tokens[chunk.start :][: len(chunk.tokens)]
            assert chunk.last == (chunk.start + len(chunk.tokens) == len(chunk.sequence.tokens))
            new = list(itertools.islice(self._new, len(chunk.tokens)))
            cells += new
            self.tokens |= dict(zip(new, chunk.tokens, strict=True))
        batch.done(chunks)
        for sequence in held:
            written = [self.tokens[cell] for cell in self.cells.get(sequence.seq_id, [])]
            assert written == sequence.tokens[: sequence.num_evaluated]
        return chunks


def make(**settings: Any) -> tuple[Batch, Memory]:
    return Batch(**{"num_cells": 4096, "n_seq_max": 8, "n_batch": 64, **settings}), Memory()


def caching(**settings: Any) -> tuple[Batch, Memory]:
    return make(num_resting=4, max_resting_cells=1000, **settings)


def run(batch: Batch, memory: Memory, *sequences: Sequence) -> None:
    """Begins the sequences, one after another, and ends each when its prompt is evaluated."""
    for sequence in sequences:
        batch.add(sequence)
        steps_until_all_begun(batch, memory, sequence)
        memory.change(batch.end(sequence))


def steps_until_all_begun(batch: Batch, memory: Memory, *sequences: Sequence) -> int:
    for number in range(1, 100):
        memory.step(batch)
        if all(sequence.num_left == 0 for sequence in sequences):
            return number
    raise AssertionError("some sequence never begins")


prompts = st.builds(
    lambda shared, own: PREFIX[:shared] + own,
    st.integers(0, len(PREFIX)),
    st.lists(st.integers(0, 3), min_size=1, max_size=90),
)


@settings(deadline=None)
@given(st.data())
def test_memory_never_runs_short_and_every_sequence_ends(data: st.DataObject) -> None:
    batch, memory = make(
        num_cells=220,
        n_seq_max=data.draw(st.integers(1, 5)),
        n_batch=data.draw(st.integers(8, 64)),
        num_resting=data.draw(st.integers(0, 3)),
        max_resting_cells=data.draw(st.integers(0, 220)),
        window=data.draw(st.sampled_from([math.inf, math.inf, 80, 0])),
    )
    todo = [
        Sequence(prompt, data.draw(st.integers(1, 30)), data.draw(st.sampled_from([1.0, 2.0, math.inf])))
        for prompt in data.draw(st.lists(prompts, max_size=12))
    ]
    left = set(todo)
    for number in itertools.count():
        if todo:
            batch.add(todo.pop())
        elif not batch.running and not batch.waiting:
            break
        for chunk in memory.step(batch):
            sequence = chunk.sequence
            if chunk.last:
                sequence.tokens.append(data.draw(st.integers(0, 3)))
                if sequence.num_drawn == sequence.max_tokens:
                    memory.change(batch.end(sequence))
                    left.discard(sequence)
        assert memory.num_used <= batch.num_reserved <= batch.num_cells
        event = data.draw(st.integers(0, 19)) if batch.running else -1
        if event in (0, 1):
            cancelled = data.draw(st.sampled_from([*batch.running, *batch.waiting]))
            memory.change(batch.end(cancelled))
            left.discard(cancelled)
        elif event == 2:
            batch.start_over()
            memory.cells.clear()
        assert memory.num_used <= batch.num_reserved
        assert len(batch.resting) <= batch.num_resting
        assert sum(resting.num_own_cells for resting in batch.resting) <= batch.max_resting_cells or batch.running
        assert number < 2000
    assert not left
    assert memory.num_used == batch.num_reserved


def test_prefix_still_being_evaluated_is_waited_for_and_evaluated_once() -> None:
    batch, memory = make()
    prefix = list(range(300))
    sequences = [Sequence([*prefix, 1000 + number, 2000 + number], 10) for number in range(8)]
    for sequence in sequences:
        batch.add(sequence)
    steps_until_all_begun(batch, memory, *sequences)
    assert memory.num_used == 300 + 8 * 2
    assert [sequence.num_cached for sequence in sequences] == [0] + [300] * 7


def test_one_that_waits_for_a_prefix_lets_others_go_first() -> None:
    batch, memory = make()
    for tokens in ([*range(300), 1], [*range(300), 2], [7, 8, 9]):
        batch.add(Sequence(tokens, 10))
    memory.step(batch)
    assert [len(sequence.tokens) for sequence in batch.running] == [301, 3]


def test_sequence_waiting_for_a_prefix_goes_on_alone_when_its_source_leaves() -> None:
    batch, memory = make()
    first, second = Sequence(list(range(300)), 10), Sequence([*range(290), 7], 10)
    batch.add(first)
    batch.add(second)
    memory.step(batch)
    memory.change(batch.end(first))
    steps_until_all_begun(batch, memory, second)
    assert second.num_cached == 0


def test_prompt_given_up_half_evaluated_serves_the_next_as_far_as_it_came() -> None:
    batch, memory = caching(n_batch=128)
    first, second = Sequence(list(range(300)), 10), Sequence(list(range(300)), 10)
    batch.add(first)
    memory.step(batch)
    memory.change(batch.end(first))
    run(batch, memory, second)
    assert second.num_cached == 128


def test_equal_prompts_keep_one_token_of_their_own_to_get_logits_from() -> None:
    batch, memory = make()
    first, second = Sequence(list(range(100)), 10), Sequence(list(range(100)), 10)
    batch.add(first)
    batch.add(second)
    steps_until_all_begun(batch, memory, first, second)
    assert second.num_cached == 99


def test_short_common_prefix_is_not_waited_for() -> None:
    batch, memory = make()
    common = list(range(MIN_SHARED_TOKENS - 1))
    batch.add(Sequence([*common, 1], 10))
    batch.add(Sequence([*common, 2], 10))
    assert len(memory.step(batch)) == 2


def test_prompts_of_sequences_that_ended_serve_later_ones_by_their_longest_common_prefix() -> None:
    batch, memory = caching()
    system, question = list(range(100)), list(range(200, 300))
    later = [Sequence([*system, 7], 5), Sequence([*system, *question, 8], 5), Sequence([9, *system], 5)]
    run(batch, memory, Sequence([*system, *question, 1, 2, 3], 5), *later)
    assert [sequence.num_cached for sequence in later] == [100, 200, 0]


def test_what_a_sequence_wrote_does_not_stay() -> None:
    batch, memory = caching()
    first = Sequence(list(range(100)), 50)
    batch.add(first)
    for token in range(5, 45):
        steps_until_all_begun(batch, memory, first)
        first.tokens.append(token)
    memory.change(batch.end(first))
    assert memory.num_used == batch.num_reserved == 100


def test_prompt_mostly_known_to_others_does_not_rest() -> None:
    batch, memory = caching()
    known = list(range(100))
    run(batch, memory, *(Sequence([*known, *[number] * (MIN_RESTING_TOKENS - 1)], 5) for number in range(3)))
    assert len(batch.resting) == 1
    run(batch, memory, Sequence([*known, *[9] * MIN_RESTING_TOKENS], 5))
    assert len(batch.resting) == 2


def test_prefix_used_least_recently_goes_first() -> None:
    batch, memory = caching(num_cells=1000)
    old, used, new = ([number] * 100 for number in (1, 2, 3))
    run(batch, memory, *(Sequence([*prompt, 7], 5) for prompt in (used, old, used, new)))
    memory.change(batch.admit())
    batch.num_resting = 2
    run(batch, memory, Sequence([4], 5), Sequence([5] * 100, 5))
    assert [resting.tokens[0] for resting in batch.resting] == [3, 5]


@pytest.mark.parametrize(("bound", "num_left"), [({"num_resting": 2}, 2), ({"max_resting_cells": 350}, 3)], ids=str)
def test_resting_prompts_keep_within_their_bounds(bound: dict[str, int], num_left: int) -> None:
    batch, memory = caching()
    for name, value in bound.items():
        setattr(batch, name, value)
    run(batch, memory, *(Sequence([number] * 100, 5) for number in range(6)))
    assert [resting.tokens[0] for resting in batch.resting] == list(range(6))[-num_left:]
    assert memory.num_used == 100 * num_left


def test_beginning_of_a_prompt_too_long_to_rest_stays() -> None:
    batch, memory = caching()
    batch.max_resting_cells = 150
    system = list(range(100))
    run(batch, memory, Sequence([*system, *[7] * 200], 5))
    assert memory.num_used == 150
    later = Sequence([*system, *[8] * 200], 5)
    run(batch, memory, later)
    assert later.num_cached == 100
    assert memory.num_used == 150
    assert [resting.tokens[-1] for resting in batch.resting] == [8]


def test_prompt_that_may_keep_nothing_is_forgotten() -> None:
    batch, memory = caching()
    batch.max_resting_cells = 0
    run(batch, memory, Sequence(list(range(200)), 5))
    assert memory.num_used == 0
    assert not batch.resting


def test_resting_prompts_make_room_for_a_sequence_but_not_the_one_it_shares() -> None:
    batch, memory = caching(num_cells=500)
    run(batch, memory, *(Sequence([number] * 100, 5) for number in (1, 2, 3)))
    late = Sequence([*[1] * 100, 7], 290)
    batch.add(late)
    memory.step(batch)
    assert late.num_cached == 100
    assert [resting.tokens[0] for resting in batch.resting] == [3, 1]


def test_sequence_that_needs_the_whole_memory_shares_what_it_can_and_drops_the_rest() -> None:
    batch, memory = caching(num_cells=300)
    run(batch, memory, Sequence([*range(100), *range(500, 600)], 5))
    whole = Sequence([*range(100), 7], 199)
    batch.add(whole)
    memory.step(batch)
    assert whole.num_cached == 100
    assert batch.num_reserved == 300


def test_shared_cells_are_reserved_once_so_that_more_sequences_run() -> None:
    batch, memory = make(num_cells=300 + 8 * 20)
    sequences = [Sequence([*range(300), number], 19) for number in range(8)]
    for sequence in sequences:
        batch.add(sequence)
    steps_until_all_begun(batch, memory, *sequences)
    assert len(batch.running) == 8


def test_models_that_cannot_share_evaluate_every_prompt_and_keep_none() -> None:
    batch, memory = caching(n_batch=512, window=0)
    batch.add(Sequence(list(range(100)), 10))
    batch.add(Sequence(list(range(100)), 10))
    memory.step(batch)
    assert memory.num_used == 200
    for sequence in list(batch.running):
        memory.change(batch.end(sequence))
    assert memory.num_used == 0


def test_prefix_older_than_the_models_window_is_not_shared() -> None:
    batch, memory = caching(n_batch=512, window=150)
    within, beyond = Sequence([*[1] * 100, 3], 10), Sequence([*[2] * 100, 3], 10)
    run(batch, memory, Sequence([1] * 149, 5), Sequence([2] * 150, 5), within, beyond)
    assert (within.num_cached, beyond.num_cached) == (100, 0)


def test_prompts_are_evaluated_in_chunks_beside_running_generations() -> None:
    batch, memory = make(n_batch=512)
    running = Sequence([1, 2, 3], 100)
    batch.add(running)
    memory.step(batch)
    running.tokens.append(4)
    batch.add(Sequence(list(range(10, 410)), 10))
    assert [len(chunk.tokens) for chunk in memory.step(batch)] == [1, PREFILL_TOKENS]


def test_earliest_deadline_is_admitted_first_and_of_equals_the_first_come() -> None:
    batch, _ = make(n_seq_max=3)
    sequences = [Sequence([number], 5, deadline_s) for number, deadline_s in enumerate((9.0, math.inf, 3.0, 9.0, 9.0))]
    for sequence in sequences:
        batch.add(sequence)
    batch.admit()
    assert [sequence.tokens[0] for sequence in batch.running] == [2, 0, 3]
    assert [sequence.tokens[0] for sequence in batch.waiting] == [4, 1]


def test_the_first_that_does_not_fit_holds_back_the_later_ones_that_would() -> None:
    batch, _ = make(num_cells=100)
    sequences = [Sequence([1] * 50, 10), Sequence([2] * 50, 10), Sequence([3], 5)]
    for sequence in sequences:
        batch.add(sequence)
    batch.admit()
    assert batch.running == sequences[:1]
    batch.end(sequences[0])
    batch.admit()
    assert batch.running == sequences[1:]


def test_short_memory_takes_the_resting_prompts_first() -> None:
    batch, memory = caching(num_cells=1000)
    run(batch, memory, Sequence([1] * 100, 5), Sequence([2] * 100, 5))
    running = Sequence([3], 5)
    batch.add(running)
    memory.step(batch)
    memory.change(batch.make_room())
    assert memory.num_used == 1
    assert batch.running == [running]


def test_sequence_put_back_is_evaluated_again_with_what_it_had_drawn() -> None:
    batch, memory = make(num_cells=1000, n_batch=512)
    first, second, third = Sequence([1] * 50, 10), Sequence([2] * 50, 10), Sequence([3] * 50, 10)
    batch.add(first)
    batch.add(second)
    memory.step(batch)
    second.tokens.append(9)
    batch.add(third)
    memory.change(batch.make_room())
    assert batch.running == [first]
    assert batch.waiting == [second, third], "it keeps its turn"
    assert not batch.admit()
    assert batch.running == [first], "there was no memory for both, so they must not run together again"
    memory.change(batch.end(first))
    chunk = memory.step(batch)[0]
    assert chunk.tokens == [2] * 50 + [9]
    assert second.num_drawn == 1


def test_least_urgent_sequence_is_put_back_and_memory_is_trusted_again_when_nothing_runs() -> None:
    batch, memory = make(num_cells=1000, n_batch=512)
    sequences = [Sequence([number] * 50, 10, deadline_s) for number, deadline_s in enumerate((2.0, 9.0, 5.0))]
    for sequence in sequences:
        batch.add(sequence)
    memory.step(batch)
    memory.change(batch.make_room())
    assert [sequence.deadline_s for sequence in batch.running] == [2.0, 5.0]
    large = Sequence([7] * 500, 400, 20.0)
    batch.add(large)
    memory.change([change for sequence in list(batch.running) for change in batch.end(sequence)])
    memory.step(batch)
    assert batch.running == [sequences[1], large]


def test_more_urgent_prompt_is_evaluated_first() -> None:
    batch, memory = make(n_batch=512)
    running, long, short = Sequence([1], 100), Sequence([2] * 1000, 5, 99.0), Sequence([3] * 100, 5, 7.0)
    batch.add(running)
    memory.step(batch)
    running.tokens.append(1)
    batch.add(long)
    memory.step(batch)
    running.tokens.append(1)
    batch.add(short)
    assert [len(chunk.tokens) for chunk in memory.step(batch)] == [1, 100, PREFILL_TOKENS - 100]


def test_resting_prompts_stay_where_forgetting_them_would_not_be_enough() -> None:
    batch, memory = caching(num_cells=1000)
    run(batch, memory, Sequence([1] * 100, 5))
    batch.add(Sequence([2] * 10, 700))
    memory.step(batch)
    batch.add(Sequence([3] * 10, 500))
    assert not batch.admit()
    assert len(batch.running) == len(batch.resting) == 1


def test_sequence_alone_is_never_put_back() -> None:
    batch, memory = make()
    batch.add(Sequence([1], 1))
    memory.step(batch)
    assert not batch.make_room()
    assert len(batch.running) == 1


def test_lost_memory_is_evaluated_again_by_all_that_ran() -> None:
    batch, memory = caching(n_batch=512)
    run(batch, memory, Sequence([7] * 100, 5))
    sequences = [Sequence([1] * 50, 10), Sequence([*[1] * 40, 2], 10)]
    for sequence in sequences:
        batch.add(sequence)
    steps_until_all_begun(batch, memory, *sequences)
    sequences[0].tokens.append(5)
    batch.start_over()
    memory.cells.clear()
    assert batch.waiting == sequences
    assert not batch.resting
    steps_until_all_begun(batch, memory, *sequences)
    assert sequences[0].num_drawn == 1


@pytest.mark.parametrize(
    ("a", "b", "num"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2, 4], 2), ([2], [1], 0), ([1, 2], [1, 2, 3], 2)],
)
def test_common_prefix_ends_at_the_first_difference(a: list[int], b: list[int], num: int) -> None:
    assert num_common_tokens(a, b) == num_common_tokens(b, a) == num
