"""Distances and moments by quadrature of cdfs, or sums, for families without a closed form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyralloy.adaptive import coarsest, fences, integrate
from pyralloy.checks import broadcast_shapes

__all__ = [
    "centred",
    "count_distance",
    "count_moments",
    "count_pieces",
    "dispersion_integral",
    "distance_integral",
    "moments_integral",
    "weighted_points",
]

#: Levels of the quantiles between which panels lie: decades, so that the panels of a power tail
#: grow geometrically, and finer in the middle. Beyond the ends a cdf is 0 or 1 to the accuracy.
DECADES = (0.1, 0.25)
LAST_MIXTURE, LAST_COMPONENT = 8, 12
#: How far apart two rules may be on a piece of a mixture, as a share of the whole.
APART = 1e-9

NODES, WEIGHTS = np.polynomial.legendre.leggauss(10)


class Cumulative(Protocol):
    """What these integrals ask of a family."""

    support: Any

    def kinks(self, component: Any) -> Tensor | None:
        """Give the place of a kink in each component's density."""
        ...

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give the distribution of ``shift + scale * y``, or raise ``TypeError``."""
        ...

    def values(self, component: Any) -> list[Tensor]:
        """Give the parameters."""
        ...

    def build(self, values: list[Tensor]) -> Any:
        """Make components from parameters."""
        ...

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf."""
        ...

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the quantile function."""
        ...

    def survival(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate one minus the cdf."""
        ...

    def inverse_survival(self, component: Any, s: Tensor) -> Tensor:
        """Evaluate the quantile function from the upper tail."""
        ...

    def distance(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the expected distance to ``y``."""
        ...


def distance_integral(family: Cumulative, component: Any, y: Tensor) -> Tensor:
    r"""Evaluate :math:`E|Y - y| = \int_{-\infty}^y F + \int_y^\infty (1 - F)` by quadrature.

    Args:
        family: Of the component.
        component: Batch shape (...).
        y: Broadcastable to it.

    Returns:
        Distances, of the broadcast shape.
    """
    shape = broadcast_shapes(component.batch_shape, y.shape)
    component, y = component.expand(shape), y.expand(shape)
    edges = _edges(family, component, LAST_COMPONENT)  # (E, ...)
    first, last = edges[0], edges[-1]
    inside = y.detach().clamp(first, last)
    edges = torch.cat([edges, inside[None]]).sort(0).values
    below = edges[:-1] < inside  # a panel lies to one side of y
    total = (y - first).clamp_max(0.0).abs() + (y - last).clamp_min(0.0)
    # The part that moves with y, whose slope is 2 F - 1 there; the nodes themselves stay put.
    moving = y.clamp(first, last)
    total = total + (moving - moving.detach()) * (2 * family.cdf(component, inside) - 1).detach()
    half, middle = edges.diff(dim=0) / 2, (edges[1:] + edges[:-1]) / 2
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        cdf = family.cdf(component, middle + half * node)  # (E, ...)
        total = total + (weight * half * torch.where(below, cdf, 1 - cdf)).sum(0)
    return total


def dispersion_integral(family: Cumulative, weights: Tensor, component: Any) -> Tensor:
    r"""Evaluate :math:`\int F (1 - F)` of a mixture between its components' quantiles.

    Beyond the last edge 1 - F is small, so that its square is nothing and the integral of F (1 - F)
    is that of 1 - F, which is :math:`\tfrac12 (E|Y - T| + E[Y] - T)`.

    Args:
        family: Of the components.
        weights: Shape (..., K), summing to one.
        component: Batch shape (..., K).

    Returns:
        Half the expected distance between two draws, shape (...).
    """
    rows = broadcast_shapes(component.batch_shape, weights.shape)[:-1]
    weights, component = _flat(family, weights, component)
    flat = family.values(component)
    cuts, steps = _fences(family, weights, component)
    ends = cuts[:, [0, -1]].T[..., None]  # (2, M, 1)
    far = (weights * family.distance(component, ends)).sum(-1)  # (2, M)
    gap = (weights * (component.mean - ends)).sum(-1)
    tails = ((far[0] - gap[0]) + (far[1] + gap[1])) / 2

    def spread(rows: Tensor, y: Tensor) -> Tensor:
        """Evaluate F (1 - F), (Q, n), at points (Q, n) of some rows (Q,)."""
        values = [v.index_select(0, rows)[:, None] for v in (weights, *flat)]  # (Q, 1, K)
        cdf = family.cdf(family.build(values[1:]), y[..., None])
        return (values[0] * cdf).sum(-1) * (values[0] * (1 - cdf)).sum(-1)

    relative = max(APART, 8 * torch.finfo(cuts.dtype).eps)
    inside = integrate(spread, cuts, steps, relative=relative, width=weights.shape[-1])
    return (tails + inside).reshape(rows)


def count_pieces(family: Cumulative, weights: Tensor, component: Any) -> int:
    """Count the pieces that :func:`dispersion_integral` begins with, of all rows."""
    weights, component = _flat(family, weights, component)
    cuts, steps = _fences(family, weights, component)
    return int(coarsest(cuts, *steps).sum()) - len(cuts)


def _flat(family: Cumulative, weights: Tensor, component: Any) -> tuple[Tensor, Any]:
    """Lay mixtures out as weights and components (M, K) of one dtype, near 0 if that can be."""
    shape = broadcast_shapes(component.batch_shape, weights.shape)
    values = [weights, *family.values(component)]
    dtype = functools.reduce(torch.promote_types, [v.dtype for v in values])
    weights, *values = (v.to(dtype).expand(shape).reshape(-1, shape[-1]) for v in values)
    return weights, centred(family, weights, family.build(values))


def _fences(
    family: Cumulative, weights: Tensor, component: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Give cuts (M, P) and bumps (M, B), as :func:`~pyralloy.adaptive.fences` does."""
    edges = _edges(family, component, LAST_MIXTURE).movedim(0, -1)  # (M, K, E)
    edges = weighted_points(weights, edges)
    # Decades by twos are close enough in the tails, but for the last.
    some = torch.cat([edges[..., :1], edges[..., 1::2], edges[..., -1:]], -1)
    return fences(some, weights, kinks=family.kinks(component), further=edges.flatten(1))


def weighted_points(weights: Tensor, points: Tensor) -> Tensor:
    """Give points (M, K, L) of components, the heaviest's in place of those that have no weight.

    Theirs shape nothing, and would only widen the range or spoil the tails.
    """
    heaviest = weights.argmax(-1)[:, None, None].expand(-1, 1, points.shape[-1])
    return torch.where(weights[..., None] > 0, points, points.gather(1, heaviest))


def centred(family: Cumulative, weights: Tensor, component: Any) -> Any:
    """Shift mixtures to where the heaviest component has its median, if their family can.

    Floats are closest together around 0: widths far out are rounded.

    Args:
        family: Of the components.
        weights: Shape (M, K).
        component: Batch shape (M, K).
    """
    if not family.support.shifts:
        return component
    with torch.no_grad():
        half = torch.full_like(weights, 0.5)
        shift = -family.icdf(component, half).gather(-1, weights.argmax(-1, keepdim=True))
    try:
        return family.affine(component, shift, torch.ones_like(shift))
    except (TypeError, ValueError):  # a family of the user's own, or a row that holds NaN
        return component


@torch.no_grad()
def _edges(family: Cumulative, component: Any, last: int) -> Tensor:
    """Give each component's quantiles down to the level ``10**-last``, shape (E, ...)."""
    tail = [10.0**-power for power in range(last, 1, -1)] + list(DECADES)
    like = component.mean
    lower = torch.tensor([*tail, 0.5], dtype=like.dtype, device=like.device)
    upper = 1 - torch.tensor(tail[::-1], dtype=like.dtype, device=like.device)
    levels = torch.cat([lower, upper]).reshape(-1, *(1,) * len(component.batch_shape))
    edges = family.icdf(component, levels.expand(-1, *component.batch_shape))
    return edges.nan_to_num(posinf=math.sqrt(torch.finfo(like.dtype).max))


# -- moments of truncated components --------------------------------------------------------------

#: Decades of a tail that are integrated at once, and how many there are in float64.
DECADES_AT_ONCE, LAST_DECADE = 10, 300
#: Part of the sum so far below which a further decade is not looked for.
SETTLED = 1e-14
#: Quantiles are not followed beyond it, lest their squares overflow.
_FARTHEST = 1e150


def moments_integral(
    family: Cumulative, component: Any, has_mean: Tensor, has_variance: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Evaluate mean and variance by quadrature of both tails, about the median :math:`c`.

    .. math:: E[Y] - c = \int_c^\infty S - \int_{-\infty}^c F, \quad
              E[(Y - c)^2] = 2 \int_c^\infty (y - c) S + 2 \int_{-\infty}^c (c - y) F

    with panels between quantiles a decade of probability apart, so that those of a power tail grow
    geometrically, until they add nothing.

    Args:
        family: Of the component.
        component: Batch shape (...).
        has_mean: Whether the mean exists, shape (...).
        has_variance: Likewise for the variance.

    Returns:
        The mean and the variance, in float64, shape (...); any number where it does not exist.
    """
    like = component.lower
    with torch.no_grad():
        half = torch.full(component.batch_shape, 0.5, dtype=torch.float64, device=like.device)
        centre = family.icdf(component, half).to(torch.float64)
    exists = has_mean, has_variance
    upper = _tail_moments((family.survival, family.inverse_survival), component, centre, exists)
    lower = _tail_moments((family.cdf, family.icdf), component, centre, exists)
    mean = upper[0] - lower[0]
    return centre + mean, upper[1] + lower[1] - mean.square()


def _tail_moments(
    functions: tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor], Tensor]],
    component: Any,
    centre: Tensor,
    exists: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Integrate a tail probability, and that times twice the distance from the median."""
    tail, inverse = functions
    first, second, last = torch.zeros_like(centre), torch.zeros_like(centre), centre[None]
    nodes = torch.as_tensor(NODES).to(centre).reshape(-1, *(1,) * last.ndim)
    rule = torch.as_tensor(WEIGHTS).to(nodes).reshape(nodes.shape)
    for start in range(0, LAST_DECADE, DECADES_AT_ONCE):
        decades = [10.0**-k for k in range(start + 1, start + DECADES_AT_ONCE + 1)]
        levels = torch.tensor([0.25, *decades] if start == 0 else decades).to(nodes)
        levels = levels.reshape(-1, *(1,) * centre.ndim).expand(-1, *centre.shape)
        with torch.no_grad():
            edges = torch.cat([last, inverse(component, levels).to(nodes)])  # (E, ...)
            edges = edges.clamp(-_FARTHEST, _FARTHEST)
        half, middle = edges.diff(dim=0) / 2, (edges[1:] + edges[:-1]) / 2
        y = middle + half * nodes  # (10, E - 1, ...)
        part = rule * half.abs() * tail(component, y)
        new, new_second = part.sum((0, 1)), (2 * part * (y - centre).abs()).sum((0, 1))
        first, second, last = first + new, second + new_second, edges[-1:]
        parts = ((new, first, exists[0]), (new_second, second, exists[1]))
        if all(bool(((a <= SETTLED * b) | b.isnan() | ~there).all()) for a, b, there in parts):
            break
    return first, second


# -- sums over counts -----------------------------------------------------------------------------

#: Elements of one intermediate of a sum, and the mass that may be left out at either end.
BLOCK, LEFT_OUT = 1 << 18, 1e-17


def count_moments(family: Cumulative, component: Any) -> tuple[Tensor, Tensor]:
    """Sum mean and variance of counts, in float64, shape (...)."""
    first, _ = _window(family, component)
    mass = mean = second = torch.zeros_like(first)
    for k, p in _masses(family, component):
        gap = k - first
        mass, mean = mass + p.sum(0), mean + (p * gap).sum(0)
    mean = mean / mass
    for k, p in _masses(family, component):
        second = second + (p * (k - first - mean).square()).sum(0)
    return first + mean, second / mass


def count_distance(family: Cumulative, component: Any, y: Tensor) -> Tensor:
    r"""Sum :math:`E|Y - y|` over the integers, in ``y``'s dtype.

    Args:
        family: Of the component.
        component: Batch shape (...).
        y: Broadcastable to it.

    Returns:
        Distances, of the broadcast shape.
    """
    component = component.expand(broadcast_shapes(component.batch_shape, y.shape))
    total = torch.zeros((), dtype=torch.float64, device=y.device)
    for k, p in _masses(family, component):
        total = total + (p * (k - y).abs()).sum(0)
    return total.to(y.dtype)


@torch.no_grad()
def _window(family: Cumulative, component: Any) -> tuple[Tensor, int]:
    """Give the first integer that counts, in float64, and the most that follow it."""
    like = component.lower
    level = torch.full(component.batch_shape, LEFT_OUT, dtype=torch.float64, device=like.device)
    first = family.icdf(component, level).to(torch.float64)
    width = family.inverse_survival(component, level).to(torch.float64) - first
    return first, int(width.nan_to_num(0.0).amax()) if width.numel() else 0


def _masses(family: Cumulative, component: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Give blocks of integers and their probabilities, (B, ...) each."""
    first, last = _window(family, component)
    step = max(1, BLOCK // max(1, first.numel()))
    for start in range(0, last + 1, step):
        k = torch.arange(start, min(start + step, last + 1), device=first.device).to(first)
        k = first + k.reshape(-1, *(1,) * first.ndim)
        yield k, component.log_prob(k).exp()
