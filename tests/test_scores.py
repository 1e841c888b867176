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


# -- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "score",
    [
        scores.log_score,
        scores.crps,
        scores.interval,
        scores.pinball,
        lambda m, y, **k: scores.brier(m, y, 0.3, **k),
        scores.energy,
    ],
)
def test_the_mean_of_weighted_scores_is_their_weighted_mean(score):
    density = mixture()
    y = observe(density)
    weights = torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=F64)
    plain = score(density, y)
    expected = (weights * plain).sum() / weights.sum()
    assert torch.allclose(score(density, y, weights=7.0 * weights).mean(), expected, rtol=1e-12)
    assert torch.allclose(score(density, y, weights=torch.ones(40)), plain, rtol=1e-12)
    for bad in (torch.ones(39), torch.zeros(40), -weights, torch.full((40,), math.nan)):
        with pytest.raises(ValueError, match="weights"):
            score(density, y, weights=bad)


# -- transforms that are uniform ------------------------------------------------------------------


def counts(rows):
    generator = torch.Generator().manual_seed(5)
    rate = (1.0 + torch.randn(rows, 3, generator=generator, dtype=F64)).exp()
    logits = torch.randn(rows, 3, generator=generator, dtype=F64)
    return pa.Mixture(dist.Categorical(logits=logits), dist.Poisson(rate))


def assert_uniform(values):
    assert values.dtype == F64 and bool(((values >= 0) & (values <= 1)).all())
    rows = len(values)
    gap = values.sort().values - (torch.arange(rows, dtype=F64) + 0.5) / rows
    assert float(gap.abs().max()) < 1.95 / rows**0.5  # passed by chance once in 1,000


@pytest.mark.parametrize("transform", [scores.randomised_pit, scores.hdr_pit])
@pytest.mark.parametrize("make", [mixture, counts])
def test_transforms_of_the_truth_are_uniform(transform, make):
    density = make(5000)
    found = transform(density, observe(density), generator=torch.Generator().manual_seed(2))
    assert_uniform(found)


def test_the_plain_pit_of_counts_is_not_uniform_and_the_randomised_one_lies_in_its_step():
    density = counts(5000)
    y = observe(density)
    upper, lower = scores.pit(density, y), scores.pit(density, y - 1)
    assert float((upper.sort().values - (torch.arange(5000) + 0.5) / 5000).abs().max()) > 0.05
    found = scores.randomised_pit(density, y, generator=torch.Generator().manual_seed(0))
    assert bool(((found >= lower) & (found <= upper)).all())


def test_the_randomised_pit_of_continuous_y_is_the_pit():
    density = mixture()
    y = observe(density)
    assert torch.equal(scores.randomised_pit(density, y), scores.pit(density, y))


@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
def test_the_hdr_pit_is_below_a_level_where_the_region_holds_y(level):
    density = mixture(rows=500)
    y = observe(density)
    inside = density.highest_density_region(level).contains(y)
    found = scores.hdr_pit(density, y)
    clear = (found - level).abs() > 1e-7
    assert torch.equal((found < level)[clear], inside[clear]) and int(clear.sum()) > 490


def test_mass_above_a_threshold_is_that_of_a_grid():
    density = mixture(rows=30)
    t = torch.linspace(-60, 60, 200_001, dtype=F64)[:, None]
    log_p = density.log_prob(t)
    step = float(t[1] - t[0])
    for drop in (0.1, 1.0, 5.0):
        threshold = log_p.amax(0) - drop
        grid = torch.where(log_p > threshold, log_p.exp(), 0.0).sum(0) * step
        assert torch.allclose(density.mass_above(threshold), grid, atol=2e-3)
    ends = torch.tensor([[-math.inf], [math.inf], [math.nan]], dtype=F64)
    found = density.mass_above(ends)
    assert bool((found[0] == 1).all() & (found[1] == 0).all() & found[2].isnan().all())


@pytest.mark.parametrize("kind", ["weibull", "von_mises", "laplace"])
def test_mass_above_of_other_families_is_the_level_of_the_region_that_ends_there(kind):
    family = pa.families.FAMILIES[kind]
    raw = torch.randn(20, 3, family.outputs, generator=torch.Generator().manual_seed(1)).to(F64)
    density = pa.Mixture(dist.Categorical(torch.ones(20, 3).to(F64)), family.from_raw(raw, 1.0))
    region = density.highest_density_region(0.7)
    found = density.mass_above(region.log_density)
    assert torch.allclose(found, torch.full_like(found, 0.7), atol=1e-6)


def test_the_hdr_pit_of_a_vector_is_that_of_its_radius():
    rows = 400
    made = dist.Normal(torch.zeros(rows, 1, 2, dtype=F64), 1.0).to_event(1)
    density = pa.Mixture(dist.Categorical(torch.ones(rows, 1)), made)
    y = observe(density)
    found = scores.hdr_pit(density, y, draws=2000, generator=torch.Generator().manual_seed(0))
    exact = 1 - torch.exp(-0.5 * y.square().sum(-1))
    assert float((found - exact).abs().max()) < 4.5 * 0.5 / 2000**0.5
