"""The linear pool, whose result holds all components of all members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pyralloy.families import kind_of, map_components

__all__ = ["batch_size", "check_alike", "log_pool_weights", "pool_batch", "pool_components"]


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
        one, other = kind_of(first.components), kind_of(m.components)
        if one is not other:
            raise ValueError(
                f"many mixes components of {one.name!r} and of {other.name!r}: pool one family."
            )


def pool_components(components: Sequence[Any]) -> Any:
    """Join component distributions along the component dimension.

    Args:
        components: Of one kind, batch shapes (..., K_m).

    Returns:
        Components of batch shape (..., sum of K_m).

    Raises:
        ValueError: Their scale matrices are of different rank.
    """
    kind, axis = kind_of(components[0]), len(components[0].batch_shape) - 1
    columns = list(zip(*(kind.values(c) for c in components), strict=True))
    for name, values in zip(kind.parameters, columns, strict=True):
        if len({v.shape[axis + 1 :] for v in values}) > 1:
            raise ValueError(
                f"many disagrees on the shape of {name}, {[tuple(v.shape) for v in values]}: pool "
                "densities of one rank."
            )
    return kind.build([torch.cat(values, axis) for values in columns])


def batch_size(batch_shape: torch.Size, dim: int) -> int:
    """Count the members along a batch dimension.

    Raises:
        ValueError: There is no such dimension.
    """
    rank = len(batch_shape)
    if not isinstance(dim, Integral) or not -rank <= dim < rank:
        raise ValueError(
            f"dim={dim}: the density has batch_shape {tuple(batch_shape)}, "
            "and only one of its dimensions can be pooled."
        )
    return batch_shape[dim]


def pool_batch(logits: Tensor, components: Any, share: Tensor, dim: int) -> tuple[Tensor, Any]:
    """Turn a batch dimension into more components.

    Args:
        logits: Log weights, shape (..., K).
        components: Batch shape (..., K).
        share: Log weights of the M members along ``dim``, shape (M,).
        dim: A batch dimension.

    Returns:
        Logits and components of M K components.
    """
    last = logits.ndim - 2
    dim %= logits.ndim - 1
    logits = logits.movedim(dim, -2) + share[:, None]  # (..., M, K)
    pooled = map_components(
        components, lambda p: p.movedim(dim, last).flatten(last, last + 1)
    )  # (..., M K)
    return logits.flatten(-2), pooled
