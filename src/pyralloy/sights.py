"""Thresholds of densities and their crossings, moved together from what was seen of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyralloy.cells import Cells
from pyralloy.table import Table

__all__ = ["Sights", "Step", "look", "recall", "step", "unseen"]

#: What tangents may leave over, in nats and in mass, for parabolas to be exact: these leave over
#: about the power 3/2 of it.
_TANGENT, _TANGENT_MASS = 1e-8, 1e-7

#: A slope along which no threshold moves anything.
_STEEP = 1e300


class Sights(NamedTuple):
    """What was seen of the log density and the cdf at points ``y``, one in each cell: (Q,) all."""

    y: Tensor
    value: Tensor
    first: Tensor
    second: Tensor
    cdf: Tensor

    def take(self, where: Tensor) -> Sights:
        """Pick by number."""
        return Sights(*(v.index_select(0, where) for v in self))

    def put_(self, where: Tensor, new: Sights) -> Sights:
        """Replace by number, in place."""
        return Sights(*(v.index_copy_(0, where, n) for v, n in zip(self, new, strict=True)))

    def follow(self, t: Tensor) -> Followed:
        """Follow the parabola of each to where it is ``t`` (Q,)."""
        gap, steep = t - self.value, self.first.square()
        # Some may turn before: they are followed to half the slope at most.
        slope = torch.maximum(torch.addcmul(steep, self.second, gap, value=2.0), steep / 4)
        slope = slope.sqrt_().copysign(self.first)
        shift = 2.0 * gap / (self.first + slope)
        off = (0.5 * self.second * shift.square()).abs()
        return Followed(self.y + shift, shift, slope, off, t.exp() / slope.abs())


class Followed(NamedTuple):
    """Where parabolas meet a threshold, all (Q,).

    Attributes:
        y: Places.
        shift: How far these are from where the density was seen.
        slope: Slopes there.
        off: By how much, in nats, the tangents would be off.
        pull: The mass that a nat of the threshold moves there.
    """

    y: Tensor
    shift: Tensor
    slope: Tensor
    off: Tensor
    pull: Tensor

    def exact(self, cells: Cells) -> Tensor:
        """Tell which places are as exact as is asked, and in their cells."""
        within = (cells.b <= cells.a) | ((self.y > cells.a) & (self.y < cells.b))
        return (self.off * self.pull.clamp_min(1.0) <= _TANGENT) & within


class Step(NamedTuple):
    """Where thresholds (M,) go, and their crossings (Q,).

    Attributes:
        t: The next thresholds.
        y: Their crossings.
        off: By how much, in nats, the thresholds may be off.
        up: Whether the last was too low for sure.
        down: Whether it was too high for sure.
        exact: Whether the next are as exact as is asked.
    """

    t: Tensor
    y: Tensor
    off: Tensor
    up: Tensor
    down: Tensor
    exact: Tensor


def unseen(cells: Cells) -> Sights:
    """Give what is known before any look: NaN."""
    return Sights(*(torch.full_like(cells.a, math.nan) for _ in Sights._fields))


def recall(cells: Cells, glimpses: Sequence[tuple[Tensor, Sights]]) -> Sights:
    """Give what was seen in cells (Q,) before they were split.

    Args:
        cells: Where sights are asked for.
        glimpses: The numbers of the cells that these come from, and one sight in each.
    """
    if len(cells.rows) == 0:
        return unseen(cells)
    origins, sights = zip(*glimpses, strict=True)
    origin = torch.cat(origins)
    sights = Sights(*(torch.cat(v) for v in zip(*sights, strict=True)))
    count = int(torch.cat([origin, cells.origin]).max()) + 1
    number = torch.full((count + 1,), -1, dtype=origin.dtype, device=origin.device)
    number[origin] = torch.arange(len(origin), device=origin.device)
    seen, which = unseen(cells), number[cells.origin]
    known = (which >= 0).nonzero()[:, 0]
    there, which = cells.take(known), which[known]
    y = sights.y.index_select(0, which)
    inside = ((y >= there.a) & (y <= there.b)).nonzero()[:, 0]
    return seen.put_(known[inside], sights.take(which[inside]))


def look(table: Table, cells: Cells, t: Tensor, seen: Sights) -> Sights:
    """Look again at the crossings (Q,) of thresholds (M,) that ``seen`` does not tell: into it."""
    goal = t.index_select(0, cells.rows)
    again = (~seen.follow(goal).exact(cells)).nonzero()[:, 0]
    cells, goal, seen_there = cells.take(again), goal[again], seen.take(again)
    followed = seen_there.follow(goal)
    half = (seen_there.y + torch.where(followed.shift > 0, cells.b, cells.a)) / 2
    y = cells.inside(cells.inside(followed.y, half), cells.guess(goal))
    at, cdf = table.at(cells.rows, y)
    flat = cells.b <= cells.a  # an end of the support stays where it is
    value, second = (torch.where(flat, 0.0, v) for v in (at.value, at.second))
    return seen.put_(again, Sights(y, value, torch.where(flat, _STEEP, at.first), second, cdf))


def step(cells: Cells, sights: Sights, t: Tensor, level: float) -> Step:
    r"""Move thresholds (M,) to where the mass between their crossings (Q,) is ``level``.

    The mass is :math:`\sum_c \pm F(y_c(t))`. Its derivative in t,
    :math:`-\sum_c e^t / |(\log p)'(y_c)|`, has itself one: this is a step of Halley's method.
    """
    rows = cells.rows
    _, shift, slope, off, pull = sights.follow(t.index_select(0, rows))
    side = torch.where(cells.value_a > cells.value_b, 1.0, -1.0).to(t)
    # Of the exponential of a parabola: the tangent's in full, and what the bend adds.
    rise = sights.first * shift
    tangent = torch.where(rise == 0, 1.0, rise.expm1() / rise)
    moved = sights.value.exp() * shift * (tangent + sights.second * shift.square() / 6)
    bend = pull * (1.0 - sights.second / slope.square())
    terms = torch.stack([side * (sights.cdf + moved), off * pull, pull, bend], -1)
    mass, off, pull, bend = t.new_zeros(len(t), 4).index_add_(0, rows, terms).unbind(-1)
    gap = mass - level
    move = gap / pull
    move = move / (1.0 + 0.5 * move * bend / pull).clamp(0.5, 2.0)
    new = t + move
    after = sights.follow(new.index_select(0, rows))
    later = (0.5 * bend * move.square()).abs().index_add_(0, rows, after.off * after.pull)
    vague = torch.bincount(rows[~after.exact(cells)], minlength=len(t)) > 0
    exact = (later <= _TANGENT_MASS) & ~vague
    return Step(new, after.y, later / pull, gap > off, gap < -off, exact)
