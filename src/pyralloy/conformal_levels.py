"""What conformal methods share: the adjusted level, and the region of a level that may be one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyralloy.checks import as_values
from pyralloy.families import family_of
from pyralloy.mixture import Mixture
from pyralloy.regions import Region

__all__ = ["NEAREST_ONE", "observed_rows", "rank_of", "region_of", "score_quantile", "supports"]

#: A level nearer to one than this is beyond what a region can be found for: the whole line.
NEAREST_ONE = 1e-7


def score_quantile(scores: Tensor, level: float) -> Tensor:
    """Give the ceil((n + 1) level)-th smallest of scores (..., n); infinite where n is less."""
    rank = rank_of(scores.shape[-1], level)
    if rank > scores.shape[-1]:
        return torch.full_like(scores[..., 0], math.inf)
    return scores.kthvalue(rank, -1).values


def rank_of(rows: int, level: float) -> int:
    """Give which of n ordered scores is the level sought; above n where there are too few."""
    # A hair less, so that (n + 1) level is not carried over a whole number by its rounding.
    return math.ceil((rows + 1) * level - 1e-9)


def observed_rows(density: Any, y: Any) -> Tensor:
    """Check that there is one observation a row of a scalar density."""
    if tuple(density.event_shape):
        raise ValueError(
            f"density has event_shape {tuple(density.event_shape)}: calibrate one dimension at a "
            "time, density.marginal(dim)."
        )
    observed = as_values("y", y)
    if len(density.batch_shape) != 1 or observed.shape != density.batch_shape:
        raise ValueError(
            f"y has shape {tuple(observed.shape)} and density batch_shape "
            f"{tuple(density.batch_shape)}: give one row of each, (N,)."
        )
    return observed.to(density.logits)


def region_of(density: Any, level: float) -> Region:
    """Give the region of a level that may be 0 or 1."""
    if level > 1.0 - NEAREST_ONE:
        rows, circular = len(density.logits), supports(density, "circular")
        end = math.pi if circular else math.inf
        line = density.logits.new_tensor([-end, end]).expand(rows, 1, 2)
        height = density.logits.new_full((rows,), -math.inf)
        return Region(line, level, height, circular, supports(density, "integer"))
    return density.highest_density_region(max(level, NEAREST_ONE))


def supports(density: Any, kind: str) -> bool:
    """Tell whether y is ``"circular"`` or ``"integer"``."""
    if not isinstance(density, Mixture):
        return False
    return bool(getattr(family_of(density.components).support, kind))
