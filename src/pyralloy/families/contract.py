"""What pyralloy knows of one kind of component, and what every kind inherits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyralloy.checks import broadcast_shapes
from pyralloy.families.quadrature import dispersion_integral, distance_integral
from pyralloy.numerics import invert_monotone, soft_between_inverse, soft_exp

__all__ = [
    "SCALE_CEILING",
    "SCALE_FLOOR",
    "Family",
    "Spread",
    "Support",
    "distance_from_partial_mean",
    "invert_cdf",
    "invert_survival",
    "positive_from_raw",
    "positive_to_raw",
    "scale_bounds",
    "scaling_only",
    "within",
]

#: Soft bounds on the standard deviation of a component, relative to the spread of y. Targets that
#: are spread over decades, as of yacht hydrodynamics, have rows as narrow as this; a finer floor
#: lets components collapse on single rows of a small or rounded data set.
SCALE_FLOOR, SCALE_CEILING = 2e-3, 1e2


class Spread(float):
    """The spread of y's bulk, and how much farther scales may reach.

    A number like any other; :func:`scale_bounds` alone looks at the rest.

    Attributes:
        reach: Factor on the ceiling of scales, 1 unless some rows of y lie far out.

    Example:
        >>> low, high = scale_bounds(Spread(1.0, reach=1e4))
        >>> round(math.exp(low), 6), round(math.exp(high))
        (0.002, 1000000)
    """

    reach: float

    def __new__(cls, value: float, reach: float = 1.0) -> Spread:
        """Make a float that knows its reach."""
        self = super().__new__(cls, value)
        self.reach = reach
        return self


class Support(NamedTuple):
    """Where y can lie, and so how it may be standardised.

    The real line allows a shift and a scale, ``(0, inf)`` a scale only, an interval the one map
    onto the interval that the family was made for, and integers and angles nothing.

    Attributes:
        low: Lower end, or ``-inf``.
        high: Upper end, or ``inf``.
        integer: Whether y counts something.
        circular: Whether y is an angle: the ends are one point, and y counts modulo ``high - low``.

    Example:
        >>> Support(0.0).shifts, Support().shifts
        (False, True)
    """

    low: float = -math.inf
    high: float = math.inf
    integer: bool = False
    circular: bool = False

    @property
    def shifts(self) -> bool:
        """Whether y may be shifted and scaled freely."""
        return math.isinf(self.low) and math.isinf(self.high) and not self.integer

    @property
    def scales(self) -> bool:
        """Whether y may be divided by a number of one's choice, which leaves no end but 0 alone."""
        return not self.integer and math.isinf(self.high) and self.low in (0.0, -math.inf)


class Family(ABC):
    """What pyralloy knows of one kind of component; subclass and register to add a kind.

    Attributes:
        name: What opens it at the door, as in ``MixtureHead(family=name)``.
        distribution: The Pyro distribution of one component.
        parameters: Names of its parameters, in the order in which the constructor takes them.
        support: Where y lies; the whole line unless a family says otherwise.
        widths: Which raw outputs are logs of a width, if any are: a fit stretches them all alike,
            until they are as wide as held-out rows ask for.
    """

    name: str
    distribution: type[Any]
    parameters: tuple[str, ...]
    support: Support = Support()
    widths: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Show the kind."""
        return f"{type(self).__name__}()"

    @property
    def outputs(self) -> int:
        """How many raw outputs make one component: one a parameter, unless some are given."""
        return len(self.parameters)

    def values(self, component: Any) -> list[Tensor]:
        """Give the parameters of components, each of their batch shape."""
        return [getattr(component, name).expand(component.batch_shape) for name in self.parameters]

    def build(self, values: list[Tensor]) -> Any:
        """Make components from parameters."""
        return self.distribution(*values, validate_args=False)

    @abstractmethod
    def from_raw(self, raw: Sequence[Tensor], spread: float) -> Any:
        """Map P raw outputs ``(...)`` to components ``(...)``; ``spread`` is y's, in its units."""

    @abstractmethod
    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Give the raw outputs ``(..., P)`` of components of mean ``loc`` and deviation ``scale``.

        What the family cannot reach moves to the nearest end of its bounds, the mean last.
        """

    def log_prob(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the component's log density, in nats."""
        return component.log_prob(y)

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the component's cumulative distribution function."""
        return component.cdf(y)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the component's quantile function."""
        return component.icdf(u)

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate one minus the cdf, with digits of its own in the upper tail if a family can.

        Unless it says how, the result has no digits below the precision of the dtype.
        """
        return 1 - self.cdf(component, y)

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Give the ``y`` whose survival is ``s``: for counts, the least that is no more than ``s``.

        By the quantile function above 1/2 and a bracketed root of :meth:`survival` below, without
        gradient, unless a family knows better.
        """
        return invert_survival(self, component, s)

    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw once from each component, by inversion unless a family knows better."""
        like = getattr(component, self.parameters[0])
        u = torch.rand(
            component.batch_shape, generator=generator, dtype=like.dtype, device=like.device
        )
        return self.icdf(component, u.clamp_min(torch.finfo(u.dtype).tiny))

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give the distribution of ``shift + scale * y``.

        Raises:
            TypeError: The family is not closed under affine maps.
        """
        raise TypeError(
            f"family {self.name!r} is no location-scale family: shift + scale * y has no "
            "distribution of the same kind; transform y before fitting instead."
        )

    def kinks(self, component: Any) -> Tensor | None:
        """Give where the density of each component has a kink, of their batch shape; None: nowhere.

        Quadratures end their pieces there, and regions of pools are looked for on either side.
        """
        del component

    def mean(self, weights: Tensor, component: Any, dim: int = -1) -> Tensor:
        """Give the mean of a mixture whose components lie along ``dim``, as do the weights."""
        return (weights * component.mean).sum(dim)

    def variance(self, weights: Tensor, component: Any, dim: int = -1) -> Tensor:
        """Give the variance of a mixture: that within components and that of their means."""
        gap = component.mean - self.mean(weights, component, dim).unsqueeze(dim)
        return (weights * (component.variance + gap.square())).sum(dim)

    def stddev(self, weights: Tensor, component: Any, dim: int = -1) -> Tensor:
        """Give the standard deviation of a mixture."""
        return self.variance(weights, component, dim).sqrt()

    def distance(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate :math:`E|Y - y|` for each component, the first half of the CRPS.

        By Gauss-Legendre quadrature of the cdf unless a family knows a closed form. The error is
        about 1e-8 of the component's width where moments of all orders exist, and more for
        heavier tails, since the integral ends at the quantiles of 1e-12 and 1 - 1e-12.

        Args:
            component: Batch shape (..., K).
            y: Broadcastable to it.

        Returns:
            Distances in y's units, of the broadcast shape.
        """
        return distance_integral(self, component, y)

    def dispersion(self, weights: Tensor, component: Any) -> Tensor:
        r"""Evaluate :math:`\tfrac12 E|Y - Y'|` of the mixture (..., K), the other half of the CRPS.

        .. math:: \tfrac12 E|Y - Y'| = \int F(y) \bigl(1 - F(y)\bigr) \, dy

        By adaptive quadrature between quantiles of the components, with the tails from
        :meth:`distance`, unless a family knows a closed form. The error is about 1e-8 of the result
        (of the width of the widest component, where distances are closed forms), and more where
        tails are heavy; the time is some hundreds to thousands of cdfs of each component, and where
        components lie apart, hundreds times their number.

        Args:
            weights: Shape (..., K), summing to one.
            component: Batch shape (..., K).

        Returns:
            Half the expected distance between two draws, in y's units, shape (...).

        References:
            Gneiting, T., & Raftery, A. E. (2007). Strictly proper scoring rules, prediction, and
            estimation. JASA 102. doi:10.1198/016214506000001437
        """
        return dispersion_integral(self, weights, component)

    def dispersion_width(self, count: int) -> int:
        """Count the numbers a row that :meth:`dispersion` holds at once, of ``count`` components.

        As many rows are taken at once as fit in the cache. By quadrature they are the cuts: of each
        component 19 quantiles, and one beyond them on either side.
        """
        return 21 * count


# -- what families share --------------------------------------------------------------------------

#: Bounds on the mean of a positive component, relative to the spread of y, and on the ratio of its
#: standard deviation to its mean.
MEAN_BOUNDS, RATIO_BOUNDS = (1e-8, 1e4), (1e-2, 2.0)


def scale_bounds(spread: float) -> tuple[float, float]:
    """Give the ends between which the log of a component's standard deviation lies.

    The floor follows the bulk of y, the ceiling its farthest rows where ``spread`` is a
    :class:`Spread`.
    """
    reach = spread.reach if isinstance(spread, Spread) else 1.0
    return math.log(SCALE_FLOOR * spread), math.log(SCALE_CEILING * spread * reach)


def positive_from_raw(raw: Sequence[Tensor], spread: float) -> tuple[Tensor, Tensor]:
    """Map two raw outputs ``(...)`` to a mean and its ratio to the standard deviation, ``(...)``.

    Their logs are softly bounded, so no output overflows.
    """
    log_mean, log_ratio = raw
    mean = soft_exp(log_mean, *(math.log(v * spread) for v in MEAN_BOUNDS))
    return mean, soft_exp(log_ratio, *(math.log(v) for v in RATIO_BOUNDS))


def positive_to_raw(loc: Tensor, scale: Tensor, spread: float) -> Tensor:
    """Invert :func:`positive_from_raw` at mean ``loc`` and deviation ``scale``, or near by."""
    low, high = (v * spread for v in MEAN_BOUNDS)
    mean = within(loc, low, high)
    log_mean = soft_between_inverse(mean.log(), math.log(low), math.log(high))
    ratio = within(scale / mean, *RATIO_BOUNDS)
    ends = (math.log(v) for v in RATIO_BOUNDS)
    return torch.stack([log_mean, soft_between_inverse(ratio.log(), *ends)], -1)


def within(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp strictly between soft bounds, which no raw output reaches."""
    return value.clamp(1.01 * low, high / 1.01)


def scaling_only(family: Family, shift: Tensor, scale: Tensor) -> Tensor:
    """Check that an affine map keeps y positive, and give its scale.

    Raises:
        TypeError: It shifts, or turns y's sign.
    """
    if not bool((shift == 0).all() & (scale > 0).all()):
        raise TypeError(
            f"family {family.name!r} is of positive y: it can be scaled by a positive number and "
            f"not shifted (shift={shift}, scale={scale}); standardise y with shift 0, or use a "
            "location-scale family for the log of y."
        )
    return scale


def distance_from_partial_mean(y: Tensor, cdf: Tensor, mean: Tensor, partial: Tensor) -> Tensor:
    r"""Evaluate :math:`E|Y - y| = y (2 F(y) - 1) + E[Y] - 2 E[Y; Y \le y]`."""
    return y * (2 * cdf - 1) + mean - 2 * partial


@torch.no_grad()
def invert_cdf(
    cdf: Callable[..., Tensor], u: Tensor, low: Tensor, high: Tensor, *shapes: Tensor
) -> Tensor:
    """Solve ``cdf(y, *shapes) = u`` elementwise between ``low`` and ``high``, in float64.

    Args:
        cdf: ``(y, *shapes) -> probabilities``, elementwise and nondecreasing in ``y``.
        u: Probabilities.
        low: Lower ends of the brackets, broadcastable with ``u``, as are the others.
        high: Upper ends.
        *shapes: What else ``cdf`` needs, element by element.

    Returns:
        The solutions in float64, without gradient, of the broadcast shape.
    """
    every = torch.broadcast_tensors(*(v.to(torch.float64) for v in (u, low, high, *shapes)))
    flat = [v.reshape(-1) for v in every]

    def function(y: Tensor, rows: Tensor) -> Tensor:
        return cdf(y, *(v[rows] for v in flat[3:]))

    return invert_monotone(function, *flat[:3]).reshape(every[0].shape)


@torch.no_grad()
def invert_survival(family: Family, component: Any, s: Tensor) -> Tensor:
    """Solve ``family.survival(component, y) = s``: see :meth:`Family.inverse_survival`."""
    shape = broadcast_shapes(component.batch_shape, s.shape)
    like = getattr(component, family.parameters[0])
    values = [getattr(component, p).expand(shape).to(torch.float64) for p in family.parameters]
    s = s.to(torch.float64).expand(shape)
    wide = family.distribution(*values, validate_args=False)
    middle = family.icdf(wide, torch.full_like(s, 0.5))
    step = family.icdf(wide, torch.full_like(s, 0.75)) - middle
    step = step.clamp_min(1.0 if family.support.integer else 0.0)
    top = middle + step
    for _ in range(_DOUBLINGS):
        short = (family.survival(wide, top) > s) & (s > 0) & top.isfinite()
        if not bool(short.any()):
            break
        step = 2 * step
        top = torch.where(short, middle + step, top)

    def falling(y: Tensor, *values: Tensor) -> Tensor:
        return -family.survival(family.distribution(*values, validate_args=False), y)

    y = invert_cdf(falling, -s, middle, top.clamp_max(torch.finfo(s.dtype).max), *values)
    if family.support.integer:  # the root of a step lies beside it
        near = y.round()
        for k in (near + 1, near, near - 1):
            y = torch.where(family.survival(wide, k) <= s, k, y)
    y = torch.where(s > 0.5, family.icdf(wide, 1 - s), y)
    return torch.where(s == 0, family.icdf(wide, torch.ones_like(s)), y).to(like.dtype)


#: What takes a bracket from a component's width to the largest double.
_DOUBLINGS = 1100
