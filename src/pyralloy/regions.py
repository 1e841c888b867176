"""Highest-density regions and modes of scalar mixtures, exactly.

Both start from the stationary points of the density. Points placed in every component, in its own
units, show where the slope changes sign; between neighbours, stationary points included, the
density is monotone, so every crossing of a threshold is bracketed, however narrow its component.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyralloy.checks import beside, probability
from pyralloy.circle import close, cut_open
from pyralloy.families import map_parameters, wrap
from pyralloy.integers import integer_mass_above, integer_modes, integer_region
from pyralloy.landscape import Landscape, landscape, lay_out
from pyralloy.table import MAX_STEPS, Table

__all__ = ["Region", "highest_density", "mass_above", "modes"]

#: How far the mass of a region may be from its level.
_MASS_TOLERANCE = 1e-8


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
        parts = [_region(part, level) for part in _parts(opened)]
        thresholds = torch.cat([turn.new_empty(0), *(t for _, t in parts)]).to(table.weights.dtype)
        ends, circular = _join([e for e, _ in parts], opened.weights), table.family.support.circular
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
            return integer_mass_above(_wide(table), threshold)
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
    """Give the table in float64, without gradients."""
    components = map_parameters(table.components, lambda p: p.detach().to(torch.float64), 0)
    return Table(table.weights.detach().to(torch.float64), components)


def _parts(table: Table) -> list[Table]:
    """Split into parts of moderate memory, in float64."""
    wide = _wide(table)
    return [wide.take(part) for part in wide.chunks(4 * wide.weights.shape[1])]


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    """Join parts (M', R', 2) to (M, R, 2), padded with NaN, in the dtype of ``like``."""
    width = max([1, *(part.shape[1] for part in parts)])
    wide = [F.pad(part, (0, 0, 0, width - part.shape[1]), value=math.nan) for part in parts]
    return torch.cat([like.new_empty(0, width, 2), *(part.to(like.dtype) for part in wide)])


def _modes(table: Table) -> Tensor:
    """Lay out the modes of each row, highest first, as (M, R, 2) padded with NaN."""
    land = landscape(table)
    found = lay_out(land.rows, land.modes, len(table), math.nan)
    order = found[..., 1].nan_to_num(-math.inf, math.inf).argsort(-1, descending=True)
    return found.gather(1, order[..., None].expand(-1, -1, 2))


# -- the threshold --------------------------------------------------------------------------------


def _region(table: Table, level: float) -> tuple[Tensor, Tensor]:
    """Find intervals (M, R, 2) and the log density (M,) at their ends."""
    land, threshold = landscape(table), torch.full_like(table.weights[:, 0], math.nan)
    value = land.points[..., 1]
    low = torch.where(value.isfinite(), value, math.inf).amin(-1)
    high = torch.where(value.isfinite(), value, -math.inf).amax(-1)
    t = _first_threshold(land, level).clamp(low, high)
    rows = t.isfinite().nonzero()[:, 0]
    t, low, high = t[rows], low[rows], high[rows]
    lines, before = torch.full_like(land.points[:, 1:], math.nan), torch.full_like(t, math.inf)
    done_rows, done_ends = [], []
    for step in range(MAX_STEPS):
        if rows.numel() == 0:
            break
        owner, y, slope = _crossings(table, land, rows, t, lines)
        mass = _held(table, rows, owner, y)
        pull = torch.zeros_like(t).index_add(0, owner, t.exp()[owner] / slope.abs())
        gap = mass - level
        low, high = torch.where(gap >= 0, t, low), torch.where(gap < 0, t, high)
        # A density that is flat at the threshold has no exact answer: take the larger region.
        stuck = high - low <= 4 * torch.finfo(t.dtype).eps * (1 + t.abs())
        done = (gap.abs() <= _MASS_TOLERANCE) | (stuck & (gap >= 0)) | (step == MAX_STEPS - 1)
        threshold[rows[done]] = t[done]
        done_rows.append(rows[owner[done[owner]]][::2])
        done_ends.append(y[done[owner]].reshape(-1, 2))
        new = t + gap / pull
        safe = (new > low) & (new < high) & (gap.abs() < 0.5 * before)
        new = torch.where(safe, new, ((low + high) / 2).clamp(t - 2, t + 2))
        new = torch.where(stuck, low, new)
        rows, t, low, high, before = (v[~done] for v in (rows, new, low, high, gap.abs()))
    if not done_rows:
        return value.new_full((len(table), 1, 2), math.nan), threshold
    owner, ends = torch.cat(done_rows), torch.cat(done_ends)
    order = owner.argsort(stable=True)
    return lay_out(owner[order], ends[order], len(table), math.nan), threshold


def _held(table: Table, rows: Tensor, owner: Tensor, y: Tensor) -> Tensor:
    """Add up the masses between crossings ``y`` (Q,), which take turns, of ``rows`` (M',)."""
    cdf = table.take(rows[owner]).cdf(y).reshape(-1, 2)
    none = torch.zeros(len(rows), dtype=y.dtype, device=y.device)
    return none.index_add(0, owner[::2], cdf[:, 1] - cdf[:, 0])


def _mass_above(table: Table, threshold: Tensor) -> Tensor:
    known = threshold + 0.0 * table.weights.sum(-1)  # a missing parameter is a missing answer
    held = torch.where(known.isnan(), math.nan, (threshold == -math.inf).to(threshold))
    rows = known.isfinite().nonzero()[:, 0]
    if len(rows) > 0:
        table, t = table.among(rows), threshold[rows]
        land = landscape(table)
        lines, every = torch.full_like(land.points[:, 1:], math.nan), torch.arange(len(rows))
        owner, y, _ = _crossings(table, land, every.to(rows.device), t, lines)
        held[rows] = _held(table, every.to(rows.device), owner, y).clamp(0.0, 1.0)
    return held


def _first_threshold(land: Landscape, level: float) -> Tensor:
    """Guess the log density (M,) above which the level lies, by the trapezoidal rule."""
    y, value = land.points.unbind(-1)
    left, right = value[:, :-1], value[:, 1:]
    least = torch.minimum(left, right)
    # At a pole the higher end says nothing of the mass between.
    ratio = ((torch.maximum(left, right) - least).clamp_max(4.0)).exp()
    mass = least.exp() * (1 + ratio) / 2 * y.diff(dim=-1)
    mass = torch.where(mass.isfinite(), mass, 0.0)  # (M, P - 1)
    height = ((left + right) / 2).nan_to_num(-math.inf, math.inf)
    height, order = height.sort(-1, descending=True)
    above = mass.gather(1, order).cumsum(-1)
    goal = level * above[:, -1:]
    place = torch.searchsorted(above, goal).clamp(1, height.shape[1] - 1)
    (m0, m1), (t0, t1) = ((v.gather(1, place - 1), v.gather(1, place)) for v in (above, height))
    guess = t0 + (t1 - t0) * ((goal - m0) / (m1 - m0)).clamp(0, 1)
    return torch.where(guess.isfinite(), guess, t1)[:, 0] + 0.0 * y[:, 0]


def _crossings(
    table: Table, land: Landscape, rows: Tensor, t: Tensor, lines: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where the log density of ``rows`` crosses ``t``: owners (Q,), locations and slopes.

    The owners index ``rows`` and are sorted; crossings upwards and downwards take turns.
    ``lines`` (M, P - 1, 2) keeps the tangent of each cell once crossed, for the next guess.
    """
    above = land.points[rows, :, 1] > t[:, None]
    owner, cell = (above[:, 1:] != above[:, :-1]).nonzero(as_tuple=True)
    row = rows[owner]
    (a, value_a), (b, value_b) = (land.points[row, cell + i].unbind(-1) for i in (0, 1))
    goal, (start, rate) = t[owner], lines[row, cell].unbind(-1)
    y, slope = table.crossing(row, goal, (a, b), (value_a, value_b), start + rate * goal)
    lines[row, cell] = torch.stack([y - goal / slope, 1 / slope], -1)
    return owner, y, slope
