"""The linear pool, whose result holds all components, and its reduction to fewer of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyralloy.families import base_of, build, family_of

__all__ = ["check_alike", "log_pool_weights", "merge_normals", "pool_components"]


def log_pool_weights(weights: Sequence[float] | Tensor | None, count: int, like: Tensor) -> Tensor:
    """Normalise the weights of ``count`` members and give their logs.

    Args:
        weights: Nonnegative weights; None means equal.
        count: Number of members M.
        like: Tensor whose dtype and device the result takes.

    Returns:
        Log weights, shape (M,), whose exponentials sum to one.

    Raises:
        ValueError: Negative, not finite, all zero, or of the wrong number.
    """
    if weights is None:
        return torch.full((count,), -math.log(count), dtype=like.dtype, device=like.device)
    given = torch.as_tensor(weights, dtype=like.dtype, device=like.device)
    usable = given.shape == (count,) and bool((given.isfinite() & (given >= 0)).all())
    if not usable or not bool(given.sum() > 0):
        raise ValueError(
            f"weights={weights!r}: give {count} nonnegative finite weights that are not all zero."
        )
    return (given / given.sum()).log()


def check_alike(members: Sequence[Any]) -> None:
    """Check that densities can be pooled: one batch shape, event shape and family.

    Raises:
        ValueError: They differ, or there are none.
    """
    if not members:
        raise ValueError("many is empty: give at least one density to pool.")
    first = members[0]
    for m in members[1:]:
        if m.batch_shape != first.batch_shape or m.event_shape != first.event_shape:
            raise ValueError(
                "many disagrees on shape: "
                f"batch {tuple(m.batch_shape)} and event {tuple(m.event_shape)} beside "
                f"batch {tuple(first.batch_shape)} and event {tuple(first.event_shape)}; "
                "pool densities of the same rows."
            )
        if family_of(m.components) is not family_of(first.components):
            raise ValueError("many mixes families: pool components of one family only.")


def pool_components(components: Sequence[Any], event_dims: int) -> Any:
    """Join component distributions along the component dimension.

    Args:
        components: Of one family, batch shapes (..., K_m).
        event_dims: Number of event dimensions of a component.

    Returns:
        Components of batch shape (..., sum of K_m).
    """
    axis, family = -1 - event_dims, family_of(components[0])
    bases = [base_of(c) for c in components]
    values = [
        torch.cat([getattr(b, name).expand(b.batch_shape) for b in bases], axis)
        for name in family.parameters
    ]
    return build(family, values, event_dims)


def merge_normals(
    weights: Tensor, loc: Tensor, scale: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Merge Normal components two by two until ``count`` are left, keeping mean and variance.

    At each turn the pair is merged that costs the least of Runnalls' bound on the
    Kullback-Leibler divergence from the mixture before to the one after,

    .. math:: \tfrac12 \bigl[(w_i + w_j) \log|P_{ij}| - w_i \log|P_i| - w_j \log|P_j|\bigr].

    Args:
        weights: Shape (M, K).
        loc: Shape (M, K, D); dimensions are independent within a component.
        scale: Shape (M, K, D).
        count: Number of components to keep, at most K.

    Returns:
        Weights (M, count), locs and scales (M, count, D), and the sum of the bounds, shape (M,):
        an upper bound on the divergence from the mixture given to the one returned, in nats.

    References:
        Runnalls, A. R. (2007). Kullback-Leibler approach to Gaussian mixture reduction. IEEE
        Transactions on Aerospace and Electronic Systems 43. doi:10.1109/TAES.2007.4383588
    """
    weights, loc, variance = weights.clone(), loc.clone(), scale.square()
    rows, total = weights.shape
    bound = weights.new_zeros(rows)
    every = torch.arange(rows, device=weights.device)
    cost = torch.stack([_merge_cost(weights, loc, variance, i) for i in range(total)], 1)
    for _ in range(total - count):
        best, flat = cost.flatten(1).min(-1)
        i, j = flat // total, flat % total
        bound += best
        one, two = ((weights[every, k], loc[every, k], variance[every, k]) for k in (i, j))
        w, m, v = _merged(*one, *two)
        weights[every, i], loc[every, i], variance[every, i] = w, m, v
        weights[every, j] = -1.0  # gone
        line = _merge_cost(weights, loc, variance, i)  # (M, K)
        cost[every, i], cost[every, :, i] = line, line
        cost[every, j], cost[every, :, j] = torch.inf, torch.inf
    kept = (weights < 0).to(torch.int8).sort(dim=-1, stable=True).indices[:, :count]  # (M, count)
    pick = kept[..., None].expand(-1, -1, loc.shape[-1])
    return (
        weights.gather(1, kept),
        loc.gather(1, pick),
        variance.gather(1, pick).sqrt(),
        bound,
    )


def _merged(
    w_i: Tensor, m_i: Tensor, v_i: Tensor, w_j: Tensor, m_j: Tensor, v_j: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give weight, mean and variance of two components taken as one."""
    total = w_i + w_j
    share = torch.where(total > 0, w_j / total, 0.5)[..., None]
    gap = m_j - m_i
    variance = (1.0 - share) * v_i + share * v_j + share * (1.0 - share) * gap.square()
    return total, m_i + share * gap, variance


def _merge_cost(weights: Tensor, loc: Tensor, variance: Tensor, i: int | Tensor) -> Tensor:
    """Evaluate Runnalls' bound of merging component ``i`` with each other one, shape (M, K)."""
    rows = torch.arange(weights.shape[0], device=weights.device)
    own, centre, width = (t[rows, i][:, None] for t in (weights, loc, variance))  # (M, 1, ...)
    w, _, v = _merged(own, centre, width, weights, loc, variance)
    before = own * width.log().sum(-1) + weights * variance.log().sum(-1)
    cost = 0.5 * (w * v.log().sum(-1) - before)
    gone = (weights < 0) | (own < 0)
    cost = torch.where(gone, torch.inf, cost.clamp_min(0.0))
    cost[rows, i] = torch.inf
    return cost
