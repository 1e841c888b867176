"""Conformal regions hold what they say, for a right density and for a badly wrong one."""

import math

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from random_mixtures import random_mixture

import pyralloy as pa
from pyralloy import conformal, datasets
from pyralloy.conformal_levels import rank_of, score_quantile
from pyralloy.content import hdr_pit
from pyralloy.cross_conformal import _overlap

F64 = torch.float64


def source(seed):
    return torch.Generator().manual_seed(seed)


def two_branches(rows, wrong):
    """Give what y is drawn from, and a density that is that, or shifted, narrow and lopsided."""
    weights, loc, scale = [0.3, 0.7], [-2.0, 1.5], [0.5, 1.0]
    if wrong:
        weights, loc, scale = [0.7, 0.3], [-1.0, 1.0], [0.4, 0.5]
    logits = torch.tensor(weights, dtype=F64).log().expand(rows, 2)
    component = dist.Normal(
        torch.tensor(loc, dtype=F64).expand(rows, 2), torch.tensor(scale, dtype=F64).expand(rows, 2)
    )
    return pa.Mixture(dist.Categorical(logits=logits), component)


@pytest.mark.parametrize("wrong", [False, True])
def test_y_is_inside_just_where_its_score_is_at_most_the_level(wrong):
    truth, density = two_branches(400, False), two_branches(400, wrong)
    y = truth.sample((2,), generator=source(0))
    regions = conformal.calibrate(density, y[0], level=0.8)
    scores = hdr_pit(density, y[0])
    rank = math.ceil(401 * 0.8)
    assert regions.levels == {"all rows": float(scores.sort().values[rank - 1])}
    inside = regions.region(density).contains(y[1])
    assert bool((inside == (hdr_pit(density, y[1]) <= regions.levels["all rows"])).all())
    assert regions.region(density).level == 0.8


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("n", [20, 100, 1000])
def test_mean_coverage_is_that_of_the_theory(n, wrong):
    """2,000 repeats; y is inside just where its score is at most the adjusted level (above)."""
    truth, covered, crossed, fresh = two_branches(1, False), [], [], 20
    for part in range(20):
        y = truth.sample((100, n + fresh), generator=source(100 * n + part))[..., 0].flatten()
        density = two_branches(len(y), wrong)
        scores = hdr_pit(density, y).reshape(100, n + fresh)
        level = score_quantile(scores[:, :n], 0.9)
        covered.append((scores[:, n:] <= level[:, None]).double().mean(-1))
        lower, upper = two_branches(1, wrong).interval(0.9)
        miss = torch.maximum(lower - y, y - upper).reshape(100, n + fresh)
        margin = score_quantile(miss[:, :n], 0.9)
        crossed.append((miss[:, n:] <= margin[:, None]).double().mean(-1))
    for found in (torch.cat(covered), torch.cat(crossed)):
        error = 3 * float(found.std()) / 2000**0.5
        assert 0.9 - error <= float(found.mean()) <= 0.9 + 1 / (n + 1) + error


@pytest.mark.slow
def test_regions_of_the_reference_problem_are_a_third_shorter_than_intervals():
    train, held, fresh = (
        datasets.inverse_sinusoid(n, seed=s) for n, s in ((2500, 0), (1000, 1), (4000, 2))
    )
    model = pa.MDN(pa.networks.MLP(1, hidden=(64, 64)), pa.MixtureHead(64, components=20))
    fit = pa.fit(model, train.x, train.y, progress=False, seed=0)
    at_held, at_fresh = fit.density(held.x), fit.density(fresh.x)
    region = conformal.calibrate(at_held, held.y).region(at_fresh)
    lower, upper = conformal.calibrate_intervals(at_held, held.y).interval(at_fresh)
    inside = ((fresh.y >= lower) & (fresh.y <= upper)).double().mean()
    assert abs(float(region.contains(fresh.y).double().mean()) - float(inside)) < 0.03
    assert 0.87 < float(inside) < 0.93
    assert float(region.volume().mean()) <= 0.7 * float((upper - lower).mean())
    ends = region.intervals
    assert int((~ends[..., 0].isnan()).sum(-1).max()) > 1
    first, last = ends[:, :-1, 1], ends[:, 1:, 0]
    assert bool(((first < last) | last.isnan()).all())


def test_intervals_are_those_of_conformalised_quantile_regression():
    truth, density = two_branches(300, False), two_branches(300, True)
    y = truth.sample(generator=source(0))
    found = conformal.calibrate_intervals(density, y, level=0.8)
    lower, upper = density.interval(0.8)
    scores = np.maximum((lower - y).numpy(), (y - upper).numpy())
    margin = np.sort(scores)[math.ceil(301 * 0.8) - 1]
    assert found.margins["all rows"] == margin
    ends = found.interval(density[:5])
    assert torch.allclose(ends.lower, lower[:5] - margin)
    assert torch.allclose(ends.upper, upper[:5] + margin)


def test_a_negative_margin_does_not_make_ends_cross():
    wide = pa.Mixture(dist.Categorical(torch.ones(50, 1)), dist.Normal(torch.zeros(50, 1), 10.0))
    found = conformal.calibrate_intervals(
        wide, 0.1 * torch.randn(50, generator=source(0)), level=0.5
    )
    assert found.margins["all rows"] < 0
    lower, upper = found.interval(wide.affine(0.0, 0.1))
    assert bool((lower <= upper).all())


def test_groups_are_covered_each():
    """One density for two groups of which one is three times as spread."""
    rows = 4000
    group = np.arange(2 * rows) % 2
    scale = torch.from_numpy(np.where(group, 3.0, 1.0))
    y = scale * torch.randn(2 * rows, generator=source(0), dtype=F64)
    density = pa.Mixture(
        dist.Categorical(torch.ones(rows, 1)), dist.Normal(torch.zeros(rows, 1, dtype=F64), 2.0)
    )
    marginal = conformal.calibrate(density, y[:rows]).region(density)
    found = conformal.calibrate(density, y[:rows], groups=group[:rows])
    by_group = found.region(density, groups=group[rows:])
    for label in (0, 1):
        mine = group[rows:] == label
        error = 4 * (0.09 / mine.sum() * 2) ** 0.5
        assert abs(float(by_group.contains(y[rows:])[mine].double().mean()) - 0.9) < error
        assert abs(float(marginal.contains(y[rows:])[mine].double().mean()) - 0.9) > error
    assert found.rows == {0: 2000, 1: 2000}
    margins = conformal.calibrate_intervals(density, y[:rows], groups=group[:rows])
    lower, upper = margins.interval(density, groups=group[rows:])
    inside = ((y[rows:] >= lower) & (y[rows:] <= upper)).double()
    assert abs(float(inside[group[rows:] == 1].mean()) - 0.9) < 0.04


def test_too_few_rows_give_the_whole_line_and_say_so():
    density = two_branches(8, False)
    y = density.sample(generator=source(0))
    regions = conformal.calibrate(density, y, level=0.9)
    assert regions.levels["all rows"] == 1.0
    assert regions.region(density).intervals[0].tolist() == [[-math.inf, math.inf]]
    assert bool(regions.region(density).contains(torch.full((8,), 1e30)).all())
    assert "9 rows are the least for this level" in str(regions)
    nine = two_branches(9, False)
    assert conformal.calibrate(nine, nine.sample(generator=source(0))).levels["all rows"] < 1.0
    intervals = conformal.calibrate_intervals(density, y, level=0.9)
    assert math.isinf(intervals.margins["all rows"])
    assert bool(intervals.interval(density).upper.isinf().all())


def test_a_hopeless_density_gives_the_whole_line_and_says_so():
    hopeless = pa.Mixture(dist.Categorical(torch.ones(99, 1)), dist.Normal(torch.zeros(99, 1), 0.1))
    regions = conformal.calibrate(hopeless, torch.randn(99, generator=source(0)))
    assert "recalibrate it first" in str(regions)
    assert bool(regions.region(hopeless).contains(torch.full((99,), 5.0)).all())
    mended = conformal.recalibrate(hopeless, torch.randn(99, generator=source(1))).apply(hopeless)
    length = (
        conformal.calibrate(mended, torch.randn(99, generator=source(0))).region(mended).volume()
    )
    assert 2.5 < float(length.mean()) < 4.5


def test_whole_circles_and_integers():
    angles = pa.Mixture(dist.Categorical(torch.ones(5, 1)), dist.VonMises(torch.zeros(5, 1), 5.0))
    circle = conformal.calibrate(angles, torch.zeros(5)).region(angles)
    assert bool(circle.contains(torch.tensor([3.0, -3.1, 0.0, 9.0, -20.0])).all())
    counts = pa.Mixture(
        dist.Categorical(torch.ones(200, 1)), dist.Poisson(torch.full((200, 1), 4.0))
    )
    region = conformal.calibrate(counts, counts.sample(generator=source(0))).region(counts)
    assert region.integer
    assert float(region.contains(counts.sample(generator=source(1))).double().mean()) > 0.85


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99, 2 / 3])
def test_the_rank_is_exact_where_a_float_would_be_carried_over(level):
    for n in range(1, 400):
        exact = math.ceil(round((n + 1) * level, 9))
        assert rank_of(n, level) == exact


def test_ties_are_inside():
    scores = torch.tensor([0.1, 0.5, 0.5, 0.5, 0.9])
    assert float(score_quantile(scores, 0.5)) == 0.5
    assert float(score_quantile(scores.expand(3, 5), 0.5)[2]) == 0.5


@pytest.mark.parametrize("needed", [1, 2, 5, 9])
def test_overlaps_are_counted(needed):
    ends = torch.rand(6, 9, 2, generator=source(0), dtype=F64).sort(-1).values
    ends[2, 4:] = math.nan
    region = _overlap(ends, needed, 0.9, integer=False)
    y = torch.rand(500, 6, generator=source(1), dtype=F64)
    depth = ((y[..., None] >= ends[..., 0]) & (y[..., None] <= ends[..., 1])).sum(-1)
    assert bool((region.contains(y) == (depth >= needed)).all())


def cross_model(x, y):
    """Least squares with the spread of its residuals: a density in two lines."""
    slope = float((x[:, 0] * y).sum() / x[:, 0].square().sum())
    scale = float((y - slope * x[:, 0]).std())
    return lambda new: pa.Mixture(
        dist.Categorical(torch.ones(len(new), 1)), dist.Normal(slope * torch.as_tensor(new), scale)
    )


def test_cross_conformal_regions_are_those_of_the_definition():
    x = torch.randn(24, 1, generator=source(0), dtype=F64)
    y = x[:, 0] + torch.randn(24, generator=source(1), dtype=F64)
    found = conformal.cross_calibrate(cross_model, x, y, folds=4, level=0.8, seed=3)
    assert found.rows == 24
    new, grid = x[:3], torch.linspace(-4, 4, 200, dtype=F64)
    region = found.region(new)
    deeper = torch.zeros(200, 3)
    for density, scores in zip(found.densities, found.scores, strict=True):
        many, values = density(new).expand((200, 3)).reshape(600), grid.repeat_interleave(3)
        at = hdr_pit(many, values).reshape(200, 3)
        deeper += (at[..., None] > torch.tensor(scores, dtype=F64)).sum(-1)
    expected = deeper < rank_of(24, 0.8)
    assert bool((region.contains(grid[:, None]) == expected).all())
    assert found.guarantee < 0.6


@pytest.mark.slow
def test_cross_conformal_regions_hold_what_they_say():
    inside = []
    for seed in range(150):
        x = torch.randn(40, 1, generator=source(seed), dtype=F64)
        y = 2 * x[:, 0] + torch.randn(40, generator=source(seed + 1000), dtype=F64)
        found = conformal.cross_calibrate(cross_model, x[:30], y[:30], folds=5, seed=seed)
        inside.append(float(found.region(x[30:]).contains(y[30:]).double().mean()))
    error = 3 * np.std(inside) / len(inside) ** 0.5
    assert 0.9 - error <= np.mean(inside) <= 0.97


def test_too_few_rows_for_cross_conformal_give_the_whole_line():
    x = torch.randn(6, 1, generator=source(0), dtype=F64)
    found = conformal.cross_calibrate(cross_model, x, x[:, 0] + 1, folds=2, level=0.9)
    assert found.region(x[:2]).intervals.tolist() == [[[-math.inf, math.inf]]] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, y: conformal.calibrate(m, y, level=0.0), "level=0.0"),
        (lambda m, y: conformal.calibrate(m, y[:3]), r"y has shape \(3,\)"),
        (lambda m, y: conformal.calibrate(m, y, groups=[1, 2]), "one label a row"),
        (lambda m, y: conformal.calibrate(m, y).region(m, groups=y > 0), "without groups"),
        (lambda m, y: conformal.calibrate(m, y, groups=y > 9).region(m), "on the groups"),
        (
            lambda m, y: conformal.calibrate(m, y, groups=y * 0).region(m, groups=y * 0 + 1),
            "1.0, on which nothing",
        ),
        (lambda m, y: conformal.cross_calibrate(cross_model, y, y, folds=99), "folds=99"),
        (lambda m, y: conformal.cross_calibrate(cross_model, y, y[:5]), "x has 40 rows"),
        (lambda m, y: conformal.calibrate(m, y * torch.inf), "y holds NaN or infinity"),
    ],
)
def test_errors_name_the_argument_and_the_rule(call, message):
    m = random_mixture(0, 3, (40,), F64)
    with pytest.raises(ValueError, match=message):
        call(m, m.sample(generator=source(0)))


def test_vectors_are_calibrated_one_dimension_at_a_time():
    joint = random_mixture(0, 3, (40,), F64, (2,))
    with pytest.raises(ValueError, match=r"marginal\(dim\)"):
        conformal.calibrate(joint, torch.zeros(40, 2))
