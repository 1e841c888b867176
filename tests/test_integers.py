"""Regions and modes of counts, against all integers one by one."""

import math

import pytest
import torch
from pyro import distributions as dist

import pyralloy as pa

F32, F64 = torch.float32, torch.float64
WIDE = torch.arange(3000, dtype=F64)


def counts(kind, rows=40, components=4, seed=0):
    source = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(rows, components, generator=source, dtype=F64)

    mean, logits = (2.0 + 1.5 * normal()).clamp_max(6.0).exp(), normal()
    component = {
        "poisson": lambda: dist.Poisson(mean),
        "negative_binomial": lambda: dist.NegativeBinomial(normal().exp() + 0.3, logits=normal()),
    }[kind]()
    return pa.Mixture(dist.Categorical(logits=logits), component)


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial"])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 0.999])
def test_a_region_is_the_fewest_integers_that_hold_the_level(kind, level):
    m = counts(kind)
    region = m.highest_density_region(level)
    p = m.log_prob(WIDE[:, None]).exp()  # (G, N)
    inside = region.contains(WIDE[:, None])
    ordered = p.sort(0, descending=True).values
    fewest = (ordered.cumsum(0) < level).sum(0) + 1
    assert torch.equal(inside.sum(0), fewest) and torch.equal(region.volume(), fewest.to(F64))
    held = (p * inside).sum(0)
    assert bool((held >= level - 1e-12).all())
    assert bool((p.where(inside, torch.inf).amin(0) >= p.where(~inside, 0.0).amax(0)).all())
    assert torch.allclose(region.log_density, p.where(inside, torch.inf).amin(0).log())
    assert torch.equal(
        (inside.to(torch.int8).diff(dim=0, prepend=torch.zeros(1, len(fewest))) > 0).sum(0),
        (~region.intervals[..., 0].isnan()).sum(-1),
    )
    assert not bool(region.contains(WIDE[:, None] + 0.5).any())
    assert region.integer and region.intervals.dtype == F64


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial"])
def test_modes_are_the_integers_above_their_neighbours(kind):
    m = counts(kind, seed=1)
    p = m.log_prob(WIDE[:, None])
    rise = p.diff(dim=0, prepend=torch.full_like(p[:1], -math.inf))
    top = (rise[:-1] > 0) & (rise[1:] < 0) & (p[:-1] > math.log(1e-12))
    found = m.modes()
    for row in range(40):
        expected = set(top[:, row].nonzero()[:, 0].tolist())
        here = found.locations[row]
        here = here[~here.isnan()]
        strong = found.log_densities[row][: len(here)] > math.log(1e-12)
        assert set(here[strong].int().tolist()) == expected
        heights = p[here.long(), row]
        assert torch.allclose(found.log_densities[row][: len(here)], heights)
        assert bool((heights.diff() <= 0).all())


def test_a_tie_is_one_mode_and_shapes_are_kept():
    rate = torch.tensor([[[4.0]], [[0.2]]], dtype=F32)
    m = pa.Mixture(dist.Categorical(torch.ones(2, 1, 1)), dist.Poisson(rate))
    assert m.modes().locations.shape == (2, 1, 1)
    assert m.modes().locations[0, 0].tolist() in ([3.0], [4.0])
    region = m.highest_density_region(0.5)
    assert region.batch_shape == (2, 1) and region.intervals.dtype == F64
    assert region.intervals[1, 0].tolist() == [[0.0, 0.0]]


def test_far_counts_start_where_their_mass_does():
    rate = torch.tensor([[1e5, 1e5 + 4000.0]], dtype=F64)
    m = pa.Mixture(dist.Categorical(torch.ones(1, 2, dtype=F64)), dist.Poisson(rate))
    region = m.highest_density_region(0.9)
    assert region.intervals.shape == (1, 2, 2)
    held = (m.cdf(region.intervals[0, :, 1:]) - m.cdf(region.intervals[0, :, :1] - 1)).sum()
    assert 0.9 <= float(held) < 0.9 + 2e-3
    assert m.modes().locations.shape == (1, 2)
