"""Columns: words and missing values as numbers, of pandas and of polars alike."""

from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn import config_context
from sklearn.impute import SimpleImputer

import pyralloy as pa
from pyralloy.columns import Columns

DATA = {
    "size": [1.0, None, 3.0, 8.0, 2.0] * 6,
    "word": ["x", None, "y", "x", "y"] * 6,
    "code": [1, 2, 3, 1, 2] * 6,
    "flag": [True, False, True, True, False] * 6,
}
PANDAS, POLARS = pd.DataFrame(DATA), pl.DataFrame(DATA)
FRAMES = {
    "pandas": PANDAS,
    "objects": PANDAS.astype({"word": object, "code": object, "flag": object}),
    "categories": PANDAS.astype({"word": "category"}),
    "nullable": PANDAS.convert_dtypes(),
    "polars": POLARS,
    "polars categories": POLARS.with_columns(pl.col("word").cast(pl.Categorical)),
    "polars enum": POLARS.with_columns(pl.col("word").cast(pl.Enum(["y", "x"]))),
}
TARGETS = np.random.default_rng(0).normal(size=30)


def encoded(frame):
    columns, owner = Columns(), SimpleImputer()
    cells = columns.learn(owner, frame)
    made = columns.fit_transform(cells)
    assert np.array_equal(columns.transform(columns.read(owner, frame)), made)
    return columns, owner, made


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_of_every_kind_hold_the_same_numbers(kind):
    columns, owner, made = encoded(FRAMES[kind])
    size = np.array([1.0, 2.5, 3.0, 8.0, 2.0])  # the median where it is missing
    gone = np.array([0.0, 1.0, 0.0, 0.0, 0.0])
    values = np.stack([size, [1, 2, 3, 1, 2], [1, 0, 1, 1, 0], gone], 1)
    # x and y; where the word is missing so is the size, and that has a column already.
    levels = np.array([[1, 0], [0, 0], [0, 1], [1, 0], [0, 1]])
    assert np.array_equal(made, np.tile(np.hstack([values, levels]), (6, 1)))
    assert columns.words == (1,)
    assert owner.n_features_in_ == 4 and list(owner.feature_names_in_) == list(DATA)


def test_decimals_are_numbers():
    frame = pd.DataFrame({"a": [Decimal("1.5"), None, Decimal("2.5")] * 5})
    columns = Columns()
    cells = columns.learn(SimpleImputer(), frame)
    assert columns.words == ()
    assert columns.fit_transform(cells)[:3].tolist() == [[1.5, 0.0], [2.0, 1.0], [2.5, 0.0]]


@pytest.mark.parametrize("output", ["default", "pandas", "polars"])
def test_the_output_that_is_set_for_transformers_changes_nothing(output):
    with config_context(transform_output=output):
        assert type(encoded(PANDAS)[2]) is np.ndarray


def test_rare_levels_and_those_never_seen_are_one():
    frame = pd.DataFrame({"word": ["a"] * 10 + ["b"] * 10 + ["rare", "rarer", "rarest"]})
    columns, owner, made = encoded(frame)
    assert made.shape == (23, 3)
    new = columns.transform(columns.read(owner, pd.DataFrame({"word": ["a", "rare", "new", None]})))
    assert new.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]


def test_a_level_never_seen_is_none_where_all_are_frequent():
    columns, owner, _ = encoded(pd.DataFrame({"word": ["a", "b", "c"] * 10}))
    new = columns.transform(columns.read(owner, pd.DataFrame({"word": ["b", "new"]})))
    assert new.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_columns_that_say_the_same_are_one():
    frame = pd.DataFrame({"two": ["a", "b"] * 10, "same": ["p", "q"] * 10, "one": ["z"] * 20})
    assert encoded(frame)[2].tolist() == [[1], [0]] * 10


def test_levels_beyond_the_most_frequent_share_a_column():
    names = np.repeat([f"level {i}" for i in range(80)], np.arange(6, 86))
    _, _, made = encoded(pd.DataFrame({"word": names}))
    assert made.shape[1] == 50
    assert np.array_equal(made.sum(1), np.ones(len(names)))
    assert made.sum(0).max() == np.arange(6, 86)[:31].sum()


def test_a_number_missing_only_afterwards_is_the_median():
    x = np.arange(20.0).reshape(10, 2)
    columns, owner, made = encoded(x)
    assert np.array_equal(made, x)
    later = columns.transform(columns.read(owner, np.array([[np.nan, 3.0], [1.0, np.nan]])))
    assert later.tolist() == [[9.0, 3.0], [1.0, 10.0]]


def test_a_column_without_any_number_is_let_in():
    frame = pd.DataFrame({"a": np.arange(10.0), "none": np.full(10, np.nan)})
    assert np.isfinite(encoded(frame)[2]).all()


@pytest.mark.parametrize("frame", [PANDAS, POLARS], ids=["pandas", "polars"])
def test_a_regressor_takes_them(frame):
    mdn = pa.MDNRegressor(components=2, hidden=(4,), max_steps=20, random_state=0)
    mdn.fit(frame, TARGETS)
    first = mdn.predict(frame)
    assert np.isfinite(first).all()
    other = POLARS if frame is PANDAS else PANDAS
    assert np.array_equal(mdn.predict(other), first)
    table = mdn.columns_.transform(mdn.columns_.read(mdn, frame))
    assert np.allclose(mdn.fit_.density(table).mean, first, atol=1e-5)


def test_a_pair_held_out_is_treated_as_the_rest():
    mdn = pa.MDNRegressor(components=2, hidden=(4,), max_steps=20, random_state=0)
    held = (PANDAS[20:], TARGETS[20:])
    mdn.set_params(validation=held).fit(PANDAS[:20], TARGETS[:20])
    assert np.isfinite(mdn.fit_.best_nll)


TIMES = pd.DataFrame({"when": pd.date_range("2026-01-01", periods=30)})


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (TIMES, TypeError, "times in column 0 .*'when'"),
        (pl.from_pandas(TIMES), TypeError, "times in column 0"),
        (pd.DataFrame({"a": [1.0, np.inf] * 15}), ValueError, "infinity"),
        (pd.DataFrame({"a": [1j, 2.0] * 15}), ValueError, "Complex data"),
        (pd.DataFrame({"a": ["x", 1.0] * 15}), TypeError, r"1.0 \(float\) in column 0 \('a'\)"),
        (pd.DataFrame({"a": [[1.0], [2.0]] * 15}), TypeError, r"\(list\) in column 0"),
        (pd.DataFrame({"a": [date(2026, 1, 1)] * 30}), TypeError, "times in column 0"),
        (pd.DataFrame({"a": pd.period_range("1990", periods=30)}), TypeError, "times in column 0"),
        (np.array([["x"], ["y"]] * 15, object), ValueError, "could not convert string to float"),
        (np.array([["x"], ["y"]] * 15), ValueError, "could not convert string to float"),
    ],
)
def test_what_is_neither_number_nor_word_is_refused(frame, error, message):
    with pytest.raises(error, match=message):
        pa.MDNRegressor(max_steps=5).fit(frame, TARGETS)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (PANDAS[["word", "size", "code", "flag"]], "feature names"),
        (POLARS.select(["word", "size", "code", "flag"]), "feature names"),
        (PANDAS.drop(columns="flag"), "feature names"),
        (PANDAS.rename(columns={"flag": "new"}), "feature names"),
        (PANDAS.assign(size="large"), "column 0, which held numbers in fit"),
    ],
)
def test_other_columns_are_refused(frame, message):
    columns, owner, _ = encoded(PANDAS)
    with pytest.raises(ValueError, match=message):
        columns.read(owner, frame)


@pytest.mark.parametrize(
    "y",
    [
        pd.Series([1.0, None] * 15),
        pd.Series([1, None] * 15, dtype="Int64"),
        pl.Series([1.0, None] * 15),
        pl.DataFrame({"a": [1.0, None] * 15, "b": [0.0, 1.0] * 15}),
        [1.0, None] * 15,
    ],
    ids=["pandas", "nullable", "polars", "polars frame", "list"],
)
def test_a_missing_target_is_refused(y):
    with pytest.raises(ValueError, match="y holds NaN"):
        pa.MDNRegressor(max_steps=5).fit(PANDAS, y)
