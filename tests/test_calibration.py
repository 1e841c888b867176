"""The report: it does not cry wolf, and what is wrong is found and named."""

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from random_mixtures import random_mixture

import pyralloy as pa
from pyralloy import calibration, datasets
from pyralloy.bands import ecdf_band, ecdf_steps
from pyralloy.content import hdr_pit
from pyralloy.drift import drift, moments

F64 = torch.float64


def source(seed):
    return torch.Generator().manual_seed(seed)


def truth(rows, seed=0):
    """Two branches of unequal weight and width, which depend on x."""
    x = torch.rand(rows, 2, generator=source(seed), dtype=F64) * 4 - 2
    logits = torch.stack([x[:, 0], -x[:, 1]], -1)
    loc = torch.stack([x.sum(-1) - 2, x[:, 0] + 2], -1)
    scale = torch.stack([(0.3 * x[:, 1]).exp(), 0.5 + 0 * x[:, 0]], -1)
    m = pa.Mixture(dist.Categorical(logits=logits), dist.Normal(loc, scale))
    return x, m, m.sample(generator=source(seed + 1))


def fork(rows, seed=0):
    """Two branches y = x and y = -x, of x half normal: together y is nearly standard normal."""
    g = source(seed)
    x = torch.randn(rows, generator=g, dtype=F64).abs()
    sign = torch.randint(0, 2, (rows,), generator=g) * 2.0 - 1.0
    return x, sign * x + 0.1 * torch.randn(rows, generator=g, dtype=F64)


def normal(loc, scale):
    return pa.Mixture(
        dist.Categorical(torch.ones(*loc.shape, 1)), dist.Normal(loc[..., None], scale)
    )


@pytest.mark.parametrize("count", [1, 4, 20])
def test_the_hdr_pit_is_the_level_of_the_region_on_whose_boundary_y_lies(count):
    m = random_mixture(1, count, (60,), F64)
    for level in (0.2, 0.7, 0.95):
        region = m.highest_density_region(level)
        ends = torch.where(region.intervals.isnan(), region.intervals[:, :1, :1], region.intervals)
        for edge in ends.flatten(1).unbind(1):
            assert torch.allclose(hdr_pit(m, edge), torch.tensor(level, dtype=F64), atol=1e-7)


@pytest.mark.parametrize(
    "components",
    [
        dist.Gamma(torch.rand(30, 3) + 0.2, 1.0),
        dist.VonMises(torch.randn(30, 3), torch.rand(30, 3) * 5),
        dist.StudentT(torch.rand(30, 3) * 5 + 1, torch.randn(30, 3) * 5, torch.rand(30, 3) + 0.1),
    ],
)
def test_the_hdr_pit_agrees_with_regions_of_other_families(components):
    m = pa.Mixture(dist.Categorical(torch.ones(30, 3)), components)
    y = m.sample(generator=source(0))
    inside = m.highest_density_region(0.6).contains(y)
    assert bool(((hdr_pit(m, y) <= 0.6) == inside).all())


def test_the_hdr_pit_of_a_count_is_what_is_at_least_as_likely():
    m = pa.Mixture(dist.Categorical(torch.ones(30, 3)), dist.Poisson(torch.rand(30, 3) * 20))
    y = m.sample(generator=source(0))
    p = m.log_prob(torch.arange(200.0)[:, None]).exp()
    expected = torch.where(p >= m.log_prob(y).exp() * (1 - 1e-6), p, 0.0).sum(0)
    assert torch.allclose(hdr_pit(m, y), expected.to(F64), atol=1e-5)


def test_the_hdr_pit_of_what_cannot_be_is_one():
    m = pa.Mixture(dist.Categorical(torch.ones(1, 2)), dist.Gamma(torch.ones(1, 2) * 2, 1.0))
    assert float(hdr_pit(m, torch.tensor([-1.0]))) == 1.0
    assert float(hdr_pit(normal(torch.zeros(1), 1.0), torch.tensor([1e6]))) == 1.0


def test_a_pool_of_very_many_components_is_ranked_among_draws(monkeypatch):
    for room in ("content", "calibration"):
        monkeypatch.setattr(f"pyralloy.{room}.MANY", 50)
    one = normal(torch.zeros(400, dtype=F64), 1.0)
    many = pa.Mixture.pool([one] * 51)
    y = one.sample(generator=source(3))
    assert float((hdr_pit(many, y) - hdr_pit(one, y)).abs().mean()) < 0.05
    found = calibration.report(many, y)
    assert len(found.transforms.hdr) == calibration.FEW_ROWS
    assert np.isnan(found.sharpness["CRPS"])
    assert found.calibrated


def test_transforms_do_not_depend_on_how_rows_are_split():
    _, m, y = truth(700)
    whole = calibration.transforms(m, y)
    streamed = calibration.transforms(lambda rows: m[rows], y)
    for name in ("pit", "hdr", "mean", "spread", "width", "log_score", "crps"):
        np.testing.assert_allclose(getattr(whole, name), getattr(streamed, name), rtol=1e-9)


def test_moments_of_uniform_values_are_orthonormal():
    nodes, weights = np.polynomial.legendre.leggauss(20)
    values = moments((nodes + 1) / 2)
    np.testing.assert_allclose((values * weights / 2) @ values.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(values @ weights / 2, 0.0, atol=1e-12)


def test_tables_count_what_they_say():
    _, m, y = truth(500)
    found = calibration.report(m, y)
    lower, upper = m.interval(0.8)
    central = ((y >= lower) & (y <= upper)).double().mean()
    dense = m.highest_density_region(0.8).contains(y).double().mean()
    row = found.coverage[found.coverage.level == 0.8][0]
    assert row.central == pytest.approx(float(central), abs=1e-12)
    assert row.highest == pytest.approx(float(dense), abs=1e-12)
    assert row.central_lower < row.central < row.central_upper
    below = (y <= m.quantile(0.25)).double().mean()
    row = found.reliability[found.reliability.level == 0.25][0]
    assert row.observed == pytest.approx(float(below), abs=1e-12)
    assert found.sharpness["CRPS"] == pytest.approx(float(m.crps(y).mean()))
    text = str(found)
    assert "Calibration on 500 rows" in text
    assert found.verdict in text


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 300, 5000])
def test_draws_from_the_model_leave_the_pit_band_in_five_percent_of_repeats(n):
    m = pa.Mixture(
        dist.Categorical(torch.tensor([0.3, 0.7], dtype=F64)),
        dist.Normal(torch.tensor([-2.0, 1.0], dtype=F64), torch.tensor([0.5, 1.5], dtype=F64)),
    )
    band, left = ecdf_band(n), []
    for part in range(10):
        y = m.sample((200, n), generator=source(n + part))
        steps = ecdf_steps(m.cdf(y).numpy())
        left.append(((steps < band.lower - 1e-12) | (steps > band.upper + 1e-12)).any(-1))
    assert 0.035 <= np.concatenate(left).mean() <= 0.065


@pytest.mark.slow
def test_a_density_a_fifth_too_narrow_is_caught():
    y = torch.randn(500, 1000, generator=source(0), dtype=F64)
    m = pa.Mixture(
        dist.Categorical(torch.ones(1, dtype=F64)), dist.Normal(torch.zeros(1, dtype=F64), 0.8)
    )
    band, steps = ecdf_band(1000), ecdf_steps(m.cdf(y).numpy())
    caught = ((steps < band.lower - 1e-12) | (steps > band.upper + 1e-12)).any(-1)
    assert caught.mean() >= 0.95
    reports = [calibration.report(normal(0 * row, 0.8), row) for row in y[:40]]
    assert np.mean([not r.calibrated for r in reports]) >= 0.95
    said = [r.verdict for r in reports if not r.calibrated]
    assert np.mean(["too narrow" in v or "density is low" in v for v in said]) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("rows", [60, 500])
def test_reports_on_the_truth_find_a_fault_in_at_most_five_percent(rows):
    found = []
    for seed in range(200):
        x, m, y = truth(rows, seed=10 * seed)
        found.append(calibration.report(m, y, x).calibrated)
    # Holm's method bounds the rate by 5 %; three standard errors of 200 repeats are 4.6 %.
    assert np.mean(found) >= 0.95 - 0.046


@pytest.mark.slow
def test_the_drift_test_keeps_its_level_and_finds_a_change():
    rng = np.random.default_rng(0)
    x, pit = rng.random((2000, 300)), rng.random((2000, 300))
    p = np.array([drift("x", u, v).p for u, v in zip(pit, x, strict=True)])
    # Kolmogorov's limit bounds the excursion of few rows from above.
    assert 0.01 <= (p <= 0.05).mean() <= 0.065
    narrow = np.where(x > 0.5, 0.2 + 0.6 * pit, pit)
    p = np.array([drift("x", u, v).p for u, v in zip(narrow[:200], x[:200], strict=True)])
    assert (p <= 0.05).mean() > 0.95


def test_a_drift_is_read_at_the_end_of_equal_values_and_not_within():
    pit = np.random.default_rng(0).random(200)
    assert drift("constant", pit, np.ones(200)) is None
    found = drift("binary", np.sort(pit), np.repeat([0.0, 1.0], 100))
    assert (found.split, found.kind) == (0.0, 0)
    assert found.p < 1e-6
    assert "y lies below it" in found.finding


def test_one_branch_for_two_passes_the_pit_and_is_caught_along_x():
    x, y = fork(1000)
    one = normal(torch.zeros_like(y), 1.0)
    found = calibration.report(one, y, x, names=["distance"])
    rows = {row.test: row for row in found.tests}
    assert rows["PIT"].p > 0.05
    assert rows["highest-density PIT"].p > 0.05
    assert rows["PIT along distance"].adjusted < 1e-6
    assert not found.calibrated
    assert "distance" in found.verdict
    loc = torch.stack([x, -x], -1)
    two = pa.Mixture(dist.Categorical(torch.ones(len(x), 2)), dist.Normal(loc, 0.1))
    assert calibration.report(two, y, x).calibrated


def test_branches_that_are_too_wide_pass_the_pit_and_are_caught_by_regions():
    """Within each of eight branches cdfs differ by an eighth of what densities do."""
    branches = torch.arange(8.0, dtype=F64) * 10
    wide = pa.Mixture(
        dist.Categorical(torch.ones(1000, 8)), dist.Normal(branches.expand(1000, 8), 1.3)
    )
    y = wide.sample(generator=source(3))
    nearest = branches[(y[:, None] - branches).abs().argmin(-1)]
    found = calibration.report(wide, nearest + (y - nearest) / 1.3)
    rows = {row.test: row for row in found.tests}
    assert rows["PIT"].p > 0.05
    assert rows["highest-density PIT"].adjusted < 1e-6
    assert "also lies where y does not" in found.verdict


def test_counts_are_spread_over_their_steps():
    rates = torch.rand(1500, 1, generator=source(0), dtype=F64) * 4 + 0.5
    m = pa.Mixture(dist.Categorical(torch.ones(1500, 1)), dist.Poisson(rates))
    y = m.sample(generator=source(1))
    assert calibration.report(m, y, seed=2).calibrated
    first, again = (calibration.transforms(m, y, seed=2).pit for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_names_come_from_a_data_frame():
    pandas = pytest.importorskip("pandas")
    x, m, y = truth(100)
    frame = pandas.DataFrame(x.numpy(), columns=["dose", "age"])
    names = {row.test for row in calibration.report(m, y, frame).tests}
    assert {"PIT along dose", "PIT along age"} <= names


def test_the_fit_of_a_known_problem_is_reported_on():
    problem = datasets.inverse_sinusoid(600, seed=0)
    model = pa.MDN(pa.networks.MLP(1, hidden=(16,)), pa.MixtureHead(16, components=1))
    fit = pa.fit(model, problem.x, problem.y, max_steps=100, progress=False)
    fresh = datasets.inverse_sinusoid(600, seed=1)
    found = calibration.report(fit.density(fresh.x), fresh.y, fresh.x)
    assert not found.calibrated
    assert len(found.advice) >= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, y: calibration.report(m, y[:10]), "at least 20 rows"),
        (lambda m, y: calibration.report(m, y[:30]), "one density a row"),
        (lambda m, y: calibration.report(m, y, y[:30]), "x has 30 rows"),
        (lambda m, y: calibration.report(m, y, y, names=["a", "b"]), "give 1 of them"),
        (lambda m, y: calibration.report(m, y, level=1.5), "level=1.5"),
        (lambda m, y: calibration.report(m, y * torch.nan), "y holds NaN"),
    ],
)
def test_errors_name_the_argument_and_the_rule(call, message):
    _, m, y = truth(40)
    with pytest.raises(ValueError, match=message):
        call(m, y)


def test_a_vector_is_looked_at_one_dimension_at_a_time():
    joint = pa.Mixture(
        dist.Categorical(torch.ones(30, 2)), dist.Normal(torch.zeros(30, 2, 3), 1.0).to_event(1)
    )
    with pytest.raises(ValueError, match=r"marginal\(dim\)"):
        calibration.report(joint, torch.zeros(30))
