"""Sampling bands of proportions: pointwise, and simultaneous for an empirical distribution."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyralloy.checks import integer, probability

__all__ = ["Band", "coverage", "ecdf_band", "ecdf_p_value", "ecdf_steps", "proportion_interval"]

Array = NDArray[np.float64]

#: Most points at which an empirical distribution is held against its band: more gain no power.
POINTS = 500
#: Probability of a jump left out of the recursion, far below the level's own precision.
LEFT_OUT = 1e-18
#: Halvings of the pointwise level; the last leave its logarithm within 1e-7.
HALVINGS = 30
#: Products above which a convolution goes by way of Fourier transforms.
DIRECT = 200_000


class Band(NamedTuple):
    """Bounds of an empirical distribution function, at each of G points.

    Attributes:
        points: Probabilities z at which it is evaluated, (G,).
        lower: Least proportion of rows at or below z that is inside, (G,).
        upper: Largest, (G,).
        pointwise: Probability with which each point alone lies outside.
    """

    points: Array
    lower: Array
    upper: Array
    pointwise: float


def ecdf_band(n: int, level: float = 0.95) -> Band:
    r"""Give the band within which the ECDF of n uniform values lies everywhere.

    At each :math:`z_j = j / G` the count is binomial, and the band is its central interval of one
    pointwise probability :math:`1 - \gamma`. The largest :math:`\gamma` is taken for which the
    count stays inside at all points with probability ``level``: see :func:`coverage`, which is
    exact, so nothing is simulated.

    Args:
        n: Number of values.
        level: Probability of staying inside everywhere, in (0, 1).

    Returns:
        A :class:`Band` over G = min(n, 500) - 1 points; values leave it with probability at most
        1 - ``level``, and as near to that as whole counts allow.

    Raises:
        TypeError: ``n`` is no integer.
        ValueError: ``n`` below 2, or ``level`` outside (0, 1).

    References:
        Säilynoja, T., Bürkner, P.-C., & Vehtari, A. (2022). Graphical test for discrete uniformity
        and its applications in goodness-of-fit evaluation and multiple sample comparison.
        Statistics and Computing 32. doi:10.1007/s11222-022-10090-6

    Example:
        >>> band = ecdf_band(100)
        >>> band.points[49], band.lower[49], band.upper[49]
        (np.float64(0.5), np.float64(0.36), np.float64(0.64))
    """
    n, level = integer("n", n, 2), probability("level", level)
    gamma = _pointwise(n, level)
    points, (lower, upper) = _points(n), _bounds(n, gamma)
    return Band(points, lower / n, upper / n, gamma)


def ecdf_steps(values: ArrayLike) -> Array:
    """Evaluate the empirical distribution function at the points of the band.

    Args:
        values: Within 0 and 1, shape (..., N).

    Returns:
        Proportions of values at or below each point, shape (..., G).
    """
    values = np.sort(np.asarray(values, dtype=np.float64), -1)
    n = values.shape[-1]
    points = _points(n)
    flat = values.reshape(-1, n)
    counts = np.stack([np.searchsorted(row, points, side="right") for row in flat])
    return (counts / n).reshape(*values.shape[:-1], len(points))


def ecdf_p_value(values: ArrayLike) -> float:
    r"""Test that values are uniform, by the band that they just leave.

    The statistic is the smallest two-sided binomial probability over the points; its distribution
    is exact (:func:`coverage`), so that p is at most 0.05 just where the 95 % band is left.

    Args:
        values: Within 0 and 1, shape (N,), N at least 2.

    Returns:
        The p-value.

    Example:
        >>> even = (np.arange(100) + 0.5) / 100
        >>> round(ecdf_p_value(even), 2), ecdf_p_value(even**2) < 1e-6
        (1.0, True)
    """
    from scipy.stats import binom

    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    counts, points = np.rint(n * ecdf_steps(values)), _points(n)
    below, above = binom.cdf(counts, n, points), binom.sf(counts - 1, n, points)
    # A hair more, so that rounding cannot put the count that was seen inside its own band.
    gamma = 2.0 * float(np.minimum(below, above).min()) * (1.0 + 1e-9)
    return 1.0 if gamma >= 1.0 else float(np.clip(1.0 - coverage(n, gamma), 0.0, 1.0))


def coverage(n: int, gamma: float) -> float:
    r"""Evaluate the probability that n uniform values stay in the band of pointwise level gamma.

    The counts at the points are a binomial chain. They are those of a Poisson process of rate n,
    given that it ends at n, whose increments are independent: one convolution a point.

    Args:
        n: Number of values.
        gamma: Probability of lying outside at one point, in (0, 1).

    Returns:
        The probability, exact to about 1e-12.

    References:
        Moscovich, A., & Nadler, B. (2017). Fast calculation of boundary crossing probabilities for
        Poisson processes. Statistics & Probability Letters 123. doi:10.1016/j.spl.2016.11.027
    """
    lower, upper = _bounds(n, gamma)
    rate = n / (len(lower) + 1)
    width = int((upper - lower).max() + np.diff(lower, prepend=0.0).max()) + 1
    jump = _poisson(np.arange(max(width, n - int(lower[-1])) + 1.0), rate)
    reach = int(np.flatnonzero(jump > LEFT_OUT)[-1]) + 1
    chance, start = np.ones(1), 0
    for low, high in zip(lower.astype(int), upper.astype(int), strict=True):
        if high < low:
            return 0.0
        moved = _convolve(chance, jump[:reach])
        inside = np.zeros(high - low + 1)
        kept = moved[max(low - start, 0) : high - start + 1]
        first = max(start - low, 0)
        inside[first : first + len(kept)] = kept
        chance, start = inside, low
    left = n - start - np.arange(len(chance))
    last = np.where(left >= 0, jump[np.maximum(left, 0)], 0.0)
    return float(chance @ last / _poisson(np.array([float(n)]), float(n))[0])


def proportion_interval(count: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Give the interval of Clopper and Pearson for a proportion.

    Args:
        count: Successes, any shape.
        n: Trials, at least 1, broadcastable to ``count``.
        level: Least probability with which the interval holds the truth.

    Returns:
        ``(lower, upper)``.

    References:
        Clopper, C. J., & Pearson, E. S. (1934). The use of confidence or fiducial limits
        illustrated in the case of the binomial. Biometrika 26. doi:10.1093/biomet/26.4.404

    Example:
        >>> [round(float(end), 3) for end in proportion_interval(90, 100)]
        [0.824, 0.951]
    """
    from scipy.special import betaincinv

    k, n = np.broadcast_arrays(np.asarray(count, np.float64), np.asarray(n, np.float64))
    tail = (1.0 - probability("level", level)) / 2.0
    lower = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, tail), 0.0)
    upper = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 1), 1.0 - tail), 1.0)
    return lower, upper


def _points(n: int) -> Array:
    count = min(n, POINTS)
    return np.arange(1, count) / count


def _bounds(n: int, gamma: float) -> tuple[Array, Array]:
    from scipy.stats import binom

    points = _points(n)
    return binom.ppf(gamma / 2.0, n, points), binom.isf(gamma / 2.0, n, points)


@functools.lru_cache(maxsize=256)
def _pointwise(n: int, level: float) -> float:
    """Find the largest pointwise probability of leaving for which the band holds ``level``."""
    # Leaving somewhere is at most as likely as at each point, one after another, together.
    low, high = math.log((1.0 - level) / min(n, POINTS)), 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        if coverage(n, math.exp(middle)) >= level:
            low = middle
        else:
            high = middle
        if high - low < 1e-6:
            break
    return math.exp(low)


def _poisson(counts: Array, rate: float) -> Array:
    from scipy.special import gammaln

    return np.exp(counts * math.log(rate) - rate - gammaln(counts + 1.0))


def _convolve(a: Array, b: Array) -> Array:
    if len(a) * len(b) <= DIRECT:
        return np.convolve(a, b)
    size = len(a) + len(b) - 1
    room = 1 << (size - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(a, room) * np.fft.rfft(b, room), room)[:size]
