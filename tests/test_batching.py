"""plan(): a partition, within both budgets, rows of one length, longest first."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from batchpredict.run.batching import plan, tally_of
from batchpredict.run.receipt import Batches

budgets = st.tuples(st.integers(1, 9), st.integers(1, 80))


@st.composite
def windows(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lengths of all rows, and the rows that are to be in batches."""
    lengths = np.array(draw(st.lists(st.integers(0, 40), max_size=60)), np.int64)
    wanted = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    return lengths, np.flatnonzero(np.array(wanted, bool))


def joined(batches: list[npt.NDArray[np.int64]]) -> list[int]:
    return [int(index) for batch in batches for index in batch]


@given(windows(), budgets)
def test_every_row_is_in_one_batch(
    window: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], budget: tuple[int, int]
) -> None:
    lengths, candidates = window
    for given_lengths in (lengths, None):
        batches = plan(candidates, given_lengths, *budget)
        assert sorted(joined(batches)) == candidates.tolist()
        assert all(len(batch) for batch in batches)


@given(windows(), budgets)
def test_batches_keep_both_budgets_or_hold_two_rows(
    window: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], budget: tuple[int, int]
) -> None:
    lengths, candidates = window
    rows, tokens = budget
    for batch in plan(candidates, lengths, rows, tokens):
        assert len(batch) <= rows
        assert len(batch) <= 2 or len(batch) * int(lengths[batch].max()) <= tokens


@given(windows(), budgets)
def test_no_row_is_padded(
    window: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], budget: tuple[int, int]
) -> None:
    """A row's width must not depend on its neighbours: softmax differs in the last bits."""
    lengths, candidates = window
    for batch in plan(candidates, lengths, *budget):
        assert len(set(lengths[batch].tolist())) == 1


@given(windows(), budgets)
def test_batches_are_as_large_as_the_budgets_allow(
    window: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], budget: tuple[int, int]
) -> None:
    lengths, candidates = window
    rows, tokens = budget
    batches = plan(candidates, lengths, rows, tokens)
    for batch, following in itertools.pairwise(batches):
        length = max(1, int(lengths[batch[0]]))
        full = len(batch) == rows or (len(batch) + 1) * length > tokens
        assert full or lengths[following[0]] != lengths[batch[0]]


@given(windows(), budgets)
def test_longest_first_and_equal_lengths_in_their_order(
    window: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], budget: tuple[int, int]
) -> None:
    lengths, candidates = window
    order = joined(plan(candidates, lengths, *budget))
    assert order == sorted(candidates.tolist(), key=lambda row: (-lengths[row], row))


@given(windows(), budgets)
def test_the_same_input_gives_the_same_batches(
    window: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], budget: tuple[int, int]
) -> None:
    lengths, candidates = window
    first, second = (plan(candidates.copy(), lengths.copy(), *budget) for _ in range(2))
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]


def test_rows_without_length_stay_in_order() -> None:
    batches = plan(np.array([0, 2, 3, 5, 7]), None, 2, 1)
    assert [batch.tolist() for batch in batches] == [[0, 2], [3, 5], [7]]


def test_the_last_batch_may_be_one_row() -> None:
    batches = plan(np.arange(4), np.array([1000, 5, 1000, 1000]), 64, 8)
    assert [batch.tolist() for batch in batches] == [[0, 2], [3], [1]]


def test_what_batches_come_to() -> None:
    lengths, tokens = np.array([4, 4, 8, 4, 16]), np.array([4, 3, 7, 2, 16])
    batches = [np.array([4]), np.array([2]), np.array([0, 1])]
    assert tally_of(batches, lengths, tokens) == Batches(3, 4, 30, 2 * 16 + 2 * 8 + 2 * 4)
    assert tally_of(batches, None, None) == Batches(3, 4)
    assert tally_of([], lengths, tokens) == Batches()


@given(windows(), budgets)
def test_parts_add_up(
    window: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], budget: tuple[int, int]
) -> None:
    lengths, candidates = window
    batches = plan(candidates, lengths, *budget)
    whole = tally_of(batches, lengths, lengths)
    assert sum((tally_of([each], lengths, lengths) for each in batches), Batches()) == whole
    assert whole.tokens == lengths[candidates].sum() <= whole.padded_tokens or not len(candidates)
