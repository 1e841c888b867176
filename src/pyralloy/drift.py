"""Whether the PIT changes along a feature, where, and how."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drift", "drift", "moments"]

Array = NDArray[np.float64]

#: What a positive and a negative moment of the PIT say of the density.
MEANING = (
    ("y lies above it", "y lies below it"),
    ("too narrow", "too wide"),
    ("its upper tail is too short or its lower too long", "the reverse of its skew"),
    ("too flat in its middle or its ends", "too peaked in its middle or its ends"),
)


@dataclass(frozen=True)
class Drift:
    """How the PIT changes along something.

    Attributes:
        name: Along what.
        p: Probability of a change as large, where there is none.
        split: Where the change is strongest, in units of the feature.
        kind: What changes: 0 the location, 1 the spread, 2 the skew, 3 the peakedness.
        below: The mean of that moment of the PIT on the rows at or below ``split``; 0 is right.
        above: The same above it.
    """

    name: str
    p: float
    split: float
    kind: int
    below: float
    above: float

    @property
    def finding(self) -> str:
        """Say it in words."""
        low, high = (_says(self.kind, m) for m in (self.below, self.above))
        return f"at or below {self.split:.4g} {low}, above it {high}"


def moments(pit: Array) -> Array:
    r"""Evaluate the first four shifted Legendre polynomials of the PIT, normalised.

    Of uniform values each has mean 0 and variance 1, and they are uncorrelated. Their means tell
    of location, spread, skew and peakedness.

    Args:
        pit: Within 0 and 1, shape (..., N).

    Returns:
        Shape (4, ..., N).

    References:
        Neyman, J. (1937). "Smooth test" for goodness of fit. Skandinavisk Aktuarietidskrift 20.
        doi:10.1080/03461238.1937.10404821
    """
    t = 2.0 * np.asarray(pit) - 1.0
    return np.stack(
        [
            3.0**0.5 * t,
            5.0**0.5 * (3.0 * t**2 - 1.0) / 2.0,
            7.0**0.5 * (5.0 * t**3 - 3.0 * t) / 2.0,
            3.0 * (35.0 * t**4 - 30.0 * t**2 + 3.0) / 8.0,
        ]
    )


def drift(name: str, pit: Array, along: Array) -> Drift | None:
    r"""Test that the PIT does not change along a feature, by cumulative sums.

    With the rows in order of the feature and :math:`\phi` one of the :func:`moments`, centred and
    scaled,

    .. math:: D = \max_m \Bigl|\frac{1}{\sqrt n} \sum_{i \le m} \phi_i\Bigr|,

    the largest excursion of what is nearly a Brownian bridge: Kolmogorov's distribution, and from
    below for few rows. The smallest p of the four moments counts four times. What is wrong at
    every x alike does not show here; the PIT shows it.

    Args:
        name: Of the feature.
        pit: PIT values, shape (N,).
        along: The feature, shape (N,). Rows of equal value are taken together.

    Returns:
        A :class:`Drift`; None where the feature, or the PIT, is constant.

    References:
        Ploberger, W., & Krämer, W. (1992). The CUSUM test with OLS residuals. Econometrica 60.
        doi:10.2307/2951597

    Example:
        >>> pit = np.random.default_rng(0).random(1000)
        >>> wide = np.where(np.arange(1000) < 500, pit, 0.25 + pit / 2)
        >>> found = drift("x0", wide, np.arange(1000.0))
        >>> found.p < 1e-6, found.kind, 400 < found.split < 600
        (True, 1, True)
    """
    from scipy.special import kolmogorov

    order = np.argsort(along, kind="stable")
    sorted_along, n = along[order], len(pit)
    last = np.flatnonzero(np.diff(sorted_along) > 0)  # of each run of equal values, but the last
    if len(last) == 0:
        return None
    phi = moments(pit[order])  # (4, N)
    scale = phi.std(-1)
    if not (scale > 0).all():
        return None
    path = np.cumsum((phi - phi.mean(-1, keepdims=True)) / scale[:, None], -1)[:, last] / n**0.5
    height = np.abs(path)
    kind, place = np.unravel_index(int(height.argmax()), height.shape)
    m = int(last[place]) + 1
    p = min(1.0, len(phi) * float(kolmogorov(height[kind, place])))
    below, above = phi[kind, :m].mean(), phi[kind, m:].mean()
    return Drift(name, p, float(sorted_along[m - 1]), int(kind), float(below), float(above))


def _says(kind: int, mean: float) -> str:
    return "about right" if abs(mean) < 0.05 else MEANING[kind][0 if mean > 0 else 1]
