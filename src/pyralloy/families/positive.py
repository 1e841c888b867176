"""Families of positive y, which may be scaled and not shifted: log-normal, Gamma and Weibull."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.families.contract import (
    Family,
    Support,
    distance_from_partial_mean,
    invert_cdf,
    positive_from_raw,
    positive_to_raw,
    scaling_only,
)
from pyralloy.special import gammainc, gammaincc, log_gamma_kernel

__all__ = ["GammaFamily", "LogNormalFamily", "Weibull", "WeibullFamily"]


class LogNormalFamily(Family):
    """Log-normal components; the standard deviation is softly 1/100 to 2 times the mean."""

    name = "log_normal"
    distribution = dist.LogNormal
    parameters = ("loc", "scale")
    support = Support(0.0)
    widths = (1,)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 2), logs of a mean and of a relative width, to ``LogNormal``."""
        mean, ratio = positive_from_raw(raw, spread)
        variance = torch.log1p(ratio.square())
        return dist.LogNormal(mean.log() - variance / 2, variance.sqrt())

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`: components of mean ``loc`` and standard deviation ``scale``."""
        return positive_to_raw(loc, scale, spread)

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf by ``erfc``, which keeps the digits of the lower tail."""
        return _ndtr(_log_normal_z(component, y)).to(y.dtype)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the upper tail by ``erfc`` likewise."""
        return _ndtr(-_log_normal_z(component, y)).to(y.dtype)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the quantile function."""
        z = torch.special.ndtri(u.to(torch.float64))
        return (component.loc + component.scale * z).exp().to(component.loc.dtype)

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the quantile function from the upper tail."""
        z = torch.special.ndtri(s.to(torch.float64))
        return (component.loc - component.scale * z).exp().to(component.loc.dtype)

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give ``LogNormal(loc + log(scale), scale_k)``; ``shift`` must be 0."""
        return dist.LogNormal(
            component.loc + scaling_only(self, shift, scale).log(), component.scale
        )

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate it by the partial mean :math:`E[Y; Y \le y] = E[Y] \, \Phi(z - \sigma)`.

        References:
            Baran, S., & Lerch, S. (2015). Log-normal distribution based EMOS models for
            probabilistic wind-speed forecasting. QJRMS 141. doi:10.1002/qj.2521
        """
        z = _log_normal_z(component, y)
        mean = (component.loc + component.scale.to(torch.float64).square() / 2).exp()
        partial = mean * _ndtr(z - component.scale)
        return distance_from_partial_mean(y, _ndtr(z), mean, partial).to(y.dtype)


class GammaFamily(Family):
    """Gamma components; the standard deviation is softly 1/100 to 2 times the mean."""

    name = "gamma"
    distribution = dist.Gamma
    parameters = ("concentration", "rate")
    support = Support(0.0)
    widths = (1,)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 2), logs of a mean and of a relative width, to ``Gamma``."""
        mean, ratio = positive_from_raw(raw, spread)
        concentration = ratio.square().reciprocal()
        return dist.Gamma(concentration, concentration / mean)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`: components of mean ``loc`` and standard deviation ``scale``."""
        return positive_to_raw(loc, scale, spread)

    def log_prob(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate the log density by the divergence of :math:`x = b y` from a.

        .. math:: a \bigl( \log(x / a) - (x / a - 1) \bigr) + \tfrac12 \log(a / 2 \pi)
                  - s(a) - \log y, \quad s \text{ the error of Stirling's formula}

        The terms of the usual form, as large as a log a, cancel: in float32 they leave three
        digits of an a of 10,000.
        """
        a, rate = component.concentration, component.rate
        edge = torch.where(a > 1, -math.inf, torch.where(a < 1, math.inf, rate.log()))
        inside = torch.where(y == 0, 1.0, y)  # no gradient may be NaN
        return torch.where(y == 0, edge, log_gamma_kernel(a, rate * inside) - inside.log())

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf, the regularised incomplete gamma function."""
        return gammainc(component.concentration, _gamma_x(component, y)).to(y.dtype)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the upper tail, the complementary function."""
        return gammaincc(component.concentration, _gamma_x(component, y)).to(y.dtype)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Invert the cdf over the log of y, without gradient."""
        a = component.concentration.to(torch.float64)
        low, high = torch.full_like(a, -700.0), (a + 40 * a.sqrt() + 800).log()
        log_x = invert_cdf(lambda w, a: gammainc(a, w.exp()), u, low, high, a)
        x = log_x.exp().masked_fill(u == 0, 0.0).masked_fill(u == 1, math.inf)
        return (x / component.rate).to(component.rate.dtype)

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give ``Gamma(concentration, rate / scale)``; ``shift`` must be 0."""
        rate = component.rate / scaling_only(self, shift, scale)
        return dist.Gamma(component.concentration.expand(rate.shape), rate)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate it by the partial mean :math:`E[Y; Y \le y] = E[Y] \, P(a + 1, b y)`.

        References:
            Scheuerer, M., & Möller, D. (2015). Probabilistic wind speed forecasting on a grid based
            on ensemble model output statistics. Annals of Applied Statistics 9.
            doi:10.1214/15-AOAS843
        """
        a, x = component.concentration.to(torch.float64), _gamma_x(component, y)
        mean = a / component.rate
        far = distance_from_partial_mean(y, gammainc(a, x), mean, mean * gammainc(a + 1, x))
        return far.to(y.dtype)


class Weibull(dist.Weibull):
    """Pyro's Weibull, whose log density stays finite where the density is zero in any arithmetic.

    Example:
        >>> one = Weibull(torch.tensor(1.0), torch.tensor(50.0))
        >>> bool(one.log_prob(torch.tensor(100.0)).isfinite())
        True
    """

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Evaluate :math:`\log(k / \lambda) + (k - 1) \log(y / \lambda) - (y / \lambda)^k`."""
        if self._validate_args:
            self._validate_sample(value)
        log_x = value.log() - self.scale.log()
        most = 0.9 * math.log(torch.finfo(log_x.dtype).max)
        power = (self.concentration * log_x).clamp_max(most).exp()
        return (self.concentration / self.scale).log() + (self.concentration - 1) * log_x - power


class WeibullFamily(Family):
    """Weibull components; the standard deviation is softly 1/80 to 2.2 times the mean."""

    name = "weibull"
    distribution = Weibull
    parameters = ("scale", "concentration")
    support = Support(0.0)
    widths = (1,)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 2), logs of a mean and of 1 / concentration, to ``Weibull``."""
        mean, ratio = positive_from_raw(raw, spread)
        return Weibull(mean * (-torch.lgamma(1 + ratio)).exp(), ratio.reciprocal())

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`: components of mean ``loc`` and standard deviation ``scale``."""
        ends = torch.full_like(loc, 5e-3), torch.full_like(loc, 2.0)
        ratio = scale / loc.clamp_min(torch.finfo(loc.dtype).tiny)
        power = invert_cdf(_relative_variance, ratio.square(), *ends).to(loc.dtype)
        return positive_to_raw(loc, power * loc, spread)

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate :math:`1 - e^{-(y / \lambda)^k}`, keeping the digits of the lower tail."""
        return -torch.expm1(-_weibull_power(component, y)).to(y.dtype)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate :math:`e^{-(y / \lambda)^k}`."""
        return (-_weibull_power(component, y)).exp().to(y.dtype)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the quantile function."""
        return _weibull_root(component, -torch.log1p(-u.to(torch.float64)))

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the quantile function from the upper tail."""
        return _weibull_root(component, -s.to(torch.float64).log())

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give ``Weibull(scale * scale_k, concentration)``; ``shift`` must be 0."""
        return Weibull(component.scale * scaling_only(self, shift, scale), component.concentration)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate it by :math:`E[Y; Y \le y] = E[Y] \, P(1 + 1/k, (y / \lambda)^k)`."""
        power = _weibull_power(component, y)
        shape = 1 + component.concentration.to(torch.float64).reciprocal()
        mean = component.scale * torch.lgamma(shape).exp()
        far = distance_from_partial_mean(
            y, -torch.expm1(-power), mean, mean * gammainc(shape, power)
        )
        return far.to(y.dtype)


# -- in float64 whatever the dtype: a concentration of 10,000, or a width of 1/100 of the mean,
# multiplies the rounding of what it is given -----------------------------------------------------


def _log_normal_z(component: Any, y: Tensor) -> Tensor:
    return (_log(y) - component.loc) / component.scale


def _gamma_x(component: Any, y: Tensor) -> Tensor:
    return component.rate * y.to(torch.float64).clamp_min(0.0)


def _weibull_power(component: Any, y: Tensor) -> Tensor:
    """Evaluate ``(y / scale) ** concentration``, or a number past which the cdf is one."""
    log_x = _log(y) - component.scale.to(torch.float64).log()
    return (component.concentration * log_x).clamp_max(7.0).exp()


def _weibull_root(component: Any, power: Tensor) -> Tensor:
    """Invert :func:`_weibull_power`, in the dtype of the component."""
    y = component.scale * power ** component.concentration.to(torch.float64).reciprocal()
    return y.to(component.scale.dtype)


def _relative_variance(power: Tensor) -> Tensor:
    """Evaluate the variance of a Weibull over its squared mean, from 1 / concentration."""
    return torch.expm1(torch.lgamma(1 + 2 * power) - 2 * torch.lgamma(1 + power))


def _ndtr(z: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(z * -math.sqrt(0.5))


def _log(y: Tensor) -> Tensor:
    """Take the log of y, or of the least positive number, so that no gradient is NaN."""
    return y.clamp_min(torch.finfo(y.dtype).tiny).to(torch.float64).log()
