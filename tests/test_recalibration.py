"""A recalibrated density is a density, and answers as a mixture does."""

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from random_mixtures import panels, random_mixture
from scipy.stats import beta

import pyralloy as pa
from pyralloy import calibration
from pyralloy.bands import ecdf_p_value
from pyralloy.conformal import RecalibratedDensity, recalibrate
from pyralloy.content import hdr_pit
from pyralloy.pit_maps import BetaMap, MonotoneMap, fit_beta, fit_monotone, normal_probability

F64 = torch.float64
IDENTITY = MonotoneMap(torch.zeros(0, dtype=F64), torch.ones(1, dtype=F64), 0.0)
BENT = MonotoneMap(
    torch.tensor([-0.5, 0.7], dtype=F64), torch.tensor([0.4, 1.2, 0.6], dtype=F64), -0.4
)
MAPS = pytest.mark.parametrize("bend", [IDENTITY, BENT, BetaMap(0.4, 0.8), BetaMap(2.0, 3.0)])


def source(seed):
    return torch.Generator().manual_seed(seed)


def smooth(rows, seed=0):
    """Mixtures of four components whose scales are of one size, so that draws tell of them."""
    loc = 3 * torch.randn(rows, 4, generator=source(seed), dtype=F64)
    scale = 0.5 + torch.rand(rows, 4, generator=source(seed + 1), dtype=F64)
    logits = torch.randn(rows, 4, generator=source(seed + 2), dtype=F64)
    return pa.Mixture(dist.Categorical(logits=logits), dist.Normal(loc, scale))


def normals(rows, scale=1.0, loc=0.0):
    at = torch.full((rows, 1), loc, dtype=F64)
    return pa.Mixture(dist.Categorical(torch.ones(rows, 1)), dist.Normal(at, scale))


@MAPS
def test_maps_are_inverted_and_their_slope_is_the_derivative(bend):
    z = torch.linspace(-9, 9, 3001, dtype=F64)
    w = bend.forward(z)
    assert bool((w.diff() > 0).all())
    inner = w.abs() < 8
    assert torch.allclose(bend.inverse(w)[inner], z[inner], atol=1e-6)
    smooth = (z[1:-1, None] - BENT.knots).abs().min(-1).values > 0.02
    slope = (w[2:] - w[:-2]) / (z[2:] - z[:-2])
    assert torch.allclose(slope.log()[smooth], bend.log_slope(z)[1:-1][smooth], atol=1e-3)


def test_the_beta_map_is_the_cdf_of_a_beta():
    z = torch.linspace(-4, 4, 50, dtype=F64)
    mapped = normal_probability(BetaMap(0.3, 1.7).forward(z)).numpy()
    np.testing.assert_allclose(mapped, beta.cdf(normal_probability(z).numpy(), 0.3, 1.7), rtol=1e-9)


@MAPS
@pytest.mark.parametrize("count", [1, 3, 12])
def test_the_density_integrates_to_one_and_to_its_cdf(bend, count):
    m = RecalibratedDensity(random_mixture(4, count, (6,), F64), bend)
    # The slope of a bent map jumps at its knots, where panels then end.
    corners = m.base.quantile(normal_probability(BENT.knots))
    y, weights = panels(m.base, *corners, *m.quantile([1e-9, 0.3, 0.5, 0.8, 1 - 1e-9]))
    p = m.log_prob(y).exp()
    assert torch.allclose((p * weights).sum(0), torch.ones(6, dtype=F64), atol=1e-6)
    at = m.quantile(0.3)
    below = torch.where(y <= at, p * weights, 0.0).sum(0)
    assert torch.allclose(below, torch.full((6,), 0.3, dtype=F64), atol=1e-6)


@MAPS
def test_the_quantile_inverts_the_cdf(bend):
    m = RecalibratedDensity(random_mixture(5, 6, (8,), F64), bend)
    levels = torch.tensor([1e-6, 0.05, 0.5, 0.95, 1 - 1e-6], dtype=F64)
    q = m.quantile(levels)
    assert torch.allclose(m.cdf(q), levels[:, None].expand(5, 8), atol=1e-9)
    assert torch.allclose(m.survival(q), 1 - levels[:, None].expand(5, 8), atol=1e-9)
    lower, upper = m.interval(0.9)
    assert torch.allclose(torch.stack([lower, upper]), q[[1, 3]])


def test_the_identity_changes_no_answer():
    base = random_mixture(6, 5, (30,), F64)
    m, y = RecalibratedDensity(base, IDENTITY), base.sample(generator=source(0))
    spread = base.stddev
    assert torch.allclose(m.log_prob(y), base.log_prob(y))
    assert torch.allclose(m.cdf(y), base.cdf(y))
    assert float(((m.mean - base.mean) / spread).abs().max()) < 1e-6
    assert torch.allclose(m.stddev, spread, rtol=1e-6)
    assert float(((m.crps(y) - base.crps(y)) / spread).abs().max()) < 1e-6
    region, exact = (d.highest_density_region(0.8) for d in (m, base))
    assert torch.allclose(region.volume(), exact.volume(), rtol=0.01)


def test_a_line_in_normal_scores_is_an_affine_map_of_a_normal():
    """g(z) = (z - 1) / 2 takes N(0, 1) to N(1, 4)."""
    line = MonotoneMap(torch.zeros(0, dtype=F64), torch.tensor([0.5], dtype=F64), -0.5)
    m, exact = RecalibratedDensity(normals(1), line), normals(1, 2.0, 1.0)
    y = torch.linspace(-9, 11, 41, dtype=F64)[:, None]
    assert torch.allclose(m.log_prob(y), exact.log_prob(y))
    assert torch.allclose(m.cdf(y), exact.cdf(y))
    assert torch.allclose(m.mean, exact.mean, atol=1e-6)
    assert torch.allclose(m.stddev, exact.stddev, rtol=1e-6)
    assert torch.allclose(m.crps(y), exact.crps(y), atol=1e-6)
    region, ends = m.highest_density_region(0.9), exact.highest_density_region(0.9)
    assert torch.allclose(region.intervals, ends.intervals, atol=0.02)


@MAPS
def test_regions_hold_their_level_and_samples_follow_the_density(bend):
    m = RecalibratedDensity(smooth(5), bend)
    y = m.sample((20_000,), generator=source(0))
    for level in (0.5, 0.9):
        region = m.highest_density_region(level)
        ends = m.cdf(region.intervals.movedim(0, -1))  # (R, 2, N)
        mass = (ends[:, 1] - ends[:, 0]).nansum(0)
        assert bool(((mass >= level - 0.002) & (mass <= level + 0.002)).all())
        held = region.contains(y).double().mean(0)
        assert torch.allclose(held, mass, atol=5 * (0.25 / 20_000) ** 0.5)
    hardly = (m.hdr_pit(y[0]) - 0.9).abs() > 0.005
    inside = m.hdr_pit(y[0]) <= 0.9
    assert bool((inside == region.contains(y[0]))[hardly].all())
    errors = 5 * m.stddev / 20_000**0.5
    assert bool(((y.mean(0) - m.mean).abs() < errors).all())
    assert torch.allclose(y.std(0), m.stddev, rtol=0.05)
    score = (y[:, 0] - y[0, 0]).abs().mean() - (y[::2, 0] - y[1::2, 0]).abs().mean() / 2
    assert float(m.crps(y[0])[0]) == pytest.approx(float(score), rel=0.05)


@MAPS
def test_the_hdr_pit_of_its_own_draws_is_uniform(bend):
    m = RecalibratedDensity(random_mixture(8, 4, (300,), F64), bend)
    hdr = m.hdr_pit(m.sample(generator=source(0)))
    assert ecdf_p_value(hdr.numpy()) > 0.005


def test_the_hdr_pit_is_that_of_the_mixture_under_the_identity():
    base = random_mixture(8, 4, (300,), F64)
    y = base.sample(generator=source(0))
    found = RecalibratedDensity(base, IDENTITY).hdr_pit(y)
    assert float((found - hdr_pit(base, y)).abs().max()) < 0.003


@pytest.mark.parametrize("method", ["isotonic", "beta"])
@pytest.mark.parametrize("scale", [0.1, 0.6, 1.8])
def test_a_wrong_spread_is_mended(method, scale):
    y = torch.randn(3, 1500, generator=source(0), dtype=F64)
    wrong = normals(1500, scale)
    mended = recalibrate(wrong, y[0], method=method).apply(wrong)
    assert ecdf_p_value(wrong.cdf(y[1]).numpy()) < 1e-6
    if method == "isotonic" or scale > 0.5:
        assert ecdf_p_value(mended.cdf(y[1]).numpy()) > 0.01
    exact = -normals(1500).log_prob(y[2]).mean()
    before, after = (float(-m.log_prob(y[2]).mean() - exact) for m in (wrong, mended))
    # A beta cannot draw a tail that is ten times too narrow; a line in normal scores can.
    assert after < (0.02 if method == "isotonic" else 0.25 * before)
    assert float(mended.stddev[0]) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("method", ["isotonic", "beta"])
def test_what_is_right_is_left_nearly_alone(method):
    base = random_mixture(9, 3, (2000,), F64)
    y = base.sample((2,), generator=source(0))
    mended = recalibrate(base, y[0], method=method).apply(base)
    loss = float((base.log_prob(y[1]) - mended.log_prob(y[1])).mean())
    assert abs(loss) < 0.01
    if method == "isotonic":
        assert torch.equal(mended.cdf(y[1]), mended.cdf(y[1]))
        assert torch.allclose(mended.cdf(y[1]), base.cdf(y[1]), atol=1e-12)


def test_a_report_takes_a_recalibrated_density():
    y = torch.randn(2, 300, generator=source(0), dtype=F64)
    mended = recalibrate(normals(300, 0.6), y[0]).apply(normals(300, 0.6))
    found = calibration.report(mended, y[1])
    assert found.calibrated
    assert not calibration.report(normals(300, 0.6), y[1]).calibrated
    assert found.sharpness["CRPS"] == pytest.approx(float(mended.crps(y[1]).mean()))


def test_more_pieces_are_taken_where_they_pay():
    scores = torch.randn(2000, generator=source(0), dtype=F64) * 0.4
    scores += torch.where(torch.rand(2000, generator=source(1)) < 0.5, 1.0, -1.0)
    found = fit_monotone(scores)
    assert len(found.slopes) > 4
    gain = found.log_slope(scores) - (found.forward(scores).square() - scores.square()) / 2
    simple = fit_beta(scores)
    other = simple.log_slope(scores) - (simple.forward(scores).square() - scores.square()) / 2
    assert float(gain.mean()) > float(other.mean()) + 0.1


def test_a_hopeless_density_is_refused():
    with pytest.raises(ValueError, match=r"next to nothing in .* of 100 rows"):
        recalibrate(normals(100, 1e-4), torch.randn(100, generator=source(0)))


def test_atoms_do_not_break_the_fit():
    m = normals(200)
    y = torch.zeros(200, dtype=F64)
    y[:20] = 1.0
    mended = recalibrate(m, y).apply(m)
    assert bool(mended.log_prob(y).isfinite().all())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, y: recalibrate(m, y, method="magic"), ValueError, "method='magic'"),
        (lambda m, y: recalibrate(m, y[:5]), ValueError, r"y has shape \(5,\)"),
        (lambda m, y: recalibrate(m[:5], y[:5]), ValueError, "at least 20"),
        (lambda m, y: recalibrate(y, y), TypeError, "give a Mixture"),
        (
            lambda m, y: recalibrate(
                pa.Mixture(dist.Categorical(torch.ones(40, 1)), dist.Poisson(torch.ones(40, 1))), y
            ),
            ValueError,
            "counts",
        ),
        (
            lambda m, y: recalibrate(random_mixture(0, 2, (40,), F64, (2,)), y),
            ValueError,
            "vector",
        ),
        (
            lambda m, y: recalibrate(m, y).apply(m).quantile(1.0),
            ValueError,
            "strictly between",
        ),
    ],
)
def test_errors_name_the_argument_and_the_rule(call, error, message):
    m = normals(40)
    with pytest.raises(error, match=message):
        call(m, m.sample(generator=source(0)))
