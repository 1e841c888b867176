"""Scorers: means of exact scores, wherever scikit-learn takes a scorer."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import pyralloy as pa
from pyralloy import scorers

PROBLEM = pa.datasets.inverse_sinusoid(200, seed=0)
X, Y = PROBLEM.x.numpy(), PROBLEM.y.numpy()
BOTH = np.stack([Y, 10.0 - Y], 1)


def make(**options):
    options = {"components": 3, "hidden": (8,), "max_steps": 30, "random_state": 0} | options
    return pa.MDNRegressor(**options)


@pytest.fixture(scope="module")
def fitted():
    return make().fit(X, Y)


def test_they_are_means_of_exact_scores(fitted):
    density, y = fitted.predict_density(X), torch.as_tensor(Y)
    expected = float(density.log_prob(y).mean())
    assert scorers.neg_log_score(fitted, X, Y) == pytest.approx(expected, rel=1e-12)
    assert scorers.neg_log_score(fitted, X, Y) == -fitted.log_score(X, Y)
    assert scorers.neg_crps(fitted, X, Y) == pytest.approx(-float(density.crps(y).mean()))


def test_of_several_targets_the_joint_density_and_the_mean_crps():
    mdn = make().fit(X, BOTH)
    density, y = mdn.predict_density(X), torch.as_tensor(BOTH)
    expected = float(density.log_prob(y).mean())
    assert scorers.neg_log_score(mdn, X, BOTH) == pytest.approx(expected)
    each = [float(density.marginal(d).crps(y[:, d]).mean()) for d in range(2)]
    assert scorers.neg_crps(mdn, X, BOTH) == pytest.approx(-np.mean(each))


@pytest.mark.parametrize("scorer", scorers.SCORERS.values(), ids=repr)
def test_a_weight_of_two_is_a_row_twice(scorer, fitted):
    counts = np.random.default_rng(0).integers(0, 4, 200)
    weighted = scorer(fitted, X, Y, sample_weight=counts)
    assert weighted == pytest.approx(scorer(fitted, X.repeat(counts, 0), Y.repeat(counts)))


def test_a_column_of_targets_is_scored_as_it_was_fitted(fitted):
    frame = pd.DataFrame({"y": Y})
    assert scorers.neg_crps(fitted, X, frame) == scorers.neg_crps(fitted, X, Y)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_search_over_a_pipeline_takes_them_by_name(jobs):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), make()),
        {"mdnregressor__components": [1, 3]},
        scoring=scorers.SCORERS,
        refit="neg_crps",
        cv=2,
        n_jobs=jobs,
    ).fit(X, Y)
    for name, scorer in scorers.SCORERS.items():
        assert np.isfinite(search.cv_results_[f"mean_test_{name}"]).all()
        assert scorer(search, X, Y) == scorer(search.best_estimator_, X, Y)
    inside = search.best_estimator_[-1]
    scaled = search.best_estimator_[:-1].transform(X)
    assert scorers.neg_crps(search, X, Y) == scorers.neg_crps(inside, scaled, Y)
    assert search.best_score_ == search.cv_results_["mean_test_neg_crps"].max()


def test_one_alone_is_a_scorer_too():
    found = cross_val_score(make(), X, Y, scoring=scorers.neg_log_score, cv=2)
    halves = np.arange(100), np.arange(100, 200)
    for score, (held, rest) in zip(found, (halves, halves[::-1]), strict=True):
        alone = make().fit(X[rest], Y[rest])
        assert score == scorers.neg_log_score(alone, X[held], Y[held])


def test_several_targets_are_searched():
    scoring = {"nll": scorers.neg_log_score, "crps": scorers.neg_crps}
    search = GridSearchCV(make(), {"components": [1, 2]}, scoring=scoring, refit="nll", cv=2)
    assert search.fit(X, BOTH).predict(X).shape == (200, 2)


def test_frames_that_transformers_put_out_are_taken():
    frame = pd.DataFrame({"a": X[:, 0], "word": np.array(["p", "q"] * 100)})
    before = make_column_transformer(
        (StandardScaler(), ["a"]), (OneHotEncoder(drop="first", sparse_output=False), ["word"])
    )
    with config_context(transform_output="pandas"):
        pipeline = make_pipeline(before, make()).fit(frame, Y)
        assert "onehotencoder__word_q" in pipeline[-1].feature_names_in_
        assert np.isfinite(scorers.neg_crps(pipeline, frame, Y))


def test_weights_are_routed_where_they_are_asked_for():
    weights = np.random.default_rng(0).random(200)
    with config_context(enable_metadata_routing=True):
        asks = scorers.neg_crps.set_score_request(sample_weight=True)
        mdn = make().set_fit_request(sample_weight=True)
        found = cross_validate(
            mdn, X, Y, scoring=asks, cv=2, params={"sample_weight": weights}, return_estimator=True
        )
        half = np.arange(100)
        expected = scorers.neg_crps(found["estimator"][0], X[half], Y[half], weights[half])
        assert found["test_score"][0] == expected
        silent = scorers.neg_crps.set_score_request(sample_weight=False)
        alike = cross_validate(mdn, X, Y, scoring=silent, cv=2, params={"sample_weight": weights})[
            "test_score"
        ]
        assert alike[0] != expected
    assert scorers.neg_crps.request is None


def test_they_are_pickled_and_shown_by_name():
    again = pickle.loads(pickle.dumps(scorers.neg_crps))
    assert repr(again) == "scorers.neg_crps" and again.loss is scorers.neg_crps.loss


def test_what_predicts_no_density_is_refused(fitted):
    with pytest.raises(TypeError, match="LinearRegression predicts no density"):
        scorers.neg_crps(LinearRegression().fit(X, Y), X, Y)
    turned = TransformedTargetRegressor(make(max_steps=5), transformer=StandardScaler())
    with pytest.raises(TypeError, match="y needs no transformer"):
        scorers.neg_log_score(turned.fit(X, Y), X, Y)
    with pytest.raises(ValueError, match="y has shape"):
        scorers.neg_crps(fitted, X, Y[:7])
    with pytest.raises(ValueError, match="weights"):
        scorers.neg_crps(fitted, X, Y, -np.ones(200))
