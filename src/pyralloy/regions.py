"""Highest-density regions and modes of scalar mixtures, exactly.

Both start from the stationary points of the density. Points placed in every component, in its own
units, show where the slope changes sign; between neighbours, stationary points included, the
density is monotone, so every crossing of a threshold is bracketed, however narrow its component.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyralloy.checks import beside, probability
from pyralloy.circle import close, cut_open
from pyralloy.families import wrap
from pyralloy.integers import integer_mass_above, integer_modes, integer_region
from pyralloy.landscape import landscape, lay_out
from pyralloy.table import Table
from pyralloy.thresholds import FINDERS, held_above

__all__ = ["Region", "highest_density", "mass_above", "modes"]


@dataclass(frozen=True)
class Region:
    """A union of intervals for each row of a batch.

    Attributes:
        intervals: Lower and upper ends in y's units, shape (..., R, 2), sorted by location; rows
            with fewer than R intervals end in NaN.
        level: The probability inside.
        log_density: Log density on the boundary, shape (...): the region is where the density is
            at least this high.
        circular: Whether y is an angle. Lower ends then lie in [-pi, pi), and an arc through the
            cut is one interval, whose upper end is above pi.
        integer: Whether y is a count. Intervals then run from their first integer to their last.

    Example:
        >>> region = Region(torch.tensor([[-2.0, -1.0], [1.0, 2.5]]), 0.9, torch.tensor(-1.5))
        >>> region
        Region(level=0.9, intervals=2, batch_shape=())
        >>> region.contains(torch.tensor([-1.5, 0.0, 1.5])).tolist(), float(region.volume())
        ([True, False, True], 2.5)
    """

    intervals: Tensor
    level: float
    log_density: Tensor
    circular: bool = False
    integer: bool = False

    def __repr__(self) -> str:
        return (
            f"Region(level={self.level:g}, intervals={self.intervals.shape[-2]}, "
            f"batch_shape={tuple(self.batch_shape)})"
        )

    @property
    def batch_shape(self) -> torch.Size:
        """The shape (...) of the batch."""
        return self.intervals.shape[:-2]

    def contains(self, y: Any) -> Tensor:
        """Tell which values lie inside, ends included.

        Args:
            y: Values in y's units, broadcastable with the batch shape; angles modulo 2 pi.

        Returns:
            Booleans of the broadcast shape; False where ``y`` is NaN.

        Raises:
            ValueError: A shape that does not fit; a column (N, 1) beside N rows.
        """
        y = beside("y", y, self.batch_shape, self.intervals)
        lower, upper = self.intervals.unbind(-1)  # (..., R)
        if self.integer:
            y = torch.where(y == y.round(), y, math.nan)
        if self.circular:
            return ((y[..., None] - lower).remainder(2 * math.pi) <= upper - lower).any(-1)
        return ((y[..., None] >= lower) & (y[..., None] <= upper)).any(-1)

    def volume(self) -> Tensor:
        """Add up the lengths of the intervals, (...), in y's units; NaN where there is none.

        Of counts it is the number of integers inside.
        """
        length = self.intervals[..., 1] - self.intervals[..., 0] + float(self.integer)  # (..., R)
        return torch.where(length.isnan().all(-1), math.nan, length.nansum(-1))

    def reshape(self, batch_shape: Sequence[int]) -> Region:
        """Give the same rows in another batch shape.

        Args:
            batch_shape: A shape of as many elements as there are rows.

        Returns:
            A region of that batch shape.
        """
        shape = tuple(batch_shape)
        intervals = self.intervals.reshape(*shape, *self.intervals.shape[-2:])
        return replace(self, intervals=intervals, log_density=self.log_density.reshape(shape))


def highest_density(table: Table, level: float) -> Region:
    r"""Find the smallest region that holds probability ``level``, for each row.

    .. math:: \{y : p(y) \ge t\}, \quad\text{where } P\{p(Y) \ge t\} = \text{level}

    The crossings of a threshold are bracketed between points among which the density is monotone;
    the mass between them is a difference of cdfs, and the threshold a safeguarded Newton root with
    :math:`dP / d \log t = -t \sum_c 1 / |(\log p)'(y_c)|` over the crossings :math:`y_c`. Computed
    in float64 whatever the dtype.

    Args:
        table: M mixtures of scalar components.
        level: Probability inside, in (0, 1).

    Returns:
        A :class:`Region` of batch shape (M,). Its mass is the level to 1e-8, unless the density is
        constant over an interval at the threshold itself (the least region that holds the level is
        given then). Of counts it is the fewest integers that hold at least the level. A row with
        NaN parameters is NaN.

    Raises:
        ValueError: ``level`` outside (0, 1).

    References:
        Hyndman, R. J. (1996). Computing and graphing highest density regions. The American
        Statistician 50. doi:10.1080/00031305.1996.10474359

    Example:
        >>> from torch import distributions as td
        >>> loc, scale = torch.tensor([[-5.0, 5.0]]), torch.tensor([[1.0, 0.1]])
        >>> table = Table(torch.tensor([[0.5, 0.5]]), td.Normal(loc, scale))
        >>> region = highest_density(table, 0.9)
        >>> [[round(end, 2) for end in ends] for ends in region.intervals[0].tolist()]
        [[-6.32, -3.68], [4.75, 5.25]]
    """
    probability("level", level)
    with torch.no_grad():
        if table.family.support.integer:
            runs, thresholds = integer_region(_wide(table), level)
            ends = _join(runs, table.weights)
            return Region(ends, level, thresholds.to(table.weights.dtype), integer=True)
        opened, turn = cut_open(table)
        left = torch.arange(len(opened), device=turn.device)
        ends = turn.new_full((len(left), 1, 2), math.nan, dtype=torch.float64)
        thresholds = ends[:, 0, 0].clone()
        for find in FINDERS:
            if len(left) > 0:
                more, thresholds[left], again = _regions(opened.among(left), level, find)
                ends = _widen(ends, more.shape[1])
                ends[left], left = _widen(more, ends.shape[1]), left[again]
        thresholds = thresholds.to(table.weights.dtype)
        circular = table.family.support.circular
        ends = (close(ends, turn) if circular else ends).to(table.weights.dtype)
    return Region(ends, level, thresholds, circular)


def mass_above(table: Table, threshold: Tensor) -> Tensor:
    r"""Evaluate :math:`P\{p(Y) > t\}`, for each row: what a region of highest density holds.

    Args:
        table: M mixtures of scalar components.
        threshold: Log densities, shape (M,).

    Returns:
        Probabilities in float64, shape (M,); NaN where the threshold or a parameter is.

    Example:
        >>> from torch import distributions as td
        >>> table = Table(torch.ones(1, 1), td.Normal(torch.zeros(1, 1), 1.0))
        >>> round(float(mass_above(table, table.log_prob(torch.tensor([1.96])))), 3)
        0.95
    """
    with torch.no_grad():
        threshold = threshold.to(torch.float64)
        if table.family.support.integer:
            return integer_mass_above(_wide(table), threshold).masked_fill(table.blank(), math.nan)
        opened, _ = cut_open(table)
        parts = _parts(opened)
        many = threshold.split([len(part) for part in parts]) if parts else ()
        held = [_mass_above(part, t) for part, t in zip(parts, many, strict=True)]
        return torch.cat([threshold.new_empty(0), *held])


def modes(table: Table) -> tuple[Tensor, Tensor]:
    r"""Find all local maxima of the density, highest first.

    Zeros of :math:`(\log p)'(y) = \sum_k r_k(y)\, (\log f_k)'(y)`, with :math:`r_k` the posterior
    weights of the components, at which it turns from positive to negative; an end of the support
    is a mode where the density falls away from it. Of counts, the integers more likely than those
    beside them.

    Args:
        table: M mixtures of scalar components.

    Returns:
        ``(locations, log_densities)``, each (M, R) with R the largest number of modes; rows with
        fewer end in NaN. The log density is infinite at a pole.

    References:
        Carreira-Perpiñán, M. A. (2000). Mode-finding for mixtures of Gaussian distributions. IEEE
        Transactions on Pattern Analysis and Machine Intelligence 22. doi:10.1109/34.888716

    Example:
        >>> from torch import distributions as td
        >>> loc = torch.tensor([[-5.0, 5.0], [0.0, 0.1]])
        >>> table = Table(torch.tensor([[0.25, 0.75], [0.5, 0.5]]), td.Normal(loc, 1.0))
        >>> modes(table)[0]
        tensor([[ 5.0000, -5.0000],
                [ 0.0500,     nan]])
    """
    with torch.no_grad():
        if table.family.support.integer:
            found = _join(integer_modes(_wide(table)), table.weights)
            return found[..., 0], found[..., 1]
        opened, turn = cut_open(table)
        where, height = _join([_modes(part) for part in _parts(opened)], table.weights).unbind(-1)
    circular = table.family.support.circular
    return wrap(where - turn[:, None].to(where)) if circular else where, height


def _wide(table: Table) -> Table:
    """Give the table in float64, without gradients; rows that miss a parameter, without weights."""
    wide = table.wide()
    return Table(wide.weights.masked_fill(table.blank()[:, None], math.nan), wide.components)


def _parts(table: Table) -> list[Table]:
    """Split into parts of moderate memory, in float64."""
    wide = _wide(table)
    return [wide.take(part) for part in wide.chunks(wide.weights.shape[1])]


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    """Join parts (M', R', 2) to (M, R, 2), padded with NaN, in the dtype of ``like``."""
    width = max([1, *(part.shape[1] for part in parts)])
    wide = [_widen(part, width).to(like.dtype) for part in parts]
    return torch.cat([like.new_empty(0, width, 2), *wide])


def _widen(part: Tensor, width: int) -> Tensor:
    """Pad (M, R', 2) with NaN to at least (M, width, 2)."""
    return F.pad(part, (0, 0, 0, max(0, width - part.shape[1])), value=math.nan)


def _modes(table: Table) -> Tensor:
    """Lay out the modes of each row, highest first, as (M, R, 2) padded with NaN."""
    land = landscape(table)
    found = lay_out(land.rows, land.modes, len(table), math.nan)
    order = found[..., 1].nan_to_num(-math.inf, math.inf).argsort(-1, descending=True)
    return found.gather(1, order[..., None].expand(-1, -1, 2))


def _regions(
    table: Table, level: float, find: Callable[[Table, float], tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Find intervals (M, R, 2), log densities (M,) at their ends, and the rows not done."""
    parts = _parts(table)
    found = [find(part, level) for part in parts]
    none = table.weights.new_empty(0, dtype=torch.float64)
    starts = itertools.accumulate((len(part) for part in parts), initial=0)
    left = [start + rows for start, (_, _, rows) in zip(starts, found, strict=False)]
    return (
        _join([ends for ends, _, _ in found], none),
        torch.cat([none, *(threshold for _, threshold, _ in found)]),
        torch.cat([none.to(torch.int64), *left]),
    )


def _mass_above(table: Table, threshold: Tensor) -> Tensor:
    known = threshold + 0.0 * table.weights.sum(-1)  # a missing parameter is a missing answer
    held = torch.where(known.isnan(), math.nan, (threshold == -math.inf).to(threshold))
    rows = known.isfinite().nonzero()[:, 0]
    if len(rows) > 0:
        held[rows] = held_above(table.among(rows), threshold[rows])
    return held
