"""Which sequences run and what a step evaluates, without a model."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pice.engine.llama.batch import MIN_SHARED_TOKENS, PREFILL_TOKENS, Batch, Chunk, Sequence, num_common_tokens

PREFIX = list(range(1000, 1040))


class Memory:
    """What a model's memory would hold: the cells of each sequence, by its id."""

    def __init__(self) -> None:
        self.cells: dict[int, list[int]] = {}
        self._new = itertools.count()

    def forget(self, seq_id: int) -> None:
        self.cells.pop(seq_id, None)

    @property
    def num_used(self) -> int:
        return len({cell for cells in self.cells.values() for cell in cells})

    def step(self, batch: Batch) -> list[Chunk]:
        """One step as the owner makes it, checked as llama.cpp would check it."""
        batch.admit()
        assert len({sequence.seq_id for sequence in batch.running}) == len(batch.running) <= batch.n_seq_max
        shares, chunks = batch.plan()
        for share in shares:
            assert share.source.tokens[: share.num_tokens] == share.target.tokens[: share.num_tokens]
            assert not self.cells.get(share.target.seq_id)
            taken = self.cells[share.source.seq_id][: share.num_tokens]
            assert len(taken) == share.num_tokens < len(share.target.tokens)
            self.cells[share.target.seq_id] = taken
        assert bool(chunks) == bool(batch.running)
        assert sum(len(chunk.tokens) for chunk in chunks) <= batch.n_batch
        for chunk in chunks:
            cells = self.cells.setdefault(chunk.sequence.seq_id, [])
            assert chunk.start == len(cells)
            assert chunk.tokens
            assert chunk.tokens == chunk.sequence.tokens[chunk.start :][: len(chunk.tokens)]
            assert chunk.last == (chunk.start + len(chunk.tokens) == len(chunk.sequence.tokens))
            cells += [next(self._new) for _ in chunk.tokens]
        batch.done(chunks)
        return chunks


def drop(batch: Batch, memory: Memory, sequence: Sequence) -> None:
    if sequence in batch.running:
        memory.forget(sequence.seq_id)
    batch.remove(sequence)


def steps_until_all_begun(batch: Batch, memory: Memory, *sequences: Sequence) -> int:
    for number in range(1, 100):
        memory.step(batch)
        if all(sequence.num_left == 0 for sequence in sequences):
            return number
    raise AssertionError("some sequence never begins")


prompts = st.builds(
    lambda shared, own: PREFIX[:shared] + own,
    st.integers(0, len(PREFIX)),
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
)


@settings(deadline=None)
@given(st.data())
def test_memory_never_runs_short_and_every_sequence_ends(data: st.DataObject) -> None:
    batch = Batch(num_cells=120, n_seq_max=data.draw(st.integers(1, 5)), n_batch=data.draw(st.integers(8, 64)))
    memory = Memory()
    todo = [Sequence(prompt, data.draw(st.integers(1, 30))) for prompt in data.draw(st.lists(prompts, max_size=12))]
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
                    drop(batch, memory, sequence)
                    left.discard(sequence)
        assert memory.num_used <= batch.num_reserved <= batch.num_cells
        if batch.running and data.draw(st.integers(0, 9)) == 0:
            cancelled = data.draw(st.sampled_from([*batch.running, *batch.waiting]))
            drop(batch, memory, cancelled)
            left.discard(cancelled)
        assert memory.num_used <= batch.num_reserved
        assert number < 2000
    assert not left
    assert not memory.num_used


def test_prefix_still_being_evaluated_is_waited_for_and_evaluated_once() -> None:
    batch, memory = Batch(num_cells=4096, n_seq_max=8, n_batch=64), Memory()
    prefix = list(range(300))
    sequences = [Sequence([*prefix, 1000 + number, 2000 + number], 10) for number in range(8)]
    for sequence in sequences:
        batch.add(sequence)
    steps_until_all_begun(batch, memory, *sequences)
    assert memory.num_used == 300 + 8 * 2
    assert [sequence.num_cached for sequence in sequences] == [0] + [300] * 7


def test_sequence_waiting_for_a_prefix_goes_on_alone_when_its_source_leaves() -> None:
    batch, memory = Batch(num_cells=4096, n_seq_max=8, n_batch=64), Memory()
    first, second = Sequence(list(range(300)), 10), Sequence([*range(290), 7], 10)
    batch.add(first)
    batch.add(second)
    memory.step(batch)
    drop(batch, memory, first)
    steps_until_all_begun(batch, memory, second)
    assert second.num_cached == 0


def test_equal_prompts_keep_one_token_of_their_own_to_get_logits_from() -> None:
    batch, memory = Batch(num_cells=4096, n_seq_max=8, n_batch=64), Memory()
    first, second = Sequence(list(range(100)), 10), Sequence(list(range(100)), 10)
    batch.add(first)
    batch.add(second)
    steps_until_all_begun(batch, memory, first, second)
    assert second.num_cached == 99


def test_short_common_prefix_is_not_waited_for() -> None:
    batch, memory = Batch(num_cells=4096, n_seq_max=8, n_batch=64), Memory()
    common = list(range(MIN_SHARED_TOKENS - 1))
    batch.add(Sequence([*common, 1], 10))
    batch.add(Sequence([*common, 2], 10))
    assert len(memory.step(batch)) == 2


def test_models_that_cannot_share_evaluate_every_prompt() -> None:
    batch, memory = Batch(num_cells=4096, n_seq_max=8, n_batch=512, shares_prefixes=False), Memory()
    batch.add(Sequence(list(range(100)), 10))
    batch.add(Sequence(list(range(100)), 10))
    memory.step(batch)
    assert memory.num_used == 200


def test_prompts_are_evaluated_in_chunks_beside_running_generations() -> None:
    batch, memory = Batch(num_cells=4096, n_seq_max=8, n_batch=512), Memory()
    running = Sequence([1, 2, 3], 100)
    batch.add(running)
    memory.step(batch)
    running.tokens.append(4)
    batch.add(Sequence(list(range(10, 410)), 10))
    assert [len(chunk.tokens) for chunk in memory.step(batch)] == [1, PREFILL_TOKENS]


def test_first_come_is_first_admitted_even_if_a_later_one_would_fit() -> None:
    batch = Batch(num_cells=100, n_seq_max=8, n_batch=64)
    sequences = [Sequence([1] * 50, 10), Sequence([2] * 50, 10), Sequence([3], 5)]
    for sequence in sequences:
        batch.add(sequence)
    assert batch.admit() == sequences[:1]
    batch.remove(sequences[0])
    assert batch.admit() == sequences[1:]


def test_requeued_sequence_is_evaluated_again_with_what_it_had_drawn() -> None:
    batch, memory = Batch(num_cells=1000, n_seq_max=8, n_batch=512), Memory()
    first, second = Sequence([1] * 50, 10), Sequence([2] * 50, 10)
    batch.add(first)
    batch.add(second)
    memory.step(batch)
    second.tokens.append(9)
    assert batch.requeue_youngest() is second
    memory.forget(second.seq_id)
    assert not batch.admit(), "there was no memory for both, so they must not run together again"
    drop(batch, memory, first)
    (chunk,) = memory.step(batch)
    assert chunk.tokens == [2] * 50 + [9]
    assert second.num_drawn == 1


def test_sequence_alone_is_never_requeued() -> None:
    batch = Batch(num_cells=1000, n_seq_max=8, n_batch=512)
    batch.add(Sequence([1], 1))
    batch.admit()
    assert batch.requeue_youngest() is None


@pytest.mark.parametrize(
    ("a", "b", "num"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2, 4], 2), ([2], [1], 0), ([1, 2], [1, 2, 3], 2)],
)
def test_common_prefix_ends_at_the_first_difference(a: list[int], b: list[int], num: int) -> None:
    assert num_common_tokens(a, b) == num_common_tokens(b, a) == num
