"""The linear pool: averages of mixtures, which are mixtures of all their components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyralloy.families import base_of, build, family_of

__all__ = ["check_alike", "log_pool_weights", "pool_components"]


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
