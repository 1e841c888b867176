"""Highest-density regions and modes: the laws they obey, and dense grids that know the answer."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from random_mixtures import F32, F64, SEEDS, random_mixture, uniform
from random_mixtures import assert_close as assert_tensors_close

from pyralloy import Mixture, landscape
from pyralloy.families import FAMILIES, map_parameters
from pyralloy.families.interval_beta import IntervalBeta
from pyralloy.families.truncated_normal import TruncatedNormal
from pyralloy.regions import Region, highest_density, modes
from pyralloy.slopes import ready
from pyralloy.table import Table

COUNTS = st.integers(1, 20)
LEVELS = st.floats(0.01, 0.99)


def assert_close(actual, expected, tolerance):
    assert_tensors_close(actual, torch.as_tensor(expected, dtype=F64), tolerance)


def flat(m):
    """Lay a mixture out as a table of one row for each element of its batch."""
    count = m.num_components
    return Table(
        m.weights.reshape(-1, count),
        map_parameters(m.components, lambda p: p.reshape(-1, count), 0),
    )


def normals(weights, loc, scale):
    """Make a table of one row."""
    weights, loc, scale = (torch.tensor([v], dtype=F64) for v in (weights, loc, scale))
    return Table(weights / weights.sum(), dist.Normal(loc, scale))


def crowded(seed, count, rows):
    """Overlapping components of like scales, which merge and part."""
    source = torch.Generator().manual_seed(seed)
    shape = (rows, count)
    logits = torch.randn(shape, generator=source, dtype=F64)
    loc = 1.5 * torch.randn(shape, generator=source, dtype=F64)
    return Table(logits.softmax(-1), dist.Normal(loc, uniform(shape, seed + 1, 0.2, 1.0)))


def held(table, region):
    """Sum the probability of the intervals."""
    lower, upper = region.intervals.nan_to_num(0.0).unbind(-1)
    turned = (upper > math.pi) & region.circular  # an arc through the cut
    parts = [table.cdf(upper[:, i]) - table.cdf(lower[:, i]) for i in range(lower.shape[1])]
    parts.append(turned.sum(-1))
    return torch.stack(parts).sum(0)


def interval_counts(region):
    return (~region.intervals[..., 0].isnan()).sum(-1)


def many(total, seed=0):
    """Give tables of ``total`` rows in all: half spread over four decades, half crowded."""
    rows = total // 40
    for count in range(1, 21):
        yield flat(random_mixture(seed + count, count, (rows,)))
        yield crowded(seed + count, count, rows)


# -- the level ------------------------------------------------------------------------------------


def assert_levels_held(tables, levels):
    for table in tables:
        for level in levels:
            region = highest_density(table, level)
            assert float((held(table, region) - level).abs().max()) < 2e-8


def test_every_region_holds_its_level():
    assert_levels_held(many(480), [0.9])


@pytest.mark.slow
def test_every_region_of_ten_thousand_holds_its_level():
    assert_levels_held(many(10_000, seed=1000), [0.1, 0.5, 0.9, 0.99])


@pytest.mark.parametrize("level", [1e-4, 0.01, 0.5, 0.999, 1 - 1e-6])
def test_the_region_of_one_normal_is_its_central_interval(level):
    table = Table(
        torch.ones(3, 1, dtype=F64),
        dist.Normal(
            torch.tensor([[0.0], [-3.0], [1e3]], dtype=F64),
            torch.tensor([[1.0], [1e-3], [50.0]], dtype=F64),
        ),
    )
    region = highest_density(table, level)
    z = scipy.special.ndtri((1 + level) / 2)
    loc, scale = table.components.loc[:, 0], table.components.scale[:, 0]
    error = 1e-7 / scipy.stats.norm.pdf(z) * scale
    assert_close(region.intervals[:, 0, 0], loc - z * scale, error)
    assert_close(region.intervals[:, 0, 1], loc + z * scale, error)
    assert region.intervals.shape == (3, 1, 2)


def test_needles_far_apart_and_needles_in_hay_are_all_found():
    apart = normals([0.2, 0.3, 0.5], [-1e4, 0.0, 1e4], [1e-3, 1e-3, 1e-3])
    region = highest_density(apart, 0.95)
    assert interval_counts(region).tolist() == [3]
    assert_close(held(apart, region), 0.95, 1e-7)
    hay = normals([0.98, 0.01, 0.01], [0.0, 0.31, -2.77], [10.0, 1e-3, 1e-4])
    region = highest_density(hay, 0.015)
    assert interval_counts(region).tolist() == [2]
    assert region.contains(torch.tensor([[0.31], [-2.77], [0.0]], dtype=F64)).T.tolist() == [
        [True, True, False]
    ]


def test_contains_takes_arrays_and_numbers_and_refuses_a_column():
    ends = torch.tensor([[[-1.5, 1.5], [3.5, 4.5]]] * 3, dtype=F64)
    region = Region(ends, 0.9, torch.zeros(3))
    y = np.array([0.0, 2.2, 4.0])
    assert region.contains(y).tolist() == [True, False, True]
    assert region.contains([0, 2.2, 9]).tolist() == [True, False, False]
    assert region.contains(4).tolist() == [True, True, True]
    with pytest.raises(ValueError, match="squeeze"):
        region.contains(y[:, None])
    with pytest.raises(ValueError, match="does not broadcast"):
        region.contains(y[:2])


@given(seed=SEEDS, count=COUNTS, level=LEVELS)
def test_contains_agrees_with_the_density_level(seed, count, level):
    m = random_mixture(seed, count, (4,))
    table = flat(m)
    region = highest_density(table, level)
    y = m.sample((400,), generator=torch.Generator().manual_seed(seed))
    height = table.log_prob(y.T).T - region.log_density
    clear = height.abs() > 1e-9
    assert torch.equal(region.contains(y)[clear], (height > 0)[clear])
    lower, upper = region.intervals.unbind(-1)
    for ends in (lower, upper):
        at = table.log_prob(ends.nan_to_num(0.0)) - region.log_density[:, None]
        assert_close(at.where(~ends.isnan(), 0.0), 0.0, 1e-9)
    assert bool((upper[:, :-1] < lower[:, 1:])[~lower[:, 1:].isnan()].all())
    inside = region.contains(y).to(F64).mean(0)
    assert_close(inside, level, 5 * math.sqrt(level * (1 - level) / 400) + 1e-2)


@settings(max_examples=8)
@given(seed=SEEDS, count=COUNTS)
def test_a_higher_level_takes_a_larger_region_around_the_smaller(seed, count):
    table = flat(random_mixture(seed, count, (10,)))
    regions = [highest_density(table, level) for level in (0.01, 0.2, 0.5, 0.8, 0.95, 0.999)]
    for small, large in itertools.pairwise(regions):
        assert bool((small.volume() < large.volume()).all())
        assert bool((small.log_density > large.log_density).all())
        middle = small.intervals.mean(-1).T  # (R, M)
        assert bool((large.contains(middle) | middle.isnan()).all())


@given(seed=SEEDS, count=COUNTS, level=LEVELS)
def test_no_interval_of_the_level_is_shorter_than_the_region(seed, count, level):
    table = flat(random_mixture(seed, count, (4,)))
    volume = highest_density(table, level).volume()
    for below in (0.0005, 0.3, 0.5, 0.7):
        u = torch.full((4,), below * (1 - level), dtype=F64)
        length = table.quantile(u + level) - table.quantile(u)
        assert bool((volume <= length * (1 + 1e-6)).all())


@given(
    seed=SEEDS, count=COUNTS, level=LEVELS, shift=st.floats(-100, 100), size=st.floats(0.01, 100),
    sign=st.sampled_from([-1.0, 1.0]),
)  # fmt: skip
def test_an_affine_map_moves_regions_and_modes(seed, count, level, shift, size, sign):
    m, scale = random_mixture(seed, count, (4,)), sign * size
    moved = flat(m.affine(shift, scale))
    region, there = highest_density(flat(m), level), highest_density(moved, level)
    volume = there.volume() / size
    assert_close(volume, region.volume(), 1e-6 * volume + 1e-12 * abs(shift) / size)
    assert_close(there.log_density, region.log_density - math.log(size), 1e-6)
    assert torch.equal(interval_counts(there), interval_counts(region))
    (y, log_density), (y_there, log_density_there) = modes(flat(m)), modes(moved)
    assert torch.equal(y.isnan(), y_there.isnan())
    height = (log_density_there + math.log(size) - log_density).nan_to_num(0.0)
    assert_close(height, 0.0, 1e-9 * (1 + abs(shift / size)))


# -- a grid that knows ----------------------------------------------------------------------------


def grid(table, row, points):
    """Give sorted points, the log density and the derivative's sign there, by numpy."""
    w, loc, scale = (
        v[row].numpy() for v in (table.weights, table.components.loc, table.components.scale)
    )
    each = points // (2 * len(w))
    z = np.linspace(-9.0, 9.0, each)
    y = np.linspace((loc - 9 * scale).min(), (loc + 9 * scale).max(), points - each * len(w))
    y = np.unique(np.concatenate([y, (loc[:, None] + scale[:, None] * z).ravel()]))
    terms = np.empty((len(w), len(y)))
    for k in range(len(w)):
        terms[k] = np.log(w[k] / scale[k]) - 0.5 * ((y - loc[k]) / scale[k]) ** 2
    top = terms.max(0)
    terms = np.exp(terms - top)
    slope = ((loc - y.T[:, None]) / scale**2 * terms.T).sum(-1)
    return y, top + np.log(terms.sum(0)) - 0.5 * math.log(2 * math.pi), slope


def assert_as_on_grid(tables, rows, points, level):
    for table in tables:
        region, (locations, _) = highest_density(table, level), modes(table)
        counts = interval_counts(region)
        for row in range(min(rows, len(table))):
            y, log_density, slope = grid(table, row, points)
            above = log_density > float(region.log_density[row])
            assert int(np.diff(above.astype(int)).clip(0).sum()) == int(counts[row])
            turn = np.flatnonzero((slope[:-1] > 0) & (slope[1:] <= 0))
            found = locations[row][~locations[row].isnan()].sort().values.numpy()
            assert len(found) == len(turn)
            slack = 1e-12 * np.abs(found)
            assert (found >= y[turn] - slack).all() and (found <= y[turn + 1] + slack).all()


def test_intervals_and_modes_are_those_of_a_grid():
    assert_as_on_grid(many(40, seed=50), 1, 20_000, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_and_modes_are_those_of_a_million_points(level):
    assert_as_on_grid(many(200, seed=100), 5, 1_000_000, level)


# -- modes ----------------------------------------------------------------------------------------


@given(seed=SEEDS, count=COUNTS)
def test_modes_are_maxima_highest_first_and_no_more_than_components(seed, count):
    table = flat(random_mixture(seed, count, (4,)))
    y, log_density = modes(table)
    there = ~y.isnan()
    assert y.shape == log_density.shape and y.shape[1] <= count
    assert bool(there[:, 0].all()) and torch.equal(there, ~log_density.isnan())
    assert bool((log_density.diff(dim=-1) <= 0)[there[:, 1:]].all())
    at = y.nan_to_num(0.0)
    assert_close(table.log_prob(at).where(there, 0.0), log_density.nan_to_num(0.0), 1e-12)
    grown = table.components.scale.amin(-1, keepdim=True) * 1e-3
    for side in (-grown, grown):
        assert bool((table.log_prob(at + side) < log_density)[there].all())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(
    ("apart", "count"), [(1.999, 1), (2.001, 2), (2.0001, 2), (0.0, 1), (60.0, 2)]
)
def test_two_equal_normals_part_at_two_standard_deviations(apart, count, scale):
    y, log_density = modes(normals([0.5, 0.5], [7.0, 7.0 + apart * scale], [scale, scale]))
    assert y.shape == (1, count)
    assert_close(y.mean(), 7.0 + apart * scale / 2, 1e-6 * scale + 1e-12)
    assert_close(log_density[0, 0], log_density[0, -1], 1e-9)


@pytest.mark.parametrize("excess", [-1e-3, 1e-3])
def test_a_bump_at_the_verge_is_a_mode_when_the_slope_turns(excess):
    """A needle on the flank of a wide normal makes a mode when its slope outweighs the flank's."""
    scale = 1e-3
    weight = scale**2 * (1 + excess)
    table = normals([1 - weight, weight], [0.0, 1.0], [1.0, scale])
    y = np.linspace(1 - 3 * scale, 1 + 3 * scale, 2_000_001)
    z = (y - 1.0) / scale
    slope = -(1 - weight) * y * np.exp(-y * y / 2) - weight * z / scale**2 * np.exp(-z * z / 2)
    bump = bool((slope > 0).any())
    assert bump == (excess > 0)
    assert modes(table)[0].shape == (1, 1 + bump)


# -- other families -------------------------------------------------------------------------------


def test_the_peak_of_a_laplace_is_a_mode_wherever_it_lies():
    loc = torch.tensor([[0.0, 1.5, 40.0]], dtype=F64)
    scale = torch.tensor([[2.0, 1e-3, 1.0]], dtype=F64)
    table = Table(torch.tensor([[0.6, 0.1, 0.3]], dtype=F64), dist.Laplace(loc, scale))
    y, _ = modes(table)
    assert_close(y, torch.tensor([[1.5, 40.0, 0.0]], dtype=F64), 1e-8)
    for level in (0.05, 0.5, 0.9):
        assert_close(held(table, highest_density(table, level)), level, 1e-8)
    one = Table(torch.ones(1, 1, dtype=F64), dist.Laplace(loc[:, :1], scale[:, :1]))
    half = -2.0 * math.log(0.1)
    expected = torch.tensor([[[-half, half]]], dtype=F64)
    assert_close(highest_density(one, 0.9).intervals, expected, 1e-7)


def test_a_generic_family_answers_as_the_closed_form(monkeypatch):
    from pyralloy import table as room

    closed = crowded(3, 6, 20)
    region, found = highest_density(closed, 0.9), modes(closed)
    generic = {"ready": room.ready, "landmarks": room.landmarks}
    for name, function in generic.items():
        monkeypatch.setattr(room, name, function.dispatch(object))
    other, again = highest_density(closed, 0.9), modes(closed)
    assert_close(region.volume(), other.volume(), 1e-7)
    assert torch.equal(interval_counts(region), interval_counts(other))
    assert torch.equal(found[0].isnan(), again[0].isnan())
    assert_close(found[0].nan_to_num(0.0), again[0].nan_to_num(0.0), 1e-7)


def cut_normals(rows=6, count=5):
    """Truncated normals of ends that differ, some far out in a tail."""
    loc, scale = 2.0 * uniform((rows, count), 0, -1, 1), uniform((rows, count), 1, 0.1, 2.0)
    low = loc + scale * uniform((rows, count), 2, -3, 30)
    high = torch.where(uniform((rows, count), 3) < 0.5, low + 0.5 * scale, math.inf)
    weights = torch.softmax(uniform((rows, count), 4), -1)
    return Table(weights, TruncatedNormal(loc, scale, low, high))


def test_truncated_normals_are_answered_by_a_closed_form_as_by_derivatives():
    table = cut_normals()
    ours = table.ready
    plain = ready.dispatch(object)(table.components, table.weights.log())
    low, high = table.components.low, table.components.high
    for y in (low, low + 0.01, high.clamp_max(50.0), low - 0.3, (low + high.clamp_max(9.0)) / 2):
        for k in range(y.shape[1]):
            at = y[:, k : k + 1]
            found, expected = (some.slopes(some.values, at, 1) for some in (ours, plain))
            there = expected.value > -math.inf
            assert bool(there.any()) and torch.equal(there, found.value > -math.inf)
            for one, other in zip(found, expected, strict=True):
                assert_close((one - other)[there], 0.0, 1e-9 * (1 + other[there].abs()))
            cdfs = (some.cdf(table.weights, some.values, at) for some in (ours, plain))
            assert_close(next(cdfs) - next(cdfs), 0.0, 1e-12)


def test_regions_of_truncated_normals_hold_their_level():
    table = cut_normals()
    for level in (0.3, 0.9):
        assert_close(held(table, highest_density(table, level)), level, 1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_fewer_landmarks_find_what_all_find(seed, monkeypatch):
    tables = [crowded(seed, 150, 20), flat(random_mixture(seed, 110, (20,)))]
    for table in tables:
        few, (peaks, _) = highest_density(table, 0.9), modes(table)
        asked = landscape._landmarks(table, *table.support())
        assert asked[0].shape[1] < 0.6 * asked[1]  # of those there are
        with monkeypatch.context() as patch:
            patch.setattr(landscape, "_MANY", 10**9)
            every, (all_peaks, _) = highest_density(table, 0.9), modes(table)
        assert torch.equal(interval_counts(few), interval_counts(every))
        assert_close(few.volume(), every.volume(), 1e-7 * every.volume())
        assert_close(peaks[:, 0], all_peaks[:, 0], 1e-7)


STEPS = torch.arange(120, dtype=F64)[None]


@pytest.mark.parametrize(
    ("component", "peaks"),
    [
        (dist.StudentT(torch.full_like(STEPS, 0.5), 10 * STEPS, 0.1), 120),
        (dist.StudentT(torch.ones_like(STEPS), 10 * STEPS, 1.0), 120),
        (dist.LogNormal(0 * STEPS, 5.0), 1),
        (dist.LogNormal(STEPS / 60, 2.0), 1),
        (dist.Laplace(STEPS / 60, 1.0), None),
    ],
)
def test_pools_of_long_tails_and_of_kinks_keep_their_regions_and_modes(
    component, peaks, monkeypatch
):
    table = Table(torch.full_like(STEPS, 1 / 120), component)
    few, (found, _) = highest_density(table, 0.9), modes(table)
    monkeypatch.setattr(landscape, "_MANY", 10**9)
    every, (all_found, _) = highest_density(table, 0.9), modes(table)
    assert_close(held(table, few), 0.9, 1e-6)
    assert_close(few.volume(), every.volume(), 1e-6 * every.volume())
    assert found.shape == all_found.shape and peaks in (None, found.shape[1])


@pytest.mark.parametrize(("scale", "kinks"), [(1.0, 2), (0.3, 26)])
def test_truncated_laplaces_keep_their_kinks(scale, kinks):
    m = Mixture(dist.Categorical(torch.ones(1, 120)), dist.Laplace(STEPS / 60, scale))
    cut, found = m.truncate(0.3, 1.7), 0
    peaks, _ = modes(flat(cut))
    for k in range(25, 95):  # of one weight and scale, the kinks in the middle are the highest
        at = torch.tensor([-1e-7, 0.0, 1e-7], dtype=F64) + k / 60
        height = cut.log_prob(at[:, None])[:, 0]
        if bool((height[1] > height[[0, 2]]).all()):
            assert float((peaks - k / 60).abs().min()) < 1e-6
            found += 1
    assert found == kinks


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if not f.support.integer])
def test_the_region_of_a_pool_of_equals_is_that_of_one(name):
    source, family = torch.Generator().manual_seed(1), FAMILIES[name]
    raw = torch.randn(family.outputs, 5, 3, generator=source, dtype=F64)
    weights = torch.softmax(torch.randn(5, 3, generator=source, dtype=F64), -1)
    one = Table(weights, family.from_raw(list(raw), 1.0))
    copies = map_parameters(one.components, lambda p: p.repeat(1, 50), 0)
    pool = Table(weights.repeat(1, 50) / 50, copies)
    region, expected = highest_density(pool, 0.8), highest_density(one, 0.8)
    assert torch.equal(interval_counts(region), interval_counts(expected))
    assert_close(region.volume(), expected.volume(), 1e-6 * expected.volume())


def gammas(shapes, rates):
    shapes, rates = (torch.tensor([v], dtype=F64) for v in (shapes, rates))
    return Table(torch.full_like(shapes, 1 / shapes.shape[1]), dist.Gamma(shapes, rates))


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("level", [0.05, 0.5, 0.95])
def test_a_density_highest_at_the_end_of_its_support_keeps_the_end(shape, level):
    table = gammas([shape], [2.0])
    region = highest_density(table, level)
    upper = scipy.stats.gamma.ppf(level, shape, scale=0.5)
    assert region.intervals.shape == (1, 1, 2)
    assert float(region.intervals[0, 0, 0]) == 0.0
    assert_close(region.intervals[0, 0, 1], upper, 1e-6 * upper)
    y, log_density = modes(table)
    assert y.tolist() == [[0.0]]
    assert float(log_density) == (math.inf if shape < 1 else pytest.approx(math.log(2.0)))


def test_a_density_that_vanishes_at_the_end_leaves_it_out():
    table = gammas([0.5, 9.0], [2.0, 3.0])
    region = highest_density(table, 0.9)
    assert interval_counts(region).tolist() == [2]
    assert_close(held(table, region), 0.9, 1e-8)
    y, _ = modes(table)
    assert y.shape == (1, 2) and float(y[0, 0]) == 0.0
    one = gammas([9.0], [3.0])
    assert_close(modes(one)[0], 8.0 / 3.0, 1e-9)
    lower, upper = highest_density(one, 0.9).intervals[0, 0].tolist()
    pdf = scipy.stats.gamma(9.0, scale=1 / 3).pdf
    assert pdf(lower) == pytest.approx(pdf(upper), rel=1e-8)


def test_a_density_with_poles_at_both_ends_has_a_region_of_two():
    half, one = torch.full((1, 1), 0.5, dtype=F64), torch.ones(1, 1, dtype=F64)
    arcsine = IntervalBeta(half, half, -3 * one, 7 * one)
    intervals = highest_density(Table(one, arcsine), 0.6).intervals[0]
    end = 10 * math.sin(math.pi * 0.15) ** 2
    assert_close(intervals, torch.tensor([[-3.0, end - 3], [7 - end, 7.0]], dtype=F64), 1e-6)
    assert modes(Table(one, arcsine))[0].sort().values.tolist() == [[-3.0, 7.0]]


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if not f.support.integer])
def test_regions_of_every_continuous_family_hold_their_level_and_shrink_around_the_modes(name):
    family = FAMILIES[name]
    raw = 0.7 * torch.randn(6, 4, family.outputs, generator=torch.Generator().manual_seed(1))
    components = family.from_raw(raw.to(F64).unbind(-1), 1.0)
    table = Table(torch.full((6, 4), 0.25, dtype=F64), components)
    (small, large), (y, log_density) = (highest_density(table, v) for v in (0.3, 0.9)), modes(table)
    assert_close(held(table, small), 0.3, 1e-7)
    assert_close(held(table, large), 0.9, 1e-7)
    assert bool(small.contains(y[:, 0]).all()) and bool((small.volume() < large.volume()).all())
    first, last = (table.quantile(torch.full((6,), u, dtype=F64)) for u in (1e-3, 1 - 1e-3))
    points = first[:, None] + (last - first)[:, None] * torch.linspace(0, 1, 2001, dtype=F64)
    heights = table.log_prob(points)
    assert bool((heights <= log_density[:, :1] + 1e-9).all())
    inside = torch.stack([large.contains(points[:, i]) for i in range(points.shape[1])], 1)
    clear = (heights - large.log_density[:, None]).abs() > 1e-6
    assert torch.equal(inside[clear], (heights > large.log_density[:, None])[clear])


# -- edges ----------------------------------------------------------------------------------------


def test_a_weight_of_zero_is_as_if_absent():
    one = normals([0.0, 0.4, 0.6], [-1e3, 0.0, 4.0], [1e-2, 1.0, 0.5])
    other = normals([0.4, 0.6], [0.0, 4.0], [1.0, 0.5])
    for a, b in zip(modes(one), modes(other), strict=True):
        assert_close(a, b, 1e-9)
    intervals = [highest_density(table, 0.9).intervals for table in (one, other)]
    assert_close(*intervals, 1e-7)


def test_the_answer_has_the_dtype_and_no_gradient_and_a_row_is_its_own():
    m = random_mixture(3, 7, (5,), F32)
    table = flat(m)
    table.components.loc.requires_grad_()
    region = highest_density(table, 0.8)
    y, log_density = modes(table)
    for v in (region.intervals, region.log_density, y, log_density):
        assert v.dtype == F32 and not v.requires_grad
    for row in range(5):
        alone = highest_density(table.take([row]), 0.8).intervals[0]
        assert torch.equal(alone, region.intervals[row, : len(alone)])
        assert bool(region.intervals[row, len(alone) :].isnan().all())


def test_missing_parameters_and_no_rows_spoil_nothing():
    table = flat(random_mixture(3, 4, (3,)))
    good = highest_density(table, 0.8)
    table.components.loc[1, 2] = math.nan
    region = highest_density(table, 0.8)
    assert region.volume().isnan().tolist() == [False, True, False]
    assert region.log_density.isnan().tolist() == [False, True, False]
    assert torch.equal(region.volume()[[0, 2]], good.volume()[[0, 2]])
    assert modes(table)[0].isnan().all(-1).tolist() == [False, True, False]
    none = table.take(slice(0, 0))
    assert highest_density(none, 0.8).volume().shape == (0,)
    assert modes(none)[0].shape[0] == 0


def test_a_region_takes_the_shape_of_a_batch():
    m = random_mixture(1, 3, (2, 3))
    region = highest_density(flat(m), 0.7)
    shaped = region.reshape((2, 3))
    assert isinstance(shaped, Region) and shaped.batch_shape == (2, 3) == shaped.volume().shape
    assert shaped.intervals.shape == (2, 3, *region.intervals.shape[-2:])
    y = m.sample((5,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(shaped.contains(y).reshape(5, 6), region.contains(y.reshape(5, 6)))
    assert "0.7" in repr(shaped) and "(2, 3)" in repr(shaped)
    assert not bool(shaped.contains(torch.tensor(math.nan)).any())


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_level_outside_its_range_is_refused(level):
    with pytest.raises(ValueError, match="level"):
        highest_density(normals([1.0], [0.0], [1.0]), level)
