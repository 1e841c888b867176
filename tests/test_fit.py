"""Fitting: reproducible, isolated, interruptible, and honest about its input."""

import math
import os
import signal
import threading

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import nn

import pyralloy as pa
from pyralloy.inference.diagnostics import FitWarning
from pyralloy.inference.rows import Rows, split
from pyralloy.inference.training import Diverged
from pyralloy.marginal import marginal_density

PROBLEM = pa.datasets.inverse_sinusoid(400, seed=0)


def make_model(features=1, components=5, targets=None):
    trunk = pa.networks.MLP(features, hidden=(16,))
    return pa.MDN(trunk, pa.MixtureHead(16, components, targets))


def run(x=PROBLEM.x, y=PROBLEM.y, model=None, **options):
    options = {"max_steps": 60, "progress": False} | options
    return pa.fit(model or make_model(), x, y, **options)


def weights(fit):
    return torch.cat([p.detach().flatten() for p in fit.model.parameters()])


# -- reproducible and isolated --------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    torch.manual_seed(1)
    first = run(seed=3)
    torch.manual_seed(2)
    assert torch.equal(weights(first), weights(run(seed=3)))
    assert not torch.equal(weights(first), weights(run(seed=4)))


def test_models_fitted_in_either_order_have_the_weights_they_have_alone():
    other = pa.datasets.sinusoid(300, seed=1)
    one, two = weights(run(seed=1)), weights(run(other.x, other.y, seed=2))
    first, second = weights(run(seed=1)), weights(run(other.x, other.y, seed=2))
    assert torch.equal(first, one) and torch.equal(second, two)
    second, first = weights(run(other.x, other.y, seed=2)), weights(run(seed=1))
    assert torch.equal(first, one) and torch.equal(second, two)


def test_nothing_global_is_touched():
    store = pyro.get_param_store()
    with store.scope():
        pyro.param("mine", torch.ones(2))
        model = make_model()
        state, dtype = torch.get_rng_state(), torch.get_default_dtype()
        settings, handler = pyro.settings.get(), signal.getsignal(signal.SIGINT)
        fit = run(model=model)
        fit.density(PROBLEM.x).quantile([0.1, 0.9])
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_default_dtype() == dtype
        assert pyro.settings.get() == settings
        assert signal.getsignal(signal.SIGINT) is handler
        assert list(store.keys()) == ["mine"] and torch.equal(pyro.param("mine"), torch.ones(2))


def test_fits_in_threads_equal_fits_alone():
    alone = [weights(run(seed=s)) for s in (0, 1)]
    found = {}
    models = [make_model(), make_model()]
    threads = [
        threading.Thread(
            target=lambda s=s: found.update({s: weights(run(model=models[s], seed=s))})
        )
        for s in (0, 1)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert torch.equal(found[0], alone[0]) and torch.equal(found[1], alone[1])


def test_parameters_belong_to_the_model_again_after_a_fit():
    model = make_model()
    before = {n: id(p) for n, p in model.named_parameters()}
    run(model=model)
    assert {n: id(p) for n, p in model.named_parameters()} == before
    pointers = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


# -- what a fit is --------------------------------------------------------------------------------


def test_history_holds_negative_log_densities_in_the_units_of_y():
    held_out = pa.datasets.inverse_sinusoid(200, seed=9)
    x, y = (PROBLEM.x * 1e-3, PROBLEM.y * 1e4 + 1e6)
    fit = run(x, y, validation=(held_out.x * 1e-3, held_out.y * 1e4 + 1e6), seed=0)
    last = -fit.density(held_out.x * 1e-3).log_prob(held_out.y * 1e4 + 1e6).mean()
    assert math.isclose(fit.best_nll, float(last), rel_tol=1e-4)
    plain = run(validation=(held_out.x, held_out.y), seed=0)
    assert math.isclose(fit.best_nll - plain.best_nll, math.log(1e4), abs_tol=1e-2)
    assert math.isclose(fit.marginal - plain.marginal, math.log(1e4), abs_tol=1e-3)


def test_the_weights_kept_are_the_best_seen():
    fit = run(max_steps=300, stretch=False)
    assert fit.best_nll == np.nanmin(fit.history.validation)
    assert fit.best_step in fit.history.step
    assert fit.history.step[-1] == 300
    assert bool((np.diff(fit.history.seconds) >= 0).all())
    assert f"best_step={fit.best_step}" in repr(fit)


def test_a_fit_beats_the_marginal_density_where_x_says_something():
    fit = run(max_steps=300)
    assert fit.best_nll < fit.marginal - 0.5


def test_without_validation_the_last_weights_are_kept_and_nothing_is_held_out():
    fit = run(validation=None)
    assert fit.best_step == 60
    assert bool(np.isnan(fit.history.validation).all())


def test_patience_ends_a_fit_that_no_longer_improves():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, generator=generator), torch.randn(60, generator=generator)
    with pytest.warns(FitWarning, match="not better"):  # x says nothing of y
        fit = run(x, y, max_steps=3000, patience=10)
    assert fit.history.step[-1] < 3000
    assert fit.history.step[-1] - fit.best_step >= 10 * 30


def test_a_callback_sees_the_evaluated_model_and_can_end_the_fit():
    model, seen = make_model(), []

    def stop(step, metrics):
        seen.append((step, -float(model.density(held.x).log_prob(held.y).mean()), metrics))
        return step >= 20

    held = pa.datasets.inverse_sinusoid(50, seed=3)
    fit = run(
        model=model,
        validation=(held.x, held.y),
        max_steps=100,
        callback=stop,
        stretch=False,
    )
    assert [s for s, _, _ in seen] == list(range(1, 21)) == list(fit.history.step)
    for _, nll, metrics in seen:
        assert math.isclose(nll, metrics["validation"], rel_tol=1e-4)
    assert not fit.interrupted


def test_rows_are_held_out_once_and_none_is_lost():
    rows = Rows(torch.arange(50.0)[:, None], torch.arange(50.0))
    kept, out = split(rows, 0.2, make_model(), torch.Generator().manual_seed(0))
    assert len(out.y) == 10
    assert torch.equal(torch.cat([kept.y, out.y]).sort().values, rows.y)
    assert torch.equal(kept.x[:, 0], kept.y) and torch.equal(out.x[:, 0], out.y)


def test_least_squares_is_one_component_of_constant_scale():
    """A linear trunk then has a closed form: ordinary least squares."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, generator=generator)
    y = 3.0 + x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(500, generator=generator)
    trunk = pa.networks.MLP(2, hidden=())
    model = pa.MDN(trunk, pa.MixtureHead(2, components=1, constant_scale=True))
    fit = run(x, y, model=model, validation=None, max_steps=1500, batch_size=500)
    design = torch.cat([torch.ones(500, 1), x], 1)
    exact = torch.linalg.lstsq(design, y[:, None]).solution
    fitted = design @ exact
    density = fit.density(x)
    assert torch.allclose(density.mean, fitted[:, 0].double(), atol=2e-3)
    assert torch.allclose(
        density.stddev, (y - fitted[:, 0]).square().mean().sqrt().double(), rtol=1e-2
    )


def test_a_vector_target_keeps_its_dependence():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 1, generator=generator)
    sign = torch.randint(0, 2, (1000,), generator=generator) * 2.0 - 1.0
    y = torch.stack([sign, sign], 1) + 0.1 * torch.randn(1000, 2, generator=generator)
    fit = run(x, y, model=make_model(components=4, targets=2), max_steps=300)
    density = fit.density(x[:1])
    same = density.log_prob(torch.tensor([1.0, 1.0]))
    differ = density.log_prob(torch.tensor([1.0, -1.0]))
    assert float(same) > float(differ) + 3.0


@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, torch.as_tensor, lambda v: v.tolist()])
def test_any_container_of_numbers_gives_the_same_fit(kind):
    x, y = PROBLEM.x.double().numpy(), PROBLEM.y.double().numpy()
    given = run(kind(x), pd.Series(y) if kind is pd.DataFrame else kind(y))
    assert torch.equal(weights(given), weights(run(x, y)))


def test_going_on_from_the_weights_there_are():
    model = make_model()
    first = run(model=model, max_steps=200, stretch=False)
    again = run(model=model, max_steps=1, learning_rate=1e-9, initialise=False, stretch=False)
    assert abs(again.best_nll - first.best_nll) < 1e-3
    assert abs(run(model=model, max_steps=1, learning_rate=1e-9).best_nll - first.best_nll) > 0.1


# -- interrupts -----------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_usable_model_marked_interrupted():
    def press(step, metrics):
        if step == 60:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="interrupted at step 6"):
        fit = run(max_steps=2000, callback=press)
    assert fit.interrupted and "interrupted" in repr(fit)
    assert 60 <= fit.history.step[-1] <= 62
    assert fit.best_nll == np.nanmin(fit.history.validation)
    assert bool(fit.density(PROBLEM.x).mean.isfinite().all())
    assert signal.getsignal(signal.SIGINT) is handler
    assert not run().interrupted


def test_someone_elses_handler_keeps_its_signal():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        fit = run(max_steps=50, callback=lambda *_: os.kill(os.getpid(), signal.SIGINT) or False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not fit.interrupted and len(seen) == 50


def test_a_second_ctrl_c_is_pythons_own():
    def press(step, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        run(model=model, callback=press)
    assert bool(model.density(PROBLEM.x).mean.isfinite().all())


def test_a_loss_that_is_not_finite_is_named_and_the_weights_stay_finite():
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1.0 if not self.training else math.nan)

    model = pa.MDN(Broken(1, 8), pa.MixtureHead(8, 3))
    named = r"loss became nan at step 9, after 8 returns.*44 of the 44 rows.*learning_rate"
    with pytest.raises(Diverged, match=named):
        run(model=model)
    assert bool(model.density(PROBLEM.x).mean.isfinite().all())


def test_held_out_inputs_of_any_size_are_scored():
    with pytest.warns(FitWarning, match="not better"):
        fit = run(validation=(PROBLEM.x.double() * 1e200, PROBLEM.y))
    assert math.isfinite(fit.best_nll)


def test_what_is_kept_is_what_was_scored_with_batch_norm_and_dropout():
    """Running statistics belong to the weights they were scored with; torch's state stays."""
    held = pa.datasets.inverse_sinusoid(200, seed=5)
    state = torch.get_rng_state()
    fits = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            trunk = nn.Sequential(nn.Linear(1, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
            model = pa.MDN(trunk, pa.MixtureHead(16, 4))
        fits.append(
            run(model=model, validation=(held.x, held.y), max_steps=200, learning_rate=0.05)
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(fits[0]), weights(fits[1]))
    nll = -float(fits[0].density(held.x).log_prob(held.y).mean())
    assert math.isclose(nll, fits[0].best_nll, rel_tol=1e-4)


def test_a_fit_inside_no_grad_trains():
    with torch.no_grad():
        assert torch.equal(weights(run(seed=3)), weights(run(seed=3)))
        fit = run(max_steps=200)
    assert fit.best_nll < fit.marginal


# -- bad input ------------------------------------------------------------------------------------

X, Y = PROBLEM.x.numpy(), PROBLEM.y.numpy()


def spoiled(values, what):
    values = values.astype(np.float64)
    values[7] = what
    return values


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (spoiled(X, np.nan), Y, ValueError, r"x holds NaN or infinity in 1 of 400 rows.*row 7"),
        (spoiled(X, np.inf), Y, ValueError, r"x holds NaN or infinity"),
        (X, spoiled(Y, np.nan), ValueError, r"y holds NaN or infinity.*row 7"),
        (X, spoiled(Y, -np.inf), ValueError, r"y holds NaN or infinity"),
        (X[:0], Y[:0], ValueError, "x is empty"),
        (X, Y[:0], ValueError, "y is empty"),
        (X[:, :0], Y, ValueError, "x is empty"),
        (X[:-1], Y, ValueError, "x has 399 rows and y has 400"),
        (X, np.full(400, 3.0), ValueError, "y is constant"),
        (X, Y[:, None], ValueError, r"y has shape \(400, 1\).*targets"),
        (np.hstack([X, X]), Y, ValueError, "x has .2,. features.*in_features"),
        (X.astype(str), Y, TypeError, "x has dtype <U"),
        (X, Y.astype(str), TypeError, "y has dtype <U"),
        (X.astype(object), Y, TypeError, "x has dtype object"),
        (X, Y.astype(object), TypeError, "y has dtype object"),
        (X.astype(complex), Y, TypeError, "x has dtype complex"),
        (PROBLEM.x.to(torch.complex64), Y, TypeError, "x is complex"),
        (pd.DataFrame({"a": X[:, 0], "b": "b"}), Y, TypeError, r"x has dtype object .*\['b'\]"),
        ([[1.0], [1.0, 2.0]], Y[:2], ValueError, "x is ragged"),
        (X[:1], Y[:1], ValueError, "leaves 0 to train on"),
        (3.0, Y, ValueError, "x is a single number"),
        ("abc", Y, TypeError, "x has dtype"),
        (None, Y, TypeError, "x has dtype object"),
    ],
)
def test_bad_data_is_refused_before_any_work(x, y, error, message):
    model = make_model()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        run(x, y, model=model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.y_scaling.shift.shape == ()


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        (name, value, error)
        for name in ("max_steps", "batch_size", "patience")
        for value, error in (
            (0, ValueError),
            (-3, ValueError),
            (1.5, TypeError),
            ("10", TypeError),
            (True, TypeError),
        )
    ]
    + [
        ("seed", -1, ValueError),
        ("seed", "0", TypeError),
        ("seed", None, TypeError),
        ("learning_rate", 0.0, ValueError),
        ("learning_rate", -0.1, ValueError),
        ("learning_rate", math.nan, ValueError),
        ("learning_rate", "fast", TypeError),
        ("validation", 0.0, ValueError),
        ("validation", 1.0, ValueError),
        ("validation", 1.5, ValueError),
        ("validation", "0.1", TypeError),
        ("validation", (X,), ValueError),
        ("validation", (X, Y[:3]), ValueError),
        ("validation", (np.hstack([X, X]), Y), ValueError),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value, error):
    with pytest.raises(
        error, match="x has" if isinstance(value, tuple) and len(value) > 1 else option
    ):
        run(**{option: value})


def test_patience_without_validation_is_refused():
    with pytest.raises(ValueError, match="patience=5 needs held-out rows"):
        run(patience=5, validation=None)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="model="):
        pa.fit(nn.Linear(1, 1), X, Y)


def test_a_constant_column_of_y_is_named():
    y = np.stack([Y, np.ones_like(Y)], 1)
    with pytest.raises(ValueError, match="column 1 of y is constant"):
        run(X, y, model=make_model(targets=2))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.hstack([X, X]), ValueError, "features"),
        (spoiled(X, np.nan), ValueError, "x holds NaN"),
        (X.astype(str), TypeError, "x has dtype"),
        (X[:0], ValueError, "x is empty"),
    ],
)
def test_bad_rows_to_predict_at_are_refused(x, error, message):
    fit = run(max_steps=2)
    with pytest.raises(error, match=message):
        fit.density(x)


def test_a_constant_column_of_x_does_no_harm():
    x = np.hstack([X, np.full_like(X, 1e9)])
    with pytest.warns(FitWarning, match="column 1 of x is constant"):
        fit = run(x, Y, model=make_model(features=2), max_steps=300)
    assert bool(fit.density(x).mean.isfinite().all())


def test_a_small_spread_far_from_zero_is_resolved():
    y = Y.astype(np.float64)
    # Few steps: of many, rounding to 1e-7 makes another fit.
    fit, plain = run(X, y * 1e-4 + 1e9), run(X, y)
    assert math.isclose(fit.best_nll - plain.best_nll, math.log(1e-4), abs_tol=0.05)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e150])
def test_any_units_will_do(scale):
    fit = run(X, Y.astype(np.float64) * scale)
    plain = run(X, Y.astype(np.float64))
    assert math.isclose(fit.best_nll - plain.best_nll, math.log(scale), abs_tol=1e-2)


# -- parts of the loop ----------------------------------------------------------------------------


def test_the_marginal_density_is_near_the_truth():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3000, 1, generator=generator, dtype=torch.float64)
    for values in (y[:, 0], torch.cat([y, y.flip(0)], 1)):
        density = marginal_density(values)
        dims = 1 if values.ndim == 1 else 2
        fresh = torch.randn(500, 2, generator=generator, dtype=torch.float64)
        nll = -density.log_prob(fresh[:, 0] if dims == 1 else fresh).mean()
        exact = dims * 0.5 * math.log(2 * math.pi) + 0.5 * (fresh[:, :dims] ** 2).sum(1).mean()
        assert abs(float(nll - exact)) < 0.05


def test_the_bar_shows_the_held_out_score_beside_the_marginals(capsys):
    fit = run(progress=True)
    shown = capsys.readouterr().err
    assert "held-out NLL" in shown and f"marginal {fit.marginal:.3f}" in shown
    run(progress=False)
    assert capsys.readouterr() == ("", "")


def test_layers_that_are_not_to_be_trained_stay_as_they_are():
    trunk = pa.networks.MLP(1, (8, 8))
    for parameter in trunk.layers[0].parameters():
        parameter.requires_grad_(False)
    model = pa.MDN(trunk, pa.MixtureHead(8, 3))
    before = [p.detach().clone() for p in trunk.parameters()]
    problem = pa.datasets.inverse_sinusoid(100, seed=0)
    pa.fit(model, problem.x, problem.y, max_steps=20, progress=False)
    same = [torch.equal(p, b) for p, b in zip(trunk.parameters(), before, strict=True)]
    assert same[:2] == [True, True] and not any(same[2:])
