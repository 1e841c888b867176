"""The truncated Normal family, of y in an interval; closed under affine maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from pyralloy.families.contract import (
    SCALE_FLOOR,
    distance_from_partial_mean,
    within,
)
from pyralloy.families.interval import IntervalFamily
from pyralloy.families.normal_interval import mass_between, moments_between, phi, standard
from pyralloy.numerics import soft_between, soft_between_inverse, soft_exp

__all__ = ["TruncatedNormal", "TruncatedNormalFamily"]

#: Log-odds of the mode of a truncated normal within its interval: to 1/1000 of its ends.
_MOST_ODDS = 7.0


class TruncatedNormal(TorchDistribution):
    r"""A normal given that it falls in ``[low, high]``.

    .. math:: f(y) = \frac{\varphi\bigl((y - \mu) / \sigma\bigr)}
                          {\sigma \bigl(\Phi(\beta) - \Phi(\alpha)\bigr)}, \quad
              \alpha = \frac{l - \mu}{\sigma}, \; \beta = \frac{h - \mu}{\sigma}

    Args:
        loc: Mean of the normal, no more than 35 ``scale`` outside the interval.
        scale: Its standard deviation, above 0.
        low: Lower end l of the interval, in y's units, or minus infinity.
        high: Upper end h, above ``low``, or infinity.
        validate_args: As in torch.

    Example:
        >>> share = TruncatedNormal(torch.tensor(0.0), 1.0, 0.0, 1.0)
        >>> round(float(share.mean), 4), round(float(share.icdf(torch.tensor(0.5))), 4)
        (0.4599, 0.4418)
    """

    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float = 0.0,
        high: Tensor | float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedNormal:
        """Expand to a larger batch shape."""
        expanded = (v.expand(batch_shape) for v in (self.loc, self.scale, self.low, self.high))
        return TruncatedNormal(*expanded, validate_args=self._validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """What is checked when the distribution is made."""
        real, positive = constraints.real, constraints.positive
        return {"loc": real, "scale": positive, "low": real, "high": real}

    @property
    def support(self) -> constraints.Constraint:
        """The interval."""
        return constraints.interval(self.low, self.high)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Both ends in standard units, in float64: far tails are out of reach of float32."""
        low = standard(self.low, self.loc, self.scale)
        return low, standard(self.high, self.loc, self.scale)

    @property
    def mass(self) -> Tensor:
        """What the normal gives to the interval, in float64."""
        return mass_between(*self.ends)

    @property
    def mean(self) -> Tensor:
        """The mean, in y's units."""
        return (self.loc + self.scale * moments_between(*self.ends)[0]).to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        """The variance, in y's units squared."""
        return (self.scale.square() * moments_between(*self.ends)[1]).to(self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density: minus infinity outside the interval."""
        if self._validate_args:
            self._validate_sample(value)
        z = (value.to(torch.float64) - self.loc) / self.scale
        density = -0.5 * (z.square() + math.log(2 * math.pi)) - self.mass.log() - self.scale.log()
        density = density.masked_fill((value < self.low) | (value > self.high), -math.inf)
        return density.to(torch.result_type(value, self.loc))

    def cdf(self, value: Tensor) -> Tensor:
        """Evaluate the cdf: 0 below the interval and 1 above."""
        share = mass_between(self.ends[0], self._inside(value)) / self.mass
        return share.clamp_max(1.0).to(torch.result_type(value, self.loc))

    def survival(self, value: Tensor) -> Tensor:
        """Evaluate one minus the cdf, keeping the digits of the upper tail."""
        share = mass_between(self._inside(value), self.ends[1]) / self.mass
        return share.clamp_max(1.0).to(torch.result_type(value, self.loc))

    def icdf(self, value: Tensor) -> Tensor:
        """Evaluate the quantile function, counting from the nearer tail of the normal."""
        return self._from_masses(value * self.mass, (1 - value) * self.mass)

    def inverse_survival(self, value: Tensor) -> Tensor:
        """Evaluate the quantile function from the upper tail."""
        return self._from_masses((1 - value) * self.mass, value * self.mass)

    def _inside(self, value: Tensor) -> Tensor:
        inside = torch.minimum(torch.maximum(value, self.low), self.high)
        return standard(inside, self.loc, self.scale)

    def _from_masses(self, below: Tensor, above: Tensor) -> Tensor:
        alpha, beta = self.ends
        below = below + 0.5 * torch.special.erfc(-math.sqrt(0.5) * alpha)
        above = above + 0.5 * torch.special.erfc(math.sqrt(0.5) * beta)
        ndtri = torch.special.ndtri
        z = torch.where(below < 0.5, ndtri(below), -ndtri(above))
        y = (self.loc + self.scale * z).to(self.loc.dtype)
        return torch.minimum(torch.maximum(y, self.low), self.high)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw samples by inversion, with a gradient."""
        return self.icdf(torch.rand(self._extended_shape(sample_shape)).to(self.loc))


class TruncatedNormalFamily(IntervalFamily):
    """Truncated normal components; the mode lies softly in the interval.

    The scale lies softly between 1/500 of the spread (or the interval, if that is smaller) and 10
    intervals, where the density is nearly flat.

    Args:
        low: Lower end of y's interval, in the units the head works in.
        high: Upper end.
    """

    name = "truncated_normal"
    distribution = TruncatedNormal
    parameters = ("loc", "scale", "low", "high")
    widths = (1,)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 2), log-odds of the mode and a log-scale, to ``TruncatedNormal``."""
        low, high = self.support.low, self.support.high
        odds, log_scale = raw
        loc = low + (high - low) * soft_between(odds, -_MOST_ODDS, _MOST_ODDS).sigmoid()
        scale = soft_exp(log_scale, *self._log_scales(spread))
        return TruncatedNormal(loc, scale, low, high)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Give the raw outputs of components of mode ``loc`` and, untruncated, width ``scale``."""
        low, high = self.support.low, self.support.high
        least = torch.tensor(-0.99 * _MOST_ODDS).sigmoid().item()
        share = ((loc - low) / (high - low)).clamp(least, 1 - least)
        odds = soft_between_inverse(share.logit(), -_MOST_ODDS, _MOST_ODDS)
        ends = self._log_scales(spread)
        width = within(scale, *(math.exp(v) for v in ends))
        return torch.stack([odds, soft_between_inverse(width.log(), *ends)], -1)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the upper tail."""
        return component.survival(y)

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the quantile function from the upper tail."""
        return component.inverse_survival(s)

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give the truncated normal on the mapped interval."""
        low, high = shift + scale * component.low, shift + scale * component.high
        loc, width = shift + scale * component.loc, scale.abs() * component.scale
        return TruncatedNormal(loc, width, torch.minimum(low, high), torch.maximum(low, high))

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate it by the partial mean, where :math:`Z = \Phi(\beta) - \Phi(\alpha)`.

        .. math:: E[Y; Y \le y] = \mu F(y) - \sigma \bigl( \varphi(z) - \varphi(\alpha) \bigr) / Z

        References:
            Thorarinsdottir, T. L., & Gneiting, T. (2010). Probabilistic forecasts of wind speed:
            ensemble model output statistics by using heteroscedastic censored regression. JRSS A
            173. doi:10.1111/j.1467-985X.2009.00616.x
        """
        t = torch.minimum(torch.maximum(y, component.low), component.high)
        gap, cdf = t - component.loc, component.cdf(t)
        ends = component.ends
        bend = component.scale * (phi(gap / component.scale) - phi(ends[0]))
        mean = component.scale * moments_between(*ends)[0]
        # Measured from loc, so that no large mean cancels.
        inside = distance_from_partial_mean(gap, cdf, mean, -bend / component.mass)
        return (inside + (y - t).abs()).to(y.dtype)

    def _log_scales(self, spread: float) -> tuple[float, float]:
        width = self.support.high - self.support.low
        return math.log(SCALE_FLOOR * min(spread, width)), math.log(10 * width)
