"""Families of y in an interval: Beta and truncated normal. Both are closed under affine maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from pyralloy.families.contract import (
    SCALE_FLOOR,
    Family,
    Support,
    distance_from_partial_mean,
    invert_cdf,
    within,
)
from pyralloy.families.normal_interval import mass_between, moments_between, phi, standard
from pyralloy.numerics import soft_between, soft_between_inverse, soft_exp
from pyralloy.special import betainc, log_beta_kernel

__all__ = ["BetaFamily", "IntervalBeta", "TruncatedNormal", "TruncatedNormalFamily"]


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


class BetaFamily(Family):
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

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.support = _interval(low, high)

    @property
    def outputs(self) -> int:
        """Two: the interval is given."""
        return 2

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


class TruncatedNormalFamily(Family):
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

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.support = _interval(low, high)

    @property
    def outputs(self) -> int:
        """Two: the interval is given."""
        return 2

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


_LOG_CONCENTRATIONS = (math.log(0.5), math.log(1e4))
#: Log-odds of the mode of a truncated normal within its interval: to 1/1000 of its ends.
_MOST_ODDS = 7.0


def _width(component: Any) -> Tensor:
    return component.high.to(torch.float64) - component.low


def _shares(component: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Give the distances to both ends over the width, in float64: near a pole few digits are few.

    Their own dtype would round the width, and move what lies at the upper end.
    """
    wide, width = y.to(torch.float64), _width(component)
    below, above = (wide - component.low) / width, (component.high - wide) / width
    return below.clamp(0.0, 1.0), above.clamp(0.0, 1.0)


def _interval(low: float, high: float) -> Support:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low={low!r}, high={high!r}: give two finite numbers, the lower first.")
    return Support(float(low), float(high))
