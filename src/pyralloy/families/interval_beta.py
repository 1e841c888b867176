"""The Beta family, of y in an interval; closed under affine maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from pyralloy.families.contract import distance_from_partial_mean, invert_cdf
from pyralloy.families.interval import IntervalFamily
from pyralloy.numerics import soft_between_inverse, soft_exp
from pyralloy.special import betainc, log_beta_kernel

__all__ = ["BetaFamily", "IntervalBeta"]

_LOG_CONCENTRATIONS = (math.log(0.5), math.log(1e4))


class IntervalBeta(TorchDistribution):
    r"""A Beta stretched over ``[low, high]``, with a log density stable at large concentrations.

    .. math:: f(y) = \frac{x^{a-1} (1-x)^{b-1}}{B(a, b) (h - l)}, \quad x = \frac{y - l}{h - l}

    Args:
        concentration1: a, above 0.
        concentration0: b, above 0.
        low: Lower end l, in y's units.
        high: Upper end h, above ``low``.
        validate_args: As in torch.

    Example:
        >>> percent = IntervalBeta(torch.tensor(2.0), 2.0, 0.0, 100.0)
        >>> round(float(percent.mean), 3), round(float(percent.log_prob(torch.tensor(50.0))), 3)
        (50.0, -4.2)
    """

    has_rsample = True

    def __init__(
        self,
        concentration1: Tensor | float,
        concentration0: Tensor | float,
        low: Tensor | float = 0.0,
        high: Tensor | float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        values = broadcast_all(concentration1, concentration0, low, high)
        self.concentration1, self.concentration0, self.low, self.high = values
        super().__init__(self.low.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> IntervalBeta:
        """Expand to a larger batch shape."""
        values = (self.concentration1, self.concentration0, self.low, self.high)
        expanded = (v.expand(batch_shape) for v in values)
        return IntervalBeta(*expanded, validate_args=self._validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """What is checked when the distribution is made."""
        real, positive = constraints.real, constraints.positive
        return {"concentration1": positive, "concentration0": positive, "low": real, "high": real}

    @property
    def support(self) -> constraints.Constraint:
        """The interval."""
        return constraints.interval(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        """The mean, in y's units."""
        total = self.concentration1 + self.concentration0
        return (self.low * self.concentration0 + self.high * self.concentration1) / total

    @property
    def variance(self) -> Tensor:
        """The variance, in y's units squared."""
        a, b = self.concentration1, self.concentration0
        return (self.high - self.low).square() * a * b / ((a + b).square() * (a + b + 1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density; infinite at an end whose concentration is below 1."""
        if self._validate_args:
            self._validate_sample(value)
        width = self.high - self.low
        x, rest = (value - self.low) / width, (self.high - value) / width
        kernel = log_beta_kernel(self.concentration1, self.concentration0, x, rest)
        return kernel - x.log() - rest.log() - width.log()

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw samples with a gradient."""
        unit = dist.Beta(self.concentration1, self.concentration0, validate_args=False)
        return self.low + (self.high - self.low) * unit.rsample(torch.Size(sample_shape))


class BetaFamily(IntervalFamily):
    """Beta components on an interval; concentrations lie softly between 1/2 and 10,000.

    Args:
        low: Lower end of y's interval, in the units the head works in.
        high: Upper end.

    Example:
        >>> BetaFamily(0.0, 100.0).support.high
        100.0
    """

    name = "beta"
    distribution = IntervalBeta
    parameters = ("concentration1", "concentration0", "low", "high")

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 2), logs of both concentrations, to ``IntervalBeta``."""
        a, b = (soft_exp(r, *_LOG_CONCENTRATIONS) for r in raw)
        return IntervalBeta(a, b, self.support.low, self.support.high)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`: components of mean ``loc`` and standard deviation ``scale``."""
        low, high = (math.exp(v) for v in _LOG_CONCENTRATIONS)
        width = self.support.high - self.support.low
        mean = ((loc - self.support.low) / width).clamp(1e-3, 1 - 1e-3)
        least, most = torch.minimum(mean, 1 - mean), torch.maximum(mean, 1 - mean)
        total = mean * (1 - mean) / (scale / width).square() - 1
        total = torch.minimum(torch.maximum(total, 1.01 * low / least), high / (1.01 * most))
        concentrations = torch.stack([mean * total, (1 - mean) * total], -1)
        return soft_between_inverse(concentrations.log(), *_LOG_CONCENTRATIONS)

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf, the regularised incomplete beta function."""
        x, _ = _shares(component, y)
        return betainc(component.concentration1, component.concentration0, x).to(y.dtype)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the upper tail, the same function with its arguments exchanged."""
        _, rest = _shares(component, y)
        return betainc(component.concentration0, component.concentration1, rest).to(y.dtype)

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the quantile function of the mirrored Beta."""
        total = component.low + component.high
        return total - self.icdf(self.affine(component, total, -torch.ones_like(total)), s)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Invert the cdf over the log-odds of y, without gradient."""
        a, b = component.concentration1, component.concentration0
        high = torch.full_like(u, 700.0)
        odds = invert_cdf(lambda w, a, b: betainc(a, b, w.sigmoid()), u, -high, high, a, b)
        width, up = _width(component), odds > 0
        from_low = component.low + width * odds.sigmoid()
        y = torch.where(up, component.high - width * (-odds).sigmoid(), from_low)
        return torch.where(u == 0, component.low, torch.where(u == 1, component.high, y)).to(a)

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give the Beta on the mapped interval, mirrored where ``scale`` is negative."""
        low, high = shift + scale * component.low, shift + scale * component.high
        a, b, flip = component.concentration1, component.concentration0, scale < 0
        return IntervalBeta(
            torch.where(flip, b, a), torch.where(flip, a, b),
            torch.minimum(low, high), torch.maximum(low, high),
        )  # fmt: skip

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate it by :math:`E[X; X \le x] = E[X] \, I_x(a + 1, b)` on the unit interval.

        References:
            Jordan, A., Krüger, F., & Lerch, S. (2019). Evaluating probabilistic forecasts with
            scoringRules. Journal of Statistical Software 90. doi:10.18637/jss.v090.i12
        """
        a, b = (v.to(torch.float64) for v in (component.concentration1, component.concentration0))
        beyond = (y - component.high).clamp_min(0.0) + (component.low - y).clamp_min(0.0)
        x, mean = _shares(component, y)[0], a / (a + b)
        inside = distance_from_partial_mean(x, betainc(a, b, x), mean, mean * betainc(a + 1, b, x))
        return (beyond + _width(component) * inside).to(y.dtype)


def _width(component: Any) -> Tensor:
    return component.high.to(torch.float64) - component.low


def _shares(component: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Give the distances to both ends over the width, in float64: near a pole few digits are few.

    Their own dtype would round the width, and move what lies at the upper end.
    """
    wide, width = y.to(torch.float64), _width(component)
    below, above = (wide - component.low) / width, (component.high - wide) / width
    return below.clamp(0.0, 1.0), above.clamp(0.0, 1.0)
