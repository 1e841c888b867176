"""Multisets: rows of a table in an order, and with repeats, that depend on nothing but the rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyralloy.checks import as_values

__all__ = ["Multiset", "multiset", "row_weights"]

#: Rows up to which whole weights become repeats, and how many times the distinct rows beyond that.
MOST_REPEATED, TIMES = 100_000, 20


class Multiset(NamedTuple):
    """Rows of a table, chosen so that tables of the same rows as often give the same choice.

    Attributes:
        rows: Which rows to take, in which order, shape (N',).
        weights: Of each of them, shape (N',), or None where all are 1.
        size: How many rows they stand for: the sum of the weights given.
    """

    rows: NDArray[np.intp]
    weights: NDArray[np.float64] | None
    size: float


def row_weights(sample_weight: Any, rows: int) -> NDArray[np.float64] | None:
    """Check how often each row counts, and give it in double precision; None means once.

    Raises:
        ValueError: Weights that are negative, all zero, or not one a row.
    """
    if sample_weight is None:
        return None
    weights = as_values("sample_weight", sample_weight).cpu().numpy().astype(np.float64)
    if weights.shape != (rows,):
        raise ValueError(
            f"sample_weight has shape {weights.shape} and there are {rows} rows: give one number a "
            "row."
        )
    with np.errstate(over="ignore"):
        total = weights.sum()
    if weights.max() <= 0 or weights.min() < 0 or not np.isfinite(total):
        raise ValueError(
            f"sample_weight holds numbers from {weights.min():g} to {weights.max():g}, all zero, "
            "negative, or too large to add up: give 0 or more, and above 0 somewhere."
        )
    return weights


def multiset(
    table: NDArray[np.float64], weights: NDArray[np.float64] | None, seed: int
) -> Multiset:
    """Choose rows so that their order does not matter, and a weight of 2 is a repeat.

    Rows are sorted by what they hold, and then shuffled by the seed. Where all weights are whole
    numbers, rows are repeated as often as their weights say; so that the table with repeats and the
    table with weights are one. Where that would be more rows than both 100,000 and 20 times the
    distinct ones, every distinct row is repeated fewer times, by one factor, and each repeat weighs
    as much more. Rows of other weights keep them.

    Args:
        table: All that is known of the rows, shape (N, C); NaN is a value like others.
        weights: How much each row counts, above 0, shape (N,); None means 1.
        seed: Source of the shuffle.

    Returns:
        A :class:`Multiset`.

    Example:
        >>> repeated = multiset(np.array([[2.0], [1.0], [2.0]]), None, seed=0)
        >>> weighted = multiset(np.array([[1.0], [2.0]]), np.array([1.0, 2.0]), seed=0)
        >>> np.array([[2.0], [1.0], [2.0]])[repeated.rows].ravel().tolist()
        [1.0, 2.0, 2.0]
        >>> np.array([[1.0], [2.0]])[weighted.rows].ravel().tolist()
        [1.0, 2.0, 2.0]
    """
    count = len(table)
    total = float(count) if weights is None else float(weights.sum())
    whole = weights is None or bool((weights == np.round(weights)).all())
    columns = [table] if whole else [table, np.asarray(weights)[:, None]]
    order, new = _sorted(np.concatenate(columns, 1))
    shuffle = np.random.default_rng(seed).permutation
    if not whole:
        index = shuffle(order)
        return Multiset(index, np.asarray(weights)[index], total)
    distinct = int(new.sum())
    if weights is None and count <= max(MOST_REPEATED, TIMES * distinct):
        return Multiset(shuffle(order), None, total)
    ones = np.ones(count) if weights is None else weights
    starts = np.flatnonzero(new)
    often = np.add.reduceat(ones[order], starts)  # of each distinct row
    factor = max(1.0, np.ceil(total / max(MOST_REPEATED, TIMES * distinct)))
    repeats = np.ceil(often / factor).astype(np.intp)
    place = shuffle(np.repeat(np.arange(distinct), repeats))
    each = None if factor == 1.0 else (often / repeats)[place]
    return Multiset(order[starts][place], each, total)


def _sorted(table: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Give an order of the rows by their bytes, and which of them, in that order, are new.

    Which order it is matters nothing, and bytes sort nine times faster than numbers by columns.
    """
    table = np.ascontiguousarray(table, np.float64) + 0.0  # the two zeros are one, and it is a copy
    table[np.isnan(table)] = np.nan  # and so are all that are no number
    rows = table.view(np.dtype((np.void, table.itemsize * table.shape[1])))[:, 0]
    order = rows.argsort(kind="stable")
    rows = rows[order]
    return order, np.concatenate([[True], rows[1:] != rows[:-1]])
