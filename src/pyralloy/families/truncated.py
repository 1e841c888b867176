"""Any component given that it falls between two ends, and the family that this makes of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyralloy.checks import broadcast_shapes
from pyralloy.families.contract import Family, Support
from pyralloy.families.counts import dispersion_sum
from pyralloy.families.quadrature import (
    count_distance,
    count_moments,
    moments_integral,
)
from pyralloy.families.tails import Share, bounds, lower_tail, shares, upper_tail, widen
from pyralloy.families.truncated_normal import TruncatedNormal

__all__ = [
    "Truncated",
    "TruncatedCountFamily",
    "TruncatedFamily",
    "truncated",
    "truncated_family",
]


class Truncated(TorchDistribution):
    r"""A component given that it falls in ``[lower, upper]``.

    .. math:: f(y \mid l \le Y \le u) = \frac{f(y)}{F(u) - F(l)}, \qquad l \le y \le u

    Masses are counted in float64 from the tail of the base in which they do not cancel, so that an
    interval far out keeps its digits. For counts both ends belong to the interval.

    Args:
        family: The family of this distribution, which knows that of the base.
        base: The component, of any batch shape.
        lower: Lower end, in y's units, not below the support of the base; or minus infinity.
        upper: Upper end, likewise; or infinity.
        validate_args: As in torch.

    Example:
        >>> from pyro import distributions as dist
        >>> from pyralloy.families import PoissonFamily
        >>> family = truncated_family(PoissonFamily())
        >>> some = Truncated(family, dist.Poisson(torch.tensor(1.0)), 1.0, math.inf)
        >>> round(float(some.mean), 4), float(some.cdf(torch.tensor(0.0)))
        (1.582, 0.0)
    """

    has_rsample = False

    def __init__(
        self,
        family: TruncatedFamily,
        base: Any,
        lower: Tensor | float,
        upper: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        like = getattr(base, family.inner.parameters[0])
        lower, upper = torch.as_tensor(lower).to(like), torch.as_tensor(upper).to(like)
        shape = broadcast_shapes(base.batch_shape, lower.shape, upper.shape)
        self.family, self.base = family, base.expand(shape)
        self.lower, self.upper = lower.expand(shape), upper.expand(shape)
        for name in family.inner.parameters:
            setattr(self, name, getattr(self.base, name))
        self._kept: dict[str, Any] = {}
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Truncated:
        """Expand to a larger batch shape."""
        base, ends = self.base.expand(batch_shape), (self.lower, self.upper)
        ends = [v.expand(batch_shape) for v in ends]
        return Truncated(self.family, base, *ends, validate_args=self._validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """What is checked when the distribution is made."""
        return {"lower": constraints.real, "upper": constraints.real}

    @property
    def support(self) -> constraints.Constraint:
        """The interval, or the integers in it."""
        if self.family.support.integer:
            return constraints.integer_interval(self.lower, self.upper)
        return constraints.interval(self.lower, self.upper)

    @property
    def mean(self) -> Tensor:
        """The mean, in y's units: see :meth:`TruncatedFamily.moments`."""
        return self._keep("moments", lambda: self.family.moments(self))[0]

    @property
    def variance(self) -> Tensor:
        """The variance, in y's units squared."""
        return self._keep("moments", lambda: self.family.moments(self))[1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density: minus infinity outside the interval."""
        if self._validate_args:
            self._validate_sample(value)
        outside = (value < self.lower) | (value > self.upper)
        # Outside, the base may have no density: its gradient is taken where it surely has one.
        at = torch.where(outside, self._within(), value).to(torch.float64)
        density = self._wide().log_prob(at) - self._share().mass.log()
        return density.masked_fill(outside, -math.inf).to(torch.result_type(value, self.lower))

    def cdf(self, value: Tensor) -> Tensor:
        """Evaluate the cdf: 0 below the interval and 1 above."""
        share = self._share()
        flip = share.below > share.above
        lower, upper = self._tails(value, flip)
        part = torch.where(flip, share.above - upper, lower - share.below) / share.mass
        part = part.clamp(0.0, 1.0).masked_fill(value < self.lower, 0.0)
        return part.to(torch.result_type(value, self.lower))

    def survival(self, value: Tensor) -> Tensor:
        """Evaluate one minus the cdf, keeping the digits of the upper tail."""
        share = self._share()
        flip = share.upto >= share.beyond
        lower, upper = self._tails(value, flip)
        part = torch.where(flip, upper - share.beyond, share.upto - lower) / share.mass
        part = part.clamp(0.0, 1.0).masked_fill(value < self.lower, 1.0)
        return part.to(torch.result_type(value, self.lower))

    @torch.no_grad()
    def icdf(self, value: Tensor) -> Tensor:
        """Evaluate the quantile function, without gradient, from the tail that keeps its digits."""
        share, u = self._share(), value.to(torch.float64)
        below, above = share.below + u * share.mass, share.above * (1 - u) + share.beyond * u
        y = self._from_tails(below, above, share.below > share.above)
        y = torch.where(u <= 0, self.lower, torch.where(u >= 1, self.upper, y))
        return self._least(y, lambda k: self.cdf(k) >= value)

    @torch.no_grad()
    def inverse_survival(self, value: Tensor) -> Tensor:
        """Evaluate the quantile function from the upper tail, without gradient."""
        share, s = self._share(), value.to(torch.float64)
        below, above = share.below * s + share.upto * (1 - s), share.beyond + s * share.mass
        y = self._from_tails(below, above, share.upto >= share.beyond)
        y = torch.where(s <= 0, self.upper, torch.where(s >= 1, self.lower, y))
        return self._least(y, lambda k: self.survival(k) <= value)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw samples by inversion."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=self.lower.dtype, device=self.lower.device))

    # -- parts ------------------------------------------------------------------------------------

    def _keep(self, name: str, make: Any) -> Any:
        """Make once, unless a graph hangs on it that one call may free and the next needs."""
        names = (*self.family.inner.parameters, "lower", "upper")
        if any(getattr(self, p).requires_grad for p in names):
            return make()
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def _wide(self) -> Any:
        return self._keep("wide", lambda: widen(self.family.inner, self.base))

    def _share(self) -> Share:
        return self._keep(
            "share", lambda: shares(self.family.inner, self._wide(), self.lower, self.upper)
        )

    def _tails(self, value: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the cdf of the base and its survival, each only if some element needs it."""
        inner, wide = self.family.inner, self._wide()
        y = torch.minimum(torch.maximum(value, self.lower), self.upper).to(torch.float64)
        y = y.floor() if self._counts else y
        lower = upper = torch.zeros_like(y)
        if not bool(flip.all()):
            lower = lower_tail(inner, wide, y)
        if bool(flip.any()):
            upper = upper_tail(inner, wide, y)
        return lower, upper

    def _from_tails(self, below: Tensor, above: Tensor, flip: Tensor) -> Tensor:
        inner, wide = self.family.inner, self._wide()
        y = inner.icdf(wide, torch.where(flip, 0.5, below).clamp(0.0, 1.0))
        if bool(flip.any()):
            far = inner.inverse_survival(wide, torch.where(flip, above, 0.5).clamp(0.0, 1.0))
            y = torch.where(flip, far, y)
        return y

    def _least(self, y: Tensor, reached: Any) -> Tensor:
        """Bring quantiles inside, and those of counts to the least integer that reaches a level."""
        y = torch.minimum(torch.maximum(y.to(self.lower.dtype), self.lower), self.upper)
        if self._counts:
            for k in (y + 1, y, y - 1):
                y = torch.where(reached(k) & (k >= self.lower) & (k <= self.upper), k, y)
        return y

    @property
    def _counts(self) -> bool:
        return self.family.support.integer

    def _within(self) -> Tensor:
        """Give a point of the interval, an integer for counts."""
        low, high = self.lower.detach(), self.upper.detach()
        if self._counts:
            return low
        start = torch.where(low.isfinite(), low + 1, torch.where(high.isfinite(), high - 1, 0.0))
        return torch.where(low.isfinite() & high.isfinite(), low + (high - low) / 2, start)


class TruncatedFamily(Family):
    """What a family becomes when its components are truncated.

    A head may take one whose ends are given: ``TruncatedFamily(GammaFamily(), low=1.0)``.

    Args:
        inner: The family of the components before.
        low: Lower end for :meth:`from_raw`, in the units the head works in.
        high: Upper end, above ``low``.

    Raises:
        ValueError: ``low`` is not below ``high``, or they leave nothing of the family's support.
    """

    distribution: Any

    def __init__(self, inner: Family, low: float = -math.inf, high: float = math.inf) -> None:
        least, most, integer, _ = inner.support
        if integer:
            low = math.ceil(low) if math.isfinite(low) else low
            high = math.floor(high) if math.isfinite(high) else high
        if not (low < high and low < most and high > least):
            raise ValueError(
                f"low={low!r}, high={high!r}: give the lower first, and ends between which "
                f"family {inner.name!r}, of {least:g} to {most:g}, can fall."
            )
        self.inner, self.name = inner, f"truncated_{inner.name}"
        self.parameters = (*inner.parameters, "lower", "upper")
        self.support = Support(max(float(low), least), min(float(high), most), integer)
        self.distribution = self._build

    def __repr__(self) -> str:
        """Show the family and the ends."""
        return f"{type(self).__name__}({self.inner!r}, {self.support.low!r}, {self.support.high!r})"

    @property
    def outputs(self) -> int:
        """Those of the inner family: the ends are given."""
        return self.inner.outputs

    def _build(self, *values: Tensor, validate_args: bool | None = None) -> Truncated:
        base = self.inner.distribution(*values[:-2], validate_args=False)
        return Truncated(self, base, *values[-2:], validate_args=validate_args)

    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map ``raw`` (..., P) to components of the inner family, and truncate them."""
        low, high, *_ = self.support
        return Truncated(self, self.inner.from_raw(raw, spread), low, high)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Give the raw outputs of components of those moments before they are truncated."""
        return self.inner.to_raw(loc, scale, spread)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate one minus the cdf."""
        return component.survival(y)

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the quantile function from the upper tail."""
        return component.inverse_survival(s)

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give the mapped component, truncated to the mapped interval."""
        base = self.inner.affine(component.base, shift, scale)
        low, high = shift + scale * component.lower, shift + scale * component.upper
        return Truncated(self, base, torch.minimum(low, high), torch.maximum(low, high))

    def kinks(self, component: Any) -> Tensor | None:
        """Give those of the inner family; one outside of the interval is none, and does no harm."""
        return self.inner.kinks(component.base)

    def moments(self, component: Any) -> tuple[Tensor, Tensor]:
        """Evaluate mean and variance by quadrature of both tails.

        The error is about 1e-9 of the component's width; a moment that the base lacks is lacking
        here too where an end is infinite.
        """
        closed = component.lower.isfinite() & component.upper.isfinite()
        exists = [closed | m.isfinite() for m in (component.base.mean, component.base.variance)]
        mean, variance = moments_integral(self, component, *exists)
        mean = torch.where(exists[0], mean, math.nan)
        variance = torch.where(exists[1], variance, torch.where(exists[0], math.inf, math.nan))
        return mean.to(component.lower.dtype), variance.to(component.lower.dtype)


class TruncatedCountFamily(TruncatedFamily):
    """What a family of counts becomes: sums over integers, whose number is that of the counts.

    Example:
        >>> from pyralloy.families import PoissonFamily
        >>> zero_truncated = TruncatedCountFamily(PoissonFamily(), low=1)
        >>> zero_truncated.support.low, zero_truncated.outputs
        (1.0, 1)
    """

    def distance(self, component: Any, y: Tensor) -> Tensor:
        """Sum the distance from ``y`` over the integers that hold all but 1e-17 of the mass."""
        return count_distance(self, component, y)

    def dispersion(self, weights: Tensor, component: Any) -> Tensor:
        """Sum F (1 - F) over the integers; the time grows with the largest count."""
        return dispersion_sum(self, weights, component)

    def moments(self, component: Any) -> tuple[Tensor, Tensor]:
        """Sum mean and variance over the integers that hold all but 1e-17 of the mass."""
        mean, variance = count_moments(self, component)
        return mean.to(component.lower.dtype), variance.to(component.lower.dtype)


@functools.cache
def truncated_family(inner: Family) -> TruncatedFamily:
    """Give the family of truncated components of a family, one for each.

    Example:
        >>> from pyralloy.families import FAMILIES
        >>> truncated_family(FAMILIES["gamma"]).parameters
        ('concentration', 'rate', 'lower', 'upper')
    """
    return TruncatedCountFamily(inner) if inner.support.integer else TruncatedFamily(inner)


# -- from a component to a truncated one ----------------------------------------------------------


@functools.singledispatch
def truncated(component: Any, family: Family, low: Tensor, high: Tensor) -> Any:
    """Truncate a component to ``[low, high]``, or to what of it lies within its support.

    Args:
        component: Batch shape (...), some of whose mass lies between the ends.
        family: Its family.
        low: Lower ends, broadcastable to the batch shape; minus infinity for none.
        high: Upper ends, likewise.

    Returns:
        A :class:`Truncated`, or a ``TruncatedNormal`` of a Normal.
    """
    if family.support.integer:
        low, high = low.ceil(), high.floor()
    least, most = (v.to(low) for v in bounds(component))
    low, high = torch.maximum(low, least), torch.minimum(high, most)
    return Truncated(truncated_family(family), component, low, high, validate_args=False)


@truncated.register
def _(component: torch.distributions.Normal, _: Family, low: Tensor, high: Tensor) -> Any:
    return TruncatedNormal(component.loc, component.scale, low, high, validate_args=False)


@truncated.register
def _(component: TruncatedNormal, _: Family, low: Tensor, high: Tensor) -> Any:
    low, high = torch.maximum(component.low, low), torch.minimum(component.high, high)
    return TruncatedNormal(component.loc, component.scale, low, high, validate_args=False)


@truncated.register
def _(component: Truncated, family: Family, low: Tensor, high: Tensor) -> Any:
    if family.support.integer:
        low, high = low.ceil(), high.floor()
    low, high = torch.maximum(component.lower, low), torch.minimum(component.upper, high)
    return Truncated(component.family, component.base, low, high, validate_args=False)
