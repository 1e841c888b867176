"""At which log density a region of highest density ends, and where."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyralloy.landscape import Landscape, landscape, lay_out
from pyralloy.slopes import Slopes
from pyralloy.table import Table

__all__ = ["find_region", "held_above"]

#: How far the mass of a region may be from its level.
_MASS_TOLERANCE = 1e-8

#: How exact crossings are: to the finest, and while the threshold is only guessed.
_FINEST, _ROUGH = 1e-11, 1e-4

#: Rows whose first guess is made at once, so that an intermediate stays in the cache.
_GUESSED = 512


def find_region(
    table: Table, level: float, reach: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the smallest regions that hold ``level``, near a first guess of their thresholds.

    Args:
        table: M densities, in float64.
        level: Probability inside.
        reach: How far from the guess, in nats, a threshold is looked for.
        steps: For how many steps of Newton's method; where ``reach`` is infinite, what the last
            of them gives is taken.

    Returns:
        Intervals (M, R, 2), sorted and padded with NaN; thresholds (M,), NaN where there is none;
        and the rows that are not done.
    """
    guessed: list[Tensor] = []

    def window(y: Tensor, slopes: Slopes) -> tuple[Tensor, Tensor]:
        given = (v.split(_GUESSED) for v in (y, slopes.value, slopes.first))
        parts = [_first_threshold(a, b, c, level) for a, b, c in zip(*given, strict=True)]
        guessed.append(torch.cat(parts))
        return guessed[0] - reach, guessed[0] + reach

    land = landscape(table, window)
    threshold = torch.full_like(guessed[0], math.nan)
    rows = guessed[0].isfinite().nonzero()[:, 0]
    low, high = _range(land.value[rows])
    t = guessed[0][rows].clamp(low, high)
    limits = [t - reach, t + reach]
    lines, before = _no_lines(land), torch.full_like(t, math.inf)
    done_rows, done_ends, left = [], [], []
    for step in range(steps):
        if rows.numel() == 0:
            break
        tolerance = (0.1 * before.square()).clamp(_FINEST, _ROUGH)
        owner, y, slope = _crossings(table, land, rows, t, lines, tolerance)
        mass = _held(table, rows, owner, y)
        pull = torch.zeros_like(t).index_add(0, owner, t.exp()[owner] / slope.abs())
        gap = mass - level
        told = gap.abs() > 30 * tolerance  # by more than the errors of the crossings
        low = torch.where((gap >= 0) & told, t, low)
        high = torch.where((gap < 0) & told, t, high)
        # A density that is flat at the threshold has no exact answer: take the larger region.
        stuck = high - low <= 4 * torch.finfo(t.dtype).eps * (1 + t.abs())
        exact = (gap.abs() <= _MASS_TOLERANCE) & (tolerance <= 0.01 * _MASS_TOLERANCE)
        done = exact | (stuck & (gap >= 0)) | (reach == math.inf and step == steps - 1)
        new = t + gap / pull
        last = torch.where(exact & new.isfinite(), new - t, 0.0)  # which costs nothing more
        threshold[rows[done]] = (t + last)[done]
        ended = done[owner]
        done_rows.append(rows[owner[ended]][::2])
        shift = (last[owner] / slope).nan_to_num(0.0, 0.0, 0.0)  # at a pole there is no slope
        done_ends.append((y + shift)[ended].reshape(-1, 2))
        safe = (new > low) & (new < high) & ((gap.abs() < 0.5 * before) | ~told)
        new = torch.where(safe, new, ((low + high) / 2).clamp(t - 2, t + 2))
        new = torch.where(stuck, low, new)
        near = (new >= limits[0]) & (new <= limits[1])
        left.append(rows[~done & ~near])
        keep = (~done & near).nonzero()[:, 0]
        rows, t, low, high, before, *limits = (
            v.index_select(0, keep) for v in (rows, new, low, high, gap.abs(), *limits)
        )
    owner, ends = torch.cat([rows[:0], *done_rows]), torch.cat([t.new_empty(0, 2), *done_ends])
    order = owner.argsort(stable=True)
    laid = lay_out(owner[order], ends[order], len(table), math.nan)
    return laid, threshold, torch.cat([rows, *left])


def held_above(table: Table, t: Tensor) -> Tensor:
    """Give the probability (M,) that lies where the log density is above ``t`` (M,), finite."""
    land, rows = landscape(table, lambda *_: (t, t)), torch.arange(len(t), device=t.device)
    finest = torch.full_like(t, _FINEST)
    owner, y, _ = _crossings(table, land, rows, t, _no_lines(land), finest)
    return _held(table, rows, owner, y).clamp(0.0, 1.0)


def _range(value: Tensor) -> tuple[Tensor, Tensor]:
    """Give the least and the greatest finite log density (M,) among points (M, P)."""
    finite = value.isfinite()
    return (
        torch.where(finite, value, math.inf).amin(-1),
        torch.where(finite, value, -math.inf).amax(-1),
    )


def _no_lines(land: Landscape) -> Tensor:
    """Give what :func:`_crossings` is to keep of each cell, before anything is known."""
    return land.y.new_full((2, land.y.shape[0], land.y.shape[1] - 1), math.nan)


def _held(table: Table, rows: Tensor, owner: Tensor, y: Tensor) -> Tensor:
    """Add up the masses between crossings ``y`` (Q,), which take turns, of ``rows`` (M',)."""
    cdf = table.take(rows[owner]).cdf(y).reshape(-1, 2)
    none = torch.zeros(len(rows), dtype=y.dtype, device=y.device)
    return none.index_add(0, owner[::2], cdf[:, 1] - cdf[:, 0])


def _first_threshold(y: Tensor, value: Tensor, first: Tensor, level: float) -> Tensor:
    """Guess the log density (M,) above which the level lies, from points (M, P) and slopes there.

    The mass of a cell is that of the trapezoidal rule, mended at its ends; between its two log
    densities it is taken to be spread evenly.
    """
    left, right, width = value[:, :-1], value[:, 1:], y.diff(dim=-1)
    least, most = torch.minimum(left, right), torch.maximum(left, right)
    rise, lower = most - least, least.exp() * width
    # At a pole the higher end says nothing of the mass between.
    mass = lower * (1 + rise.clamp_max(4.0).exp()) / 2
    fall = value.exp() * first
    mend = (fall[:, :-1] - fall[:, 1:]) * width.square() / 12
    mass = torch.maximum(torch.minimum(mass + mend, 4 * mass), lower)
    mass = torch.where(mass.isfinite(), mass, 0.0)  # (M, P - 1)
    goal, (low, high) = level * mass.sum(-1), _range(value)
    share = rise.clamp_min(1e-9).reciprocal().nan_to_num(0.0)
    whole = (most * share).nan_to_num(1.0, 1.0, 1.0)  # a pole lies above all thresholds
    for _ in range(14):
        t = (low + high) / 2
        above = torch.addcmul(whole, share, t[:, None], value=-1.0).clamp_(0.0, 1.0).mul_(mass)
        enough = above.sum(-1) >= goal
        low, high = torch.where(enough, t, low), torch.where(enough, high, t)
    return (low + high) / 2 + 0.0 * y[:, 0]


def _crossings(
    table: Table, land: Landscape, rows: Tensor, t: Tensor, lines: Tensor, tolerance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where the log density of ``rows`` crosses ``t``: owners (Q,), locations and slopes.

    The owners index ``rows`` and are sorted; crossings upwards and downwards take turns.
    ``lines`` (2, M, P - 1) keeps the tangent of each cell once crossed, for the next guess.
    """
    above = (land.value if len(rows) == len(land.y) else land.value[rows]) > t[:, None]
    owner, cell = (above[:, 1:] != above[:, :-1]).nonzero(as_tuple=True)
    row = rows[owner]
    ends, values = ((v[row, cell], v[row, cell + 1]) for v in (land.y, land.value))
    goal, (start, rate) = t[owner], lines[:, row, cell]
    guess = start + rate * goal
    y, slope = table.crossing(row, goal, ends, values, guess, tolerance[owner])
    lines[:, row, cell] = torch.stack([y - goal / slope, 1 / slope])
    return owner, y, slope
