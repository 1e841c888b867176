"""Laws of the problems: a density, its entropy, and draws that depend on the seed alone."""

from __future__ import annotations

import math
import time

import pytest
import torch

from pyralloy import datasets
from pyralloy.datasets import inverse_sinusoid, sinusoid

PROBLEMS = pytest.mark.parametrize("make", [sinusoid, inverse_sinusoid])


@PROBLEMS
def test_density_integrates_to_one(make):
    problem = make(40, seed=3)
    grid = torch.linspace(-25.0, 25.0, 200_001, dtype=torch.float64)
    for x in problem.x.split(10):
        mass = torch.trapezoid(problem.log_density(x, grid[:, None]).exp(), grid, dim=0)
        # The inverse density jumps to zero between two points of the grid: half a step is at stake.
        torch.testing.assert_close(mass, torch.ones(10, dtype=torch.float64), atol=3e-4, rtol=0.0)


@pytest.mark.parametrize("x", [-16.0, -12.25, 0.0, 3.0, 12.25, 16.0, 25.0])
def test_inverse_evidence_is_the_integral(x):
    y, step = torch.linspace(-10.5, 10.5, 2_100_001, dtype=torch.float64), 1e-5
    joint = torch.exp(-0.5 * (x - 7.0 * torch.sin(0.75 * y) - 0.5 * y) ** 2)
    simpson = torch.full_like(y, 2.0)
    simpson[1::2] = 4.0
    simpson[[0, -1]] = 1.0
    evidence = float((simpson * joint).sum()) * step / 3.0
    given = inverse_sinusoid(1).log_density(torch.tensor([x]), y)
    exact = joint.log() - math.log(evidence)
    torch.testing.assert_close(given, exact, atol=1e-10, rtol=0.0)


@PROBLEMS
def test_entropy_is_the_mean_negative_log_density(make):
    problem = make(200_000, seed=1)
    surprise = -problem.log_density(problem.x, problem.y)
    error = float(surprise.std()) / math.sqrt(surprise.shape[0])
    assert abs(float(surprise.mean()) - problem.entropy) < 4.0 * error


def test_entropies():
    assert sinusoid(1).entropy == pytest.approx(0.5 * math.log(2.0 * math.pi * math.e), abs=1e-12)
    assert inverse_sinusoid(1).entropy == pytest.approx(1.28801, abs=1e-5)


def test_entropy_is_cheap_and_only_on_demand():
    datasets._inverse_entropy.cache_clear()
    problem = inverse_sinusoid(1)
    assert datasets._inverse_entropy.cache_info().misses == 0
    start = time.process_time()
    _ = problem.entropy
    assert time.process_time() - start < 0.3


def test_inverse_exchanges_x_and_y():
    forward, inverse = sinusoid(50, seed=7), inverse_sinusoid(50, seed=7)
    assert torch.equal(inverse.x[:, 0], forward.y)
    assert torch.equal(inverse.y, forward.x[:, 0])


@PROBLEMS
def test_noise_is_standard_normal(make):
    problem = make(100_000, seed=2)
    a, b = problem.x[:, 0].double(), problem.y.double()
    cause, effect = (a, b) if make is sinusoid else (b, a)
    noise = effect - 7.0 * torch.sin(0.75 * cause) - 0.5 * cause
    assert abs(float(noise.mean())) < 4.0 / math.sqrt(100_000)
    assert abs(float(noise.var()) - 1.0) < 4.0 * math.sqrt(2.0 / 100_000)
    assert float(cause.abs().max()) <= 10.5
    assert abs(float(cause.var()) - 21.0**2 / 12.0) < 0.5


@PROBLEMS
def test_seed_alone_decides(make):
    state = torch.get_rng_state()
    first, again, other = make(100, seed=5), make(100, 5), make(100, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)
    assert (first.x.shape, first.y.shape) == ((100, 1), (100,))
    assert first.x.dtype == first.y.dtype == torch.float32


def test_inverse_density_is_zero_outside_the_support():
    outside = inverse_sinusoid(1).log_density(torch.zeros(1), torch.tensor([-10.51, 10.51]))
    assert bool((outside == -math.inf).all())


@PROBLEMS
def test_log_density_broadcasts_as_mixture_does(make):
    problem = make(6, seed=0)
    grid = torch.linspace(-10.0, 10.0, 4)
    table = problem.log_density(problem.x, grid[:, None])
    assert table.shape == (4, 6)
    assert table.dtype == torch.float64
    alone = problem.log_density(problem.x[:, 0], grid[2].expand(6))
    torch.testing.assert_close(table[2], alone)


@PROBLEMS
@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "10", None])
def test_bad_n(make, bad):
    with pytest.raises((TypeError, ValueError), match=r"^n=.*integer of 1 or more"):
        make(bad, seed=0)


@PROBLEMS
@pytest.mark.parametrize("bad", [-1, 1.5, False, None])
def test_bad_seed(make, bad):
    with pytest.raises((TypeError, ValueError), match=r"^seed=.*integer of 0 or more"):
        make(10, seed=bad)


def test_log_density_refuses_bad_shapes():
    problem = sinusoid(3)
    with pytest.raises(ValueError, match=r"x has shape \(3, 2\)"):
        problem.log_density(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"y has shape \(4,\).*3 rows"):
        problem.log_density(problem.x, torch.zeros(4))
