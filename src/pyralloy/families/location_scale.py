"""Families closed under every affine map: Normal, Student's t, Laplace and logistic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.nn import functional as F

from pyralloy.families.contract import Family, invert_cdf, scale_bounds, within
from pyralloy.families.quadrature import count_pieces
from pyralloy.numerics import add_up, soft_between_inverse, soft_exp
from pyralloy.special import student_cdf

__all__ = [
    "LOG_DF",
    "START_DF",
    "LaplaceFamily",
    "LogisticFamily",
    "NormalFamily",
    "StudentTFamily",
]

#: Numbers that the machine's widest vectors hold, as often as a pass over them is unrolled.
VECTORS = 32
#: Normal components whose pairs are summed; of more, a quadrature is quicker unless they lie apart.
#: A piece of it takes as long as so many pairs of each component.
MOST_PAIRED, PIECE = 1000, 5


class NormalFamily(Family):
    """Normal components; scales lie softly between 1/500 and 100 times the spread of y."""

    name = "normal"
    distribution = dist.Normal
    parameters = ("loc", "scale")
    widths = (1,)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map two outputs (...) to ``Normal(loc, scale)`` with the scale softly bounded."""
        loc, log_scale = raw
        return dist.Normal(loc, soft_exp(log_scale, *scale_bounds(spread)))

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`."""
        return torch.stack([loc, _raw_scale(scale, spread)], -1)

    def log_prob(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the log density in fewer passes over memory than the distribution's own."""
        rate = component.scale.reciprocal()
        z = (y - component.loc) * rate
        return torch.addcmul(rate.log() - _LOG_SQRT_2PI, z, z, value=-0.5)

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf by ``erfc``: torch's ``ndtr`` is 1 + erf and loses the lower tail.

        The lower tail is cut off near the least normal number: subnormal ones are ten times slower.
        """
        return _normal_survival((component.loc - y) / component.scale)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the mirrored cdf."""
        return _normal_survival((y - component.loc) / component.scale)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the quantile function."""
        return component.loc + component.scale * torch.special.ndtri(u)

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the mirrored quantile function."""
        return component.loc - component.scale * torch.special.ndtri(s)

    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw once from each component."""
        loc, scale = torch.broadcast_tensors(component.loc, component.scale)
        noise = torch.empty_like(loc).normal_(generator=generator)
        return noise.mul_(scale).add_(loc)

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give ``Normal(shift + scale * loc, |scale| * scale_k)``."""
        return dist.Normal(shift + scale * component.loc, scale.abs() * component.scale)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate :math:`A(y - \mu, \sigma)`, where :math:`A(m, s) = E|N(m, s^2)|`."""
        mean = y - component.loc
        width = math.sqrt(2.0) * component.scale + torch.finfo(component.scale.dtype).tiny
        x = (mean / width).clamp(-6.0, 6.0)
        kernel = x.square().neg().exp()
        return torch.addcmul(mean * x.erf(), width, kernel, value=1.0 / math.sqrt(math.pi))

    def dispersion(self, weights: Tensor, component: Any) -> Tensor:
        r"""Evaluate half the expected distance between two draws, in closed form.

        Of more than 1,000 components, where their pairs would take longer, by quadrature, to about
        1e-8.

        .. math:: \tfrac12 \sum_{k,l} w_k w_l A(\mu_k - \mu_l, \sqrt{\sigma_k^2 + \sigma_l^2}),
                  \quad A(m, s) = E|N(m, s^2)|

        References:
            Grimit, E. P., Gneiting, T., Berrocal, V. J., & Johnson, N. A. (2006). The continuous
            ranked probability score for circular variables and its application to mesoscale
            forecast ensemble verification. QJRMS 132. doi:10.1256/qj.05.235
        """
        shared = torch.broadcast_tensors(weights, component.loc, component.scale)
        shape, count = shared[0].shape[:-1], shared[0].shape[-1]
        pairs = shape.numel() * count  # a component
        if count > MOST_PAIRED and PIECE * count_pieces(self, weights, component) < pairs:
            return super().dispersion(weights, component)
        # Components lead, (K, M), so that a pair of slices is every component beside another: no
        # gathers, and sums over pairs run along whole vectors. The first ones follow the last.
        # What is left over of a vector is computed by other code, to another last bit: no row is.
        half, spare = count // 2, -shape.numel() % VECTORS
        round_ = (F.pad(v.reshape(-1, count).T, (0, spare)) for v in shared)
        w_on, loc_on, scale_on = (torch.cat([v, v[:half]]) for v in round_)
        # Of the variance; the least number keeps a pair of needles of one place from 0 / 0.
        double_on = 2 * scale_on.square() + torch.finfo(scale_on.dtype).tiny
        w, loc, double = (v[:count] for v in (w_on, loc_on, double_on))
        room = _room(w, loc, double)
        beside = w * scale_on[:count] / math.sqrt(math.pi)  # what each meets, itself to begin with
        for shift in range(1, (count + 1) // 2):
            on = slice(shift, shift + count)
            pairs = _pairs(loc_on[on], loc, double_on[on], double, room)
            sums = None if room[0] is None else beside
            beside = torch.addcmul(beside, w_on[on], pairs, out=sums)
        total = add_up(w * beside)
        if count % 2 == 0:  # halfway round, where every pair would come twice
            few = [None if v is None else v[:half] for v in room]
            pairs = _pairs(loc[half:], loc[:half], double[half:], double[:half], few)
            total = total + add_up(w[half:] * w[:half] * pairs)
        return total[: shape.numel()].reshape(shape)

    def dispersion_width(self, count: int) -> int:
        """Count a few numbers a component: pairs are formed K at a time."""
        return 4 * count


class LaplaceFamily(Family):
    """Laplace components; standard deviations lie softly within 1/500 to 100 of y's spread."""

    name = "laplace"
    distribution = dist.Laplace
    parameters = ("loc", "scale")
    widths = (1,)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map two outputs (...) to ``Laplace(loc, scale)`` with the scale softly bounded."""
        loc, log_scale = raw
        return dist.Laplace(loc, soft_exp(log_scale, *scale_bounds(spread)) / _SQRT2)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`; ``scale`` is a standard deviation."""
        return torch.stack([loc, _raw_scale(scale, spread)], -1)

    def kinks(self, component: Any) -> Tensor:
        """Give the peaks."""
        return component.loc

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf, each tail by its own exponential, which keeps its digits."""
        return _laplace_cdf((y - component.loc) / component.scale)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the mirrored cdf."""
        return _laplace_cdf((component.loc - y) / component.scale)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the quantile function, likewise."""
        return component.loc + component.scale * _laplace_icdf(u)

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the mirrored quantile function."""
        return component.loc - component.scale * _laplace_icdf(s)

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give ``Laplace(shift + scale * loc, |scale| * scale_k)``."""
        return dist.Laplace(shift + scale * component.loc, scale.abs() * component.scale)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate :math:`|y - \mu| + b e^{-|y - \mu| / b}`.

        References:
            Jordan, A., Krüger, F., & Lerch, S. (2019). Evaluating probabilistic forecasts with
            scoringRules. Journal of Statistical Software 90. doi:10.18637/jss.v090.i12
        """
        gap = (y - component.loc).abs()
        return gap + component.scale * (-gap / component.scale).exp()


class LogisticFamily(Family):
    """Logistic components; standard deviations lie softly within 1/500 to 100 of y's spread."""

    name = "logistic"
    distribution = dist.Logistic
    parameters = ("loc", "scale")
    widths = (1,)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map two outputs (...) to ``Logistic(loc, scale)`` with the scale softly bounded."""
        loc, log_scale = raw
        scale = soft_exp(log_scale, *scale_bounds(spread)) / _LOGISTIC_DEVIATION
        return dist.Logistic(loc, scale)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`; ``scale`` is a standard deviation."""
        return torch.stack([loc, _raw_scale(scale, spread)], -1)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the mirrored cdf."""
        return ((component.loc - y) / component.scale).sigmoid()

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the mirrored quantile function."""
        return component.loc - component.scale * s.logit()

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give ``Logistic(shift + scale * loc, |scale| * scale_k)``."""
        return dist.Logistic(shift + scale * component.loc, scale.abs() * component.scale)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate :math:`s (2 \log(1 + e^z) - z)`, where :math:`z = (y - \mu) / s`.

        References:
            Jordan, A., Krüger, F., & Lerch, S. (2019). Evaluating probabilistic forecasts with
            scoringRules. Journal of Statistical Software 90. doi:10.18637/jss.v090.i12
        """
        z = (y - component.loc) / component.scale
        return component.scale * (F.softplus(z) + F.softplus(-z))


class StudentTFamily(Family):
    """Student's t components, each with its own degrees of freedom, softly within 1.5 to 100.

    The lower bound keeps the mean, and so the CRPS, finite. The ``scale`` that is softly bounded is
    the parameter: below two degrees of freedom no standard deviation exists.
    """

    name = "student_t"
    distribution = dist.StudentT
    parameters = ("df", "loc", "scale")
    widths = (2,)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 3) to ``StudentT(df, loc, scale)``; only ``loc`` is free."""
        log_df, loc, log_scale = raw
        scale = soft_exp(log_scale, *scale_bounds(spread))
        return dist.StudentT(soft_exp(log_df, *LOG_DF), loc, scale)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Place components of 8 degrees of freedom with standard deviation ``scale``."""
        log_df = torch.full_like(loc, math.log(START_DF))
        width = scale * math.sqrt((START_DF - 2) / START_DF)
        return torch.stack(
            [soft_between_inverse(log_df, *LOG_DF), loc, _raw_scale(width, spread)], -1
        )

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf by the incomplete beta function."""
        return student_cdf(component.df, (y - component.loc) / component.scale)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the mirrored cdf."""
        return student_cdf(component.df, (component.loc - y) / component.scale)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Invert the cdf, in the smaller tail and over ``asinh``, without gradient."""
        return component.loc + component.scale * _student_icdf(component.df, u).to(component.loc)

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the mirrored quantile function."""
        return component.loc - component.scale * _student_icdf(component.df, s).to(component.loc)

    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw once from each component by Bailey's polar method.

        References:
            Bailey, R. W. (1994). Polar generation of random variates with the t-distribution.
            Mathematics of Computation 62. doi:10.2307/2153537
        """
        df, loc, scale = torch.broadcast_tensors(component.df, component.loc, component.scale)
        u, v = torch.rand((2, *df.shape), generator=generator, dtype=df.dtype, device=df.device)
        log_u = u.clamp_min(torch.finfo(u.dtype).tiny).log()
        radius = (df * torch.expm1(-2 / df * log_u)).sqrt()
        return loc + scale * radius * (2 * math.pi * v).cos()

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give ``StudentT(df, shift + scale * loc, |scale| * scale_k)``."""
        loc, width = shift + scale * component.loc, scale.abs() * component.scale
        return dist.StudentT(component.df, loc, width)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate :math:`E|Y - y|`, where :math:`z = (y - \mu) / \sigma`, in closed form.

        .. math:: \sigma \bigl( z (2 F_\nu(z) - 1) + 2 f_\nu(z) (\nu + z^2) / (\nu - 1) \bigr)

        References:
            Jordan, A., Krüger, F., & Lerch, S. (2019). Evaluating probabilistic forecasts with
            scoringRules. Journal of Statistical Software 90. doi:10.18637/jss.v090.i12
        """
        df, z = component.df, (y - component.loc) / component.scale
        standard = dist.StudentT(df, torch.zeros_like(df), torch.ones_like(df), validate_args=False)
        partial = (standard.log_prob(z).exp() * (df + z.square())) / (df - 1)
        return component.scale * (z * (2 * student_cdf(df, z) - 1) + 2 * partial)


_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT2, _LOGISTIC_DEVIATION = math.sqrt(2.0), math.pi / math.sqrt(3.0)
#: Ends between which the log of the degrees of freedom lies, and where training starts.
LOG_DF, START_DF = (math.log(1.5), math.log(100.0)), 8.0
#: ``sinh`` of it is the largest quantile that is looked for, about 1e260.
_MOST_ASINH = 600.0


def _raw_scale(scale: Tensor, spread: float) -> Tensor:
    low, high = scale_bounds(spread)
    return soft_between_inverse(within(scale, math.exp(low), math.exp(high)).log(), low, high)


def _normal_survival(z: Tensor) -> Tensor:
    z = z * math.sqrt(0.5)
    last, least = (9.1, 3.4e-38) if z.dtype == torch.float32 else (26.5, 1.2e-307)
    return F.threshold(0.5 * torch.special.erfc(z.clamp_max(last)), least, 0.0)


def _laplace_cdf(z: Tensor) -> Tensor:
    lower, upper = z.clamp_max(0.0), z.clamp_min(0.0)
    return torch.where(z < 0, 0.5 * lower.exp(), 1 - 0.5 * (-upper).exp())


def _laplace_icdf(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, (2 * u).log(), -(2 - 2 * u).log())


def _student_icdf(df: Tensor, u: Tensor) -> Tensor:
    tail = torch.minimum(u, 1 - u)
    low, high = torch.full_like(tail, -_MOST_ASINH), torch.zeros_like(tail)
    w = invert_cdf(lambda w, df: student_cdf(df, w.sinh()), tail, low, high, df)
    z = torch.where(tail > 0, w.sinh(), -math.inf)
    return torch.where(u > 0.5, -z, z)


def _pairs(
    one: Tensor, other: Tensor, one_double: Tensor, other_double: Tensor, room: list[Tensor | None]
) -> Tensor:
    """Evaluate the expected distance between draws of two Normals, of twice some variances.

    ``room`` is four tensors of the shape of the result to work in, one of which is returned.
    """
    gap = torch.sub(one, other, out=room[0])
    both = torch.add(one_double, other_double, out=room[1])
    rate = torch.rsqrt(both, out=room[2])
    x = torch.mul(gap, rate, out=room[3])
    width = torch.mul(both, rate, out=room[1])
    # Beyond 6 widths the exponential is less than rounding, and subnormal numbers are slow.
    x = torch.clamp(x, -6.0, 6.0, out=room[3])
    # A power of two is a third of the work that one of e is.
    power = torch.addcmul(gap.new_zeros(()), x, x, value=-1.0 / math.log(2.0), out=room[2])
    kernel = torch.exp2(power, out=room[2])
    near = torch.mul(gap, torch.erf(x, out=room[3]), out=room[3])
    return torch.addcmul(near, width, kernel, value=1.0 / math.sqrt(math.pi), out=room[3])


def _room(*given: Tensor) -> list[Tensor | None]:
    """Give four tensors to work in: memory that comes anew costs a third of a pass over it.

    Where a gradient is asked for, nothing may be overwritten: four times None.
    """
    asked = torch.is_grad_enabled() and any(v.requires_grad for v in given)
    return [None if asked else torch.empty_like(given[0]) for _ in range(4)]
