"""Where a scalar density rises and falls: its stationary points, and what lies between them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyralloy.table import Table

__all__ = ["Landscape", "landscape", "lay_out"]

#: Rounds of halving for cells whose slope comes close to zero.
_HALVINGS = 12


def lay_out(rows: Tensor, values: Tensor, count: int, fill: float) -> Tensor:
    """Lay out ``values`` (Q, ...) of sorted ``rows`` (Q,) as (count, R, ...)."""
    sizes = torch.bincount(rows, minlength=count)
    place = torch.arange(rows.numel(), device=rows.device) - (sizes.cumsum(0) - sizes)[rows]
    shape = (count, max(1, int(sizes.max())) if count else 1, *values.shape[1:])
    laid = values.new_full(shape, fill)
    laid[rows, place] = values
    return laid


class Landscape(NamedTuple):
    """Points of each row, sorted, between neighbours of which the density is monotone.

    Attributes:
        points: Locations and log densities (M, P, 2). The first and the last are doubled, and are
            the ends of the support where it has any; the outer of the two has log density -inf.
            Rows with fewer points repeat their last.
        rows: Row of each mode (Q,), sorted.
        modes: Location and log density of each mode (Q, 2).
    """

    points: Tensor
    rows: Tensor
    modes: Tensor


def landscape(table: Table) -> Landscape:
    """Find the stationary points of M densities, and what is monotone between them."""
    low, high = table.support()
    y = table.landmarks()  # (M, P)
    y = torch.where(y.isfinite(), y, y[:, :1])
    inner_low, inner_high = low.nextafter(high), high.nextafter(low)
    y = y.clamp(inner_low[:, None], inner_high[:, None]).sort(-1).values
    slopes = table.slopes(y)
    rows, where, top = _stationary(table, y, slopes.first, slopes.second)
    found = torch.stack([where, table.slopes_at(rows, where).value], -1)  # (Q, 2)
    points = torch.stack([y, slopes.value], -1)  # (M, P, 2)
    ends, edges, edge_rows = [], [], []
    for end, near, i in ((low, inner_low, 0), (high, inner_high, -1)):
        bounded, fall = end.isfinite(), slopes.first[:, i] * (1 if i else -1)
        at = torch.where(bounded, end, y[:, i])
        value = points[:, i, 1]
        if bool(bounded.any()):
            value = torch.where(bounded, table.limit(at, near), value)
        ends.append(torch.stack([at, value], -1)[:, None])
        # A circle has no ends, though it is cut.
        edge = bounded & (not table.family.support.circular)
        mode = edge & (fall > 0) & (value >= points[:, i, 1])
        edges.append(ends[-1][mode, 0])
        edge_rows.append(mode.nonzero()[:, 0])
    extra = lay_out(rows, found, len(table), math.nan)
    extra = torch.where(extra.isnan(), points[:, -1:], extra)
    whole = torch.cat([ends[0], points, extra, ends[1]], 1)
    order = whole[..., 0].argsort(-1)
    whole = whole.gather(1, order[..., None].expand(-1, -1, 2))
    whole = torch.cat([whole[:, :1], whole, whole[:, -1:]], 1)
    whole[:, [0, -1], 1] = -math.inf
    mode_rows = torch.cat([rows[top], *edge_rows])
    order = mode_rows.argsort(stable=True)
    found = torch.cat([found[top], *edges])[order]
    return Landscape(whole, mode_rows[order], found)


class _Cells(NamedTuple):
    """Intervals (Q,) of the rows, with the slope and its derivative at both ends."""

    rows: Tensor
    a: Tensor
    b: Tensor
    first_a: Tensor
    first_b: Tensor
    second_a: Tensor
    second_b: Tensor

    def pick(self, mask: Tensor) -> _Cells:
        where = mask.flatten().nonzero()[:, 0]
        return _Cells(*(v.reshape(-1).index_select(0, where) for v in self))

    def turning(self) -> Tensor:
        """Tell where the slope changes sign."""
        return ((self.first_a > 0) != (self.first_b > 0)) & (self.b > self.a)

    def doubtful(self) -> Tensor:
        """Tell where the slope may have zeros that its signs at the ends do not show.

        A tangent at an end leads to zero inside the cell, yet there is no change of sign; or there
        is one, and the tangents do not reach it together.
        """
        left, right = -self.first_a / self.second_a, self.first_b / self.second_b
        left = torch.where(left > 0, left, math.inf)
        right = torch.where(right > 0, right, math.inf)
        width, nearer = self.b - self.a, torch.minimum(left, right)
        short = (left + right < 0.7 * width) | (
            torch.maximum(left, right).isinf() & (nearer < 0.35 * width)
        )
        near = torch.where((self.first_a > 0) == (self.first_b > 0), nearer < width, short)
        return near & (width > 1e-13 * torch.maximum(self.a.abs(), self.b.abs()))


def _stationary(
    table: Table, y: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the stationary points: rows (Q,) sorted, locations (Q,), whether maxima (Q,)."""
    rows = torch.arange(len(table), device=y.device)[:, None].expand(-1, y.shape[1] - 1)
    ends = (side for v in (y, first, second) for side in (v[:, :-1], v[:, 1:]))
    cells = _Cells(rows, *ends)
    sure = []
    for halving in range(_HALVINGS + 1):
        doubtful, turning = cells.doubtful(), cells.turning()
        if halving == _HALVINGS:
            doubtful = torch.zeros_like(doubtful)
        sure.append(cells.pick(turning & ~doubtful))
        cells = cells.pick(doubtful)
        if cells.rows.numel() == 0:
            break
        middle = (cells.a + cells.b) / 2
        at = table.slopes_at(cells.rows, middle)
        m1, m2 = at.first, at.second
        left = cells._replace(b=middle, first_b=m1, second_b=m2)
        right = cells._replace(a=middle, first_a=m1, second_a=m2)
        cells = _Cells(*(torch.cat(pair) for pair in zip(left, right, strict=True)))
    cells = _Cells(*(torch.cat(many) for many in zip(*sure, strict=True)))
    order = cells.a.argsort()
    order = order[cells.rows[order].argsort(stable=True)]
    cells = _Cells(*(v.index_select(0, order) for v in cells))
    top, ends = cells.first_a > 0, (cells.a, cells.b)
    where = table.turning(cells.rows, ends, (cells.first_a, cells.first_b))
    return cells.rows, where, top
