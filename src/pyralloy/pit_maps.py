r"""Monotone maps of the PIT, as maps of its normal score :math:`z = \Phi^{-1}(u)`.

In normal scores both tails keep their digits, a bias is a shift, a wrong spread is a slope, and
what lies beyond the data is extrapolated along a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.special import ndtri

__all__ = [
    "METHODS",
    "BetaMap",
    "MonotoneMap",
    "PitMap",
    "fit_beta",
    "fit_monotone",
    "normal_probability",
    "normal_score",
]

Array = NDArray[Any]

#: Beyond this normal score float64 has no probabilities.
FARTHEST = 37.5
#: Numbers of pieces tried, least rows in one, and bounds on Newton's steps.
PIECES, ROWS, STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), 20, 100


class PitMap(Protocol):
    """A monotone map of normal scores; elementwise, in float64."""

    def forward(self, z: Tensor) -> Tensor:
        """Map a score."""
        ...

    def log_slope(self, z: Tensor) -> Tensor:
        """Give the log of the derivative."""
        ...

    def inverse(self, w: Tensor) -> Tensor:
        """Solve ``forward(z) = w``."""
        ...


@dataclass(frozen=True, eq=False)
class MonotoneMap:
    """A piecewise linear map, its outer pieces without end; without knots a line.

    Attributes:
        knots: Where the slope changes, increasing, (J - 1,).
        slopes: Positive, (J,).
        start: The value at the first knot, or at 0 where there is none.
    """

    knots: Tensor
    slopes: Tensor
    start: float

    def __repr__(self) -> str:
        return f"MonotoneMap(pieces={len(self.slopes)})"

    def forward(self, z: Tensor) -> Tensor:
        """Map a score."""
        at, value = self._corners()
        piece = self._piece(self.knots, z)
        corner = (piece - 1).clamp_min(0)
        return value[corner] + self.slopes[piece] * (z - at[corner])

    def log_slope(self, z: Tensor) -> Tensor:
        """Give the log of the derivative."""
        return self.slopes.log()[self._piece(self.knots, z)]

    def inverse(self, w: Tensor) -> Tensor:
        """Solve ``forward(z) = w``."""
        at, value = self._corners()
        piece = self._piece(value[: len(self.knots)], w)
        corner = (piece - 1).clamp_min(0)
        return at[corner] + (w - value[corner]) / self.slopes[piece]

    def _corners(self) -> tuple[Tensor, Tensor]:
        at = self.knots if len(self.knots) else torch.zeros_like(self.slopes)
        rise = self.slopes[1:-1] * self.knots.diff() if len(self.knots) else self.slopes[:0]
        return at, self.start + torch.cat([torch.zeros_like(self.slopes[:1]), rise.cumsum(0)])

    @staticmethod
    def _piece(edges: Tensor, values: Tensor) -> Tensor:
        return torch.searchsorted(edges, values.contiguous())


@dataclass(frozen=True)
class BetaMap:
    """The cdf of a beta distribution, taken to normal scores.

    Attributes:
        a: Below 1 it lifts the lower tail.
        b: Below 1 it lifts the upper tail.
    """

    a: float
    b: float

    def forward(self, z: Tensor) -> Tensor:
        """Map a score, each tail by its own incomplete beta function."""
        from scipy.special import betainc, log_ndtr
        from scipy.special import ndtri as quantile

        values = z.cpu().numpy()
        tail = np.exp(log_ndtr(-np.abs(values)))
        low = betainc(self.a, self.b, tail)
        high = betainc(self.b, self.a, tail)
        return torch.from_numpy(np.where(values < 0, quantile(low), -quantile(high))).to(z)

    def log_slope(self, z: Tensor) -> Tensor:
        """Give the log of the derivative."""
        log_u, log_v = torch.special.log_ndtr(z), torch.special.log_ndtr(-z)
        constant = float(torch.lgamma(torch.tensor(self.a + self.b, dtype=torch.float64)))
        for shape in (self.a, self.b):
            constant -= float(torch.lgamma(torch.tensor(shape, dtype=torch.float64)))
        log_density = (self.a - 1.0) * log_u + (self.b - 1.0) * log_v + constant
        return log_density + (self.forward(z).square() - z.square()) / 2.0

    def inverse(self, w: Tensor) -> Tensor:
        """Solve ``forward(z) = w``."""
        from scipy.special import betainc, betaincinv, ndtr
        from scipy.special import ndtri as quantile

        values = w.cpu().numpy()
        middle = betainc(self.a, self.b, 0.5)
        u, v = ndtr(values), ndtr(-values)
        low = quantile(betaincinv(self.a, self.b, np.minimum(u, middle)))
        high = -quantile(betaincinv(self.b, self.a, np.minimum(v, 1.0 - middle)))
        return torch.from_numpy(np.where(u < middle, low, high)).to(w)


def fit_monotone(z: Tensor) -> MonotoneMap:
    r"""Fit a monotone map by maximum likelihood, with as many pieces as the data pay for.

    The log likelihood :math:`\sum_i \log \phi(g(z_i)) + \log g'(z_i)` is concave in the slopes of
    g and found by Newton's method; its knots are quantiles of the scores. The number of pieces is
    that of least BIC, and the identity is among those tried: right densities are left alone.

    Args:
        z: Normal scores of PIT values, shape (N,).

    Returns:
        The map.
    """
    scores = np.sort(z.cpu().numpy())
    best, least = (np.zeros(0), 0.0, np.ones(1)), 0.5 * float((scores**2).sum())
    for pieces in PIECES:
        if len(scores) < ROWS * pieces:
            break
        knots = np.quantile(scores, np.arange(1, pieces) / pieces)
        # Between ties there is nothing for a slope to be fitted to.
        if (np.diff([scores[0], *knots, scores[-1]]) <= 0).any():
            break
        start, slopes, loss = _newton(scores, knots)
        cost = loss + 0.5 * np.log(len(scores)) * (pieces + 1)
        if cost < least:
            best, least = (knots, start, slopes), cost
    knots, start, slopes = best
    return MonotoneMap(torch.as_tensor(knots).to(z), torch.as_tensor(slopes).to(z), float(start))


def fit_beta(z: Tensor) -> BetaMap:
    """Fit the two shapes of a beta map by maximum likelihood: Newton's method in their logs.

    Args:
        z: Normal scores of PIT values, shape (N,).

    Returns:
        The map.

    References:
        Ranjan, R., & Gneiting, T. (2010). Combining probability forecasts. JRSS B 72.
        doi:10.1111/j.1467-9868.2009.00726.x
    """
    from scipy.optimize import minimize
    from scipy.special import betaln, digamma

    goal = np.array([float(torch.special.log_ndtr(s).mean()) for s in (z, -z)])

    def loss(log_shape: Array) -> tuple[float, Array]:
        shape = np.exp(log_shape)
        value = betaln(*shape) - ((shape - 1.0) * goal).sum()
        return float(value), shape * (digamma(shape) - digamma(shape.sum()) - goal)

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS")
    a, b = np.exp(found.x)
    return BetaMap(float(a), float(b))


METHODS = {"isotonic": fit_monotone, "beta": fit_beta}


def _newton(scores: Array, knots: Array) -> tuple[float, Array, float]:
    """Maximise over the start and the slopes: a quadratic with a barrier, so Newton is enough."""
    design = _lengths(scores, knots)  # (N, J + 1)
    n = len(scores)
    share = np.bincount(np.searchsorted(knots, scores), minlength=len(knots) + 1)
    curve = design.T @ design
    value = np.concatenate([[knots[0] if len(knots) else 0.0], np.ones(len(share))])
    loss = _loss(value, curve, share)
    for _ in range(STEPS):
        gradient = curve @ value - np.concatenate([[0.0], share / value[1:]])
        hessian = curve + np.diag(np.concatenate([[0.0], share / value[1:] ** 2]))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (trial := value - size * step)[1:].min() <= 0 or (
            _loss(trial, curve, share) > loss + 1e-12 * n
        ):
            size /= 2.0
            if size < 1e-12:
                break
        else:
            value, loss = trial, _loss(trial, curve, share)
        if size < 1e-12 or float(gradient @ step) < 1e-10:
            break
    return float(value[0]), value[1:], loss


def _loss(value: Array, curve: Array, share: Array) -> float:
    return float(0.5 * value @ curve @ value - share @ np.log(value[1:]))


def _lengths(scores: Array, knots: Array) -> Array:
    """Give the columns whose weights are the start and the slopes: (N, J + 1)."""
    one = np.ones((len(scores), 1))
    if len(knots) == 0:
        return np.concatenate([one, scores[:, None]], -1)
    below = np.minimum(scores - knots[0], 0.0)[:, None]
    inner = np.clip(scores[:, None] - knots[:-1], 0.0, np.diff(knots))
    above = np.maximum(scores - knots[-1], 0.0)[:, None]
    return np.concatenate([one, below, inner, above], -1)


def normal_score(cdf: Tensor, survival: Tensor) -> Tensor:
    """Give the normal score of a probability, from whichever tail has its digits."""
    z = torch.where(cdf < 0.5, ndtri(cdf), -ndtri(survival))
    return z.clamp(-FARTHEST, FARTHEST)


def normal_probability(score: Tensor) -> Tensor:
    """Give the probability of a normal score; ``torch.special.ndtr`` has no lower tail."""
    return torch.special.log_ndtr(score).exp()
