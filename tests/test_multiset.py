"""Multisets: the rows and how often they are there, and nothing else, decide what is taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pyralloy import multiset as room
from pyralloy.multiset import multiset

VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.5, np.nan])


@st.composite
def weighted(draw):
    count = draw(st.integers(1, 12))
    table = draw(arrays.arrays(np.float64, (count, 2), elements=VALUES))
    return table, draw(arrays.arrays(np.int64, count, elements=st.integers(1, 4)))


def same(one, two):
    return np.array_equal(one + 0.0, two + 0.0, equal_nan=True)


@given(weighted(), st.randoms())
def test_weights_repeats_and_any_order_are_one(given, source):
    table, counts = given
    repeated = table.repeat(counts, 0)
    shuffled = list(range(len(repeated)))
    source.shuffle(shuffled)
    one = multiset(table, counts.astype(float), seed=3)
    two = multiset(repeated[shuffled], None, seed=3)
    assert one.weights is None and two.weights is None
    assert one.size == two.size == len(repeated) == len(one.rows)
    assert same(table[one.rows], repeated[shuffled][two.rows])


@given(weighted())
def test_every_row_is_taken_as_often_as_its_weight(given):
    table, counts = given
    rows = multiset(table, counts.astype(float), seed=0).rows
    for value in np.unique(table + 0.0, axis=0):
        alike = np.array([same(row, value) for row in table])
        assert counts[alike].sum() == alike[rows].sum()


@given(weighted())
def test_other_weights_are_kept_and_order_is_nothing(given):
    table, counts = given
    weights = counts + 0.5
    one, two = multiset(table, weights, seed=1), multiset(table[::-1], weights[::-1], seed=1)
    assert same(table[one.rows], table[::-1][two.rows])
    assert np.array_equal(one.weights, two.weights)
    assert one.size == weights.sum()


def test_the_order_says_nothing_of_the_rows():
    """Of sorted rows, every part is like the whole."""
    table = np.arange(10_000.0)[:, None]
    taken = multiset(table, None, seed=0).rows
    assert sorted(taken) == list(range(10_000))
    assert abs(np.corrcoef(np.arange(10_000), taken)[0, 1]) < 0.05
    assert not np.array_equal(taken, multiset(table, None, seed=1).rows)


@pytest.mark.parametrize("often", [1, 7, 10_000, 3_000_000_000])
def test_many_repeats_are_fewer_that_weigh_more(often):
    table, weights = np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2.0, 4.0]) * often
    found = multiset(table, weights, seed=0)
    assert found.size == 7 * often
    assert len(found.rows) <= room.MOST_REPEATED + 3
    each = np.ones(len(found.rows)) if found.weights is None else found.weights
    assert np.allclose(np.bincount(found.rows, each), weights)
    assert (found.weights is None) == (7 * often <= room.MOST_REPEATED)
    assert each.max() / each.min() < 1.01


def test_many_rows_of_few_kinds_are_fewer_that_weigh_more():
    table = np.tile([[0.0], [1.0], [1.0]], (70_000, 1))
    repeated = multiset(table, None, seed=0)
    weighted = multiset(np.array([[1.0], [0.0]]), np.array([140_000.0, 70_000.0]), seed=0)
    assert np.array_equal(table[repeated.rows], np.array([[1.0], [0.0]])[weighted.rows])
    assert np.array_equal(repeated.weights, weighted.weights)
    assert len(repeated.rows) <= 100_002
