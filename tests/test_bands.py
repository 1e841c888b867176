"""Laws of the bands: exact coverage, by brute force for few values and by draws for many."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, kstest

from pyralloy import bands


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("gamma", [0.02, 0.2, 0.5])
def test_coverage_is_the_sum_over_all_counts(n, gamma):
    """Few values fall into n cells in n**n ways: add up those that stay inside."""
    lower, upper = bands._bounds(n, gamma)
    inside = 0
    for cells in itertools.product(range(n), repeat=n):
        counts = np.cumsum(np.bincount(cells, minlength=n))[:-1]
        inside += bool(((counts >= lower) & (counts <= upper)).all())
    assert bands.coverage(n, gamma) == pytest.approx(inside / n**n, abs=1e-12)


@pytest.mark.parametrize("n", [7, 20, 100, 499, 501, 2000, 60_000])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_the_level_is_held_and_no_wider_band_is_needed(n, level):
    band = bands.ecdf_band(n, level)
    assert bands.coverage(n, band.pointwise) >= level
    assert bands.coverage(n, band.pointwise * (1 + 1e-4)) < level
    if n >= 100:  # counts are then fine enough
        assert bands.coverage(n, band.pointwise) < level + 0.01


def test_a_convolution_by_fourier_transforms_is_the_convolution():
    a, b = np.random.default_rng(0).random((2, 900))
    assert len(a) * len(b) > bands.DIRECT
    np.testing.assert_allclose(bands._convolve(a, b), np.convolve(a, b), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 300, 5000])
def test_uniform_values_leave_the_band_in_five_percent_of_repeats(n):
    values = np.random.default_rng(n).random((2000, n))
    band, steps = bands.ecdf_band(n), bands.ecdf_steps(values)
    left = ((steps < band.lower - 1e-12) | (steps > band.upper + 1e-12)).any(-1)
    assert 0.035 <= left.mean() <= 0.065
    p = np.array([bands.ecdf_p_value(row) for row in values[:200]])
    np.testing.assert_array_equal(p <= 0.05, left[:200])


def test_p_values_are_uniform_or_above():
    values = np.random.default_rng(0).random((500, 80))
    p = np.array([bands.ecdf_p_value(row) for row in values])
    assert kstest(p, "uniform", alternative="greater").pvalue > 0.01
    assert 0.3 < (p < 0.5).mean() < 0.6


def test_steps_are_counts():
    values = np.random.default_rng(0).random((3, 4, 60))
    steps = bands.ecdf_steps(values)
    points = bands.ecdf_band(60).points
    expected = (values[..., None] <= points).mean(-2)
    np.testing.assert_allclose(steps, expected)


@pytest.mark.parametrize(("count", "n"), [(0, 7), (3, 7), (7, 7), (450, 500)])
def test_the_interval_of_a_proportion_is_that_of_scipy(count, n):
    expected = binomtest(count, n).proportion_ci(0.9, method="exact")
    assert bands.proportion_interval(count, n, 0.9) == pytest.approx((expected.low, expected.high))


def test_bounds_are_central_binomial_intervals():
    lower, upper = bands._bounds(30, 0.1)
    z = np.arange(1, 30) / 30
    assert (binom.cdf(lower - 1, 30, z) <= 0.05 + 1e-12).all()
    assert (binom.sf(upper, 30, z) <= 0.05 + 1e-12).all()
    assert math.isclose(bands.coverage(30, 0.999999999), 0.0, abs_tol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bands.ecdf_band(1), "n=1"),
        (lambda: bands.ecdf_band(10, 1.0), "level=1.0"),
        (lambda: bands.proportion_interval(1, 2, 0.0), "level=0.0"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
