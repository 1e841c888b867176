"""Where a scalar density rises and falls: its stationary points, and what lies between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyralloy.slopes import Slopes
from pyralloy.table import Table

__all__ = ["Landscape", "landscape", "lay_out"]

#: Rounds of halving for cells whose slope comes close to zero.
_HALVINGS = 12

#: Nats by which a log density may leave the bounds that its tangents give it.
_DOUBT = 0.2


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
        y: Locations (M, P). The first and the last are doubled, and are the ends of the support
            where it has any. Rows with fewer points repeat their last.
        value: Log densities there (M, P); -inf at the outer ones of the doubled ends.
        rows: Row of each mode (Q,), sorted.
        modes: Location and log density of each mode (Q, 2).
    """

    y: Tensor
    value: Tensor
    rows: Tensor
    modes: Tensor


def landscape(
    table: Table, window: Callable[[Tensor, Slopes], tuple[Tensor, Tensor]] | None = None
) -> Landscape:
    """Find the stationary points of M densities, and what is monotone between them.

    Args:
        table: The densities.
        window: From landmarks (M, P) and the slopes there, two log densities (M,). What lies wholly
            below the first or above the second is not looked into: it has no say in where the
            density crosses what is between them, and its modes are not among those found. None
            looks everywhere.
    """
    low, high = table.support()
    y = table.landmarks()  # (M, P)
    y = torch.where(y.isfinite(), y, y[:, :1])
    inner_low, inner_high = low.nextafter(high), high.nextafter(low)
    y = y.clamp(inner_low[:, None], inner_high[:, None]).sort(-1).values
    slopes = table.slopes(y)
    everywhere = torch.full_like(low, -math.inf), torch.full_like(low, math.inf)
    limits = everywhere if window is None else window(y, slopes)
    rows, where, top = _stationary(table, y, slopes, limits)
    found = torch.stack([where, table.slopes_at(rows, where).value])  # (2, Q)
    points = _insert(torch.stack([y, slopes.value]), rows, found)  # (2, M, P)
    outer, edges, edge_rows = [], [], []
    for end, near, i in ((low, inner_low, 0), (high, inner_high, -1)):
        bounded, fall = end.isfinite(), slopes.first[:, i] * (1 if i else -1)
        at, value = torch.where(bounded, end, y[:, i]), slopes.value[:, i]
        if bool(bounded.any()):
            value = torch.where(bounded, table.limit(at, near), value)
        outer.append(torch.stack([at, value])[..., None])
        # A circle has no ends, though it is cut.
        edge = bounded & (not table.family.support.circular)
        mode = edge & (fall > 0) & (value >= slopes.value[:, i])
        edges.append(torch.stack([at[mode], value[mode]]))
        edge_rows.append(mode.nonzero()[:, 0])
    left, right = outer
    whole = torch.cat([left, left, points, right, right], -1)
    whole[1, :, [0, -1]] = -math.inf
    mode_rows = torch.cat([rows[top], *edge_rows])
    order = mode_rows.argsort(stable=True)
    modes = torch.cat([found[:, top], *edges], 1).T
    return Landscape(whole[0], whole[1], mode_rows[order], modes[order])


def _insert(points: Tensor, rows: Tensor, extra: Tensor) -> Tensor:
    """Insert ``extra`` (2, Q), of sorted ``rows`` (Q,), into ``points`` (2, M, P).

    The first of the two are locations, sorted in each row, and stay so.
    """
    _, count, width = points.shape
    laid = lay_out(rows, extra.T, count, math.nan).movedim(-1, 0)  # (2, M, R)
    laid = torch.where(laid.isnan(), points[..., -1:], laid)
    rank = torch.arange(laid.shape[-1], device=rows.device)
    place = torch.searchsorted(points[0], laid[0].contiguous()) + rank
    shape = (count, width + len(rank))
    taken = torch.zeros(shape, dtype=torch.bool, device=rows.device).scatter_(1, place, value=True)
    whole = points.new_empty(2, *shape)
    return whole.masked_scatter_(taken, laid).masked_scatter_(~taken, points)


class _Cells(NamedTuple):
    """Intervals (Q,) of the rows, with the log density and its derivatives at both ends."""

    rows: Tensor
    a: Tensor
    b: Tensor
    value_a: Tensor
    value_b: Tensor
    first_a: Tensor
    first_b: Tensor
    second_a: Tensor
    second_b: Tensor

    def pick(self, mask: Tensor) -> _Cells:
        where = mask.flatten().nonzero()[:, 0]
        return _Cells(*(v.reshape(-1).index_select(0, where) for v in self))

    def reaches(self, low: Tensor, high: Tensor) -> Tensor:
        """Tell where the log density may come into a window, as far as its tangents bound it.

        They do where the curvature keeps its sign, or changes it once.
        """
        width = self.b - self.a
        left, right = self.value_a, self.value_b
        over, under = left + width * self.first_a, right - width * self.first_b
        # Tangents meet at a, or b, or between, where the curvature keeps its sign.
        meet = left + self.first_a * ((under - left) / (self.first_a - self.first_b))
        alike = (self.second_a > 0) == (self.second_b > 0)
        over, under = torch.where(alike, meet, over), torch.where(alike, meet, under)
        top = torch.maximum(torch.maximum(left, right), torch.maximum(over, under))
        least = torch.minimum(torch.minimum(left, right), torch.minimum(over, under))
        # What is not a number may be anywhere.
        return ~(top < low - _DOUBT) & ~(least > high + _DOUBT)

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
    table: Table, y: Tensor, slopes: Slopes, window: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the stationary points: rows (Q,) sorted, locations (Q,), whether maxima (Q,)."""
    rows = torch.arange(len(table), device=y.device)[:, None].expand(-1, y.shape[1] - 1)
    ends = (side for v in (y, *slopes) for side in (v[:, :-1], v[:, 1:]))
    cells = _Cells(rows, *ends)
    low, high = (limit[:, None] for limit in window)
    sure = []
    for halving in range(_HALVINGS + 1):
        near, doubtful, turning = cells.reaches(low, high), cells.doubtful(), cells.turning()
        if halving == _HALVINGS:
            doubtful = torch.zeros_like(doubtful)
        sure.append(cells.pick(turning & near & ~doubtful))
        if halving > 0:
            # Of a part that was halved away from the window a point tells on which side it is.
            beside = cells.pick(turning & ~near)
            sure.append(beside._replace(b=beside.a))
        cells = cells.pick(doubtful & near)
        if cells.rows.numel() == 0:
            break
        middle = (cells.a + cells.b) / 2
        at = table.slopes_at(cells.rows, middle)
        inner = {"value": at.value, "first": at.first, "second": at.second}
        left = cells._replace(b=middle, **{f"{k}_b": v for k, v in inner.items()})
        right = cells._replace(a=middle, **{f"{k}_a": v for k, v in inner.items()})
        cells = _Cells(*(torch.cat(pair) for pair in zip(left, right, strict=True)))
        low, high = (limit[cells.rows] for limit in window)
    cells = _Cells(*(torch.cat(many) for many in zip(*sure, strict=True)))
    order = cells.a.argsort()
    order = order[cells.rows[order].argsort(stable=True)]
    cells = _Cells(*(v.index_select(0, order) for v in cells))
    top, ends = (cells.first_a > 0) & (cells.b > cells.a), (cells.a, cells.b)
    where = table.turning(cells.rows, ends, (cells.first_a, cells.first_b))
    return cells.rows, where, top
