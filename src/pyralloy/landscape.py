"""Where a scalar density rises and falls: its stationary points, and what lies between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyralloy.adaptive import coarsest
from pyralloy.cells import Cells, join, touching
from pyralloy.slopes import Slopes
from pyralloy.table import Table

__all__ = ["Landscape", "landscape", "lay_out"]

#: Rounds of halving for cells whose slope comes close to zero.
_HALVINGS = 12

#: Rows times this and components are surveyed at once.
_WIDTH = 8

#: Components whose landmarks are all looked at; of more, as few as lie close enough together.
_MANY = 100

#: Which log densities matter, for some rows of a table: see :func:`landscape`.
Window = Callable[["Part", Tensor, Slopes], tuple[Tensor, Tensor]]


def lay_out(rows: Tensor, values: Tensor, count: int, fill: float) -> Tensor:
    """Lay out ``values`` (Q, ...) of sorted ``rows`` (Q,) as (count, R, ...)."""
    sizes = torch.bincount(rows, minlength=count)
    place = torch.arange(rows.numel(), device=rows.device) - (sizes.cumsum(0) - sizes)[rows]
    shape = (count, max(1, int(sizes.max())) if count else 1, *values.shape[1:])
    laid = values.new_full(shape, fill)
    laid[rows, place] = values
    return laid


class Landscape(NamedTuple):
    """Where densities are monotone, and their modes.

    Attributes:
        cells: Intervals, in no order, in which the density is monotone. At the ends of the support
            there is one of no width, which the log density climbs from -inf.
        rows: Row of each mode (Q,), sorted.
        modes: Location and log density of each mode (Q, 2).
    """

    cells: Cells
    rows: Tensor
    modes: Tensor


def landscape(table: Table, window: Window | None = None) -> Landscape:
    """Find the stationary points of M densities, and what is monotone between them.

    Args:
        table: The densities.
        window: From a :class:`Part`, landmarks (M', P) of its rows and the slopes there, two log
            densities (M',). What lies wholly below the first or above the second is left out: it
            has no say in where the density crosses what is between them. None leaves out nothing.
    """
    parts = [_survey(table, part, window) for part in table.chunks(_WIDTH * table.weights.shape[1])]
    low, high = (torch.cat(v) for v in zip(*(found.window for found in parts), strict=True))
    monotone, turning = _sift(table, join([found.cells for found in parts]), low, high)
    top, ends = turning.first_a > 0, (turning.a, turning.b)
    where = table.turning(turning.rows, ends, turning.first_b > 0, turning.summit())
    at = table.slopes_at(turning.rows, where)
    halves = turning.split(where, at._replace(first=torch.zeros_like(where)))
    rows = torch.cat([turning.rows[top], *(found.rows for found in parts)])
    inner = torch.stack([where, at.value], -1)[top]
    modes = torch.cat([inner, *(found.modes for found in parts)])
    order = rows.argsort(stable=True)
    cells = join([monotone, *halves, *(found.edges for found in parts)])
    cells = cells.pick(
        cells.spans(low.index_select(0, cells.rows), high.index_select(0, cells.rows))
    )
    return Landscape(cells, rows[order], modes[order])


class Part(NamedTuple):
    """Some rows that are surveyed at once.

    Attributes:
        rows: Which they are.
        first: Number of the first of their landmarks, by which cells are known.
    """

    rows: slice
    first: int


class _Survey(NamedTuple):
    """What landmarks tell of some rows.

    Attributes:
        window: Two log densities for each row.
        cells: Intervals between landmarks that may come between these.
        edges: Those outside of the landmarks, which are monotone.
        rows: Row of each mode at an end of the support.
        modes: Location and log density of each.
    """

    window: tuple[Tensor, Tensor]
    cells: Cells
    edges: Cells
    rows: Tensor
    modes: Tensor


def _survey(table: Table, part: slice, window: Window | None) -> _Survey:
    some, start = table.take(part), part.start
    low, high = some.support()
    inner = low.nextafter(high), high.nextafter(low)
    y, among = _landmarks(some, *inner)  # (M', P)
    first = start * among
    slopes = some.slopes(y)
    everywhere = torch.full_like(low, -math.inf), torch.full_like(low, math.inf)
    limits = everywhere if window is None else window(Part(part, first), y, slopes)
    cells = Cells.between(y, slopes, touching(y, slopes, *limits))
    edges, rows, modes = _edges(some, y, slopes, (low, high), inner)
    cells = cells._replace(origin=cells.origin + first)
    cells, edges = (v._replace(rows=v.rows + start) for v in (cells, edges))
    return _Survey(limits, cells, edges, rows + start, modes)


def _landmarks(table: Table, low: Tensor, high: Tensor) -> tuple[Tensor, int]:
    """Place points (M, P) throughout the components, sorted, between two ends (M,).

    Returns:
        The points, and how many a row there were to choose from.
    """
    marks = table.landmarks()
    y = marks.flat()
    if not bool(y.sum().isfinite()):
        y = torch.where(y.isfinite(), y, y[:, :1])
    y = y.clamp(low[:, None], high[:, None])
    # Numpy, which gives no order, sorts six times as fast.
    on_cpu = y.device.type == "cpu"
    y = torch.from_numpy(np.sort(y.numpy(), -1)) if on_cpu else y.sort(-1).values
    kind, among = table.family, y.shape[1]
    smooth = kind.kinks(table.components) is None and not kind.support.circular
    if table.weights.shape[1] > _MANY and smooth:
        y = _thinned(table, y, marks.own.clamp(low[:, None, None], high[:, None, None]))
    return y, among


def _thinned(table: Table, y: Tensor, own: Tensor) -> Tensor:
    """Pick as few of sorted points (M, P) as leave no two of a component's own in a gap.

    Args:
        table: The densities.
        y: The points.
        own: Those of each component, (M, K, L).
    """
    lower, upper = own[..., :-1], own[..., 1:]
    upper = torch.where((table.weights > 0)[..., None], upper, lower)
    picked = coarsest(y, lower.flatten(1), upper.flatten(1))
    rows, _ = picked.nonzero(as_tuple=True)
    laid = lay_out(rows, y[picked], len(y), math.nan)
    return torch.where(laid.isnan(), y[:, -1:], laid)


def _sift(table: Table, cells: Cells, low: Tensor, high: Tensor) -> tuple[Cells, Cells]:
    """Part cells, halved as need be, into those that are monotone and those that turn once.

    Those that do not come between two log densities (M,) are left out.
    """
    monotone, once = [], []
    for halving in range(_HALVINGS + 1):
        rows = cells.rows
        cells = cells.pick(cells.reaches(low.index_select(0, rows), high.index_select(0, rows)))
        doubtful, turning = cells.doubtful(), cells.turning()
        if halving == _HALVINGS:
            doubtful = torch.zeros_like(doubtful)
        monotone.append(cells.pick(~(doubtful | turning)))
        once.append(cells.pick(turning & ~doubtful))
        cells = cells.pick(doubtful)
        if len(cells.rows) == 0:
            break
        middle = (cells.a + cells.b) / 2
        cells = join(cells.split(middle, table.slopes_at(cells.rows, middle)))
    return join(monotone), join(once)


def _edges(
    table: Table,
    y: Tensor,
    slopes: Slopes,
    support: tuple[Tensor, Tensor],
    inner: tuple[Tensor, Tensor],
) -> tuple[Cells, Tensor, Tensor]:
    """Give what lies outside of the landmarks (M, P): cells, and the rows and places of modes."""
    rows = torch.arange(len(table), device=y.device)
    unknown, below = torch.full_like(y[:, 0], math.nan), torch.full_like(y[:, 0], -math.inf)
    cells, mode_rows, modes = [], [], []
    for end, near, i in zip(support, inner, (0, -1), strict=True):
        bounded, fall = end.isfinite(), slopes.first[:, i] * (-1 if i == 0 else 1)
        at, value = torch.where(bounded, end, y[:, i]), slopes.value[:, i]
        if bool(bounded.any()):
            value = torch.where(bounded, table.limit(at, near), value)
        outer, next_to = (at, at, below, value), (at, y[:, i], value, slopes.value[:, i])
        for a, b, value_a, value_b in (outer, next_to):
            ends = (a, b, value_a, value_b) if i == 0 else (b, a, value_b, value_a)
            cells.append(Cells(rows, torch.full_like(rows, -1), *ends, *(unknown,) * 4))
        # A circle has no ends, though it is cut.
        edge = bounded & (not table.family.support.circular)
        mode = edge & (fall > 0) & (value >= slopes.value[:, i])
        modes.append(torch.stack([at, value], -1)[mode])
        mode_rows.append(mode.nonzero()[:, 0])
    return join(cells), torch.cat(mode_rows), torch.cat(modes)
