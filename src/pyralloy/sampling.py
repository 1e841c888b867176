"""Draws from mixtures: only the component that is chosen is sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyralloy.families import kind_of, map_components

__all__ = ["draw"]

# Of components and of draws a row, from where counting pays; and the draws counted at once.
LEAST, MOST, CHUNK = 4, 64, 1 << 15


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
    chosen = _count_below(cumulative, u.mul_(cumulative[:, -1:])).clamp_(max=count - 1)  # (N, S)

    def pick(parameter: Tensor) -> Tensor:
        numbers = parameter.shape[-1]
        if numbers == 1:
            return parameter.reshape(-1, count).gather(1, chosen)[..., None]
        each = chosen[..., None].expand(-1, -1, numbers)
        return parameter.reshape(-1, count, numbers).gather(1, each)

    picked = map_components(components, pick)
    return kind_of(picked).draw(picked, generator).movedim(1, 0)


def _count_below(rising: Tensor, u: Tensor) -> Tensor:
    """Count in each row the numbers of ``rising`` (N, K) that are at most ``u`` (N, S).

    Some numbers are counted one after another, along whole vectors, in a fraction of the time of a
    search for each draw; both give the same.
    """
    count, draws = rising.shape[1], u.shape[1]
    if not (LEAST <= count <= MOST and draws >= LEAST and rising.device.type == "cpu"):
        return torch.searchsorted(rising, u, right=True)
    chosen = torch.empty(u.shape, dtype=torch.int64)
    step = max(1, CHUNK // draws)
    for limits, part, into in zip(*(v.split(step) for v in (rising, u, chosen)), strict=True):
        across = part.T.contiguous()
        below, hit = torch.zeros_like(across), torch.empty_like(across)
        for limit in limits.T.contiguous():
            below += torch.le(limit, across, out=hit)  # into numbers: into bool it is slower
        into.copy_(below.T)
    return chosen
