"""Posteriors: exact where one is known, pooled exactly, and equal in law to Pyro's."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import conjugate_model, conjugate_rows, exact_posterior
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from pyro.nn import PyroModule, PyroParam
from scipy import stats

import pyralloy as pa
from pyralloy import priors
from pyralloy.inference.objective import pyro_runtime
from pyralloy.inference.posterior import Draws, Gaussian, Site
from pyralloy.inference.potential import Potential

PROBLEM = pa.datasets.inverse_sinusoid(300, seed=0)


def make_model(prior=None, components=4, targets=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = pa.networks.MLP(1, hidden=(8,))
        head = pa.MixtureHead(8, components, targets)
        return pa.MDN(trunk, head, prior=priors.FanIn() if prior is None else prior)


def run(guide=AutoNormal, model=None, x=PROBLEM.x, y=PROBLEM.y, **options):
    options = {"max_steps": 60, "progress": False, "seed": 1} | options
    return pa.fit(model or make_model(), x, y, guide=guide, **options)


@pytest.fixture(scope="module")
def fitted():
    return run(max_steps=200)


# -- the posterior, where it is known -------------------------------------------------------------


def test_laplace_is_exact_for_a_linear_network():
    x, y = conjugate_rows()
    for batch_size in (32, 200):
        model = conjugate_model()
        fit = run(
            AutoLaplaceApproximation, model, x, y, validation=None, batch_size=batch_size, seed=0
        )
        mean, covariance, _ = exact_posterior(model, x, y)
        spread = covariance.diagonal().sqrt()
        posterior = fit.posterior
        assert float(((posterior.loc - mean) / spread).abs().max()) < 0.02
        apart = (posterior.covariance - covariance) / spread / spread[:, None]
        assert float(apart.abs().max()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [100, 200])
def test_a_full_normal_guide_reaches_the_exact_posterior(batch_size):
    x, y = conjugate_rows()
    model = conjugate_model()
    fit = run(
        AutoMultivariateNormal,
        model,
        x,
        y,
        validation=None,
        batch_size=batch_size,
        learning_rate=0.002,
        max_steps=8000,
        start=300,
    )
    mean, covariance, evidence = exact_posterior(model, x, y)
    spread = covariance.diagonal().sqrt()
    assert float(((fit.posterior.loc - mean) / spread).abs().max()) < 0.06
    apart = (fit.posterior.covariance - covariance) / spread / spread[:, None]
    assert float(apart.abs().max()) < 0.06
    z, t = model.x_scaling(x, torch.float32), model.y_scaling(y, torch.float32)
    with pyro_runtime(), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        elbo = Trace_ELBO()(model, fit.guide)
        bounds = torch.stack([-elbo(z, t, standard=True) for _ in range(400)]).double()
    error = float(bounds.std()) / 20
    assert -0.01 - 3 * error < float(bounds.mean()) - evidence < 3 * error


def test_the_potential_is_minus_pyros_joint_density():
    """On the real line: of a scale, with the Jacobian of its logarithm."""
    model = make_model(priors.Hierarchical())
    z = torch.linspace(-1.0, 1.0, 9)[:, None]
    t = z[:, 0].sin()
    potential = Potential(model, z, t)
    vector = potential.start + 0.1 * torch.randn(
        potential.start.shape, generator=torch.Generator().manual_seed(0)
    )
    values = Gaussian(potential.sites, vector).centre()
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        conditioned = poutine.condition(model, values)
        trace = poutine.trace(conditioned).get_trace(z, t, standard=True)
    scales = [v for n, v in values.items() if n.endswith("prior_scale")]
    assert scales
    joint = trace.log_prob_sum() + torch.stack(scales).log().sum()
    assert torch.allclose(-potential(vector), joint, rtol=1e-5)


# -- every guide ----------------------------------------------------------------------------------


class MeanField(PyroModule):
    """A guide of one's own, for one weight, the rest by maximum likelihood."""

    def __init__(self, model):
        super().__init__()
        (self.name,) = model.uncertain()
        weight = model.weights()[self.name]
        self.loc = torch.nn.Parameter(weight.detach().clone())
        self.scale = PyroParam(torch.full_like(self.loc, 0.02), dist.constraints.positive)

    def forward(self, *args, **kwargs):
        shape = dist.Normal(self.loc, self.scale).to_event(self.loc.ndim)
        return pyro.sample(self.name, shape)


ONE = priors.ByName({"trunk.layers.0.weight": dist.Normal(0.0, 1.0)})
FLOW = [
    lambda m: AutoNormalizingFlow(m, lambda dim: iterated(1, affine_autoregressive, dim)),
    ONE,
]


@pytest.mark.parametrize(
    ("guide", "prior"),
    [
        (AutoNormal, None),
        (AutoDiagonalNormal, None),
        (AutoLowRankMultivariateNormal, None),
        (AutoMultivariateNormal, None),
        (AutoLaplaceApproximation, priors.LastLayer()),
        (AutoNormal, priors.Hierarchical()),
        (lambda model: AutoNormal(model, init_scale=0.03), priors.LastLayer()),
        (MeanField, ONE),
        FLOW,
    ],
    ids=["normal", "diagonal", "low-rank", "full", "laplace", "hierarchy", "lambda", "own", "flow"],
)
def test_draws_of_a_fit_are_those_of_its_guide(guide, prior):
    """Means and deviations of 2,000 draws, ours without Pyro and Pyro's, in each weight."""
    model = make_model(prior)
    fit = run(guide, model, max_steps=40)
    ours = fit.weights(2000, seed=3)
    assert set(model.uncertain()) <= set(ours)
    if guide is AutoLaplaceApproximation:
        return  # its guide is the point; the oracle above is of its posterior
    z = torch.zeros(2, 1)
    with pyro_runtime(), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        traces = [poutine.trace(fit.guide).get_trace(z) for _ in range(500)]
    for name in model.uncertain():
        theirs = torch.stack([trace.nodes[name]["value"] for trace in traces])
        spread = theirs.std(0)
        gap = (ours[name].mean(0) - theirs.mean(0)) / spread
        assert float(gap.abs().max()) < 5 * math.sqrt(1 / 500 + 1 / 2000), name
        assert float((ours[name].std(0) / spread).log().abs().max()) < 5 / math.sqrt(2 * 400), name


def test_map_is_one_value_of_the_weights_and_shrinks_them():
    tight, wide = make_model(dist.Normal(0.0, 0.05)), make_model(dist.Normal(0.0, 5.0))
    size = {}
    for model in (tight, wide):
        fit = run(AutoDelta, model, max_steps=300, validation=None)
        assert fit.posterior is None and fit.weights(5) == {}
        assert fit.density(PROBLEM.x[:3]).num_components == 4
        size[model] = sum(float(w.detach().square().sum()) for w in model.weights().values())
    assert size[tight] < 0.1 * size[wide]


def test_weights_without_a_prior_are_learnt_beside_the_guide():
    model = make_model(priors.LastLayer())
    fit = run(AutoNormal, model, max_steps=30, start=0)
    again = make_model(priors.LastLayer())
    before = run(AutoNormal, again, max_steps=30, start=0, learning_rate=1e-12)
    trunk = [n for n in model.weights() if n.startswith("trunk.")]
    assert set(fit.weights(2)) == set(model.weights()) - set(trunk)
    for name in trunk:
        assert not torch.equal(model.weights()[name], again.weights()[name])
    assert before.posterior is not None


@pytest.mark.slow
def test_a_posterior_narrows_with_data_and_with_temperature():
    few = run(x=PROBLEM.x[:30], y=PROBLEM.y[:30], max_steps=600, validation=None)
    many = run(max_steps=600, validation=None)
    cold = run(max_steps=600, validation=None, temperature=0.1)
    spread = [float(f.posterior.scale.log().mean()) for f in (few, many, cold)]
    assert spread[0] > spread[1] + 0.1 and spread[1] > spread[2] + 0.3
    assert cold.temperature == 0.1 and many.temperature == 1.0
    assert "temperature=0.1" in repr(cold) and "temperature" not in repr(many)


@pytest.mark.slow
def test_held_out_rows_report_and_do_not_choose():
    """Chosen by the rows that stopped the first fit, a guide would keep its first, narrow steps."""
    fit = run(max_steps=400)
    assert fit.best_step == 400 and bool(np.isfinite(fit.history.validation).all())
    # Without a stretch, for which the rows held out are looked at once more in the end.
    chosen = run(max_steps=400, patience=100, stretch=False)
    assert chosen.best_nll == np.nanmin(chosen.history.validation)
    assert chosen.best_step == 400 or float(chosen.posterior.scale.log().mean()) < float(
        fit.posterior.scale.log().mean()
    )


@pytest.mark.slow
def test_a_warm_up_ends_at_the_same_posterior_in_law():
    x, y = conjugate_rows(60)
    spreads = []
    for warm_up in (0.0, 0.5):
        fit = run(
            AutoNormal, conjugate_model(), x, y, validation=None, max_steps=1500, warm_up=warm_up
        )
        spreads.append(fit.posterior.scale)
    assert float((spreads[0] / spreads[1]).log().abs().max()) < 0.25


def test_the_same_seed_gives_the_same_posterior_whatever_torch_was_doing():
    known = list(pyro.get_param_store().keys())
    torch.manual_seed(1)
    one = run(seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = run(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.posterior.loc, two.posterior.loc)
    assert torch.equal(one.posterior.scale, two.posterior.scale)
    assert list(pyro.get_param_store().keys()) == known


def test_the_model_holds_the_centre_of_its_posterior(fitted):
    for name, weight in fitted.model.weights().items():
        assert torch.allclose(weight, fitted.posterior.centre()[name])
        assert weight.requires_grad


# -- prediction -----------------------------------------------------------------------------------

GRID = torch.linspace(-10.0, 10.0, 7)[:, None]


def test_the_pool_is_the_average_of_hand_made_densities(fitted):
    draws = fitted.weights(8, seed=5)
    y = torch.linspace(-8.0, 8.0, 7)
    model = make_model()
    model.load_state_dict(fitted.model.state_dict())
    by_hand = []
    for s in range(8):
        model.load_state_dict({**model.state_dict(), **{n: v[s] for n, v in draws.items()}})
        by_hand.append(model.density(GRID).log_prob(y).exp().detach())
    pooled = fitted.density(GRID, draws=8, seed=5)
    assert pooled.num_components == 8 * 4
    assert torch.allclose(pooled.log_prob(y).exp(), torch.stack(by_hand).mean(0), rtol=1e-6)
    each = fitted.densities(GRID, draws=8, seed=5)
    assert each.batch_shape == (8, 7)
    assert torch.allclose(each.log_prob(y).exp(), torch.stack(by_hand), rtol=1e-6)


def test_a_pool_of_one_is_its_member(fitted):
    one, each = fitted.density(GRID, draws=1), fitted.densities(GRID, draws=1)
    assert one.num_components == 4
    assert torch.equal(one.mean, each[0].mean) and torch.equal(one.logits, each[0].logits)


def test_rows_and_draws_in_chunks_are_those_at_once(fitted, monkeypatch):
    whole, y = fitted.density(GRID, draws=6), torch.zeros(7)
    drawn = fitted.densities(GRID, draws=6)
    monkeypatch.setattr("pyralloy.inference.fit.AT_ONCE", 2 * 6 * 4)
    cut = fitted.density(GRID, draws=6)
    assert torch.allclose(whole.log_prob(y), cut.log_prob(y), rtol=1e-6)
    assert torch.allclose(drawn.mean, fitted.densities(GRID, draws=6).mean, rtol=1e-6)
    assert fitted.predictive(GRID, draws=6).shape == (6, 7)


def test_a_reduced_pool_keeps_mean_and_variance(fitted):
    whole, fewer = fitted.density(GRID, draws=50), fitted.density(GRID, draws=50, reduce=6)
    assert fewer.num_components == 6
    assert torch.allclose(whole.mean, fewer.mean, rtol=1e-6, atol=1e-6)
    assert torch.allclose(whole.variance, fewer.variance, rtol=1e-6)
    y = fewer.sample((200,), generator=torch.Generator().manual_seed(0))
    gap = fewer.log_prob(y) - whole.log_prob(y)
    assert float(gap.mean()) < 0.1  # an estimate of the divergence, in nats


def test_predictive_draws_follow_the_exact_predictive_and_pyros(fitted):
    x = torch.tensor([[-5.0], [0.0], [5.0]])
    ours = fitted.predictive(x, draws=800, seed=2)
    exact = fitted.density(x, draws=800, seed=7)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = Predictive(fitted.model, guide=fitted.guide, num_samples=600)(x)["y"]
    for row in range(3):
        u = exact.cdf(ours)[:, row].numpy()
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        assert stats.ks_2samp(ours[:, row].numpy(), theirs[:, row].numpy()).pvalue > 1e-3


def test_variance_and_entropy_split_into_two_parts_that_add_up(fitted):
    pooled = fitted.density(GRID, draws=20)
    variance, entropy = fitted.variance(GRID, draws=20), fitted.entropy(GRID, draws=20)
    assert torch.allclose(variance.total, pooled.variance, rtol=1e-6)
    assert torch.allclose(variance.within + variance.between, pooled.variance, rtol=1e-6)
    assert torch.allclose(entropy.within + entropy.between, pooled.entropy(), atol=1e-6)
    assert bool((variance.between > 0).all() and (entropy.between > -1e-9).all())


def test_a_point_has_no_epistemic_part():
    fit = run(None, make_model().without_prior(), max_steps=300)
    assert float(fit.variance(GRID).between.abs().max()) == 0.0
    assert float(fit.entropy(GRID).between.abs().max()) < 1e-9
    assert torch.equal(fit.density(GRID, draws=7).mean, fit.density(GRID).mean)
    assert fit.predictive(GRID, draws=9).shape == (9, 7)
    assert fit.weights(3) == {}


def test_a_vector_target_is_pooled_too():
    y = torch.stack([PROBLEM.y, -PROBLEM.y], 1)
    fit = run(AutoNormal, make_model(targets=2), y=y, max_steps=30)
    assert fit.density(GRID, draws=3).event_shape == (2,)
    assert fit.predictive(GRID, draws=3).shape == (3, 7, 2)
    assert fit.variance(GRID, draws=3).total.shape == (7, 2)


def test_predictions_take_no_turn_at_pyros_runtime(fitted):
    """A guide of Pyro's is drawn from while another thread holds the runtime for a long fit."""
    import threading

    held, done = threading.Event(), threading.Event()

    def hold():
        with pyro_runtime():
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(5)
        state = torch.get_rng_state()
        fitted.density(GRID, draws=5)
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        done.set()
        thread.join()


def test_kept_draws_are_each_taken_once_before_any_twice():
    kept = Draws({"w": torch.arange(10.0).reshape(2, 5)})
    generator = torch.Generator().manual_seed(0)
    assert kept.draw(10, generator)["w"].sort().values.tolist() == list(range(10))
    counts = kept.draw(25, generator)["w"].long().bincount()
    assert set(counts.tolist()) == {2, 3}


def test_draws_of_a_normal_have_its_covariance():
    site = Site("w", torch.Size([3]), dist.constraints.real)
    factor, scale = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([0.5, 1.0, 2.0])
    posterior = Gaussian([site], torch.zeros(3), factor=factor, scale=scale)
    exact = factor @ factor.mT + scale.square().diag()
    assert torch.allclose(posterior.covariance, exact)
    drawn = posterior.draw(40_000, torch.Generator().manual_seed(0))["w"]
    assert float((torch.cov(drawn.T) - exact).abs().max()) < 5 * 7.0 / math.sqrt(40_000)


# -- out of distribution --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_epistemic_share_grows_with_distance_from_the_data():
    problem = pa.datasets.inverse_sinusoid(1000, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = pa.networks.MLP(1, hidden=(32,))
        model = pa.MDN(trunk, pa.MixtureHead(32, 8), prior=priors.FanIn())
    fit = run(AutoNormal, model, problem.x, problem.y, max_steps=2000)
    inside, outside = torch.tensor([-4.0, 0.0, 4.0]), torch.tensor([12.0, 15.0, 20.0, 30.0])
    near, far = (fit.entropy(x, draws=100).between for x in (inside, outside))
    assert float(far.min()) > 2 * float(near.max())
    assert bool((far.diff() > 0).all())


# -- bad input ------------------------------------------------------------------------------------


class Scored(PyroModule):
    """A guide without pathwise gradients."""

    def __init__(self, model):
        super().__init__()
        self.names = {n: w.shape for n, w in model.weights().items()}
        self.loc = torch.nn.Parameter(torch.zeros(()))

    def forward(self, *args, **kwargs):
        for name, shape in self.names.items():
            normal = dist.Normal(self.loc.expand(shape), 0.1).has_rsample_(False)
            pyro.sample(name, normal.to_event(len(shape)))


class Partial(Scored):
    """A guide that forgets all weights but one."""

    def forward(self, *args, **kwargs):
        name, shape = next(iter(self.names.items()))
        pyro.sample(name, dist.Normal(self.loc, 0.1).expand(shape).to_event(len(shape)))


@pytest.mark.parametrize(
    ("guide", "prior", "error", "message"),
    [
        (AutoNormal, False, ValueError, "the model has no prior"),
        (None, priors.FanIn(), ValueError, "model has a prior and guide is None"),
        ("vi", priors.FanIn(), TypeError, "guide='vi'"),
        (lambda model: None, priors.FanIn(), TypeError, "gives NoneType: it must give a module"),
        (Scored, priors.FanIn(), ValueError, "has no rsample"),
        (Partial, priors.FanIn(), ValueError, "guide leaves out"),
        (AutoDelta, priors.Hierarchical(), ValueError, "most probable weights"),
        (AutoLaplaceApproximation, priors.Hierarchical(), ValueError, "most probable weights"),
    ],
)
def test_a_guide_that_does_not_go_with_the_model_is_refused(guide, prior, error, message):
    model = make_model().without_prior() if prior is False else make_model(prior)
    with pytest.raises(error, match=message):
        run(guide, model, start=2, max_steps=2)
    assert all(w.requires_grad for w in model.weights().values())


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("temperature", 0.0, ValueError),
        ("temperature", -1.0, ValueError),
        ("temperature", "cold", TypeError),
        ("warm_up", 1.5, ValueError),
        ("warm_up", -0.5, ValueError),
        ("start", -1, ValueError),
        ("start", 2.5, TypeError),
    ],
)
def test_options_of_a_guide_out_of_range_are_refused_by_name(option, value, error):
    with pytest.raises(error, match=option):
        run(**{option: value})


def test_draws_out_of_range_are_refused(fitted):
    for ask in (fitted.density, fitted.densities, fitted.predictive, fitted.entropy):
        with pytest.raises(ValueError, match="draws=0"):
            ask(GRID, draws=0)
        with pytest.raises(TypeError, match=r"draws=2\.5"):
            ask(GRID, draws=2.5)
    with pytest.raises(ValueError, match="draws=-1"):
        fitted.weights(-1)
    with pytest.raises(ValueError, match="reduce=0"):
        fitted.density(GRID, reduce=0)


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"warm_up": 0.1}, {"start": 10}])
def test_what_goes_with_a_guide_is_refused_without_one(options):
    model = pa.MDN(pa.networks.MLP(1, (4,)), pa.MixtureHead(4, 2))
    x = torch.linspace(0.0, 1.0, 30)[:, None]
    with pytest.raises(ValueError, match="go with a guide, and guide is None"):
        pa.fit(model, x, x[:, 0], max_steps=3, progress=False, **options)


@pytest.mark.parametrize(
    ("warm_up", "error", "message"),
    [
        (1.0, ValueError, r"warm_up=1.0: .* from 0 to below 1"),
        (-0.5, ValueError, r"warm_up=-0.5"),
        ("half", TypeError, r"warm_up='half'"),
    ],
)
def test_the_warm_up_is_a_fraction_below_one(warm_up, error, message):
    model = pa.MDN(pa.networks.MLP(1, (4,)), pa.MixtureHead(4, 2), prior=dist.Normal(0.0, 1.0))
    x = torch.linspace(0.0, 1.0, 30)[:, None]
    with pytest.raises(error, match=message):
        pa.fit(model, x, x[:, 0], guide=AutoNormal, warm_up=warm_up, progress=False)


# -- what held-out rows choose --------------------------------------------------------------------


def test_a_loss_that_holds_the_prior_is_not_shown_as_a_score():
    bound = run(AutoNormal, max_steps=20, validation=None)
    assert f"loss={bound.best_nll:.4f})" in repr(bound) and "marginal" not in repr(bound)
    scored = run(AutoNormal, max_steps=20, validation=0.2)
    assert f"nll={scored.best_nll:.4f}, marginal={scored.marginal:.4f}" in repr(scored)


@pytest.mark.parametrize("terms", [{"start": 10}, {"warm_up": 0.5}])
@pytest.mark.parametrize("options", [{}, {"validation": None, "x_noise": 0.1}])
def test_terms_of_a_second_run_are_refused_where_there_is_none(terms, options):
    with pytest.raises(ValueError, match=r"AutoLaplace.* one run only"):
        run(AutoLaplaceApproximation, make_model(priors.LastLayer()), **terms, **options)


def test_laplace_lies_about_the_weights_that_held_out_rows_choose():
    model, alone = make_model(priors.LastLayer()), make_model(priors.LastLayer()).without_prior()
    fit = run(AutoLaplaceApproximation, model, max_steps=80)
    plain = pa.fit(alone, PROBLEM.x, PROBLEM.y, max_steps=80, seed=1, progress=False)
    centre = fit.posterior.centre()
    assert set(centre) == {n for n in model.weights() if n.startswith("head.")}
    for name, weight in alone.weights().items():
        if name == "head.outputs.bias":  # of maximum likelihood, widths are in the weights
            kept = len(weight) * 2 // 3
            assert torch.equal(centre[name][:kept], weight[:kept])
            continue
        assert torch.equal(centre.get(name, model.weights()[name]), weight), name
    assert fit.best_step == plain.best_step


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal, AutoLaplaceApproximation])
def test_the_pool_of_a_guide_is_as_wide_as_held_out_rows_ask_for(guide):
    held = pa.datasets.inverse_sinusoid(400, seed=1)
    prior = priors.LastLayer()
    fits = [
        run(guide, make_model(prior), max_steps=80, validation=(held.x, held.y), stretch=on)
        for on in (True, False)
    ]
    scores = [-float(fit.density(held.x).log_prob(held.y).mean()) for fit in fits]
    assert float(fits[0].model.head.wider) != 0.0 == float(fits[1].model.head.wider)
    assert scores[0] < scores[1] + 0.005
    near = 1e-5 if guide is AutoDelta else 0.05  # the history pools fewer draws
    assert fits[0].best_nll == pytest.approx(scores[0], abs=near)


@pytest.mark.parametrize("guide", [AutoDelta, AutoLaplaceApproximation])
def test_members_of_a_guide_are_stretched_together(guide):
    def make(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = pa.MixtureHead(8, 4)
            return pa.MDN(pa.networks.MLP(1, (8,)), head, prior=priors.LastLayer())

    options = {"members": 3, "guide": guide, "max_steps": 60, "progress": False}
    on, off = (
        pa.ensemble(make, PROBLEM.x, PROBLEM.y, stretch=stretch, **options)
        for stretch in (True, False)
    )
    assert float(on.model.head.wider) != 0.0 == float(off.model.head.wider)
    assert on.density(PROBLEM.x[:5]).num_components >= 12
    assert len(on.posterior) == 3
