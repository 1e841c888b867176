"""Angles: what a mixture of von Mises components answers on the circle, however it is cut."""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from random_mixtures import DTYPES, EPS64, F32, F64, SEEDS, assert_close, uniform

import pyralloy as pa
from pyralloy.families import FAMILIES, VonMises, wrap
from pyralloy.families.arcs import concentration_of, mean_resultant, tail
from pyralloy.initialise import place_components
from pyralloy.marginal import marginal_density

FAMILY, TURN = FAMILIES["von_mises"], 2 * math.pi
CONCENTRATIONS = [1e-3, 0.1, 1.0, 7.0, 30.0, 300.0, 1e4]
few = settings(max_examples=10)


def random_angles(seed, count, batch=(), dtype=F64, decades=(-3.0, 4.0)):
    """Components anywhere on the circle, of concentrations over seven decades."""
    shape = (*batch, count)
    logits = 4 * uniform(shape, seed) - 2
    loc = uniform(shape, seed + 1, -math.pi, math.pi)
    kappa = 10 ** uniform(shape, seed + 2, *decades)
    return pa.Mixture(
        dist.Categorical(logits=logits.to(dtype)), VonMises(loc.to(dtype), kappa.to(dtype))
    )


def one(loc, kappa):
    made = VonMises(torch.tensor([loc], dtype=F64), torch.tensor([kappa], dtype=F64))
    return pa.Mixture(dist.Categorical(torch.ones(1, dtype=F64)), made)


def circle(points):
    """Give points of equal weight, for which a periodic integrand needs no others."""
    return -math.pi + TURN * torch.arange(points, dtype=F64) / points


def apart(a, b):
    """Give the angular distance, in [0, pi]."""
    return wrap(a - b).abs()


# -- the density, its cdf and its quantile function -----------------------------------------------


@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_the_density_and_entropy_of_one_component_are_those_of_scipy(kappa):
    m, y = one(0.7, kappa), torch.linspace(-10, 10, 101, dtype=F64)
    expected = torch.from_numpy(scipy.stats.vonmises.logpdf(y.numpy(), kappa, 0.7))
    assert_close(m.log_prob(y), expected, 1e-14 * (1 + kappa) + 1e-13)
    assert_close(m.entropy(), scipy.stats.vonmises.entropy(kappa), 1e-11)


@pytest.mark.parametrize("kappa", CONCENTRATIONS)
@pytest.mark.parametrize("loc", [0.0, -1.2, 3.0, -math.pi])
def test_the_cdf_is_that_of_mpmath(kappa, loc):
    with mpmath.workdps(30):
        k, mu = mpmath.mpf(kappa), mpmath.mpf(loc)
        reach = [j / mpmath.sqrt(k + 1) for j in (0.5, 1, 2, 3, 4, 6, 8, 12)]
        marks = [mu + TURN * n + s * r for n in (-1, 0, 1) for r in [0, *reach] for s in (-1, 1)]
        height = mpmath.exp(-k) * mpmath.besseli(0, k) * 2 * mpmath.pi
        below = mpmath.mpf(0)
        points = sorted([-mpmath.pi, *(v for v in marks if abs(v) < mpmath.pi), mpmath.pi])
        exact = [below]
        for a, b in zip(points, points[1:]):  # noqa: B905, RUF007
            piece = mpmath.quad(
                lambda t: mpmath.exp(-2 * k * mpmath.sin((t - mu) / 2) ** 2), [a, b]
            )
            below += piece / height
            exact.append(below)
    y = torch.tensor([float(v) for v in points], dtype=F64)
    exact = torch.tensor([float(v) for v in exact], dtype=F64)
    component = VonMises(torch.tensor(loc, dtype=F64), torch.tensor(kappa, dtype=F64))
    # 1e-15 is by how much an angle is rounded.
    assert_close(FAMILY.cdf(component, y), exact, 1e-14 + 1e-15 * component.log_prob(y).exp())
    assert_close(exact[-1], 1.0, 1e-14)
    inside = (exact > 1e-9) & (exact < 1 - 1e-9)
    near = 1e-13 / component.log_prob(y[inside]).exp() + 1e-14
    assert_close(apart(FAMILY.icdf(component, exact[inside]), y[inside]), 0.0, near)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_cdf_runs_from_0_at_minus_pi_to_1_at_pi(dtype):
    m = random_angles(0, 5, (30,), dtype)
    end = torch.tensor(math.pi, dtype=dtype)
    assert torch.equal(m.cdf(-end), torch.zeros(30, dtype=dtype))
    assert_close(m.cdf(end), 1.0, 2 * torch.finfo(dtype).eps)
    assert bool(
        (m.icdf(torch.tensor(0.0)) == -end).all() & (m.icdf(torch.tensor(1.0)) == end).all()
    )
    y = torch.linspace(-math.pi, math.pi, 501, dtype=dtype)[:, None]
    assert bool((m.cdf(y).diff(dim=0) >= -4 * torch.finfo(dtype).eps).all())


@few
@given(seed=SEEDS, count=st.integers(1, 8), turns=st.integers(-3, 3))
def test_a_full_turn_changes_no_answer(seed, count, turns):
    m = random_angles(seed, count, (3,), decades=(-3.0, 2.0))
    y = m.sample((7,), generator=torch.Generator().manual_seed(seed))
    moved = m.affine(TURN * turns, 1.0)
    for law in ("log_prob", "cdf", "crps"):
        here = getattr(m, law)(y)
        assert_close(getattr(m, law)(y + TURN * turns), here, 1e-12)
        assert_close(getattr(moved, law)(y), here, 1e-12)
    region = m.highest_density_region(0.7)
    assert torch.equal(region.contains(y + TURN * turns), region.contains(y))


@few
@given(seed=SEEDS, angle=st.floats(-7, 7), mirror=st.booleans())
def test_a_rotation_turns_every_answer_that_does_not_depend_on_the_cut(seed, angle, mirror):
    m, sign = random_angles(seed, 4, (5,), decades=(-1.0, 3.0)), -1.0 if mirror else 1.0
    y = m.sample((7,), generator=torch.Generator().manual_seed(seed))
    moved, there = m.affine(angle, sign), angle + sign * y
    assert_close(moved.log_prob(there), m.log_prob(y), 1e-10)
    assert_close(moved.crps(there), m.crps(y), 1e-12)
    assert_close(apart(moved.mean, angle + sign * m.mean), 0.0, 1e-11 / (1 - m.variance))
    assert_close(moved.variance, m.variance, 1e-12)
    assert_close(moved.entropy(), m.entropy(), 1e-9)
    one, two = m.highest_density_region(0.8), moved.highest_density_region(0.8)
    assert_close(two.volume(), one.volume(), 1e-6)
    assert_close(two.log_density, one.log_density, 1e-6)
    assert torch.equal(two.intervals[..., 0].isnan(), one.intervals[..., 0].isnan())
    (place, height), (places, heights) = m.modes(), moved.modes()
    assert_close(heights.nan_to_num(0.0), height.nan_to_num(0.0), 1e-9)
    if bool((height.nan_to_num(-1e9).diff(dim=-1) < -1e-6)[~height[:, 1:].isnan()].all()):
        assert_close(apart(places, angle + sign * place).nan_to_num(0.0), 0.0, 1e-5)
    with pytest.raises(TypeError, match=r"von_mises.*1 or -1"):
        m.affine(angle, 2.0)
    with pytest.raises(TypeError, match=r"von_mises.*1 or -1"):
        m.tempered(scale=0.5)


# -- moments --------------------------------------------------------------------------------------


@few
@given(seed=SEEDS, count=st.integers(1, 8), dtype=DTYPES)
def test_moments_are_those_of_the_unit_vector(seed, count, dtype):
    m = random_angles(seed, count, (3,), dtype)
    y = circle(4000)[:, None]
    vector = (m.to(F64).log_prob(y).exp() * torch.exp(1j * y)).mean(0) * TURN
    eps = torch.finfo(dtype).eps
    assert m.mean.dtype == m.variance.dtype == m.stddev.dtype == dtype
    assert_close(apart(m.mean.to(F64), vector.angle()), 0.0, 8 * eps / vector.abs())
    assert_close(m.variance, 1 - vector.abs(), 8 * eps)
    assert_close(m.stddev.square(), -2 * vector.abs().log(), 16 * eps / vector.abs())
    assert bool(((m.mean >= -math.pi) & (m.mean < math.pi)).all())


def test_moments_of_draws_are_those_of_scipy():
    m = random_angles(3, 3)
    y = m.sample((200_000,), generator=torch.Generator().manual_seed(0)).numpy()
    error = 4 / math.sqrt(200_000) / (1 - float(m.variance))
    mean = torch.as_tensor(scipy.stats.circmean(y, math.pi, -math.pi))
    assert float(apart(m.mean, mean)) < error
    assert float(m.variance) == pytest.approx(scipy.stats.circvar(y), abs=error)
    assert float(m.stddev) == pytest.approx(scipy.stats.circstd(y, math.pi, -math.pi), abs=error)


def test_two_angles_on_either_side_of_the_cut_have_their_mean_between_them():
    components = VonMises(torch.tensor([3.1, -3.1], dtype=F64), torch.tensor(50.0, dtype=F64))
    m = pa.Mixture(dist.Categorical(torch.ones(2, dtype=F64)), components)
    assert float(m.mean) == pytest.approx(-math.pi)
    assert float(m.stddev) == pytest.approx(float(components.stddev[0]), rel=0.05)


def test_a_vector_of_angles_has_the_moments_of_its_margins():
    loc, kappa = uniform((5, 4, 3), 0, -3.0, 3.0), 10 ** uniform((5, 4, 3), 1, -1.0, 2.0)
    m = pa.Mixture(dist.Categorical(logits=uniform((5, 4), 2)), VonMises(loc, kappa).to_event(1))
    for d in range(3):
        for law in ("mean", "variance", "stddev"):
            # The same sums, in another order where the dimensions lie side by side.
            assert_close(getattr(m, law)[:, d], getattr(m.marginal(d), law), 4 * EPS64 * math.pi)


def test_concentrations_are_found_from_resultants():
    kappa = torch.logspace(-6, 4.5, 50, dtype=F64)
    assert_close(concentration_of(mean_resultant(kappa)) / kappa, 1.0, 1e-9)
    ratio = scipy.special.ive(1, kappa.numpy()) / scipy.special.ive(0, kappa.numpy())
    assert_close(mean_resultant(kappa) / torch.from_numpy(ratio), 1.0, 1e-14)


# -- scores ---------------------------------------------------------------------------------------


def crps_by_sums(m, y, points):
    """Evaluate the circular CRPS of one density by sums over all pairs of points."""
    at = circle(points)
    mass = m.log_prob(at).exp() * TURN / points
    far = apart(at[:, None], at)
    return (mass * apart(at, y)).sum() - 0.5 * mass @ far @ mass


@pytest.mark.parametrize("seed", range(3))
def test_the_crps_is_that_of_sums_over_pairs(seed):
    m, points = random_angles(seed, 5, decades=(-3.0, 2.5)), 2000
    for y in circle(points)[[0, 617, 1000, 1999]]:  # a kink between points would cost accuracy
        # The distance has kinks: a sum of it errs by the square of a step.
        assert_close(m.crps(y), crps_by_sums(m, y, points), 2 * (TURN / points) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_crps_of_mixtures_is_that_of_their_moments_on_a_grid(seed):
    m, points = random_angles(seed, 7, (4,)), 10_000
    y = m.sample((20,), generator=torch.Generator().manual_seed(seed))
    n = torch.arange(1, points // 2, 2, dtype=F64)[:, None, None]
    mass = m.log_prob(circle(points)[:, None]).exp() * TURN / points
    moments = torch.fft.fft(mass, dim=0)[1 : points // 2 : 2][:, None] * (-1) ** n
    near = (moments * torch.exp(1j * n * y)).real / n**2
    own = moments.abs().square() / n**2
    expected = math.pi / 4 - 4 / math.pi * near.sum(0) + 2 / math.pi * own.sum(0)
    assert_close(m.crps(y), expected, 1e-12)


@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_the_crps_of_one_component_is_its_fourier_series(kappa):
    m, y = one(1.0, kappa), torch.tensor([1.0, 1.003, 2.0, -2.0, 1 - math.pi], dtype=F64)
    n = np.arange(1, 4001, 2)
    moment = scipy.special.ive(n, kappa) / scipy.special.ive(0, kappa)
    near = math.pi / 2 - 4 / math.pi * (moment / n**2 * np.cos(n * (y.numpy()[:, None] - 1))).sum(1)
    own = math.pi / 4 - 2 / math.pi * (moment**2 / n**2).sum()
    assert_close(m.crps(y), near - own, 1e-13)


def test_the_crps_of_a_needle_is_the_angle_and_of_a_narrow_one_that_of_a_normal():
    needle, y = one(3.0, 1e8), torch.tensor([3.0, -3.0, 0.0], dtype=F64)
    assert_close(needle.crps(y), torch.tensor([0.0, TURN - 6.0, 3.0], dtype=F64), 1e-4)
    narrow, scale = one(-3.1, 1e4), 0.01
    for y in (-3.1, -3.11, -3.08, math.pi - 0.01):
        z = float(wrap(torch.tensor(y + 3.1, dtype=F64))) / scale
        normal = one_normal().crps(torch.tensor(z, dtype=F64)) * scale
        assert_close(narrow.crps(torch.tensor(y, dtype=F64)), normal, 1e-4 * scale)


def one_normal():
    component = dist.Normal(torch.zeros(1, dtype=F64), 1.0)
    return pa.Mixture(dist.Categorical(torch.ones(1, dtype=F64)), component)


@pytest.mark.parametrize("seed", range(4))
def test_the_entropy_is_that_of_a_grid(seed):
    m = random_angles(seed, 6, (5,))
    height = m.log_prob(circle(20_000)[:, None])
    assert_close(m.entropy(), -(height.exp() * height).mean(0) * TURN, 1e-9)


# -- regions and modes ----------------------------------------------------------------------------


def on_grid(m, threshold, points):
    """Count arcs above the threshold and modes, and give the arcs' mass and the grid's modes."""
    y = circle(points)
    height = m.log_prob(y)
    above = height > threshold
    peaks = (height > height.roll(1)) & (height >= height.roll(-1))
    arcs = int((above & ~above.roll(1)).sum())
    return arcs, float(height[above].exp().sum() * TURN / points), y[peaks], above


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_arcs_and_modes_of_a_hundred_mixtures_are_those_of_a_grid(level):
    points, through = 40_000, 0
    y = circle(points)
    for count in (1, 2, 3, 5, 9):
        many = random_angles(10 * count, count, (20,), decades=(-2.0, 3.5))
        region, (places, heights) = many.highest_density_region(level), many.modes()
        there = many.log_prob(places.nan_to_num(0.0).T).T
        assert_close(there.where(~places.isnan(), 0.0), heights.nan_to_num(0.0), 1e-9)
        for row in range(20):
            arcs, mass, peaks, above = on_grid(many[row], region.log_density[row], points)
            mine = region.intervals[row][~region.intervals[row, :, 0].isnan()]
            assert len(mine) == arcs
            assert mass == pytest.approx(level, abs=5e-3)
            alone = pa.regions.Region(mine, level, region.log_density[row], circular=True)
            assert int((alone.contains(y) != above).sum()) <= 2 * arcs
            assert float(alone.volume()) == pytest.approx(
                TURN * float(above.double().mean()), abs=2e-3
            )
            assert bool(((mine[:, 0] >= -math.pi) & (mine[:, 0] < math.pi)).all())
            assert bool((mine[1:, 0] > mine[:-1, 1]).all())
            assert bool((mine[-1, 1] - TURN < mine[0, 0]).all())
            through += int((mine[:, 1] > math.pi).sum())
            found = places[row][~places[row].isnan()]
            assert len(found) == len(peaks)
            assert float(apart(found[:, None], peaks).amin(1).max()) < 2 * TURN / points
    assert through > 10


@pytest.mark.parametrize("loc", [0.0, 2.0, math.pi, -math.pi, 3.1, -3.1, math.pi / 2])
@pytest.mark.parametrize("kappa", CONCENTRATIONS)
def test_one_component_has_one_arc_about_its_one_mode(loc, kappa):
    m = one(loc, kappa)
    places, heights = m.modes()
    assert places.shape == (1,) and float(apart(places, torch.tensor(loc, dtype=F64))) < 1e-7
    assert_close(heights, m.log_prob(torch.tensor(loc, dtype=F64)), 1e-12)
    assert -math.pi <= float(places) < math.pi
    region = m.highest_density_region(0.9)
    (lower, upper), half = region.intervals[0].tolist(), float(region.volume()) / 2
    assert region.intervals.shape == (1, 2)
    assert float(apart(torch.tensor((lower + upper) / 2), torch.tensor(loc))) < 1e-4
    assert 1 - 2 * float(tail(*torch.tensor([half, kappa], dtype=F64))) == pytest.approx(0.9)
    sides = torch.tensor([0.0, -0.99, 0.99, -1.01, 1.01], dtype=F64)
    assert region.contains(loc + half * sides).tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize("level", [1e-4, 0.5, 0.9, 1 - 1e-6])
def test_every_region_holds_its_level(level):
    m = random_angles(2, 6, (50,))
    lower, upper = m.highest_density_region(level).intervals.nan_to_num(0.0).unbind(-1)
    held = m.cdf(wrap(upper.T)) - m.cdf(lower.T) + (upper.T >= math.pi).to(F64)
    assert_close(held.sum(0) - level, 0.0, 2e-8)


def test_four_winds_have_four_modes_and_four_arcs():
    loc = torch.tensor([-math.pi, -math.pi / 2, 0.0, math.pi / 2], dtype=F64)
    m = pa.Mixture(dist.Categorical(torch.ones(4, dtype=F64)), VonMises(loc, torch.tensor(60.0)))
    assert_close(m.modes().locations.sort().values, loc, 1e-9)
    arcs = m.highest_density_region(0.8).intervals
    assert arcs.shape == (4, 2)
    assert_close(arcs.mean(-1), torch.tensor([-0.5, 0.0, 0.5, 1.0]).to(F64) * math.pi, 1e-6)
    assert float(arcs[-1, 1]) > math.pi


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["log_prob", "cdf", "crps", "icdf"])
def test_gradients_are_those_of_finite_differences(law):
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    loc = torch.tensor([0.0, 2.9, -2.0], dtype=F64)
    kappa = torch.tensor([3.0, 40.0, 0.2], dtype=F64)
    y = [0.1, 0.5, 0.93] if law == "icdf" else [0.0, 2.9, -2.0, -3.0, 1.1, -0.24]

    def function(logits, loc, kappa, y):
        made = pa.Mixture(dist.Categorical(logits=logits), VonMises(loc, kappa))
        return getattr(made, law)(y)

    leaves = [v.clone().requires_grad_() for v in (logits, loc, kappa, torch.tensor(y, dtype=F64))]
    assert torch.autograd.gradcheck(function, leaves, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("law", ["cdf", "distance", "log_prob"])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 100.0, 1e4])
def test_gradients_hold_for_every_width(law, kappa):
    units = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=F64) / math.sqrt(kappa + 1)

    def function(y, loc, log_kappa):
        made = VonMises(loc, log_kappa.exp())
        return made.log_prob(y) if law == "log_prob" else getattr(FAMILY, law)(made, y)

    leaves = (0.4 + units, torch.full_like(units, 0.4), torch.full_like(units, math.log(kappa)))
    leaves = tuple(v.requires_grad_() for v in leaves)
    step = 1e-6 / math.sqrt(kappa + 1)
    assert torch.autograd.gradcheck(function, leaves, eps=step, atol=1e-4 * kappa**0.5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("loc", [0.0, math.pi, -math.pi, 1.0])
def test_no_gradient_is_nan_at_the_peak_opposite_it_or_without_weight(dtype, loc):
    kappa = torch.tensor([1e4, 1e-3, 1.0, 1e4], dtype=dtype, requires_grad=True)
    place = torch.full((4,), loc, dtype=dtype, requires_grad=True)
    logits = torch.tensor([0.0, 0.2, -math.inf, -math.inf], dtype=dtype, requires_grad=True)
    m = pa.Mixture(dist.Categorical(logits=logits), VonMises(place, kappa))
    y = torch.tensor([loc, loc + math.pi, loc - math.pi, 0.0, math.pi, -math.pi, 0.3], dtype=dtype)
    y.requires_grad_()
    for value in (m.log_prob(y), m.cdf(y), m.crps(y), m.mean, m.variance, m.quantile([0.1, 0.5])):
        assert bool(value.isfinite().all())
        grads = torch.autograd.grad(
            value.sum(), (kappa, place, logits, y), allow_unused=True, retain_graph=True
        )
        assert all(g is None or bool(g.isfinite().all()) for g in grads)


# -- samples, pools, parts ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
def test_samples_lie_in_the_circle_as_it_is_cut_and_follow_the_density(dtype):
    kappa = torch.tensor([1e-6, 0.5, 20.0, 1e4], dtype=dtype)
    loc = torch.tensor([1.0, -math.pi, math.pi, 3.14], dtype=dtype)
    for i in range(4):
        made = VonMises(loc[i : i + 1], kappa[i : i + 1])
        m = pa.Mixture(dist.Categorical(torch.ones(1, dtype=dtype)), made)
        y = m.sample((20_000,), generator=torch.Generator().manual_seed(i))
        assert y.dtype == dtype
        end = torch.tensor(math.pi, dtype=dtype)
        assert bool(((y >= -end) & (y < end)).all())
        result = scipy.stats.kstest(m.to(F64).cdf(y.to(F64)).numpy(), "uniform")
        assert result.pvalue > 1e-5


def test_pools_rows_and_lighter_weights_are_mixtures_of_angles():
    many = [random_angles(seed, 3, (4,)) for seed in range(3)]
    pooled, y = pa.Mixture.pool(many), circle(4)
    assert_close(pooled.cdf(y), torch.stack([m.cdf(y) for m in many]).mean(0), 1e-12)
    # The last bits are those of whole vectors of numbers or of what is left over of one.
    assert_close(pooled[1:3].crps(y[1:3]), pooled.crps(y)[1:3], 1e-14)
    alone = pooled[2].modes().locations
    assert torch.equal(alone, pooled.modes().locations[2][: len(alone)])
    sharp = many[0].tempered(weight=0.5)
    assert_close(sharp.logits, torch.log_softmax(2 * many[0].logits, -1), 1e-12)
    narrow = pooled.to(F32)
    assert_close(narrow.cdf(y.to(F32)), pooled.cdf(y), 1e-4)
    assert_close(narrow.crps(y.to(F32)), pooled.crps(y), 1e-5)


def test_pyros_own_von_mises_is_known_too():
    loc, kappa = torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([3.0, 5.0], dtype=F64)
    weights = dist.Categorical(torch.ones(2, dtype=F64))
    theirs, ours = (pa.Mixture(weights, kind(loc, kappa)) for kind in (dist.VonMises, VonMises))
    y = circle(7)
    assert torch.equal(theirs.cdf(y), ours.cdf(y)) and torch.equal(theirs.crps(y), ours.crps(y))
    assert torch.equal(theirs.mean, ours.mean)
    assert_close(theirs.log_prob(y), ours.log_prob(y), 1e-6)


# -- fitting --------------------------------------------------------------------------------------


def test_components_start_where_the_angles_are():
    head = pa.MixtureHead(4, components=6, family="von_mises")
    source = torch.Generator().manual_seed(0)
    y = wrap(math.pi + 0.2 * torch.randn(500, generator=source))  # about the cut
    place_components(head, y, source)
    with torch.no_grad():
        components = head(torch.zeros(4)).components
    gap = wrap(components.mean - math.pi)
    assert bool((gap.abs() < 0.5).all()) and float(gap.max() - gap.min()) > 0.3
    assert bool((components.stddev > 0.02).all() & (components.stddev < 0.3).all())
    place_components(head, 6.28 * torch.rand(500, generator=source), source)  # all round
    with torch.no_grad():
        loc = head(torch.zeros(4)).components.mean.sort().values
    steps = torch.cat([loc.diff(), loc[:1] + TURN - loc[-1:]])
    assert float(steps.max()) < 1.5


def test_pairs_of_angles_start_where_they_are():
    head = pa.MixtureHead(4, components=2, targets=2, family="von_mises")
    source = torch.Generator().manual_seed(0)
    centre = torch.tensor([[math.pi, 0.0], [0.0, math.pi]])[torch.arange(400) % 2]
    place_components(head, wrap(centre + 0.1 * torch.randn(400, 2, generator=source)), source)
    with torch.no_grad():
        loc = head(torch.zeros(4)).components.base_dist.mean
    nearest = apart(loc[:, None], centre[:2]).amax(-1).amin(-1)
    assert bool((nearest < 0.1).all()) and float(apart(loc[0], loc[1]).min()) > 2


def test_one_component_follows_a_direction_all_the_way_round():
    source = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 2, generator=source, dtype=F64)
    direction = torch.atan2(x[:, 1], x[:, 0])
    y = wrap(direction + 0.15 * torch.randn(1500, generator=source, dtype=F64))
    model = pa.MDN(pa.networks.MLP(2, hidden=(32,)), pa.MixtureHead(32, 1, family="von_mises"))
    fit = pa.fit(model, x, y, max_steps=600, progress=False)
    density = fit.density(x)
    far = x.norm(dim=-1) > 0.3
    assert float(apart(density.mean, direction)[far].max()) < 0.4
    assert -float(density.log_prob(y).mean()) < one_normal().entropy() + math.log(0.15) + 0.15
    assert float(fit.marginal) == pytest.approx(math.log(TURN), abs=0.05)
    assert bool((model.y_scaling.shift == 0) & (model.y_scaling.scale == 1))


def test_the_marginal_of_angles_does_not_see_the_cut():
    y = wrap(math.pi + 0.3 * torch.randn(300, generator=torch.Generator().manual_seed(0)).to(F64))
    here = marginal_density(y, circular=True)
    there = marginal_density(wrap(y + 2.0), circular=True)
    at = circle(50)
    assert_close(there.log_prob(at + 2.0), here.log_prob(at), 1e-8)
    assert_close(here.log_prob(circle(5000)).exp().mean() * TURN, 1.0, 1e-10)


def test_degrees_are_refused_with_a_remedy():
    x, y = torch.arange(40.0), torch.linspace(0.0, 359.0, 40)
    model = pa.MDN(pa.networks.MLP(1, hidden=(4,)), pa.MixtureHead(4, 2, family="von_mises"))
    with pytest.raises(ValueError, match=r"y holds 9.2.* at row 1.*radians.*deg2rad"):
        pa.fit(model, x, y, max_steps=5, progress=False)
    fit = pa.fit(model, x, torch.deg2rad(y), max_steps=5, progress=False)
    assert bool(fit.density(x).log_prob(torch.deg2rad(y)).isfinite().all())


@pytest.mark.parametrize("name", ["loc", "concentration"])
def test_missing_parameters_and_no_rows_spoil_nothing(name):
    m, good = random_angles(0, 3, (3,)), random_angles(0, 3, (3,))
    getattr(m.components, name)[1, 0] = math.nan
    y, rest = torch.zeros(3, dtype=F64), [0, 2]
    for law in (
        lambda m: m.crps(y),
        lambda m: m.quantile(0.3),
        lambda m: m.mean,
        lambda m: m.entropy(),
        lambda m: m.highest_density_region(0.9).volume(),
        lambda m: m.modes().locations[:, 0],
    ):
        assert law(m).isnan().tolist() == [False, True, False]
        assert torch.equal(law(m)[rest], law(good)[rest])
    assert bool(
        m.sample((5,), generator=torch.Generator().manual_seed(0))[:, rest].isfinite().all()
    )
    none = good[:0]
    assert none.crps(y[:0]).shape == none.entropy().shape == none.mean.shape == (0,)
    assert none.highest_density_region(0.5).volume().shape == none.quantile(0.5).shape == (0,)
    assert none.modes().locations.shape[0] == 0 and none.sample((2,)).shape == (2, 0)
