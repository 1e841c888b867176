"""Distances by quadrature of cdfs, for families without a closed form."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyralloy.checks import broadcast_shapes

__all__ = ["dispersion_integral", "distance_integral"]

#: Levels of the quantiles between which panels lie: decades, so that the panels of a power tail
#: grow geometrically, and finer in the middle. Beyond the ends a cdf is 0 or 1 to the accuracy.
DECADES = (0.1, 0.25)
LAST_MIXTURE, LAST_COMPONENT = 8, 12

NODES, WEIGHTS = np.polynomial.legendre.leggauss(10)


class Cumulative(Protocol):
    """What these integrals ask of a family."""

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf."""
        ...

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the quantile function."""
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
    r"""Evaluate :math:`\int F (1 - F)` of a mixture by quadrature, its tails by its distance.

    Beyond the last edge 1 - F is small, so that its square is nothing and the integral of F (1 - F)
    is that of 1 - F, which is :math:`\tfrac12 (E|Y - T| + E[Y] - T)`.

    Args:
        family: Of the components.
        weights: Shape (..., K), summing to one.
        component: Batch shape (..., K).

    Returns:
        Half the expected distance between two draws, shape (...).
    """
    component = component.expand(broadcast_shapes(component.batch_shape, weights.shape))
    edges = _edges(family, component, LAST_MIXTURE)  # (E, ..., K)
    # A component of no weight has the edges of the heaviest: its own might spoil the tails.
    heaviest = weights.argmax(-1, keepdim=True).expand((*edges.shape[:-1], 1))
    edges = torch.where(weights > 0, edges, edges.gather(-1, heaviest))
    edges = edges.movedim(-1, 0).flatten(0, 1).sort(0).values  # (E K, ...)
    ends = edges[[0, -1]][..., None]  # (2, ..., 1)
    far = (weights * family.distance(component, ends)).sum(-1)  # (2, ...)
    gap = (weights * (component.mean - ends)).sum(-1)
    total = ((far[0] - gap[0]) + (far[1] + gap[1])) / 2
    half, middle = edges.diff(dim=0) / 2, (edges[1:] + edges[:-1]) / 2
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        cdf = family.cdf(component, (middle + half * node)[..., None])  # (E K, ..., K)
        lower = (weights * cdf).sum(-1)
        upper = (weights * (1 - cdf)).sum(-1)
        total = total + (weight * half * lower * upper).sum(0)
    return total


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
