"""The family of angles: von Mises components, in radians, on a circle that is cut at -pi."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.families.arcs import (
    concentration_of,
    dispersion_of,
    invert_tail,
    mean_resultant,
    resultant_angle,
    tail,
    tail_area,
    wrap,
)
from pyralloy.families.contract import Family, Support, within
from pyralloy.numerics import soft_between, soft_between_inverse

__all__ = ["VonMises", "VonMisesFamily"]


class VonMises(dist.VonMises):
    r"""Pyro's von Mises distribution, to the precision of the dtype.

    .. math:: f(y) = \frac{e^{\kappa \cos(y - \mu)}}{2 \pi I_0(\kappa)}
                   = \frac{e^{-2 \kappa \sin^2((y - \mu) / 2)}}{2 \pi e^{-\kappa} I_0(\kappa)}

    The second form keeps its digits where the concentration is large. Pyro's own log density errs
    by about 1e-7. Values and ``loc`` may be any real numbers and count modulo 2 pi.

    Args:
        loc: Mean direction, in radians.
        concentration: kappa, above 0; for large ones 1 / kappa is the variance.
        validate_args: As in torch.

    Example:
        >>> north = VonMises(torch.tensor(0.0), torch.tensor(4.0))
        >>> round(float(north.stddev), 4)
        0.5417
        >>> round(float(north.log_prob(torch.tensor(2 * math.pi))), 4)
        -0.2628
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMises:
        """Expand to a larger batch shape."""
        values = (v.expand(batch_shape) for v in (self.loc, self.concentration))
        expanded = VonMises(*values, validate_args=False)  # they were checked already
        expanded._validate_args = self._validate_args
        return expanded

    @property
    def mean(self) -> Tensor:
        """The mean direction, in [-pi, pi)."""
        return wrap(self.loc)

    @property
    def variance(self) -> Tensor:
        """The circular variance 1 - R, without unit, where R is the mean resultant length."""
        return (1 - mean_resultant(self.concentration)).to(self.loc.dtype)

    @property
    def stddev(self) -> Tensor:
        """The circular standard deviation, the square root of -2 log R, in radians."""
        return _deviation(self.variance)

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density, per radian."""
        if self._validate_args:
            self._validate_sample(value)
        scaled = torch.special.i0e(self.concentration.to(torch.float64))
        height = (2 * math.pi * scaled).log().to(self.concentration.dtype)
        return -2 * self.concentration * ((value - self.loc) / 2).sin().square() - height


class VonMisesFamily(Family):
    r"""Von Mises components; widths lie softly within 1/100 and 30 radians, nearly uniform.

    The width is :math:`1 / \sqrt{\kappa}`, the standard deviation of the Normal that a narrow
    component is near to; concentrations so lie within 1/900 and 10,000, whatever the spread of y.
    Two of the three raw outputs are a vector whose angle is the mean direction, so that no seam
    keeps a component from going all the way round.

    Probabilities and quantiles count from a cut at -pi, on which they depend; means, distances,
    modes and highest-density regions do not.

    References:
        Mardia, K. V., & Jupp, P. E. (1999). Directional Statistics. Wiley.
        doi:10.1002/9780470316979
    """

    name = "von_mises"
    distribution = VonMises
    parameters = ("loc", "concentration")
    widths = (2,)
    support = Support(-math.pi, math.pi, circular=True)

    @property
    def outputs(self) -> int:
        """Three: a vector, for its direction, and the log of a width."""
        return 3

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., 3), a vector and the log of a width, to ``VonMises``."""
        cosine, sine, log_width = raw
        concentration = (-2 * soft_between(log_width, *_LOG_WIDTHS)).exp()
        return VonMises(resultant_angle(sine, cosine), concentration)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`; ``scale`` is a circular standard deviation, in radians."""
        deviation = scale.to(torch.float64).clamp(0.1 * _LEAST_WIDTH, _MOST_DEVIATION)
        width = concentration_of((-deviation.square() / 2).exp()).rsqrt()
        log_width = within(width, *(math.exp(v) for v in _LOG_WIDTHS)).log().to(loc.dtype)
        return torch.stack(
            [loc.cos(), loc.sin(), soft_between_inverse(log_width, *_LOG_WIDTHS)], -1
        )

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate the probability of the arc from -pi to ``y``, taken modulo 2 pi.

        A sum of :math:`T(x) = \int_x^\pi f`, at the cut and at y, to a few roundings. It is 0 at
        -pi and 1 at pi.
        """
        loc, kappa = (
            wrap(component.loc.to(torch.float64)),
            component.concentration.to(torch.float64),
        )
        there = y.to(torch.float64)
        there = torch.where(there.abs() <= _CUT, there.clamp(-math.pi, math.pi), wrap(there))
        side, beyond = _cut(loc, kappa)
        gap = there - loc
        ahead = gap >= 0
        # Not abs(): at 0 its derivative would be 0.
        away = torch.where(ahead, gap, -gap)
        far = away > math.pi
        reach = tail(torch.where(far, 2 * math.pi - away, away).clamp_min(0.0), kappa)
        cdf = side * beyond + torch.where(ahead == far, reach, -reach) + ahead.to(torch.float64)
        cdf = cdf - (cdf - cdf.clamp(0.0, 1.0)).detach()
        return cdf.to(torch.promote_types(component.loc.dtype, y.dtype))

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Invert the cdf on [-pi, pi], without gradient."""
        with torch.no_grad():
            loc, kappa = wrap(component.loc.to(torch.float64)), component.concentration
            kappa, level = kappa.to(torch.float64), u.to(torch.float64)
            side, beyond = _cut(loc, kappa)
            v = level - side * beyond
            past = (v < 0) | (v > 1)  # beyond the direction opposite the mean
            target = torch.where(v < 0, -v, torch.where(v < 0.5, v, 1 - v).abs())
            reach = invert_tail(target.clamp(0.0, 0.5), kappa)
            away = torch.where(past, 2 * math.pi - reach, reach)
            ahead = (v >= 0.5) & (v <= 1) | (v > 1)
            y = (loc + torch.where(ahead, away, -away)).clamp(-math.pi, math.pi)
            y = torch.where(level <= 0, -math.pi, torch.where(level >= 1, math.pi, y))
            return y.to(component.loc.dtype)

    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw once from each component, in [-pi, pi), by rejection from a wrapped Cauchy.

        References:
            Best, D. J., & Fisher, N. I. (1979). Efficient simulation of the von Mises distribution.
            JRSS C 28. doi:10.2307/2346732
        """
        dtype = component.loc.dtype
        loc, kappa = (
            v.detach().to(torch.float64) for v in (component.loc, component.concentration)
        )
        shape = loc.shape
        # Below 1e-5 the rejection has no digits left, and the density is flat to 2e-5.
        kappa = kappa.clamp_min(1e-5).reshape(-1)
        tau = 1 + (1 + 4 * kappa.square()).sqrt()
        rho = (tau - (2 * tau).sqrt()) / (2 * kappa)
        ratio = (1 + rho.square()) / (2 * rho)
        angle, rows = torch.empty_like(kappa), torch.arange(kappa.numel(), device=kappa.device)
        while rows.numel():
            like = {"dtype": kappa.dtype, "device": kappa.device}
            u = torch.rand((3, rows.numel()), generator=generator, **like)
            r, z = ratio[rows], (math.pi * u[0]).cos()
            cosine = (1 + r * z) / (r + z)
            c = kappa[rows] * (r - cosine)
            kept = (c * (2 - c) > u[1]) | ((c / u[1]).log() + 1 - c >= 0) | c.isnan()
            turn = cosine.clamp(-1.0, 1.0).acos() * torch.where(u[2] < 0.5, -1.0, 1.0)
            angle[rows[kept]] = turn[kept]
            rows = rows[~kept]
        y = wrap(loc + angle.reshape(shape)).to(dtype)
        return torch.where(y >= math.pi, -y, y)  # a number just below pi may round to it

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Rotate by ``shift``, after a reflection where ``scale`` is -1."""
        if not bool((scale.abs() == 1).all()):
            raise TypeError(
                f"family {self.name!r} is of angles in radians, which can be rotated and mirrored: "
                f"give a scale of 1 or -1 (scale={scale}), and leave angles unstandardised."
            )
        loc = wrap(shift + scale * component.loc)
        # Checked when they were given; a row of NaN must stay one.
        return VonMises(loc, component.concentration, validate_args=False)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate the mean angular distance :math:`E\,d(Y, y)`, with d in [0, pi].

        .. math:: x + 2 Q(x) - 2 Q(\pi - x), \quad Q(x) = \int_x^\pi T(t) \, dt, \quad
                  T(x) = \int_x^\pi f(t) \, dt

        where x is the distance of y from the mean direction; to about 1e-15 radians.

        References:
            Grimit, E. P., Gneiting, T., Berrocal, V. J., & Johnson, N. A. (2006). The continuous
            ranked probability score for circular variables and its application to mesoscale
            forecast ensemble verification. QJRMS 132. doi:10.1256/qj.05.235
        """
        gap = wrap(y.to(torch.float64) - component.loc.to(torch.float64))
        x, kappa = gap.abs(), component.concentration.to(torch.float64)
        area = tail_area(x, kappa) - tail_area(math.pi - x, kappa)
        return (x + 2 * area).to(torch.promote_types(component.loc.dtype, y.dtype))

    def dispersion(self, weights: Tensor, component: Any) -> Tensor:
        """Evaluate half the mean angular distance between two draws, by a Fourier series."""
        loc, kappa = component.loc, component.concentration
        wide = (v.to(torch.float64) for v in (weights, wrap(loc), kappa))
        return dispersion_of(*wide).to(torch.promote_types(loc.dtype, weights.dtype))

    def mean(self, weights: Tensor, component: Any, dim: int = -1) -> Tensor:
        r"""Give the circular mean :math:`\arg \sum_k w_k A(\kappa_k) e^{i \mu_k}`, in [-pi, pi)."""
        cosine, sine = _resultant(weights, component, dim)
        angle = resultant_angle(sine, cosine).to(component.loc.dtype)
        return torch.where(angle >= math.pi, -angle, angle)

    def variance(self, weights: Tensor, component: Any, dim: int = -1) -> Tensor:
        """Give the circular variance 1 - R, between 0 and 1."""
        cosine, sine = _resultant(weights, component, dim)
        return (1 - torch.hypot(cosine, sine)).clamp_min(0.0).to(component.loc.dtype)

    def stddev(self, weights: Tensor, component: Any, dim: int = -1) -> Tensor:
        r"""Give the circular standard deviation :math:`\sqrt{-2 \log R}`, in radians."""
        return _deviation(self.variance(weights, component, dim))


#: The least width, in radians, logs of the ends between which widths lie, and the largest circular
#: standard deviation told apart from that of a uniform density.
_LEAST_WIDTH = 1e-2
_LOG_WIDTHS, _MOST_DEVIATION = (math.log(_LEAST_WIDTH), math.log(30.0)), 6.0
#: pi as float32 rounds it: angles up to here lie on the circle as it is cut, and are not wrapped.
_CUT = 3.1415927410125732


def _cut(loc: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """Tell on which side of the opposite direction the cut lies, and the mass between the two."""
    side = torch.where(loc >= 0, 1.0, -1.0).to(loc)
    return side, tail(math.pi - side * loc, kappa)


def _deviation(variance: Tensor) -> Tensor:
    return (-2 * torch.log1p(-variance)).sqrt()


def _resultant(weights: Tensor, component: Any, dim: int) -> tuple[Tensor, Tensor]:
    """Average the unit vectors of a mixture, in float64."""
    loc = component.loc.to(torch.float64)
    length = weights.to(torch.float64) * mean_resultant(component.concentration)
    return (length * loc.cos()).sum(dim), (length * loc.sin()).sum(dim)
