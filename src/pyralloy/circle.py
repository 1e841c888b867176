"""Tables of angles, cut open where the density is low, and arcs closed again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyralloy.families import wrap
from pyralloy.table import Table

__all__ = ["close", "cut_open"]

#: Angles at which every row may be cut, beside those that its components place.
_EVEN = 24


def cut_open(table: Table) -> tuple[Table, Tensor]:
    """Turn each mixture of angles until its density is low where the circle is cut.

    No mode then lies at the cut, and no arc of high density leads through it.

    Args:
        table: M mixtures.

    Returns:
        The mixtures turned, and the angles (M,) by which they were; as given, with zeros, where y
        is no angle.
    """
    turn = torch.zeros_like(table.weights[:, 0])
    if not table.family.support.circular:
        return table, turn
    wide = table.wide()
    even = torch.linspace(-math.pi, math.pi, _EVEN + 1).to(wide.weights)[1:]
    places = torch.cat([wide.landmarks().flat(), even.expand(len(wide), -1)], 1)  # (M, P)
    parts = list(wide.chunks(places.shape[1] * wide.weights.shape[1]))
    height = [wide.take(part).log_prob(places[part]) for part in parts]
    lowest = torch.cat([places[:0], *height]).argmin(-1, keepdim=True)
    turn = wrap(math.pi - places.gather(1, lowest)[:, 0])
    shift, one = turn[:, None], torch.ones_like(turn[:, None])
    return Table(wide.weights, table.family.affine(wide.components, shift, one)), turn


def close(arcs: Tensor, turn: Tensor) -> Tensor:
    """Turn arcs back, joining the two that meet at the cut.

    Args:
        arcs: Ends (M, R, 2) within -pi and pi, sorted, NaN where a row has fewer.
        turn: The angles (M,) by which the rows were turned.

    Returns:
        Ends (M, R, 2), sorted by the lower, which lie in [-pi, pi).
    """
    lower, upper = (v.clone() for v in arcs.unbind(-1))
    last = ((~lower.isnan()).sum(-1, keepdim=True) - 1).clamp_min(0)
    end = upper.gather(1, last)
    meet = (last > 0) & (lower[:, :1] <= -math.pi) & (end >= math.pi)
    upper.scatter_(1, last, torch.where(meet, upper[:, :1] + 2 * math.pi, end))
    lower[:, :1] = torch.where(meet, math.nan, lower[:, :1])
    start = wrap(lower - turn[:, None])
    start, order = start.sort(-1)  # NaN last
    length = (upper - lower).gather(1, order)
    width = max(1, int((~start.isnan()).sum(-1).max())) if len(start) else 1
    return torch.stack([start, start + length], -1)[:, :width]
