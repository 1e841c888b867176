"""Priors: what each rule says of each weight, and that the model is Pyro's with them."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyralloy as pa
from pyralloy import priors

STUDENT = functools.partial(dist.StudentT, 3.0)


def make_model(prior=None, features=2, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = pa.networks.MLP(features, hidden=(8,))
        return pa.MDN(trunk, pa.MixtureHead(8, 3), prior=prior).to(dtype)


def rows(count, *shape, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


EVERY = [
    dist.Normal(0.0, 1.0),
    dist.Laplace(0.0, 0.5),
    priors.FanIn(),
    priors.FanIn(0.5, STUDENT),
    priors.Hierarchical(),
    priors.LastLayer(),
    priors.ByName({"*.bias": None, "head.*": priors.Hierarchical(0.3), "*": dist.Normal(0.0, 2.0)}),
]


@pytest.mark.parametrize("prior", EVERY, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_trace_scores_prior_and_likelihood(prior, dtype):
    """The joint density is that of the sites' own distributions and of y given the weights."""
    model, x, y = make_model(prior, dtype=dtype), rows(7, 2).to(dtype), rows(7, seed=2)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        trace = poutine.trace(model).get_trace(x, y, size=70)
    latent = {
        n: s for n, s in trace.nodes.items() if s["type"] == "sample" and n not in ("y", "data")
    }
    weights = {n: latent[n]["value"] for n in model.uncertain()}
    assert all(not s["cond_indep_stack"] for s in latent.values())  # outside the plate
    total = 10 * model.density(x, weights).log_prob(y).sum()
    for name, site in latent.items():
        assert site["value"].dtype == dtype, name
        total = total + site["fn"].log_prob(site["value"]).sum()
    assert torch.allclose(trace.log_prob_sum().double(), total.double(), rtol=1e-5)


def test_by_fan_in_the_variance_of_features_does_not_grow_with_the_width():
    """A linear map of H unit features has variance s²(1 + 1), weights and bias, for every H."""
    for width in (4, 400):
        weights = {"a.weight": torch.zeros(2000, width), "a.bias": torch.zeros(2000)}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = priors.FanIn(0.5).distributions(weights, {})
            drawn = {n: d.sample() for n, d in made.items()}
        output = drawn["a.weight"] @ torch.ones(width) + drawn["a.bias"]
        assert abs(float(output.var()) / 0.5 - 1) < 5 * math.sqrt(2 / 2000)


def test_hierarchical_weights_are_normal_given_the_scale_of_their_layer():
    weights = dict(make_model().weights())
    prior = priors.Hierarchical(2.0)
    scales = prior.scales(weights)
    layers = {n.rpartition(".")[0] for n in weights}
    assert set(scales) == {f"{layer}.prior_scale" for layer in layers}
    assert all(isinstance(d, dist.HalfCauchy) and float(d.scale) == 2.0 for d in scales.values())
    given = prior.distributions(weights, {n: torch.tensor(3.0) for n in scales})
    for name, weight in weights.items():
        fan_in = weight.shape[1] if weight.ndim == 2 else 1
        assert torch.allclose(given[name].stddev, torch.tensor(3.0 / fan_in**0.5))


def test_the_first_pattern_that_fits_a_name_decides():
    model = make_model(priors.ByName({"*.bias": None, "head.*": dist.Laplace(0.0, 1.0)}))
    assert model.uncertain() == [
        n for n in model.weights() if n.startswith("head.") and not n.endswith(".bias")
    ]


def test_the_head_alone():
    model = make_model(priors.LastLayer(dist.Normal(0.0, 3.0)))
    assert model.uncertain() == [n for n in model.weights() if n.startswith("head.")]


def test_a_prior_changes_neither_parameters_nor_state():
    plain, model = make_model(), make_model(priors.FanIn())
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in model.named_parameters()]
    x = rows(5, 2)
    assert torch.equal(plain.density(x).mean, model.density(x).mean)
    assert model.without_prior().uncertain() == []


def test_stock_svi_trains_the_guide_and_only_weights_without_prior():
    model, x, y = make_model(priors.LastLayer()), rows(100, 2), rows(100)
    before = {n: w.detach().clone() for n, w in model.weights().items()}
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        guide = AutoNormal(model, init_scale=0.05)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        losses = [svi.step(x, y) for _ in range(150)]
        drawn = Predictive(model, guide=guide, num_samples=6)(x[:4])
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert drawn["y"].shape == (6, 4)
    for name, weight in model.weights().items():
        assert torch.equal(weight, before[name]) == name.startswith("head.")


def test_densities_of_draws_are_those_of_networks_that_hold_them():
    model, x = make_model(priors.FanIn()), rows(6, 2)
    drawn = model.prior_densities(x, draws=3, seed=4)
    assert drawn.batch_shape == (3, 6)
    again = model.prior_densities(x, draws=3, seed=4)
    assert torch.equal(drawn.logits, again.logits)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        weights = model._draw_prior(model.prior)
    other = make_model()
    other.load_state_dict({**other.state_dict(), **weights})
    assert torch.allclose(drawn[0].mean, other.density(x).mean.detach(), atol=1e-6)


def test_prior_draws_leave_torch_alone():
    model, state = make_model(priors.FanIn()), torch.get_rng_state()
    model.prior_densities(rows(3, 2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        ("normal", TypeError, "prior='normal'"),
        (1.0, TypeError, "prior=1.0"),
        (dist.Normal(torch.zeros(5), 1.0), ValueError, "does not fit the weight 'trunk"),
        (dist.Normal(torch.zeros(1, 1, 1), 1.0), ValueError, "does not fit the weight"),
        (dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), ValueError, "does not fit"),
        (dist.HalfNormal(1.0), ValueError, "whole real line"),
        (dist.Uniform(-1.0, 1.0), ValueError, "whole real line"),
        (dist.Poisson(1.0), ValueError, "whole real line"),
    ],
)
def test_a_prior_that_fits_no_weight_is_refused(prior, error, message):
    with pytest.raises(error, match=message):
        make_model(prior)


def test_patterns_that_fit_nothing_are_named():
    with pytest.raises(ValueError, match=r"'haed.\*', which fits no weight"):
        make_model(priors.ByName({"haed.*": priors.FanIn()}))
    with pytest.raises(ValueError, match="of none of the weights"):
        make_model(priors.ByName({"*": None}))
    with pytest.raises(ValueError, match="give a mapping"):
        priors.ByName({})
    with pytest.raises(ValueError, match="scale=0"):
        priors.FanIn(0.0)


def test_prior_draws_need_a_prior_and_a_number():
    with pytest.raises(ValueError, match="model has no prior"):
        make_model().prior_densities(rows(3, 2))
    with pytest.raises(ValueError, match="draws=0"):
        make_model(priors.FanIn()).prior_densities(rows(3, 2), draws=0)
