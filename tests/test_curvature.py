"""Curvature: the Hessian where that is positive, never less than it, and never negative."""

import pytest
import torch
from conjugate import conjugate_model, conjugate_rows
from pyro import distributions as dist
from torch import nn

import pyralloy as pa
from pyralloy import priors
from pyralloy.families import FAMILIES
from pyralloy.inference.curvature import gauss_newton
from pyralloy.inference.potential import Potential

F64 = torch.float64
Z = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
COUNTS = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(1)).to(F64)


def made(prior=None, trunk=None, dtype=F64, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = trunk or pa.networks.MLP(2, hidden=(6,))
        head = pa.MixtureHead(6, 3, **options)
        return pa.MDN(trunk, head, prior=prior or priors.LastLayer()).to(dtype)


def targets(model):
    with torch.no_grad():
        density = model.network(Z.to(next(model.parameters()).dtype))
        return density.sample(generator=torch.Generator().manual_seed(2))


def of(model, t, z=Z, counts=None):
    potential = Potential(model, z, t)
    counts = torch.ones(len(z), dtype=F64) if counts is None else counts
    return gauss_newton(model, potential.sites, potential.start, z, t, counts), potential


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_of_a_linear_network_it_is_the_hessian(power):
    x, y = conjugate_rows(60)
    model = conjugate_model(dtype=F64)
    potential = Potential(model, x, y, temperature=1 / power)
    curvature = torch.autograd.functional.hessian(potential, potential.start)
    root = potential.root_covariance(potential.start)
    assert torch.allclose(root @ root.mT, curvature.inverse(), rtol=1e-9, atol=1e-12)
    counted = Potential(model, x, y, counts=torch.full((60,), power, dtype=F64))
    assert torch.allclose(counted.root_covariance(potential.start), root, rtol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_not_negative_and_not_below_the_hessian(name):
    """Of the last layer, in which outputs are linear, so that the rows' curvature is all there."""
    model = made(family=name)
    found, potential = of(model, targets(model))
    hessian = torch.autograd.functional.hessian(potential.likelihood, potential.start)
    least = -1e-9 * float(found.diagonal().max())
    assert float(torch.linalg.eigvalsh(found)[0]) > least
    assert float(torch.linalg.eigvalsh(found - hessian)[0]) > least


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"family": "poisson"},
        {"targets": 2},
        {"targets": 2, "covariance": "full"},
        {"constant_scale": True},
    ],
    ids=["normal", "counts", "vector", "correlated", "constant scale"],
)
def test_of_the_last_layer_it_is_a_block_of_that_of_all_weights(options):
    head, whole = made(**options), made(priors.FanIn(), **options)
    t = targets(head)
    (part, potential), (found, every) = of(head, t, counts=COUNTS), of(whole, t, counts=COUNTS)
    assert [s.name for s in every.sites][-2:] == [s.name for s in potential.sites]
    size = len(potential.start)
    assert torch.allclose(found[-size:, -size:], part, rtol=1e-9, atol=1e-12)
    bias = made(priors.ByName({"head.outputs.bias": dist.Normal(0.0, 1.0)}), **options)
    alone, _ = of(bias, t, counts=COUNTS)
    assert torch.allclose(part[-len(alone) :, -len(alone) :], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prior", [priors.LastLayer(), priors.FanIn()])
def test_rows_count_as_often_as_they_are_said_to(prior):
    model = made(prior)
    t, times = targets(model), COUNTS.long()
    repeated = of(model, t.repeat_interleave(times, 0), Z.repeat_interleave(times, 0))[0]
    assert torch.allclose(of(model, t, counts=COUNTS)[0], repeated, rtol=1e-9, atol=1e-12)


def test_it_is_summed_in_parts(monkeypatch):
    for prior in (priors.LastLayer(), priors.FanIn()):
        model = made(prior)
        t = targets(model)
        whole = of(model, t)[0]
        monkeypatch.setattr("pyralloy.inference.curvature.AT_ONCE", 1000)
        assert torch.allclose(of(model, t)[0], whole, rtol=1e-9, atol=1e-12)
        monkeypatch.undo()


def test_a_network_is_taken_as_it_predicts():
    """Without dropout, and left in the mode that it was in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(2, 6), nn.SiLU(), nn.Dropout(0.5)
    for prior in (priors.LastLayer(), priors.FanIn()):
        model = made(prior, nn.Sequential(*layers)).train()
        quiet = made(prior, nn.Sequential(*layers[:2])).eval()
        t = targets(quiet)
        assert torch.equal(of(model, t)[0], of(quiet, t)[0])
        assert model.trunk[2].training


def test_single_precision_gives_what_double_does():
    single, double = made(dtype=torch.float32), made()
    t = targets(double)
    wide = Potential(double, Z, t)
    narrow = Potential(single, Z.float(), t.float())
    expected = wide.root_covariance(wide.start)
    found = narrow.root_covariance(narrow.start)
    assert found.dtype == torch.float32
    scale = (expected @ expected.mT).diagonal().sqrt()
    gap = (found.double() @ found.double().mT - expected @ expected.mT) / scale / scale[:, None]
    assert float(gap.abs().max()) < 1e-3
