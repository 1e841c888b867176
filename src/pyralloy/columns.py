"""Columns: words and missing values of a data frame as numbers, by scikit-learn's own encoders."""

from __future__ import annotations

import numbers
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder
from sklearn.utils.validation import check_array, validate_data

__all__ = ["Cells", "Columns", "plain_targets"]

#: Rows in which a level must be seen to have a column of its own, and the most columns of levels.
FEWEST, MOST = 5, 50

#: What counts as a number where a column holds objects, and what as a time.
NUMBERS, TIMES = (numbers.Real, np.bool_, Decimal), (date, time, timedelta)

#: What scikit-learn is asked of an array of numbers; missing ones are filled in here.
FLOATS = {"dtype": [np.float64, np.float32], "ensure_all_finite": "allow-nan"}


class Cells(NamedTuple):
    """What a table holds: numbers, NaN where missing and 0 in columns of words; and the words.

    Attributes:
        numbers: Shape (N, F).
        words: Objects, NaN where missing, shape (N, W), of the W columns of words.
    """

    numbers: NDArray[Any]
    words: NDArray[Any]

    def at(self, index: Any) -> Cells:
        """Give some of the rows."""
        return Cells(self.numbers[index], self.words[index])


class Columns:
    """Turn a table of numbers, words and missing values into a matrix of numbers.

    Columns of words are those of a pandas or polars data frame that hold strings or categories; one
    of decimals holds numbers. Each level seen in at least 5 rows has a column of its
    own, 1 where it is met and else 0; rarer levels share one, as do those beyond the 50 columns of
    the most frequent; and so does, where there are rare levels, one that was never seen. Where
    there are none, its columns are all 0. A missing word is a level. Booleans are the numbers 0
    and 1. A missing number gives way to the median of its column; a column with missing numbers in
    the rows to train on has another beside it that says where. Of such columns of zeros and ones,
    one that says what another does, or its opposite, is left out: two levels take one column.

    Attributes:
        words: Positions of the columns of words.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"size": [1.0, None, 3.0] * 5, "kind": ["a", "a", "b"] * 5})
        >>> columns = Columns()
        >>> cells = columns.learn(SimpleImputer(), frame)
        >>> columns.fit_transform(cells)[:2].tolist()
        [[1.0, 0.0, 1.0], [2.0, 1.0, 1.0]]
    """

    words: tuple[int, ...] = ()

    def learn(self, estimator: BaseEstimator, X: Any) -> Cells:
        """Read the table to train on, and note in an estimator which features it has.

        Raises:
            TypeError: A column of times, or of objects that are neither words nor numbers.
            ValueError: What scikit-learn refuses: infinity, complex numbers, fewer than 2 rows.
        """
        series = _series(X)
        self.words = tuple(i for i, s in enumerate(series or ()) if _kind(i, s) == "words")
        return self._read(estimator, X, series, reset=True)

    def read(self, estimator: BaseEstimator, X: Any) -> Cells:
        """Read a table of the same columns.

        Raises:
            TypeError, ValueError: As for :meth:`learn`; other columns than those.
        """
        return self._read(estimator, X, _series(X), reset=False)

    def codes(self, cells: Cells) -> NDArray[np.float64]:
        """Give the table as numbers that tell its rows apart, shape (N, F), NaN where missing."""
        table = cells.numbers.astype(np.float64)
        if self.words:
            coder = OrdinalEncoder(encoded_missing_value=np.nan).set_output(transform="default")
            table[:, self.words] = coder.fit_transform(cells.words)
        return table

    def fit_transform(self, cells: Cells) -> NDArray[Any]:
        """Learn levels and medians, and give the numbers, shape (N, F')."""
        self._values = [i for i in range(cells.numbers.shape[1]) if i not in self.words]
        self._plain = not self.words and not np.isnan(cells.numbers).any()
        self._medians = SimpleImputer(
            strategy="median", add_indicator=True, keep_empty_features=True
        ).set_output(transform="default")
        self._levels = OneHotEncoder(
            min_frequency=FEWEST,
            max_categories=MOST,
            handle_unknown="infrequent_if_exist",
            sparse_output=False,
        ).set_output(transform="default")
        if self._values:
            self._medians.fit(cells.numbers[:, self._values])
        if self.words:
            self._levels.fit(cells.words)
        self._kept = np.arange(len(self._values))
        marks = self._joined(cells)[:, len(self._values) :]
        self._kept = np.concatenate([self._kept, len(self._values) + _distinct(marks)])
        return self.transform(cells)

    def transform(self, cells: Cells) -> NDArray[Any]:
        """Give the numbers, shape (N, F'): values, where they were missing, and levels."""
        if self._plain and not np.isnan(cells.numbers).any():
            return cells.numbers
        return self._joined(cells)[:, self._kept]

    def _joined(self, cells: Cells) -> NDArray[Any]:
        parts = []
        if self._values:
            parts.append(self._medians.transform(cells.numbers[:, self._values]))
        if self.words:
            parts.append(self._levels.transform(cells.words))
        return np.concatenate([np.asarray(part) for part in parts], 1)

    def _read(
        self, estimator: BaseEstimator, X: Any, series: list[Any] | None, *, reset: bool
    ) -> Cells:
        least = 2 if reset else 1
        if series is None and not self.words:
            found: Any = validate_data(
                estimator, X, reset=reset, ensure_min_samples=least, **FLOATS
            )
            return Cells(found, np.empty((len(found), 0), object))
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        if series is None:  # an array, where a data frame with words was fitted
            series = list(np.asarray(X, object).T)
        objects = [_objects(series[i]) for i in self.words]
        rows = len(series[0]) if series else 0
        table = np.zeros((rows, len(series)))
        for i, column in enumerate(series):
            if i not in self.words:
                table[:, i] = _numbers(i, column)
        table = check_array(table, ensure_min_samples=least, input_name="X", **FLOATS)
        words = np.empty((rows, len(objects)), object)
        for place, column in enumerate(objects):
            words[:, place] = column
        return Cells(table, words)


def _distinct(marks: NDArray[Any]) -> NDArray[np.intp]:
    """Name the columns of zeros and ones that are neither constant nor another one, or its rest."""
    turned = marks != marks[:1]  # so that a column and what it leaves out are the same
    seen: dict[bytes, int] = {}
    for place in np.flatnonzero(turned.any(0)):
        seen.setdefault(np.packbits(turned[:, place]).tobytes(), int(place))
    return np.array(sorted(seen.values()), np.intp)


# -- columns of data frames -----------------------------------------------------------------------


def _series(X: Any) -> list[Any] | None:
    """Give the columns of a data frame of pandas or polars; None for anything else."""
    if hasattr(X, "iloc") and hasattr(X, "columns"):
        return [X.iloc[:, i] for i in range(X.shape[1])]
    if hasattr(X, "get_columns"):
        return list(X.get_columns())
    return None


def _kind(place: int, series: Any) -> str:
    """Say whether a column holds numbers or words.

    Raises:
        TypeError: Neither.
    """
    dtype = series.dtype
    if hasattr(dtype, "is_numeric"):  # polars
        if dtype.is_numeric() or str(dtype) == "Boolean":
            return "numbers"
        temporal = dtype.is_temporal()
    else:
        if dtype.kind in "biufc":
            return "numbers"
        temporal = dtype.kind in "mM" or str(dtype).startswith("period")
    known = [value for value in _objects(series) if value == value]  # noqa: PLR0124 - not NaN
    odd = next((value for value in known if not isinstance(value, str)), None)
    if temporal or isinstance(odd, TIMES):
        raise TypeError(
            f"X has times in column {place} ({series.name!r}, {dtype}): give numbers, such as days "
            "since some date and the hour of the day."
        )
    if "categor" in str(dtype).lower() or "enum" in str(dtype).lower():
        return "words"
    if known and all(isinstance(value, NUMBERS) for value in known):
        return "numbers"
    if odd is not None:
        raise TypeError(
            f"X has {odd!r} ({type(odd).__name__}) in column {place} ({series.name!r}): give a "
            "column of numbers or one of words; str() makes words of anything."
        )
    return "words"


def _objects(series: Any) -> NDArray[np.object_]:
    """Give a column as objects, NaN where missing."""
    if hasattr(series, "to_list") and not hasattr(series, "iloc"):  # polars
        values = np.empty(len(series), object)
        values[:] = series.to_list()
    elif hasattr(series, "iloc"):
        values = np.array(series.to_numpy(dtype=object, na_value=np.nan), object)
    else:
        values = np.array(series, object)
    values[[value is None for value in values]] = np.nan
    return values


def _numbers(place: int, series: Any) -> NDArray[np.float64]:
    """Give a column of numbers, NaN where missing."""
    try:
        if hasattr(series, "iloc"):
            if getattr(series.dtype, "kind", "O") == "c":
                raise ValueError(f"Complex data not supported: X has dtype {series.dtype}.")
            return series.to_numpy(dtype=np.float64, na_value=np.nan)
        if hasattr(series, "cast") and series.dtype.is_numeric():  # polars, null where missing
            return series.cast(float).to_numpy()
        if hasattr(series, "to_list"):
            return np.array(series.to_list(), np.float64)
        return np.asarray(series, np.float64)
    except (TypeError, ValueError) as error:
        if "Complex" in str(error):
            raise
        raise ValueError(
            f"X holds what is no number in column {place}, which held numbers in fit ({error})."
        ) from error


# -- targets ---------------------------------------------------------------------------------------


def plain_targets(y: Any) -> Any:
    """Give targets whose objects are numbers as numbers, as scikit-learn does.

    Raises:
        ValueError: None, or complex, in scikit-learn's words.
    """
    if y is None:
        raise ValueError("MDNRegressor requires y to be passed, but the target y is None.")
    if hasattr(y, "columns") or hasattr(y, "is_floating_point"):  # frames, tensors
        return y
    try:
        array = np.asarray(y)
        if array.dtype.kind == "c":
            raise ValueError(f"Complex data not supported: y has dtype {array.dtype}.")
        return array.astype(np.float64) if array.dtype.kind == "O" else y
    except (TypeError, ValueError) as error:
        if "Complex" in str(error):
            raise
        return y  # ragged, or of what is no number: refused by what checks it
