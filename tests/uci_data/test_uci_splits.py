"""The fixed splits: the literature's indices, and a partition of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uci_data
from uci_data.dataset import Dataset
from uci_data.splits import leading_split, random_splits

# The first five test rows of each set's first split, taken from an independent computation.
FIRST_TEST_ROWS = {
    "boston": [431, 115, 470, 216, 264],
    "concrete": [87, 751, 655, 942, 778],
    "energy": [648, 166, 595, 719, 155],
    "kin8nm": [7393, 1170, 7286, 7529, 3011],
    "naval": [3235, 7656, 10711, 9775, 11193],
    "power": [6156, 8939, 6548, 7241, 7363],
    "protein": [27343, 33875, 31047, 27524, 41613],
    "wine": [505, 1445, 1255, 405, 317],
    "yacht": [121, 115, 286, 216, 264],
}


def without_arrays(name: str) -> Dataset:
    """A set as far as its splits go: they need the number of rows only."""
    return Dataset(uci_data.info(name), X=np.empty((0, 0)), y=np.empty(0), source="none")


@pytest.mark.parametrize("name", FIRST_TEST_ROWS)
def test_first_test_rows(name: str) -> None:
    assert without_arrays(name).splits()[0].test[:5].tolist() == FIRST_TEST_ROWS[name]


@pytest.mark.parametrize("name", FIRST_TEST_ROWS)
def test_number_and_size_of_splits(name: str) -> None:
    rows = uci_data.info(name).rows
    splits = without_arrays(name).splits()
    assert len(splits) == (5 if name == "protein" else 20)
    assert {len(train) for train, _ in splits} == {round(0.9 * rows)}
    assert {len(test) for _, test in splits} == {rows - round(0.9 * rows)}


def test_year_keeps_the_donors_split() -> None:
    ((train, test),) = without_arrays("year").splits()
    assert (train[0], train[-1], len(train)) == (0, 463714, 463715)
    assert (test[0], test[-1], len(test)) == (463715, 515344, 51630)


@given(rows=st.integers(2, 300), count=st.integers(1, 4))
def test_every_split_is_a_partition(rows: int, count: int) -> None:
    for train, test in [*random_splits(rows, count), *leading_split(rows, rows // 2)]:
        assert sorted([*train, *test]) == list(range(rows))


def test_splits_differ_from_each_other_and_are_the_same_each_time() -> None:
    first, again = random_splits(506, 20), random_splits(506, 20)
    assert len({tuple(test) for _, test in first}) == 20
    assert all(np.array_equal(a.train, b.train) for a, b in zip(first, again, strict=True))


def test_splits_leave_the_global_generator_alone() -> None:
    before = np.random.get_state()  # noqa: NPY002 - the legacy generator is the subject
    random_splits(50, 2)
    after = np.random.get_state()  # noqa: NPY002
    assert repr(before) == repr(after)
