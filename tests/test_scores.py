"""Scores: each equals its definition by quadrature, and is smallest for the truth."""

import math

import pytest
import scoringrules
import torch
from pyro import distributions as dist

import pyralloy as pa
from pyralloy import scores

F64 = torch.float64


def mixture(rows=40, seed=0, dims=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 4) if dims is None else (rows, 4, dims)
    loc = 3 * torch.randn(shape, generator=generator, dtype=F64)
    scale = (torch.randn(shape, generator=generator, dtype=F64) * 0.7).exp()
    logits = torch.randn(rows, 4, generator=generator, dtype=F64)
    components = dist.Normal(loc, scale)
    return pa.Mixture(
        dist.Categorical(logits=logits), components if dims is None else components.to_event(1)
    )


def observe(density, seed=1):
    return density.sample(generator=torch.Generator().manual_seed(seed))


def test_pinball_integrates_to_half_the_crps():
    density = mixture()
    y = observe(density)
    nodes, weights = torch.linspace(-6, 6, 400, dtype=F64).tanh() * 0.5 + 0.5, None
    levels = nodes[1:-1]
    total = torch.stack([scores.pinball(density, y, float(u)) for u in levels])
    weights = (nodes[2:] - nodes[:-2]) / 2
    assert torch.allclose(2 * (weights[:, None] * total).sum(0), scores.crps(density, y), rtol=2e-3)


def test_brier_integrates_to_the_crps():
    density = mixture()
    y = observe(density)
    grid = torch.linspace(-40, 40, 8001, dtype=F64)
    total = torch.stack([scores.brier(density, y, t) for t in grid])
    assert torch.allclose(torch.trapezoid(total, grid, dim=0), scores.crps(density, y), atol=2e-2)


def test_interval_score_is_that_of_its_quantiles():
    density = mixture()
    y = observe(density)
    lower, upper = density.interval(0.8)
    expected = scoringrules.interval_score(y.numpy(), lower.numpy(), upper.numpy(), 0.2)
    assert torch.allclose(scores.interval(density, y, 0.8), torch.from_numpy(expected))
    halves = scores.pinball(density, y, 0.1) + scores.pinball(density, y, 0.9)
    assert torch.allclose(scores.interval(density, y, 0.8), halves * 2 / 0.2)


@pytest.mark.parametrize(
    "score", [scores.log_score, scores.crps, scores.interval, scores.pinball, scores.energy]
)
def test_the_truth_scores_best_on_average(score):
    truth = mixture(rows=4000)
    y = observe(truth)
    best = score(truth, y).mean()
    for wrong in (truth.affine(0.7, 1.0), truth.affine(0.0, 1.3), mixture(rows=4000, seed=9)):
        assert float(score(wrong, y).mean()) > float(best)


def test_pit_of_the_truth_is_uniform():
    density = mixture(rows=5000)
    ranks = scores.pit(density, observe(density)).sort().values
    uniform = (torch.arange(5000, dtype=F64) + 0.5) / 5000
    assert float((ranks - uniform).abs().max()) < 1.95 / 5000**0.5
    assert ranks.dtype == F64


def test_the_energy_score_of_a_single_normal_is_near_its_closed_form():
    """For Y ~ N(0, I) in D dimensions: E|Y| and E|Y - Y'| = sqrt(2) E|Y| are chi means."""
    dims, rows = 3, 400
    loc = torch.zeros(rows, 1, dims, dtype=F64)
    density = pa.Mixture(dist.Categorical(torch.ones(rows, 1)), dist.Normal(loc, 1.0).to_event(1))
    chi = math.sqrt(2) * math.gamma((dims + 1) / 2) / math.gamma(dims / 2)
    generator = torch.Generator().manual_seed(0)
    found = scores.energy(density, torch.zeros(rows, dims), generator=generator)
    error = found.std() / rows**0.5
    assert abs(float(found.mean()) - chi * (1 - math.sqrt(2) / 2)) < 5 * float(error)


@pytest.mark.parametrize(
    "score",
    [scores.log_score, scores.crps, scores.interval, scores.pinball, scores.pit, scores.energy],
)
def test_observations_of_another_shape_are_refused(score):
    with pytest.raises(ValueError, match=r"y has shape \(40, 1\)"):
        score(mixture(), torch.zeros(40, 1))
    with pytest.raises(ValueError, match=r"y has shape \(\)"):
        score(mixture(), torch.zeros(()))


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="draws=1"):
        scores.energy(mixture(dims=2), torch.zeros(40, 2), draws=1)
