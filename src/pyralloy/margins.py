"""Some dimensions of a vector density: the others integrated out, or known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pyralloy.checks import broadcast_shapes
from pyralloy.families import VectorFamily, kind_of

__all__ = ["chosen", "condition", "vector_kind"]


def vector_kind(name: str, components: Any) -> VectorFamily:
    """Look up the kind of the components of a vector density.

    Raises:
        ValueError: The density is of a scalar, or of more than vectors.
    """
    kind = kind_of(components)
    if not isinstance(kind, VectorFamily) or len(components.event_shape) != 1:
        raise ValueError(
            f"{name} needs a density of a vector y, event_shape (D,); this one has event_shape "
            f"{tuple(components.event_shape)}."
        )
    return kind


def chosen(dims: int | Sequence[int], size: int) -> int | list[int]:
    """Check dimensions of y and count them from the front: an int for an int, else a list.

    Raises:
        ValueError: None, one out of range, or one twice.
    """
    if isinstance(dims, Sequence):
        return several(dims, size)
    return several([dims], size)[0]


def several(dims: Sequence[int], size: int) -> list[int]:
    """Check dimensions of y, of which there are ``size``, and count them from the front.

    Raises:
        ValueError: None, one out of range, or one twice.
    """
    usable = all(
        isinstance(d, Integral) and not isinstance(d, bool) and -size <= d < size for d in dims
    )
    found = [int(d) % size for d in dims] if usable else []
    if not found or len(set(found)) < len(found):
        raise ValueError(
            f"dims={list(dims)!r}: give dimensions of y, each within 0 to {size - 1}, none twice."
        )
    return found


def condition(
    logits: Tensor, components: Any, given: Mapping[int, float | Tensor]
) -> tuple[Tensor, Any]:
    r"""Fix some dimensions of components and weigh them anew.

    .. math:: w_k' \propto w_k f_k(y_b), \qquad f_k'(y_a) = f_k(y_a \mid y_b)

    Args:
        logits: Log weights, shape (..., K).
        components: Batch shape (..., K), event shape (D,).
        given: Dimension to value; values broadcast with the batch shape.

    Returns:
        Logits and components of the dimensions left, which are of a scalar where one is left.

    Raises:
        ValueError: No dimension, all of them, one out of range, or a value that is not finite or
            does not broadcast.
    """
    kind, size = vector_kind("condition", components), components.event_shape[0]
    known = several(list(given), size)
    rest = [d for d in range(size) if d not in known]
    if not rest:
        raise ValueError(f"given={given!r} fixes all {size} dimensions: leave one, or log_prob(y).")
    batch, wide = components.batch_shape[:-1], []
    for dim, raw in given.items():
        value = torch.as_tensor(raw, dtype=logits.dtype, device=logits.device)
        if not bool(value.isfinite().all()):
            raise ValueError(f"given[{dim}]={raw!r}: give finite values of y.")
        try:
            batch = broadcast_shapes(batch, value.shape)
        except ValueError:
            raise ValueError(
                f"given[{dim}] has shape {tuple(value.shape)}, which does not broadcast with "
                f"batch_shape {tuple(batch)}; give a number, or one value a row."
            ) from None
        wide.append(value)
    values = torch.stack([v.expand(batch) for v in wide], -1)[..., None, :]  # (..., 1, B)
    found = kind.condition(components, known, rest, values)
    left = found.component
    if len(rest) == 1:
        left = kind_of(left).marginal(left, 0)  # pyright: ignore[reportAttributeAccessIssue]
    return logits + found.log_density, left
