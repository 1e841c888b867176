"""Families of counts: Poisson and negative binomial. Their quantiles are integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.checks import broadcast_shapes
from pyralloy.families.contract import (
    MEAN_BOUNDS,
    Family,
    Support,
    distance_from_partial_mean,
    invert_cdf,
    within,
)
from pyralloy.numerics import soft_between, soft_between_inverse, soft_exp
from pyralloy.special import betainc, gammainc, gammaincc

__all__ = ["NegativeBinomialFamily", "PoissonFamily", "dispersion_sum"]

#: Integers of a sum that are taken at once.
BLOCK = 256


class PoissonFamily(Family):
    """Poisson components; a head works in counts, for nothing standardises them."""

    name = "poisson"
    distribution = dist.Poisson
    parameters = ("rate",)
    support = Support(0.0, integer=True)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 1), the log of a mean, to ``Poisson``."""
        return dist.Poisson(soft_exp(raw[0], *_log_means(spread)))

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Give components of mean ``loc``; their width follows from it."""
        return _raw_mean(loc, spread)[..., None]

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf, an incomplete gamma function of the floor of ``y``."""
        return _poisson_cdf(y.detach().floor(), component.rate)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the upper tail, the complementary function."""
        k = y.detach().floor()
        return torch.where(k < 0, 1.0, gammainc(k.clamp_min(0.0) + 1, component.rate))

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Give the least integer whose cdf is at least ``u``."""
        most = component.rate + 40 * component.rate.sqrt() + 800
        return _least_integer(_poisson_cdf, u, most, component.rate)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate it by the partial mean :math:`E[Y; Y \le y] = \lambda F(y - 1)`.

        References:
            Wei, W., & Held, L. (2014). Calibration tests for count data. TEST 23.
            doi:10.1007/s11749-014-0380-8
        """
        below = component.rate * self.cdf(component, y - 1)
        return distance_from_partial_mean(y, self.cdf(component, y), component.mean, below)

    def dispersion(self, weights: Tensor, component: Any) -> Tensor:
        """Sum F (1 - F) over the integers; the time grows with the largest count."""
        return dispersion_sum(self, weights, component)


class NegativeBinomialFamily(Family):
    """Negative binomial components: counts that vary more than a Poisson's."""

    name = "negative_binomial"
    distribution = dist.NegativeBinomial
    parameters = ("total_count", "probs")
    support = Support(0.0, integer=True)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 2), logs of a mean and of a number of failures r."""
        log_mean, log_count = raw
        log_mean = soft_between(log_mean, *_log_means(spread))
        log_count = soft_between(log_count, *_LOG_COUNTS)
        # In float32 a mean far above r would round the probability to 1.
        most = 1 - 4 * torch.finfo(log_mean.dtype).eps
        probs = (log_mean - log_count).sigmoid().clamp_max(most)
        return dist.NegativeBinomial(log_count.exp(), probs)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Give components of mean ``loc``, and of deviation ``scale`` if a Poisson's is smaller."""
        mean = loc.clamp_min(MEAN_BOUNDS[0] * spread)
        excess = (scale.square() - mean).clamp_min(torch.finfo(mean.dtype).tiny)
        count = within(mean.square() / excess, *(math.exp(v) for v in _LOG_COUNTS))
        return torch.stack(
            [_raw_mean(loc, spread), soft_between_inverse(count.log(), *_LOG_COUNTS)], -1
        )

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf, an incomplete beta function of the floor of ``y``."""
        return _negative_binomial_cdf(y.detach().floor(), component.total_count, component.probs)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the upper tail, the same function with its arguments exchanged."""
        k = y.detach().floor()
        upper = betainc(k.clamp_min(0.0) + 1, component.total_count, component.probs)
        return torch.where(k < 0, 1.0, upper)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Give the least integer whose cdf is at least ``u``."""
        count, probs = component.total_count, component.probs
        most = 800 + component.mean + (40 * component.stddev + 800) / (1 - probs)
        return _least_integer(_negative_binomial_cdf, u, most, count, probs)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate it by :math:`E[Y; Y \le y] = E[Y] \, F_{r+1}(y - 1)`.

        References:
            Wei, W., & Held, L. (2014). Calibration tests for count data. TEST 23.
            doi:10.1007/s11749-014-0380-8
        """
        count, probs = component.total_count, component.probs
        mean = component.mean
        below = mean * _negative_binomial_cdf(y.detach().floor() - 1, count + 1, probs)
        return distance_from_partial_mean(y, self.cdf(component, y), mean, below)

    def dispersion(self, weights: Tensor, component: Any) -> Tensor:
        """Sum F (1 - F) over the integers; the time grows with the largest count."""
        return dispersion_sum(self, weights, component)


#: Failures of a negative binomial: from a long tail to nearly a Poisson.
_LOG_COUNTS = (math.log(0.1), math.log(1e4))


def _log_means(spread: float) -> tuple[float, float]:
    low, high = (math.log(v * spread) for v in MEAN_BOUNDS)
    return low, high


def _raw_mean(loc: Tensor, spread: float) -> Tensor:
    low, high = _log_means(spread)
    return soft_between_inverse(within(loc, math.exp(low), math.exp(high)).log(), low, high)


def _poisson_cdf(k: Tensor, rate: Tensor) -> Tensor:
    """Evaluate it at an integer, or between, where it is a smooth curve through them."""
    cdf = gammaincc(k.clamp_min(0.0) + 1, rate)
    return torch.where(k < 0, 0.0, cdf)


def _negative_binomial_cdf(k: Tensor, count: Tensor, probs: Tensor) -> Tensor:
    cdf = betainc(count, k.clamp_min(0.0) + 1, 1 - probs)
    return torch.where(k < 0, 0.0, cdf)


@torch.no_grad()
def _least_integer(cdf: Callable[..., Tensor], u: Tensor, most: Tensor, *shapes: Tensor) -> Tensor:
    """Give the least integer whose cdf reaches ``u``, by the smooth curve and two looks around."""
    wide = [v.to(torch.float64) for v in shapes]
    k = invert_cdf(cdf, u, torch.zeros_like(u), most, *shapes).ceil()
    k = torch.where((k > 0) & (cdf(k - 1, *wide) >= u), k - 1, k)
    k = torch.where(cdf(k, *wide) < u, k + 1, k).masked_fill(u == 1, math.inf)
    return k.to(u.dtype)


def dispersion_sum(family: Family, weights: Tensor, component: Any) -> Tensor:
    """Sum F (1 - F) of a mixture of counts over the integers that hold its mass."""
    component = component.expand(broadcast_shapes(component.batch_shape, weights.shape))
    with torch.no_grad():
        level = torch.full_like(weights, 1e-12)
        live = weights > 0
        first = family.icdf(component, level).masked_fill(~live, math.inf).amin()
        last = family.icdf(component, 1 - level).masked_fill(~live, 0.0).amax()
    total = torch.zeros_like(weights[..., 0])
    for start in range(int(first), int(last) + 1, BLOCK):
        stop = min(start + BLOCK, int(last) + 1)
        k = torch.arange(start, stop, dtype=weights.dtype, device=weights.device)
        cdf = family.cdf(component, k.reshape(-1, *(1,) * weights.ndim))  # (B, ..., K)
        lower, upper = (weights * cdf).sum(-1), (weights * (1 - cdf)).sum(-1)
        total = total + (lower * upper).sum(0)
    return total
