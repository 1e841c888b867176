"""Draws from mixtures: only the component that is chosen is sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyralloy.families import kind_of, map_components

__all__ = ["draw"]


@torch.no_grad()
def draw(weights: Tensor, components: Any, draws: int, generator: torch.Generator | None) -> Tensor:
    """Draw from each mixture of a batch.

    Args:
        weights: Shape (..., K), with N batch elements in all.
        components: Batch shape (..., K).
        draws: Number of draws S.
        generator: Source of randomness; None takes torch's default.

    Returns:
        Shape (S, N) + event, without gradient.
    """
    count = weights.shape[-1]
    cumulative = weights.cumsum(-1).reshape(-1, count)  # (N, K)
    u = torch.rand(
        len(cumulative),
        draws,
        generator=generator,
        dtype=cumulative.dtype,
        device=cumulative.device,
    )
    chosen = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
    chosen = chosen.clamp_max(count - 1)[..., None]  # (N, S, 1)

    def pick(parameter: Tensor) -> Tensor:
        numbers = parameter.shape[-1]
        return parameter.reshape(-1, count, numbers).gather(1, chosen.expand(-1, -1, numbers))

    picked = map_components(components, pick)
    return kind_of(picked).draw(picked, generator).movedim(1, 0)
