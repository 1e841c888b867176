"""A head's scales are bounded, its components go where they are put, and its errors say why."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pyralloy.families import FAMILIES, SCALE_CEILING, SCALE_FLOOR
from pyralloy.heads import MixtureHead
from pyralloy.mixture import Mixture

F64 = torch.float64


def make_head(*sizes, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MixtureHead(*sizes, **options)


def features(rows, width, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("targets", [None, 3])
@given(power=st.integers(0, 4), spread=st.sampled_from([1e-2, 1.0, 1e6]), seed=st.integers(0, 99))
def test_scales_stay_in_bounds_whatever_the_weights(targets, power, spread, seed):
    head = make_head(8, 5, targets, seed=seed, spread=spread)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(10.0**power)
    h = features(50, 8, seed).requires_grad_()
    density = head(h)
    scale = density.components.stddev.detach()
    assert float(scale.min()) >= SCALE_FLOOR * spread * 0.999
    assert float(scale.max()) <= SCALE_CEILING * spread * 1.001
    y = torch.zeros(50) if targets is None else torch.zeros(50, targets)
    log_prob = density.log_prob(y)
    (gradient,) = torch.autograd.grad(log_prob.sum(), h)
    assert bool(log_prob.isfinite().all()) and bool(gradient.isfinite().all())


@pytest.mark.parametrize("targets", [None, 2])
def test_constant_scale_ignores_the_features_and_nothing_else_does(targets):
    head = make_head(8, 5, targets, constant_scale=True)
    density = head(features(20, 8))
    assert bool((density.components.stddev == density.components.stddev[:1]).all())
    assert bool((density.components.mean.std(0) > 0).all())
    assert bool((density.logits.std(0) > 0).all())
    free = make_head(8, 5, targets)(features(20, 8))
    assert bool((free.components.stddev.std(0) > 0).all())
    density.log_prob(torch.zeros(density.mean.shape)).sum().backward()
    bias = head.outputs.bias
    assert bias.grad is not None
    assert bool((bias.grad != 0).all())


def test_one_component_of_constant_scale_is_least_squares():
    head = make_head(2, 1, constant_scale=True).to(F64)
    x = features(200, 2).to(F64)
    y = x @ torch.tensor([1.5, -0.5], dtype=F64) + 0.3 * features(200, 1, 1)[:, 0].to(F64)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -head(x).log_prob(y).mean()
        value.backward()
        return value

    optimiser.step(loss)
    design = torch.cat([x, torch.ones(200, 1, dtype=F64)], 1)
    fitted = design @ torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    assert torch.allclose(head(x).mean, fitted, atol=1e-5)
    assert torch.allclose(head(x).stddev, (y - fitted).square().mean().sqrt(), rtol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 250.0])
@pytest.mark.parametrize("targets", [None, 3])
def test_place_gives_the_components_asked_for(targets, spread):
    head = make_head(8, 4, targets, spread=spread).to(F64)
    shape = (4,) if targets is None else (4, targets)
    loc = spread * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    scale = spread * torch.logspace(-1.9, 1, loc.numel(), dtype=F64).reshape(shape)
    before = head(features(30, 8).to(F64)).components.mean.std(0)
    head.place(loc, scale)
    density = head(torch.zeros(2, 8, dtype=F64))
    assert torch.allclose(density.components.mean, loc.expand(2, *shape), rtol=1e-12)
    assert torch.allclose(density.components.stddev, scale.expand(2, *shape), rtol=1e-6)
    assert torch.allclose(density.weights, torch.tensor(0.25, dtype=F64))
    after = head(features(30, 8).to(F64)).components.mean.std(0)
    assert bool((after < 0.2 * before).all())  # and little depends on x


def test_shapes_follow_the_features():
    scalar, vector = make_head(8, 5), make_head(8, 5, 3)
    for batch in ((), (7,), (2, 7)):
        h = torch.zeros(*batch, 8)
        assert isinstance(scalar(h), Mixture)
        assert (scalar(h).batch_shape, scalar(h).event_shape) == (batch, ())
        assert (vector(h).batch_shape, vector(h).event_shape) == (batch, (3,))
        assert vector(h).num_components == 5
    one = make_head(8, 5, 1)(torch.zeros(7, 8))
    assert (one.batch_shape, one.event_shape) == ((7,), (1,))


def test_targets_are_independent_within_a_component_and_not_across_them():
    one = make_head(8, 1, 2)(features(6, 8))
    y = features(6, 2, 1)
    apart = one.marginal(0).log_prob(y[:, 0]) + one.marginal(1).log_prob(y[:, 1])
    assert torch.allclose(one.log_prob(y), apart, atol=1e-5)
    head = make_head(8, 2, 2)
    head.place(torch.tensor([[-3.0, -3.0], [3.0, 3.0]]), torch.full((2, 2), 0.1))
    with torch.no_grad():
        joint = head(torch.zeros(8))
    agree, differ = torch.tensor([3.0, 3.0]), torch.tensor([3.0, -3.0])
    assert float(joint.log_prob(agree)) > float(joint.log_prob(differ)) + 100


def test_the_raw_outputs_are_inverted():
    for family in FAMILIES.values():
        if not family.support.shifts:
            continue  # the others are placed in tests/test_families.py, where they can be
        loc, scale = torch.linspace(-5, 5, 9, dtype=F64), torch.logspace(-1.5, 1.5, 9, dtype=F64)
        component = family.from_raw(family.to_raw(loc, scale, 2.0).unbind(-1), 2.0)
        assert torch.allclose(component.mean, loc)
        assert torch.allclose(component.stddev, scale, rtol=1e-6)


@pytest.mark.parametrize("name", ["in_features", "components", "targets"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError), ("3", TypeError)],
)
def test_sizes_that_are_no_sizes_are_refused_by_name(name, value, error):
    sizes = {"in_features": 8, "components": 4, "targets": 2} | {name: value}
    with pytest.raises(error, match=rf"^{name}={value!r}"):
        MixtureHead(**sizes)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "1", True, None])
def test_spreads_that_are_no_spreads_are_refused_by_name(value):
    with pytest.raises((ValueError, TypeError), match=rf"^spread={value!r}"):
        MixtureHead(8, 4, spread=value)


@pytest.mark.parametrize("value", ["gauss", "", None, 3])
def test_unknown_families_are_refused_with_the_known(value):
    with pytest.raises(ValueError, match=rf"^family={value!r}.*normal"):
        MixtureHead(8, 4, family=value)


@pytest.mark.parametrize(
    ("loc", "scale", "name"),
    [
        (torch.zeros(3), torch.ones(4), "loc"),
        (torch.zeros(4), torch.ones(3), "scale"),
        (torch.zeros(4), torch.zeros(4), "scale"),
        (torch.zeros(4), torch.full((4,), 1e-4), "scale"),
        (torch.zeros(4), torch.full((4,), 1e3), "scale"),
    ],
)
def test_places_a_head_cannot_reach_are_refused(loc, scale, name):
    head = make_head(8, 4)
    before = head.outputs.bias.clone()
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        head.place(loc, scale)
    assert torch.equal(head.outputs.bias, before)


def test_a_head_describes_itself():
    text = repr(nn.Sequential(make_head(8, 4)))
    assert "components=4" in text and "normal" in text
