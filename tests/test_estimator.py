"""The scikit-learn face: shapes, frames, reproducibility, and clear refusals."""

import math
import os
import pickle
import signal
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import pyralloy as pa
from pyralloy.inference.schedules import cosine

PROBLEM = pa.datasets.inverse_sinusoid(400, seed=0)
X, Y = PROBLEM.x.numpy(), PROBLEM.y.numpy()


def make(**options):
    options = {"components": 5, "hidden": (16,), "max_steps": 100, "random_state": 0} | options
    return pa.MDNRegressor(**options)


def test_every_answer_comes_from_the_one_density():
    mdn = make().fit(X, Y)
    density = mdn.predict_density(X[:9])
    assert np.allclose(mdn.predict(X[:9]), density.mean)
    assert np.allclose(mdn.predict_quantile(X[:9], [0.1, 0.9]), density.quantile([0.1, 0.9]))
    assert mdn.predict_quantile(X[:9], 0.5).shape == (9,)
    expected = -float(mdn.predict_density(X).log_prob(torch.as_tensor(Y)).mean())
    assert math.isclose(mdn.log_score(X, Y), expected, rel_tol=1e-12)
    residual = ((Y - mdn.predict(X)) ** 2).mean()
    assert math.isclose(mdn.score(X, Y), 1 - residual / Y.var(), rel_tol=1e-5)
    assert mdn.log_score(X, Y) < mdn.fit_.marginal


def test_samples_follow_the_density():
    mdn = make().fit(X, Y)
    drawn = mdn.sample(X[:5], 4000)
    density = mdn.predict_density(X[:5])
    assert drawn.shape == (4000, 5)
    error = density.stddev.numpy() / 4000**0.5
    assert bool((np.abs(drawn.mean(0) - density.mean.numpy()) < 5 * error).all())
    assert np.array_equal(drawn, mdn.sample(X[:5], 4000))


def test_several_targets_are_one_joint_density():
    y = np.stack([Y, -2 * Y, Y + 1], 1)
    mdn = make().fit(X, y)
    density = mdn.predict_density(X[:4])
    assert density.batch_shape == (4,) and density.event_shape == (3,)
    assert mdn.predict(X[:4]).shape == (4, 3)
    assert mdn.predict_quantile(X[:4], [0.1, 0.5]).shape == (2, 4, 3)
    assert mdn.predict_quantile(X[:4], 0.5).shape == (4, 3)
    assert mdn.sample(X[:4], 7).shape == (7, 4, 3)
    second = density.marginal(1).quantile(0.5)
    assert np.allclose(mdn.predict_quantile(X[:4], 0.5)[:, 1], second)
    assert math.isfinite(mdn.log_score(X, y))


def test_the_same_random_state_gives_the_same_predictions_and_leaves_torchs_alone():
    state = torch.get_rng_state()
    first, second = make().fit(X, Y).predict(X), make().fit(X, Y).predict(X)
    assert np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(first, make(random_state=1).fit(X, Y).predict(X))
    assert make(random_state=None).fit(X, Y).predict(X).shape == (400,)
    assert make(random_state=np.random.RandomState(0)).fit(X, Y).predict(X).shape == (400,)


def test_data_frames_are_remembered_by_their_columns():
    frame = pd.DataFrame({"a": X[:, 0], "b": np.arange(400) % 7})
    mdn = make().fit(frame, pd.Series(Y))
    assert mdn.n_features_in_ == 2 and list(mdn.feature_names_in_) == ["a", "b"]
    assert np.allclose(mdn.predict(frame), mdn.fit_.density(frame).mean)
    with pytest.raises(ValueError, match="feature names"):
        mdn.predict(frame.rename(columns={"a": "c"}))


def test_a_clone_is_unfitted_with_the_same_parameters():
    mdn = make().fit(X, Y)
    copy = clone(mdn)
    assert copy.get_params() == mdn.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(X)


@pytest.mark.parametrize("method", ["predict", "predict_density", "sample"])
def test_nothing_is_predicted_before_a_fit(method):
    with pytest.raises(NotFittedError):
        getattr(make(), method)(X)


BAD_OPTIONS = [
    *(
        (name, value)
        for name in ("components", "batch_size", "max_steps", "patience")
        for value in (0, -1, 1.5, "5", True)
    ),
    *(("hidden", value) for value in ((0,), (-4,), (1.5,), ("64",), 64, "64")),
    *(
        (name, value)
        for name in ("activation", "family", "schedule")
        for value in ("nope", None, 3)
    ),
    *(("learning_rate", value) for value in (0.0, -1.0, math.nan, "0.1")),
    *(("validation", value) for value in (0.0, 1.0, -0.5, "0.1", (X,))),
    ("compile", "yes"),
    ("random_state", "zero"),
    ("random_state", -1),
]


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS, ids=str)
def test_options_out_of_range_are_refused_by_name_or_value(option, value):
    with pytest.raises((TypeError, ValueError)) as caught:
        make(**{option: value}).fit(X, Y)
    assert option in str(caught.value)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.where(X == X[3], np.nan, X), Y, "NaN"),
        (np.where(X == X[3], np.inf, X), Y, "infinity"),
        (X, np.where(Y == Y[3], np.nan, Y), "y holds NaN or infinity"),
        (X[:0], Y[:0], "y is empty"),
        (X[:9], Y, "rows"),
        (X, np.zeros(400), "y is constant"),
        (X, Y.astype(str), "y has dtype"),
        (X[:1], Y[:1], "minimum of 2"),
        (X[:, 0], Y, "2D array"),
        (X, np.zeros((400, 2, 2)), "y has shape"),
    ],
)
def test_bad_data_is_refused(x, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make().fit(x, y)


def test_rows_of_another_width_are_refused():
    mdn = make(max_steps=2).fit(X, Y)
    with pytest.raises(ValueError, match="2 features"):
        mdn.predict(np.hstack([X, X]))
    with pytest.raises(ValueError, match="y has shape"):
        mdn.log_score(X, Y[:7])
    with pytest.raises((TypeError, ValueError), match="draws"):
        mdn.sample(X, 0)


def test_a_column_of_targets_is_one_scalar_target_with_a_warning():
    with pytest.warns(DataConversionWarning, match="column"):
        mdn = make(max_steps=5).fit(X, Y[:, None])
    assert mdn.predict_density(X).event_shape == ()


def test_a_validation_frame_must_have_the_same_columns():
    frame = pd.DataFrame({"a": X[:, 0], "b": np.arange(400) % 7})
    with pytest.raises(ValueError, match="feature names"):
        make(validation=(frame[["b", "a"]], Y)).fit(frame, Y)


def test_ctrl_c_is_passed_on_and_leaves_the_fit():
    mdn = make(max_steps=100_000)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        mdn.fit(X, Y)
    timer.join()
    assert mdn.fit_.interrupted and np.isfinite(mdn.predict(X)).all()


def test_a_fit_that_fails_leaves_no_older_one():
    mdn = make(max_steps=5).fit(X, Y)
    with pytest.raises(ValueError, match="constant"):
        mdn.fit(np.hstack([X, X]), np.ones(400))
    with pytest.raises(NotFittedError):
        mdn.predict(X)


def test_it_can_be_pickled_and_searched():
    mdn = make(max_steps=20).fit(X, Y)
    assert np.array_equal(pickle.loads(pickle.dumps(mdn)).predict(X), mdn.predict(X))
    grid = GridSearchCV(make_pipeline(StandardScaler(), make(max_steps=20)), {}, cv=2).fit(X, Y)
    assert math.isfinite(grid.best_score_)


@pytest.mark.parametrize(
    "inference", ["ml", "map", "vi", "laplace", pytest.param("nuts", marks=pytest.mark.slow)]
)
def test_every_inference_gives_one_density_a_row(inference):
    mdn = make(
        inference=inference, draws=6, hidden=(4,), components=2, max_steps=40, prior_scale=0.5
    )
    with warnings.catch_warnings():  # of short chains
        warnings.filterwarnings("ignore", "chains disagree|.* draws diverged")
        mdn.fit(X[:30], Y[:30])
    density = mdn.predict_density(X[:9])
    assert density.batch_shape == (9,)
    assert density.num_components == (2 if inference in ("ml", "map") else 2 * 6)
    assert np.isfinite(mdn.log_score(X[:30], Y[:30]))
    again = pickle.loads(pickle.dumps(mdn))
    assert np.array_equal(again.predict(X[:9]), mdn.predict(X[:9]))


def test_an_inference_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="inference='bayes' is unknown: choose one of"):
        make(inference="bayes").fit(X, Y)
    with pytest.raises(ValueError, match="scale=-1"):
        make(inference="vi", prior_scale=-1).fit(X, Y)


def test_weights_schedule_and_compilation_are_those_of_fit():
    weights = np.random.default_rng(0).random(400) + 0.1
    mdn = make(schedule="cosine", learning_rate=0.005).fit(X, Y, sample_weight=weights)
    assert not np.array_equal(
        mdn.predict(X), make(schedule="cosine", learning_rate=0.005).fit(X, Y).predict(X)
    )
    expected = pa.fit(
        mdn._model(1, None, mdn._seed()),
        X,
        Y,
        weights=weights,
        schedule=cosine,
        learning_rate=0.005,
        max_steps=100,
        seed=mdn._seed(),
        progress=False,
    )
    assert np.array_equal(mdn.predict(X), expected.density(X).mean)
    for inference in ("nuts", "laplace"):
        with pytest.raises(ValueError, match="weights"):
            make(inference=inference, max_steps=5).fit(X, Y, sample_weight=weights)


#: What weights cannot promise: standardisation, batches and the rows held out are by rows.
EXPECTED = {
    f"check_sample_weight_equivalence_on_{kind}_data": "minibatches and held-out rows are of rows"
    for kind in ("dense", "sparse")
}


@pytest.mark.slow
def test_scikit_learns_own_checks_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a dozen rows there is much to say
        found = check_estimator(
            pa.MDNRegressor(max_steps=60), on_fail=None, expected_failed_checks=EXPECTED
        )
    assert not [each for each in found if each["status"] == "failed"]
    assert len(found) > 40
