"""Diagnostics name the fault and the remedy, and say nothing of a healthy fit."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pyralloy as pa
from pyralloy.inference import diagnostics
from pyralloy.inference.diagnostics import FitWarning
from pyralloy.inference.recovery import Diverged, Recovery
from pyralloy.inference.rows import Rows, copies, split
from pyralloy.marginal import condensed, marginal_density

F64 = torch.float64


def data(rows, seed, columns=2):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    return x, np.sin(2 * x[:, 0]) + 0.3 * rng.normal(size=rows), rng


def run(x, y, components=10, family="normal", **options):
    options = {"max_steps": 150, "progress": False} | options
    targets = None if y.ndim == 1 else y.shape[1]
    trunk = pa.networks.MLP(x.shape[1], hidden=(32, 32))
    head = pa.MixtureHead(32, components, targets, family=family)
    return pa.fit(pa.MDN(trunk, head), x, y, **options)


def warned(x, y, match, **options):
    with pytest.warns(FitWarning, match=match):
        fit = run(x, y, **options)
    assert any(said for said in fit.diagnostics)
    assert all(bool(p.isfinite().all()) for p in fit.model.parameters())
    return fit


# -- healthy fits ---------------------------------------------------------------------------------


def both(problem):
    return problem.x, problem.y


HEALTHY = [
    *((f"sine {n}", lambda seed, n=n: data(n, seed)[:2]) for n in (150, 400, 2000)),
    ("inverse sinusoid", lambda seed: both(pa.datasets.inverse_sinusoid(400, seed=seed))),
    ("sinusoid", lambda seed: both(pa.datasets.sinusoid(400, seed=seed))),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "make"), HEALTHY)
def test_a_healthy_fit_is_not_spoken_of(name, make, seed):
    x, y = (np.asarray(v) for v in make(seed))
    assert run(x, y, components=(2, 5, 10, 20)[seed], seed=seed, max_steps=200).diagnostics == ()


# -- faults ---------------------------------------------------------------------------------------


def test_a_target_of_few_values_is_pointed_to_counts_and_crps():
    x, y, _ = data(400, 0)
    warned(x, np.round(2 * y), r"only \d+ distinct values in 360 rows.*CRPS.*poisson")


def test_a_value_that_many_rows_share_is_named_in_the_units_of_y():
    x, y, rng = data(400, 0)
    y = 5.0 + np.where(rng.random(400) < 0.3, 2.5, 10 * y)
    warned(x, y, r"\d+% of the rows have y = 7.5; .*CRPS")


def test_an_interval_far_wider_than_y_is_named_and_one_of_its_size_is_not():
    x, y, _ = data(400, 0)
    near, far = (pa.families.TruncatedNormalFamily(-reach, reach) for reach in (5.0, 30.0))
    assert run(x, y, family=near).diagnostics == ()
    warned(x, y, r"from -30 to 30, which is 7\d of its deviations.*nearer", family=far)


def test_rows_far_out_are_counted():
    x, y, _ = data(400, 0)
    y[[3, 50]] = 1e6
    warned(x, y, r"2 of 4?\d+ y lie beyond 100 spreads.*student_t", validation=None)


def test_constant_and_equal_columns_are_numbered():
    x, y, _ = data(400, 0)
    x = np.column_stack([x, np.full(400, 3.0), 7 - 2 * x[:, 0]])
    with pytest.warns(FitWarning) as caught:
        fit = run(x, y)
    said = [str(w.message) for w in caught]
    assert any("column 2 of x is constant" in s for s in said)
    assert any("columns 0 and 3 of x are the same but for shift and scale" in s for s in said)
    assert set(fit.diagnostics) == set(said)


def test_an_input_that_stands_for_nothing_is_named():
    x, y, _ = data(400, 0)
    x[::50, 1] = -1e30
    fit = warned(x, y, "column 1 of x hold.* beyond 1e[+]08 spreads", validation=None)
    assert fit.best_nll < fit.marginal - 0.3


def test_copies_of_held_out_rows_are_named_and_a_split_keeps_them_together():
    x, y, _ = data(300, 0)
    held = (x[:50], y[:50])
    warned(x, y, r"50 of 50 held-out rows are copies", validation=held)
    rows = Rows(torch.as_tensor(x).repeat(4, 1), torch.as_tensor(y).repeat(4))
    model = pa.MDN(pa.networks.MLP(2), pa.MixtureHead(64, 3))
    kept, out = split(rows, 0.1, model, torch.Generator().manual_seed(0))
    assert not bool(torch.isin(out.y, kept.y).any())
    assert abs(len(out.y) - 120) <= 4 and len(out.y) + len(kept.y) == 1200


def test_replicates_of_a_discrete_input_are_no_copies():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.integers(0, 5, (500, 1)).astype(float))
    assert copies(Rows(x, torch.as_tensor(rng.normal(size=500)))) is None
    assert copies(Rows(x, torch.as_tensor(rng.integers(0, 3, 500).astype(float)))) is None
    assert copies(Rows(x, 2 * x[:, 0])) is not None


def test_a_fit_that_learnt_nothing_is_the_marginal_density():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 2)), rng.normal(size=400)
    fit = warned(x, y, "not better than the density of y that ignores x", components=20)
    assert fit.best_step == 0 and fit.history.step[0] == 0
    density = fit.density(rng.normal(size=(50, 2)))
    at = density.icdf(torch.full((50,), 0.3))
    assert float(at.max() - at.min()) < 1e-6  # x counts for nothing
    fresh = torch.as_tensor(rng.normal(size=5000))
    gap = fit.density(x[:1]).log_prob(fresh[:, None]).mean()
    gap -= marginal_density(torch.as_tensor(y)).log_prob(fresh).mean()
    assert float(gap) > -0.05


def test_a_vector_fit_that_learnt_nothing_is_the_marginal_density_too():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(400, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    fit = warned(rng.normal(size=(400, 2)), y, "not better than the density", components=20)
    fresh = torch.as_tensor(rng.normal(size=(5000, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]]))
    density, kernels = fit.density(rng.normal(size=(1, 2))), marginal_density(torch.as_tensor(y))
    gap = density.log_prob(fresh[:, None]).mean() - kernels.log_prob(fresh).mean()
    assert fit.best_step == 0 and float(gap) > -0.05


def test_one_component_is_told_to_take_more():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 1))
    y = rng.choice([-3.0, 3.0], 400) + 0.3 * x[:, 0] + 0.2 * rng.normal(size=400)
    fit = warned(
        x, y, "not better .*: take more, or another family|now is the density", components=1
    )
    assert fit.best_nll > fit.marginal


def test_few_rows_held_out_are_not_asked():
    x, y, _ = data(20, 0)
    fit = warned(x, y, "2 held-out rows cannot tell what 18 rows taught")
    assert fit.best_step == 0
    assert run(x, y, validation=None).best_step == 150


def test_a_trial_run_is_not_judged():
    x, y, _ = data(20, 0)
    assert run(x, y, max_steps=5).diagnostics == ()


# -- recovery -------------------------------------------------------------------------------------


class Failing(nn.Linear):
    """Give NaN where x is in the middle, in the forward passes that it is told to."""

    def __init__(self, passes, only=False):
        super().__init__(1, 8)
        self.passes, self.only, self.count = passes, only, 0

    def forward(self, x):
        h = super().forward(x)
        if not self.training:
            return h
        self.count += 1
        if self.count not in self.passes:
            return h
        return torch.where((x > 2.0) | (not self.only), math.nan, h)


def failing(passes, **options):
    x, y, _ = data(400, 0, columns=1)
    model = pa.MDN(Failing(passes), pa.MixtureHead(8, 5))
    return pa.fit(model, x, y, max_steps=200, progress=False, **options)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_loss_that_is_nan_for_once_costs_a_return_to_half_the_rate():
    with pytest.warns(FitWarning, match="at 2 steps .the first 40. .*1/4 of the learning rate"):
        fit = failing({40, 90})
    assert fit.history.step[-1] == 200 and bool(np.isfinite(fit.history.validation).all())
    assert fit.best_nll < fit.marginal


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_loss_that_stays_nan_is_named_with_its_rows_and_the_model_is_finite():
    x, y, _ = data(400, 0, columns=1)
    x[17] = 9.0
    model = pa.MDN(Failing(range(1, 10**6), only=True), pa.MixtureHead(8, 5))
    with pytest.raises(
        Diverged, match=r"after 8 returns .* rows last seen have no finite"
    ) as caught:
        pa.fit(model, x, y, max_steps=2000, progress=False, validation=None)
    standard = model.x_scaling(torch.as_tensor(x), torch.float32)
    bad = standard[standard[:, 0] > 2.0]
    assert len(caught.value.rows[0]) >= 1
    assert all(bool((row == bad).all(-1).any()) for row in caught.value.rows[0])
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert bool(model.density(torch.as_tensor(x)).mean.isfinite().all())


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_any_learning_rate_ends_with_a_finite_model():
    x, y, _ = data(400, 0)
    with warnings.catch_warnings():  # such a rate may learn something, or nothing, which is said
        warnings.simplefilter("ignore", FitWarning)
        assert (fit := run(x, y, learning_rate=1.0)).best_nll < fit.marginal + 0.05
    with pytest.warns(FitWarning, match="now is the density"):
        fit = run(x, y, learning_rate=1e3)
    assert fit.best_nll < fit.marginal + 0.05
    model = pa.MDN(pa.networks.MLP(2, hidden=(32, 32)), pa.MixtureHead(32, 10))
    with pytest.raises(Diverged, match="lower learning_rate"):
        pa.fit(model, x, y, learning_rate=1e20, progress=False)
    with torch.no_grad():
        score = model.density(torch.as_tensor(x)).log_prob(torch.as_tensor(y)).mean()
    assert float(-score) < 5.0


def test_what_recovery_needs_is_in_its_state():
    class Engine:
        def __init__(self):
            self.w = torch.ones(3)
            self.parameters = type("P", (), {"module": nn.Identity(), "gradient": torch.zeros(3)})

        def state(self):
            return {"w": self.w}

        def load(self, state):
            self.w.copy_(state["w"])

    engine = Engine()
    one = Recovery(engine)
    engine.w.fill_(2.0)
    one.note(7)
    engine.w.fill_(math.nan)
    assert not one.accepts("loss", math.nan, 9)
    assert engine.w.tolist() == [2.0] * 3 and one.factor == 0.5 and one.steps == [9]
    engine.w.fill_(5.0)
    two = Recovery(engine)
    two.load(one.state())
    assert not two.accepts("loss", math.inf, 11)
    assert engine.w.tolist() == [2.0] * 3 and two.factor == 0.25 and two.steps == [9, 11]


# -- the marginal in few components ---------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 20, 100])
@pytest.mark.parametrize("kind", ["normal", "uniform", "cauchy", "outliers", "half"])
def test_few_normals_are_as_good_as_the_kernels(kind, count):
    rng = np.random.default_rng(0)

    def draw(rows):
        y = rng.normal(size=rows)
        if kind == "uniform":
            y = rng.random(rows)
        elif kind == "cauchy":
            y = rng.standard_cauchy(rows)
        elif kind == "outliers":
            y[: rows // 100] = 1e6
        elif kind == "half":
            y = np.where(rng.random(rows) < 0.5, 0.0, y)
        return torch.as_tensor(y)

    y, fresh = draw(400), draw(20_000)
    loc, scale, weight = condensed(y, count)
    assert loc.shape == scale.shape == weight.shape == (count,)
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-12)
    few = pa.Mixture(
        torch.distributions.Categorical(probs=weight), torch.distributions.Normal(loc, scale)
    )
    excess = marginal_density(y).log_prob(fresh).mean() - few.log_prob(fresh).mean()
    assert float(excess) < 0.03
    assert float((few.mean - y.mean()).abs()) < 1e-8 * float(y.abs().max())


# -- weights --------------------------------------------------------------------------------------


def decided(x, y, held, weights, held_weights):
    """Give the fit, and whether the marginal density took its place."""
    options = {"validation": held if held_weights is None else (*held, held_weights)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        # Unstretched: a width chosen on the held-out rows more often seems a gain where none is.
        fit = run(x, y, weights=weights, batch_size=10_000, stretch=False, **options)
    return fit, fit.best_step == 0


@pytest.mark.parametrize("signal", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_weight_of_two_decides_as_a_row_that_is_there_twice(signal, seed):
    x, y, rng = data(300, seed)
    y = y if signal else rng.normal(size=300)
    often = np.where(np.arange(300) % 3 == 0, 2, 1)
    trained, held = slice(0, 200), slice(200, 300)
    twice = [np.repeat(v[part], often[part], 0) for part in (trained, held) for v in (x, y)]
    _, fell = decided(x[trained], y[trained], (x[held], y[held]), often[trained], often[held])
    _, too = decided(twice[0], twice[1], tuple(twice[2:]), None, None)
    assert fell == too == (signal == 0.0)
    same, _ = decided(
        x[trained], y[trained], (x[held], y[held]), np.full(200, 2.0), np.full(100, 2.0)
    )
    plain, _ = decided(x[trained], y[trained], (x[held], y[held]), None, None)
    assert same.best_step == plain.best_step and same.diagnostics == plain.diagnostics


def test_rows_that_hardly_count_decide_nothing():
    """Of 500 held-out rows 480 have next to no weight: what is learnt there is no evidence."""
    x, y, rng = data(1000, 0)
    held_x, held_y, _ = data(500, 1)
    count = np.where(np.arange(500) < 20, 1.0, 1e-9)
    held_y = np.where(count == 1.0, rng.permutation(held_y), held_y)
    _, fell = decided(x, y, (held_x, held_y), None, None)
    assert not fell
    _, fell = decided(x, y, (held_x, held_y), np.ones(1000), count)
    assert fell


def test_the_density_in_place_of_a_weighted_fit_is_a_weighted_one():
    """By chance a fit to noise may be kept: the first that is not is looked at."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2000, 2)), rng.normal(size=2000)
        weights = np.exp(0.7 * y)  # tilted: a Normal about 0.7
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)
            fit = run(x, y, weights=weights)
        if fit.best_step == 0:
            break
    assert "now is the density" in " ".join(fit.diagnostics)
    assert abs(float(fit.density(x[:1]).mean) - 0.7) < 0.15  # unweighted it is about 0


def test_rows_drawn_by_weight_have_the_weighted_mean_and_keep_the_extremes() -> None:
    count = 2 * diagnostics.MOST_WEIGHED + 1
    y = torch.linspace(0.0, 1.0, count)
    y[7] = 1e3  # one row far out, which evenly spaced ones pass by
    drawn = diagnostics._by_weight(Rows(y[:, None], y, y.clamp_max(1.0)))
    assert len(drawn) < count
    assert abs(float(drawn[drawn <= 1.0].mean()) - 2 / 3) < 1e-3
    assert (float(drawn.min()), float(drawn.max())) == (0.0, 1e3)
