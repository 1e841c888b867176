"""The model is Pyro's: its tools work on it, and its head works in models of others."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyralloy as pa


def make_model(targets=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pa.MDN(pa.networks.MLP(2, hidden=(8,)), pa.MixtureHead(8, 3, targets))


def rows(count, *shape, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def fitted():
    model, x = make_model(), rows(40, 2)
    y = 1e3 + 50.0 * x[:, 0]
    return pa.fit(model, x, y, max_steps=30, progress=False).model, x, y


@pytest.mark.parametrize("targets", [None, 2])
def test_the_trace_scores_what_the_density_scores(targets):
    model, x = make_model(targets), rows(7, 2)
    y = rows(7, *(() if targets is None else (targets,)), seed=2)
    trace = poutine.trace(model).get_trace(x, y)
    assert torch.allclose(trace.log_prob_sum(), model.density(x).log_prob(y).sum())
    assert trace.nodes["y"]["is_observed"]
    assert [f.name for f in trace.nodes["y"]["cond_indep_stack"]] == ["data"]


def test_the_trace_of_a_fitted_model_is_in_the_units_of_y(fitted):
    model, x, y = fitted
    total = poutine.trace(model).get_trace(x, y).log_prob_sum()
    assert torch.allclose(total, model.density(x).log_prob(y).sum())
    assert abs(float(model.density(x).mean.mean().detach()) - 1e3) < 50.0


def test_a_minibatch_is_scaled_to_the_whole_data():
    model, x, y = make_model(), rows(5, 2), rows(5)
    part = poutine.trace(model).get_trace(x, y, size=50).log_prob_sum()
    assert torch.allclose(part, 10 * model.density(x).log_prob(y).sum())


def test_predictive_draws_follow_the_density(fitted):
    model, x, _ = fitted
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = Predictive(model, num_samples=4000)(x[:3])["y"]
    with torch.no_grad():
        density = model.density(x[:3])
    assert drawn.shape == (4000, 3)
    error = density.stddev / 4000**0.5
    assert bool(((drawn.mean(0) - density.mean).abs() < 5 * error).all())
    ranks = density.cdf(drawn).sort(0).values
    uniform = (torch.arange(4000) + 0.5)[:, None] / 4000
    assert float((ranks - uniform).abs().max()) < 1.95 / 4000**0.5  # Kolmogorov, level 0.001


def test_one_likelihood_gradient_is_that_of_plain_torch():
    model, x, y = make_model(), rows(9, 2), rows(9)
    parameters = list(model.parameters())
    plain = torch.autograd.grad(-model.network(x).log_prob(y).mean(), parameters)
    elbo = Trace_ELBO().differentiable_loss
    with pyro.get_param_store().scope():
        loss = elbo(lambda: model(x, y, standard=True), lambda: None) / 9
        through_pyro = torch.autograd.grad(loss, parameters)
    for a, b in zip(plain, through_pyro, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_stock_svi_trains_the_model_as_it_stands():
    model, x, y = make_model(), rows(200, 2), rows(200)
    before = -float(model.density(x).log_prob(y).mean().detach())
    with pyro.get_param_store().scope():
        svi = SVI(model, lambda x, y: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        for _ in range(100):
            svi.step(x, y)
    assert -float(model.density(x).log_prob(y).mean().detach()) < before - 0.1


def test_a_head_in_a_hierarchical_model_recovers_group_offsets():
    """Stock SVI and AutoNormal on y = offset[group] + f(x) + two-sided noise."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([-2.0, -0.5, 0.5, 2.0])
    count = 1200
    group = torch.arange(count) % 4
    x = torch.rand(count, 1, generator=generator) * 4 - 2
    side = torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1.0
    noise = 0.1 * torch.randn(count, generator=generator)
    y = offsets[group] + torch.sin(2 * x[:, 0]) + 0.5 * side + noise

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), pa.MixtureHead(32, 2))
        network[2].place(torch.tensor([-0.5, 0.5]), torch.tensor([0.3, 0.3]))

        def model(x, group, y=None):
            pyro.module("network", network)
            with pyro.plate("groups", 4):
                offset = pyro.sample("offset", dist.Normal(0.0, 2.0))
            density = network(x)
            with pyro.plate("data", len(x)):
                pyro.sample("y", density.affine(offset[group], 1.0), obs=y)

        with pyro.get_param_store().scope():
            guide = AutoNormal(model, init_scale=0.1)
            svi = SVI(
                model, guide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.998}), Trace_ELBO()
            )
            for _ in range(1000):
                svi.step(x, group, y)
            found = guide.median()["offset"].detach()
    # The network's own level is free, so offsets are known up to their mean.
    assert float(((found - found.mean()) - (offsets - offsets.mean())).abs().max()) < 0.1


def test_a_wrong_part_is_refused_by_name():
    head = pa.MixtureHead(8, 3)
    with pytest.raises(TypeError, match="trunk="):
        pa.MDN("mlp", head)
    with pytest.raises(TypeError, match="head="):
        pa.MDN(nn.Linear(2, 8), nn.Linear(8, 3))


def test_columns_other_than_fitted_are_refused(fitted):
    model, x, _ = fitted
    with pytest.raises(ValueError, match=r"x has .*features"):
        model.density(x[:, :1])


def test_state_travels_with_its_scaling(fitted):
    model, x, _ = fitted
    other = make_model(seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.density(x).mean, model.density(x).mean)


def test_draws_of_no_weight_of_the_model_are_refused():
    model = pa.MDN(pa.networks.MLP(1, (4,)), pa.MixtureHead(4, 2))
    x = torch.zeros(3, 1)
    for weights in ({}, {"other": torch.zeros(2, 3)}):
        with pytest.raises(ValueError, match="names none of the model's: give draws of some of"):
            model.densities(x, weights)
