"""Markov chains: exact where the posterior is known, calibrated where it is not, and honest."""

import warnings

import numpy as np
import pytest
import torch
from conjugate import NOISE, conjugate_model, conjugate_rows, exact_posterior

import pyralloy as pa
from pyralloy import priors
from pyralloy.inference import mcmc
from pyralloy.inference.objective import pyro_runtime
from pyralloy.inference.posterior import Draws, unpack
from pyralloy.inference.potential import Potential
from pyralloy.inference.whitening import Captured, Whitened

PROBLEM = pa.datasets.inverse_sinusoid(40, seed=0)


def make_model(hidden=3, components=2, prior=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = pa.networks.MLP(1, hidden=(hidden,))
        head = pa.MixtureHead(hidden, components)
        return pa.MDN(trunk, head, prior=priors.FanIn() if prior is None else prior)


def run(model=None, x=PROBLEM.x, y=PROBLEM.y, **options):
    options = {"warmup": 20, "draws": 20, "start": 20, "depth": 4, "progress": False} | options
    with warnings.catch_warnings():  # so few draws say little, and the fit says so
        warnings.filterwarnings("ignore", "chains disagree|.* draws diverged")
        return pa.nuts(model or make_model(), x, y, **options)


# -- exactness ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_draws_follow_the_exact_posterior_of_a_linear_network():
    x, y = conjugate_rows()
    model = conjugate_model()
    fit = pa.nuts(model, x, y, warmup=200, draws=600, chains=2, seed=1, progress=False)
    mean, covariance, _ = exact_posterior(model, x, y)
    spread = covariance.diagonal().sqrt()
    drawn = torch.cat([v.flatten(2) for v in fit.posterior.chains.values()], -1).double()
    independent = float(fit.chains.ess.min())
    drawn = drawn.flatten(0, 1)
    error = 1 / independent**0.5
    assert float(((drawn.mean(0) - mean) / spread).abs().max()) < 4 * error
    apart = (torch.cov(drawn.T) - covariance) / spread / spread[:, None]
    assert float(apart.abs().max()) < 4 * 2**0.5 * error
    assert sum(fit.chains.divergences) == 0
    assert float(fit.chains.r_hat.max()) < 1.05


@pytest.mark.parametrize("prior", [None, priors.Hierarchical(), priors.LastLayer()])
def test_the_captured_gradient_is_that_of_the_potential(prior):
    model = make_model(prior=prior)
    z = torch.linspace(-1.0, 1.0, 9)[:, None]
    potential = Potential(model, z, z[:, 0].cos())
    whitened = Whitened(potential)
    with pyro_runtime():
        captured = Captured(whitened, hasten=False)
        captured.aim(potential.start)
        u = 0.3 * torch.randn(len(potential.start), generator=torch.Generator().manual_seed(0))
        energy, gradient = captured.evaluate(u)
        vector = (potential.start + whitened.sizes * u).requires_grad_()
        exact = potential(vector)
        (slope,) = torch.autograd.grad(exact, vector)
    assert torch.allclose(energy, exact, rtol=1e-5)
    assert torch.allclose(gradient, whitened.sizes * slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("how", ["counts", "temperature"])
def test_sizes_are_those_of_a_posterior_that_is_normal(how, power):
    """Squared gradients of rows add up to the curvature, times the residuals over the noise."""
    x, y = conjugate_rows(5000)
    model = conjugate_model()
    model.x_scaling.fit(x)
    model.y_scaling.fit(y)
    z, t = model.x_scaling(x, torch.float32), model.y_scaling(y, torch.float32)
    options = {"counts": torch.full((len(z),), power), "temperature": 1 / power}
    potential = Potential(model, z, t, **{how: options[how]})
    best = potential.minimise(potential.start)
    residual = model.network(z, unpack(potential.sites, best)).mean - t
    surplus = float(residual.square().mean()) / NOISE**2
    curvature = torch.autograd.functional.hessian(potential, best).diagonal()
    prior = potential.precision(best)
    expected = (prior + surplus * (curvature - prior)).rsqrt()
    assert torch.allclose(potential.sizes(best), expected, rtol=0.05)
    assert float(curvature.max()) > 100 * float(curvature.min())


@pytest.mark.parametrize("prior", [priors.FanIn(), priors.Hierarchical(), priors.LastLayer()])
def test_sizes_are_the_priors_where_there_is_no_data(prior):
    z = torch.linspace(-1.0, 1.0, 5)[:, None]
    nothing = torch.zeros(5)
    potential = Potential(make_model(prior=prior), z, z[:, 0].cos(), counts=nothing)
    curvature = torch.autograd.functional.hessian(potential.prior, potential.start).diagonal()
    expected = torch.maximum(curvature, potential.precision(potential.start)).rsqrt()
    assert torch.allclose(potential.sizes(potential.start), expected, rtol=1e-4)


# -- what a run is --------------------------------------------------------------------------------


def test_a_run_keeps_its_draws_and_says_how_it_went():
    # After fewer iterations the step may still be so long that a chain stands still.
    fit = run(chains=2, warmup=60)
    assert isinstance(fit.posterior, Draws) and len(fit.posterior) == 40
    chains = fit.chains
    assert len(chains.divergences) == len(chains.acceptance) == len(chains.step_size) == 2
    assert chains.r_hat.shape == chains.ess.shape == (40,)
    assert all(0 < a <= 1 for a in chains.acceptance) and chains.gradients > 80
    assert fit.history.step[-1] == 160 and bool(np.isfinite(fit.history.train).all())
    density = fit.density(PROBLEM.x[:5], draws=40)
    assert density.num_components == 80
    last = -fit.densities(PROBLEM.x, 40).log_prob(PROBLEM.y).mean(-1)
    assert float((last - fit.history.train[-1]).abs().min()) < 1e-4  # one draw is the last


def test_the_same_seed_gives_the_same_draws_and_torch_is_left_alone():
    state = torch.get_rng_state()
    one, two, other = run(seed=1, chains=1), run(seed=1, chains=1), run(seed=2, chains=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, values in one.posterior.chains.items():
        assert torch.equal(values, two.posterior.chains[name])
        assert not torch.equal(values, other.posterior.chains[name])


def test_weights_without_a_prior_stay_as_fitted():
    model = make_model(prior=priors.LastLayer())
    fit = run(model, chains=2)
    assert set(fit.posterior.chains) == {n for n in model.weights() if n.startswith("head.")}


def test_scales_of_a_hierarchy_are_drawn_and_positive():
    fit = run(make_model(prior=priors.Hierarchical()))
    scales = {n: v for n, v in fit.posterior.chains.items() if n.endswith("prior_scale")}
    assert scales and all(bool((v > 0).all()) for v in scales.values())


@pytest.mark.filterwarnings("ignore:.* draws diverged")
def test_chains_that_disagree_are_reported():
    with pytest.warns(UserWarning, match="chains disagree: R-hat"):
        pa.nuts(
            make_model(), PROBLEM.x, PROBLEM.y, warmup=2, draws=4, depth=1, start=5, progress=False
        )


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("warmup", 0, ValueError),
        ("draws", 3, ValueError),
        ("chains", 0, ValueError),
        ("chains", 1.5, TypeError),
        ("seed", -1, ValueError),
        ("start", -1, ValueError),
        ("depth", 0, ValueError),
        ("temperature", 0.0, ValueError),
        ("target_acceptance", 1.0, ValueError),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value, error):
    with pytest.raises(error, match=option):
        run(**{option: value})


def test_a_model_without_a_prior_or_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="model has no prior"):
        run(make_model().without_prior())
    with pytest.raises(TypeError, match="model="):
        run(torch.nn.Linear(1, 1))


# -- calibration ----------------------------------------------------------------------------------

SIMULATIONS, ROWS, RANKS, THIN = 200, 20, 10, 8
AT, LEVEL = torch.tensor([[-1.0], [0.2], [1.2]]), torch.tensor([0.0, 0.5, -0.5])


@torch.no_grad()
def functions(model, weights):
    """Give log density and cdf at three points, (6,)."""
    density = model.network(AT, weights)
    return torch.cat([density.log_prob(LEVEL), density.cdf(LEVEL)])


def ranks_of_truth(simulations):
    """Draw weights and data from the model; rank the truth's functions among those of draws.

    Everything is in standardised units, so that the model's prior is the law that made the data.
    One captured potential serves all simulations, whose targets are written into its rows.
    """
    model = make_model()
    z = torch.linspace(-1.5, 1.5, ROWS)[:, None]
    t = torch.zeros(ROWS)
    potential = Potential(model, z, t)
    begin, ranks = potential.start.clone(), []
    with mcmc._runtime(torch.device("cpu")):
        slope = Captured(Whitened(potential), hasten=True)
        for seed in range(simulations):
            torch.manual_seed(seed)
            truth = model._draw_prior(model.prior)
            t.copy_(model.network(z, truth).sample())
            slope.aim(potential.minimise(begin))
            options = {"max_tree_depth": 5}
            found = mcmc._chain(slope, 60, THIN * (RANKS - 1), options, lambda *_: None)
            drawn = [unpack(potential.sites, v) for v in found.vectors[THIN - 1 :: THIN]]
            values = torch.stack([functions(model, weights) for weights in drawn])
            ranks.append((values < functions(model, truth)).sum(0))
    return torch.stack(ranks)  # (simulations, functions), each uniform on 0 .. RANKS - 1


def largest_gap(ranks):
    """Give the largest gap between the cdf of ranks (..., simulations, J) and the uniform one."""
    cuts = torch.arange(1, RANKS)
    share = (ranks[..., None] < cuts).double().mean(-3)  # (..., J, R - 1)
    return (share - cuts / RANKS).abs().amax(-1)


@pytest.mark.slow
def test_ranks_of_the_truth_among_draws_are_uniform():
    """Simulation-based calibration in function space, within the 99 % band of six functions.

    References:
        Talts, S., et al. (2018). Validating Bayesian inference algorithms with simulation-based
        calibration. arXiv:1804.06788
    """
    generator = torch.Generator().manual_seed(0)
    null = largest_gap(torch.randint(RANKS, (4000, SIMULATIONS, 1), generator=generator))[:, 0]
    band = float(null.quantile(1 - 0.01 / 6))
    assert float(largest_gap(ranks_of_truth(SIMULATIONS)).max()) < band
