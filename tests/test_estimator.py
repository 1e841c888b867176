"""The scikit-learn face: shapes, frames, reproducibility, and clear refusals."""

import math
import os
import pickle
import re
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
from pyralloy import families
from pyralloy.inference.schedules import cosine
from pyralloy.multiset import multiset

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
    lower, upper = mdn.predict_interval(X[:9], 0.8).T
    assert np.allclose([lower, upper], density.quantile([0.1, 0.9]))
    region = mdn.predict_region(X[:9], 0.8)
    assert np.allclose(region, density.highest_density_region(0.8).intervals, equal_nan=True)
    held = density.cdf(torch.as_tensor(region).movedim((1, 2), (0, 1)))  # (R, 2, N)
    assert np.allclose((held[:, 1] - held[:, 0]).nansum(0), 0.8, atol=1e-6)
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
    assert mdn.predict_interval(X[:4], 0.5).shape == (4, 3, 2)
    region = mdn.predict_region(X[:4], 0.5)
    alone = density.marginal(1).highest_density_region(0.5).intervals.numpy()
    most = alone.shape[1]
    assert region.shape[:2] == (4, 3)
    assert np.allclose(region[:, 1, :most], alone, equal_nan=True)
    assert bool(np.isnan(region[:, 1, most:]).all())
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
    source = np.random.RandomState(0)
    one, two = (make(random_state=source).fit(X, Y).predict(X) for _ in range(2))
    assert not np.array_equal(one, two)  # the source went on
    same = make(random_state=np.random.RandomState(0)).fit(X, Y).predict(X)
    assert np.array_equal(one, same)


def test_data_frames_are_remembered_by_their_columns():
    frame = pd.DataFrame({"a": X[:, 0], "b": np.arange(400) % 7})
    mdn = make().fit(frame, pd.Series(Y))
    assert mdn.n_features_in_ == 2 and list(mdn.feature_names_in_) == ["a", "b"]
    assert np.allclose(mdn.predict(frame), mdn.fit_.density(frame).mean, atol=1e-5)
    with pytest.raises(ValueError, match="feature names"):
        mdn.predict(frame[["b", "a"]])
    with pytest.raises(ValueError, match="feature names"):
        mdn.predict(frame[["a"]])
    with pytest.raises(ValueError, match="feature names"):
        mdn.predict(frame.rename(columns={"a": "c"}))


def test_a_clone_is_unfitted_with_the_same_parameters():
    mdn = make().fit(X, Y)
    copy = clone(mdn)
    assert copy.get_params() == mdn.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(X)


@pytest.mark.parametrize(
    "method", ["predict", "predict_density", "predict_interval", "predict_region", "sample"]
)
def test_nothing_is_predicted_before_a_fit(method):
    with pytest.raises(NotFittedError, match="MDNRegressor instance is not fitted yet"):
        getattr(make(), method)(X)


def test_a_page_shows_its_parameters():
    shown = make(members=3)._repr_html_()
    assert "MDNRegressor" in shown and "members" in shown
    assert "fitted" in make(max_steps=5).fit(X, Y)._repr_html_()


def test_a_prediction_does_not_depend_on_the_rows_beside_it():
    mdn = make(max_steps=20).fit(X, Y)
    alone = np.concatenate([mdn.predict(X[i : i + 1]) for i in range(40)])
    assert np.allclose(alone, mdn.predict(X)[:40], rtol=1e-11)


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


def test_a_bad_row_is_named_by_its_own_number():
    y = np.abs(Y) + 0.1
    y[123] = -7.0
    with pytest.raises(ValueError, match=r"y holds -7.0 at row 123: .*'gamma'"):
        make(family="gamma").fit(X, y)


def test_components_may_be_of_a_family_on_an_interval():
    family = families.TruncatedNormalFamily(float(Y.min()) - 0.5, float(Y.max()) + 0.5)
    mdn = clone(make(family=family)).fit(X, Y)
    assert repr(family) in repr(mdn) and mdn.family is not family
    density = mdn.predict_density(X[:5])
    low, high = family.support.low, family.support.high
    ends = torch.tensor([[low], [high]], dtype=torch.float64)
    np.testing.assert_allclose(density.cdf(ends), [[0.0] * 5, [1.0] * 5], atol=1e-12)
    assert density.log_prob(ends + torch.tensor([[-0.01], [0.01]])).isneginf().all()
    assert low < mdn.sample(X[:5], 100).min() and mdn.sample(X[:5], 100).max() < high
    again = pickle.loads(pickle.dumps(mdn))
    np.testing.assert_array_equal(again.predict(X[:5]), mdn.predict(X[:5]))
    with pytest.raises(
        ValueError, match=r"y holds .* at row .*'truncated_normal'.* wider interval"
    ):
        mdn.fit(X, Y - 1.0)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            families.TruncatedNormalFamily,
            r"is a class: make one, as TruncatedNormalFamily\(\.\.\.\)",
        ),
        (["normal"], r"family=\['normal'\] is unknown"),
        (families.JOINT["normal", "full"], "is unknown: .* a Family of a scalar"),
        (families.TruncatedFamily(families.NormalFamily(), -20.0), "NormalFamily.*, -20.0, inf"),
        (families.TruncatedFamily(families.GammaFamily(), high=9.0), "cannot be standardised"),
    ],
)
def test_a_family_that_the_regressor_cannot_take_is_refused(family, message):
    with pytest.raises(ValueError, match=message):
        make(family=family).fit(X, Y)


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


@pytest.mark.parametrize(
    "inference", ["map", "vi", "laplace", pytest.param("nuts", marks=pytest.mark.slow)]
)
def test_a_posterior_is_tempered_by_every_inference(inference):
    options = {"hidden": (4,), "components": 2, "max_steps": 40, "draws": 6}
    each = [make(inference=inference, temperature=t, **options) for t in (1.0, 0.05)]
    with warnings.catch_warnings():  # of short chains
        warnings.filterwarnings("ignore", "chains disagree|.* draws diverged")
        usual, cold = (mdn.fit(X[:60], Y[:60]) for mdn in each)
    assert (usual.fit_.temperature, cold.fit_.temperature) == (1.0, 0.05)
    assert not np.allclose(usual.predict(X[:9]), cold.predict(X[:9]))
    if inference == "laplace":  # about the same weights: nowhere wider, but by the draws' chance
        wide, narrow = (m.fit_.weights(4000)["head.outputs.weight"].std(0) for m in (usual, cold))
        assert float((narrow / wide).max()) < 1.07
        assert float((narrow / wide).min()) < 0.8


@pytest.mark.parametrize(
    ("inference", "temperature", "message"),
    [
        ("ml", 0.5, "temperature=0.5 with inference='ml'"),
        ("vi", 0.0, "temperature=0.0"),
        ("vi", "cold", "temperature='cold'"),
        ("nuts", -1.0, "temperature=-1.0"),
    ],
)
def test_a_temperature_out_of_place_is_refused(inference, temperature, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(inference=inference, temperature=temperature).fit(X, Y)


def test_an_inference_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="inference='bayes' is unknown: choose one of"):
        make(inference="bayes").fit(X, Y)
    with pytest.raises(ValueError, match="scale=-1"):
        make(inference="vi", prior_scale=-1).fit(X, Y)


def test_schedule_and_weights_are_those_of_fit_on_rows_in_their_own_order():
    weights = np.random.default_rng(0).random(400) + 0.1
    options = {"schedule": "cosine", "learning_rate": 0.005, "batch_size": 32}
    mdn = make(**options).fit(X, Y, sample_weight=weights)
    other = make(**options).fit(X, Y)
    assert not np.array_equal(mdn.predict(X), other.predict(X))
    seed = mdn._seed()
    rows = multiset(np.column_stack([X, Y]), weights, seed).rows
    expected = pa.fit(
        mdn._model(X[rows].shape, None, seed),
        X[rows],
        Y[rows],
        weights=weights[rows],
        schedule=cosine,
        learning_rate=0.005,
        batch_size=32,
        max_steps=100,
        seed=seed,
        progress=False,
    )
    theirs = expected.model.weights()
    assert all(torch.equal(w, theirs[n]) for n, w in mdn.fit_.model.weights().items())


# -- weights and the order of rows ----------------------------------------------------------------

COUNTS = np.random.default_rng(1).integers(0, 4, 400)

EVERY = [
    {},
    {"members": 2},
    {"inference": "map"},
    {"inference": "vi", "draws": 4},
    {"inference": "laplace", "draws": 4, "hidden": (4,), "components": 2},
    {"inference": "nuts", "draws": 8, "hidden": (2,), "components": 1, "max_steps": 3},
]


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_weights_are_repeats_and_order_is_nothing_to_the_bit(options):
    options = {"max_steps": 20} | options
    x, y, counts = X[:60], Y[:60], COUNTS[:60]
    order = np.random.default_rng(2).permutation(60)
    with warnings.catch_warnings():  # of short chains
        warnings.filterwarnings("ignore", "chains disagree|.* draws diverged")
        weighted = make(**options).fit(x[order], y[order], sample_weight=counts[order])
        repeated = make(**options).fit(x.repeat(counts, 0), y.repeat(counts))
    assert np.array_equal(weighted.predict(X), repeated.predict(X))


def test_a_frame_with_words_and_gaps_has_one_fit_too():
    frame = pd.DataFrame({"a": X[:200, 0], "word": np.array(["p", "q", "r", None] * 50, object)})
    frame.loc[::7, "a"] = np.nan
    counts = COUNTS[:200]
    weighted = make(max_steps=20).fit(frame, Y[:200], sample_weight=counts)
    again = frame.loc[frame.index.repeat(counts)].reset_index(drop=True)
    repeated = make(max_steps=20).fit(again[::-1], Y[:200].repeat(counts)[::-1])
    assert np.array_equal(weighted.predict(frame), repeated.predict(frame))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(400), "all zero"),
        (-np.ones(400), "negative"),
        (np.full(400, 1e308), "too large"),
        (np.ones(3), "sample_weight has shape"),
        (np.ones((400, 1)), "sample_weight has shape"),
        (np.full(400, np.nan), "sample_weight holds NaN"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        make().fit(X, Y, sample_weight=weights)


# -- members --------------------------------------------------------------------------------------


def test_members_are_pooled_exactly():
    mdn = make(members=3).fit(X, Y)
    assert mdn.predict_density(X[:9]).num_components == 3 * 5
    each = mdn.fit_.densities(X[:9])
    assert each.batch_shape == (3, 9)
    assert np.allclose(mdn.predict(X[:9]), each.mean.mean(0), atol=1e-5)
    again = pickle.loads(pickle.dumps(mdn))
    assert np.array_equal(again.predict(X[:9]), mdn.predict(X[:9]))
    assert np.array_equal(make(members=3).fit(X, Y).predict(X[:9]), mdn.predict(X[:9]))


def test_members_of_a_posterior_pool_draws_of_each():
    mdn = make(members=2, inference="vi", draws=6, max_steps=20).fit(X, Y)
    assert mdn.predict_density(X[:9]).num_components == 6 * 5


def test_members_take_patience_and_a_pair_held_out():
    held = (X[:100], Y[:100])
    mdn = make(members=2, patience=2, learning_rate=0.3, validation=held).fit(X[100:], Y[100:])
    assert mdn.fit_.history.step[-1] < 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members=0"),
        ({"members": 1.5}, "members=1.5"),
        ({"members": 2, "inference": "nuts"}, "members=2 with inference='nuts': .* take members=1"),
    ],
)
def test_members_that_make_no_sense_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**options).fit(X, Y)


# -- scikit-learn's own checks --------------------------------------------------------------------


def failures(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a dozen rows there is much to say
        found = check_estimator(pa.MDNRegressor(**options), on_fail=None)
    assert len(found) > 40
    left = {each["check_name"] for each in found if each["status"] == "skipped"}
    assert left <= {"check_array_api_input"}  # of what the environment has to allow
    return [
        (each["check_name"], each["exception"])
        for each in found
        if each["status"] not in ("passed", "skipped")
    ]


#: Small networks trained fast: the checks ask of a few hundred rows an R² above a half.
QUICK = {"max_steps": 100, "learning_rate": 0.02, "hidden": (32,)}
FEW = QUICK | {"components": 2, "draws": 8}


def test_scikit_learns_own_checks_pass():
    assert failures(**QUICK) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        QUICK | {"members": 2},
        FEW | {"inference": "map", "learning_rate": 0.03},
        FEW | {"inference": "vi", "max_steps": 200},
        FEW | {"inference": "laplace", "learning_rate": 0.03},
        FEW | {"inference": "nuts", "max_steps": 15, "hidden": (3,), "components": 1},
        FEW | {"inference": "vi", "max_steps": 200, "members": 2},
    ],
    ids=str,
)
def test_scikit_learns_own_checks_pass_for(options):
    assert failures(**options) == []


def test_targets_of_a_pair_held_out_may_be_a_column_or_objects():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 2)), rng.normal(size=60)
    for held in (y[:20], y[:20, None], y[:20].astype(object)):
        mdn = pa.MDNRegressor(max_steps=3, validation=(X[:20], held), random_state=0)
        assert np.isfinite(mdn.fit(X[20:], y[20:]).fit_.best_nll)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"compile": "foo"}, "compile='foo'"),
        ({"patience": -3}, "patience=-3"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"inference": ["ml"]}, "inference="),
    ],
)
def test_what_chains_do_not_need_is_checked_all_the_same(options, error):
    options = {"inference": "nuts", "max_steps": 2, "draws": 4, "hidden": (2,)} | options
    with pytest.raises(ValueError, match=re.escape(error)):
        pa.MDNRegressor(**options).fit(np.zeros((20, 1)), np.arange(20.0))
