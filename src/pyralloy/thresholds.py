"""At which log density a region of highest density ends, and where."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from pyralloy.cells import Cells
from pyralloy.landscape import Part, landscape, lay_out
from pyralloy.numerics import KEEP
from pyralloy.sights import Sights, look, recall, step, unseen
from pyralloy.slopes import Slopes
from pyralloy.table import MAX_STEPS, Table

__all__ = ["FINDERS", "find_region", "find_region_surely", "held_above"]

#: How far the mass of a region may be from its level.
_MASS_TOLERANCE = 1e-8

#: How exact crossings are: to the finest, and while the threshold is only guessed.
_FINEST, _ROUGH = 1e-11, 1e-4

#: Rows whose first guess is made at once, so that an intermediate stays in the cache.
_GUESSED = 256

#: How far from its guess, in nats, a threshold is looked for: the least, for each nat that the
#: guess may be off, and the most. All but a few rows in a thousand are done in so many steps.
_LEAST, _EACH, _MOST, _STEPS = 0.02, 4.0, 0.5, 24


def find_region(table: Table, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the smallest regions that hold ``level``, near a first guess of their thresholds.

    Thresholds and crossings are found together: each step looks once at the crossings of which the
    last sight does not tell enough, and moves the thresholds to where parabolas put them.

    Args:
        table: M densities, in float64.
        level: Probability inside.

    Returns:
        Intervals (M, R, 2), sorted and padded with NaN; thresholds (M,), NaN where there is none;
        and the rows that are not done.
    """
    guesses: list[tuple[Tensor, Tensor]] = []
    glimpses: list[tuple[Tensor, Sights]] = []

    def window(part: Part, y: Tensor, slopes: Slopes) -> tuple[Tensor, Tensor]:
        t = _first_threshold(y, slopes, level)
        above = slopes.value > t[:, None]
        cells = Cells.between(y, slopes, above[:, 1:] != above[:, :-1])
        sights = look(table.take(part.rows), cells, t, unseen(cells))
        glimpses.append((cells.origin + part.first, sights))
        first = step(cells, sights, t, level)
        move = (first.t - t).abs()
        reach = _LEAST + _EACH * first.off + move
        reach = torch.where(reach < _MOST, reach, _MOST)
        t = torch.where(move < _MOST, first.t, t)
        guesses.append((t, reach))
        return t - reach, t + reach

    cells = landscape(table, window).cells
    t, reach = (torch.cat(v) for v in zip(*guesses, strict=True))
    known, threshold, guessed = t.isfinite(), torch.full_like(t, math.nan), t
    low, high = torch.full_like(t, -math.inf), torch.full_like(t, math.inf)
    seen, rows, found, count = recall(cells, glimpses), [], [], len(t)
    for _ in range(_STEPS):
        crossed = cells.crossed(t.index_select(0, cells.rows))
        which = crossed.nonzero()[:, 0]
        now = cells.take(which)
        sights = look(table, now, t, seen.take(which))
        new = step(now, sights, t, level)
        low, high = torch.where(new.up, t, low), torch.where(new.down, t, high)
        safe = (new.t > low) & (new.t < high)
        t = torch.where(safe, new.t, (low + high) / 2)
        # Where a stationary point lies between the thresholds, there is more to cross, or less.
        other = cells.crossed(t.index_select(0, cells.rows)) != crossed
        done = new.exact & safe & (torch.bincount(cells.rows[other], minlength=len(t)) == 0)
        threshold[done] = t[done]
        ended = done[now.rows]
        rows.append(now.rows[ended])
        found.append(new.y[ended])
        t = torch.where(done | ~((t - guessed).abs() <= reach), math.nan, t)
        left = ~t.isnan()
        many = int(left.sum())
        if many == 0:
            break
        seen.put_(which, sights)
        if many < KEEP * count:  # copying what is left costs about as much as a round
            keep = left.index_select(0, cells.rows).nonzero()[:, 0]
            cells, seen, count = cells.take(keep), seen.take(keep), many
    left = (known & threshold.isnan()).nonzero()[:, 0]
    return _intervals(torch.cat(rows), torch.cat(found), len(table)), threshold, left


def find_region_surely(
    table: Table, level: float, reach: float = math.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """Find what :func:`find_region` does, in brackets that always shrink.

    Args:
        table: M densities, in float64.
        level: Probability inside.
        reach: How far from its first guess, in nats, a threshold is looked for.

    Returns:
        As there; no row is left where ``reach`` is infinite.
    """
    guesses: list[Tensor] = []

    def window(_: Part, y: Tensor, slopes: Slopes) -> tuple[Tensor, Tensor]:
        guesses.append(_first_threshold(y, slopes, level))
        return guesses[-1] - reach, guesses[-1] + reach

    cells, t = landscape(table, window).cells, torch.cat(guesses)
    known, limits = t.isfinite(), (t - reach, t + reach)
    low, high = _range(cells, len(table))
    t = torch.minimum(torch.maximum(t, low), high)  # NaN stays NaN, and crosses nothing
    threshold, before = torch.full_like(t, math.nan), torch.full_like(t, math.inf)
    found_rows, found = [], []
    for last in [False] * (MAX_STEPS - 1) + [True]:
        if bool(t.isnan().all()):
            break
        tolerance = (0.1 * before.square()).clamp(_FINEST, _ROUGH)
        now, y, slope = _crossings(table, cells, t, tolerance)
        mass, rows = _held(table, now, y, len(t)), now.rows
        pull = torch.zeros_like(t).index_add(0, rows, t.exp()[rows] / slope.abs())
        gap = mass - level
        told = gap.abs() > 30 * tolerance  # by more than the errors of the crossings
        low = torch.where((gap >= 0) & told, t, low)
        high = torch.where((gap < 0) & told, t, high)
        # A density that is flat at the threshold has no exact answer: take the larger region.
        stuck = high - low <= 4 * torch.finfo(t.dtype).eps * (1 + t.abs())
        exact = (gap.abs() <= _MASS_TOLERANCE) & (tolerance <= 0.01 * _MASS_TOLERANCE)
        done = ~t.isnan() & (exact | (stuck & (gap >= 0)) | last)
        new = t + gap / pull
        move = torch.where(exact & new.isfinite(), new - t, 0.0)  # which costs nothing more
        threshold[done] = (t + move)[done]
        shift = (move[rows] / slope).nan_to_num(0.0, 0.0, 0.0)  # at a pole there is no slope
        found_rows.append(rows[done[rows]])
        found.append((y + shift)[done[rows]])
        safe = (new > low) & (new < high) & ((gap.abs() < 0.5 * before) | ~told)
        middle = (torch.maximum(low, limits[0]) + torch.minimum(high, limits[1])) / 2
        new = torch.where(safe, new, middle.clamp(t - 2, t + 2))
        new = torch.where(stuck, low, new)
        near = (new - limits[0] > 1e-3) & (limits[1] - new > 1e-3)
        t, before = torch.where(near & ~done, new, math.nan), gap.abs()
    rows, y = torch.cat([cells.rows[:0], *found_rows]), torch.cat([cells.a[:0], *found])
    left = (known & threshold.isnan()).nonzero()[:, 0]
    return _intervals(rows, y, len(table)), threshold, left


def held_above(table: Table, t: Tensor) -> Tensor:
    """Give the probability (M,) that lies where the log density is above ``t`` (M,), finite."""
    cells = landscape(table, lambda part, *_: (t[part.rows], t[part.rows])).cells
    now, y, _ = _crossings(table, cells, t, torch.full_like(t, _FINEST))
    return _held(table, now, y, len(t)).clamp(0.0, 1.0)


def _range(cells: Cells, count: int) -> tuple[Tensor, Tensor]:
    """Give the least and the greatest finite log density (M,) at the ends of cells."""
    value, rows = torch.cat([cells.value_a, cells.value_b]), cells.rows.repeat(2)
    finite = value.isfinite()
    empty, value, rows = value.new_zeros(count), value[finite], rows[finite]
    low, high = (
        empty.scatter_reduce(0, rows, value, how, include_self=False) for how in ("amin", "amax")
    )
    return low, high


def _intervals(rows: Tensor, y: Tensor, count: int) -> Tensor:
    """Lay out crossings (Q,), which take turns in each row, as intervals (M, R, 2)."""
    order = y.argsort()
    order = order[rows[order].argsort(stable=True)]
    return lay_out(rows[order][::2], y[order].reshape(-1, 2), count, math.nan)


def _held(table: Table, cells: Cells, y: Tensor, count: int) -> Tensor:
    """Add up the masses (M,) between crossings ``y`` (Q,), one in each cell."""
    _, cdf = table.at(cells.rows, y)
    none = torch.zeros(count, dtype=y.dtype, device=y.device)
    return none.index_add(0, cells.rows, torch.where(cells.value_a > cells.value_b, cdf, -cdf))


def _first_threshold(y: Tensor, slopes: Slopes, level: float) -> Tensor:
    """Guess the log density (M,) above which the level lies, from landmarks (M, P)."""
    given = (v.split(_GUESSED) for v in (y, slopes.value, slopes.first))
    return torch.cat([_guess_threshold(a, b, c, level) for a, b, c in zip(*given, strict=True)])


def _guess_threshold(y: Tensor, value: Tensor, first: Tensor, level: float) -> Tensor:
    """Guess by the mass of each cell between points (M, P), and where in it that lies.

    The mass is that of the trapezoidal rule, mended at its ends; between the two log densities it
    is taken to be spread evenly. Single precision is enough to add up.
    """
    p, width = value.exp(), y.diff(dim=-1)
    lower, upper = (f(p[:, :-1], p[:, 1:]) for f in (torch.minimum, torch.maximum))
    # At a pole the higher end says nothing of the mass between.
    mass = torch.minimum(upper, math.exp(4.0) * lower).add_(lower).mul_(width).div_(2.0)
    fall = p * first
    mend = (fall[:, :-1] - fall[:, 1:]) * width.square() / 12
    mass = torch.maximum(torch.minimum(mass + mend, 4 * mass), lower * width)
    mass = mass.nan_to_num_(0.0, 0.0, 0.0).float()  # (M, P - 1)
    low = value.nan_to_num(math.inf, math.inf, math.inf).amin(-1).float()
    high = value.nan_to_num(-math.inf, -math.inf, -math.inf).amax(-1).float()
    goal = level * mass.sum(-1)
    least, most = (f(value[:, :-1], value[:, 1:]) for f in (torch.minimum, torch.maximum))
    share = (most - least).clamp_min_(1e-9).reciprocal_().nan_to_num_(0.0)
    whole = (most * share).nan_to_num_(1.0, 1.0, 1.0).float()  # a pole lies above all thresholds
    share = share.float()
    for _ in range(12):
        t = (low + high) / 2
        above = torch.addcmul(whole, share, t[:, None], value=-1.0).clamp_(0.0, 1.0).mul_(mass)
        enough = above.sum(-1) >= goal
        low, high = torch.where(enough, t, low), torch.where(enough, high, t)
    return ((low + high) / 2).to(y) + 0.0 * y[:, 0]


def _crossings(
    table: Table, cells: Cells, t: Tensor, tolerance: Tensor
) -> tuple[Cells, Tensor, Tensor]:
    """Find where log densities cross ``t`` (M,): the cells (Q,), locations and slopes."""
    now = cells.pick(cells.crossed(t[cells.rows]))
    goal, ends = t[now.rows], ((now.a, now.b), (now.value_a, now.value_b))
    return now, *table.crossing(now.rows, goal, *ends, now.guess(goal), tolerance[now.rows])


#: What finds regions, in turn: each for the rows that those before have left.
FINDERS = (find_region, partial(find_region_surely, reach=1.0), find_region_surely)
