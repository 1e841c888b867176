"""Merging Normal components until few are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyralloy.families import JOINT, NormalFamily, Product, kind_of

__all__ = ["merge_normals", "reduce_normals"]


def reduce_normals(weights: Tensor, components: Any, count: int) -> tuple[Tensor, Any, Tensor]:
    """Merge Normal components of any covariance until ``count`` are left.

    Args:
        weights: Shape (..., K), in float64.
        components: Batch shape (..., K), in float64.
        count: Number to keep, at most K.

    Returns:
        Weights (..., count), components, and the bound of :func:`merge_normals`, shape (...).
        Correlated components come back with full covariance.

    Raises:
        TypeError: Components other than Normal.
    """
    kind, (*batch, total) = kind_of(components), components.batch_shape
    diagonal = isinstance(kind.family if isinstance(kind, Product) else kind, NormalFamily)
    if not diagonal and kind not in (JOINT["normal", "full"], JOINT["normal", "low_rank"]):
        raise TypeError(f"reduce merges Normal components; these are of {kind.name!r}.")
    event = components.event_shape or (1,)
    loc = components.mean.reshape(-1, total, *event)
    root = components.stddev if diagonal else components.scale_tril
    root = root.reshape(-1, total, *event[:1], *(() if diagonal else event))
    covariance = root.square() if diagonal else root @ root.mT
    merged = merge_normals(weights.reshape(-1, total), loc, covariance, count)
    weights, loc, covariance, origin, bound = merged
    # What was not merged keeps its own root, to the last digit.
    every = torch.arange(len(root), device=root.device)[:, None]
    made = covariance.sqrt() if diagonal else torch.linalg.cholesky_ex(covariance).L
    own = (origin >= 0).reshape(*origin.shape, *(1,) * (made.ndim - 2))
    made = torch.where(own, root[every, origin.clamp_min(0)], made)
    shape, tail = (*batch, count), components.event_shape
    values = [loc.reshape(*shape, *tail), made.reshape(*shape, *tail, *(() if diagonal else tail))]
    built = (kind if diagonal else JOINT["normal", "full"]).build(values)
    return weights.reshape(shape), built, bound.reshape(batch)


def merge_normals(
    weights: Tensor, loc: Tensor, covariance: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""Merge Normal components two by two until ``count`` are left, keeping mean and covariance.

    At each turn the pair is merged that costs the least of Runnalls' bound on the
    Kullback-Leibler divergence from the mixture before to the one after,

    .. math:: \tfrac12 \bigl[(w_i + w_j) \log|P_{ij}| - w_i \log|P_i| - w_j \log|P_j|\bigr].

    Args:
        weights: Shape (M, K).
        loc: Shape (M, K, D).
        covariance: Shape (M, K, D, D); or (M, K, D), the diagonals of matrices that stay diagonal,
            of which the merged ones keep the variances only (the bound holds for them too).
        count: Number of components to keep, at most K.

    Returns:
        Weights (M, count), means and covariances of as many components; where each was among those
        given, (M, count), or -1 if it was merged; and the sum of the bounds, shape (M,): an upper
        bound on the divergence from the mixture given to the one returned, in nats.

    References:
        Runnalls, A. R. (2007). Kullback-Leibler approach to Gaussian mixture reduction. IEEE
        Transactions on Aerospace and Electronic Systems 43. doi:10.1109/TAES.2007.4383588
    """
    weights, loc, covariance = weights.clone(), loc.clone(), covariance.clone()
    rows, total = weights.shape
    bound = weights.new_zeros(rows)
    every = torch.arange(rows, device=weights.device)
    origin = torch.arange(total, device=weights.device).repeat(rows, 1)
    cost = torch.stack([_merge_cost(weights, loc, covariance, i) for i in range(total)], 1)
    for _ in range(total - count):
        best, flat = cost.flatten(1).min(-1)
        i, j = flat // total, flat % total
        bound += best
        one, two = ((weights[every, k], loc[every, k], covariance[every, k]) for k in (i, j))
        weights[every, i], loc[every, i], covariance[every, i] = _merged(*one, *two)
        weights[every, j], origin[every, i] = -1.0, -1  # the second is gone
        line = _merge_cost(weights, loc, covariance, i)  # (M, K)
        cost[every, i], cost[every, :, i] = line, line
        cost[every, j], cost[every, :, j] = torch.inf, torch.inf
    kept = (weights < 0).to(torch.int8).sort(dim=-1, stable=True).indices[:, :count]  # (M, count)
    pick = every[:, None], kept
    return weights[pick], loc[pick], covariance[pick], origin[pick], bound


def _merged(
    w_i: Tensor, m_i: Tensor, v_i: Tensor, w_j: Tensor, m_j: Tensor, v_j: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give weight, mean and covariance of two components taken as one."""
    total = w_i + w_j
    share = torch.where(total > 0, w_j / total, 0.5)[..., None]
    gap = m_j - m_i
    mean, between = m_i + share * gap, share * (1.0 - share) * gap
    if v_i.ndim > m_i.ndim:
        share, between = share[..., None], between[..., None] * gap[..., None, :]
    else:
        between = between * gap
    return total, mean, (1.0 - share) * v_i + share * v_j + between


def _merge_cost(weights: Tensor, loc: Tensor, covariance: Tensor, i: int | Tensor) -> Tensor:
    """Evaluate Runnalls' bound of merging component ``i`` with each other one, shape (M, K)."""
    rows = torch.arange(weights.shape[0], device=weights.device)
    own, centre, width = (t[rows, i][:, None] for t in (weights, loc, covariance))  # (M, 1, ...)
    w, _, v = _merged(own, centre, width, weights, loc, covariance)
    dims = loc.ndim
    before = own * _log_det(width, dims) + weights * _log_det(covariance, dims)
    cost = 0.5 * (w * _log_det(v, dims) - before)
    gone = (weights < 0) | (own < 0)
    cost = torch.where(gone, torch.inf, cost.clamp_min(0.0))
    cost[rows, i] = torch.inf
    return cost


def _log_det(covariance: Tensor, diagonal: int) -> Tensor:
    """Evaluate log determinants, of diagonals where there are no more dimensions than that."""
    if covariance.ndim == diagonal:
        return covariance.log().sum(-1)
    return torch.linalg.slogdet(covariance).logabsdet
