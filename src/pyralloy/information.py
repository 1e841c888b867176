"""Entropy of scalar mixtures, by quadrature over pieces that every component shapes."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from pyralloy.adaptive import fences, integrate
from pyralloy.families.interval_beta import IntervalBeta
from pyralloy.families.quadrature import centred, weighted_points
from pyralloy.integers import integer_entropy
from pyralloy.table import Table

__all__ = ["entropy"]

#: Levels of each component's quantiles between which the integrand is smooth.
LEVELS = (
    1e-15,
    1e-9,
    1e-5,
    1e-3,
    0.02,
    0.16,
    0.5,
    0.84,
    0.98,
    0.999,
    1 - 1e-5,
    1 - 1e-9,
    1 - 1e-15,
)
#: How far two rules of quadrature may be apart on one piece; the error is far below.
APART = 1e-11


def entropy(table: Table) -> Tensor:
    r"""Integrate :math:`-\int p \log p`, for each row, in float64; of counts, sum it.

    The line is cut at quantiles of components, from 1e-15 to 1 - 1e-15, so that no piece holds two
    of one component, until two rules of quadrature agree on each piece. The error is below 1e-9
    nats, of every continuous family; the sum leaves out a mass of 1e-12.

    Args:
        table: M mixtures.

    Returns:
        Entropies in nats, shape (M,).

    References:
        Cover, T. M., & Thomas, J. A. (2006). Elements of Information Theory, ch. 8.
        doi:10.1002/047174882X. Piessens, R., et al. (1983). QUADPACK. Springer.
        doi:10.1007/978-3-642-61786-7
    """
    if table.family.support.integer:
        return integer_entropy(table)
    parts = [
        _entropy(table.take(part)) for part in table.chunks(len(LEVELS) * table.weights.shape[1])
    ]
    return torch.cat(parts) if parts else table.weights.sum(-1)


def _entropy(table: Table) -> Tensor:
    return sum(
        (_integral(side, until) for side, until in _sides(table.components, table)),
        torch.zeros_like(table.weights[:, 0]),
    )


@singledispatch
def _sides(component: Any, table: Table) -> list[tuple[Table, Tensor | None]]:  # noqa: ARG001
    """Give tables, and up to where in y to integrate them; None for all."""
    return [(table, None)]


@_sides.register
def _(component: IntervalBeta, table: Table) -> list[tuple[Table, Tensor | None]]:
    """Move either end to 0 in turn: only there do floats lie close enough for a pole."""
    (low, high), family = (end[:, None] for end in table.support()), table.family
    one, until = torch.ones_like(low), ((high - low) / 2)[:, 0]
    moved = ((-low, one), (high, -one))
    return [(Table(table.weights, family.affine(component, *way)), until) for way in moved]


def _integral(table: Table, until: Tensor | None) -> Tensor:
    if table.family.support.circular:
        # Quantiles count from the cut of a circle, and may lie far from a component's bulk.
        cuts = table.landmarks().flat().sort(-1).values.contiguous()
        bumps = cuts[:, :-2], cuts[:, 2:]  # every cut is needed
    else:
        table = Table(table.weights, centred(table.family, table.weights, table.components))
        points, kinks = _quantiles(table), table.family.kinks(table.components)
        if until is not None:
            points = torch.minimum(points, until[:, None, None])
        further = None if until is None else until[:, None]
        cuts, bumps = fences(points, table.weights, kinks=kinks, further=further)

    def surprise(rows: Tensor, y: Tensor) -> Tensor:
        log_p = table.take(rows).log_prob(y)
        return torch.where(log_p > -700.0, -log_p.exp() * log_p, 0.0)

    found = integrate(surprise, cuts, bumps, absolute=APART, width=table.weights.shape[1])
    return found.masked_fill(table.blank(), math.nan)


def _quantiles(table: Table) -> Tensor:
    """Give quantiles of every component, (M, K, L)."""
    weights = table.weights
    levels = torch.tensor(LEVELS, dtype=weights.dtype, device=weights.device)
    cuts = table.family.icdf(table.components, levels[:, None, None])  # (L, M, K)
    return weighted_points(weights, cuts.movedim(0, -1))
