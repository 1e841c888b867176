"""Cross-conformal regions: where there are too few rows to hold any out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from pyralloy.checks import as_values, integer, paired, probability
from pyralloy.conformal_levels import observed_rows, rank_of, region_of, supports
from pyralloy.content import hdr_pit
from pyralloy.regions import Region

__all__ = ["CrossConformal", "cross_calibrate"]


@dataclass(frozen=True, eq=False)
class CrossConformal:
    """Regions from several fits, each calibrated on the rows that it was not fitted on.

    Attributes:
        level: What the regions are meant to hold.
        densities: The fits: functions from inputs to densities.
        scores: The levels of the regions that just hold the rows each fit left out.
    """

    level: float
    densities: tuple[Callable[[Any], Any], ...] = field(repr=False)
    scores: tuple[tuple[float, ...], ...] = field(repr=False)

    @property
    def rows(self) -> int:
        """The number of rows n."""
        return sum(len(s) for s in self.scores)

    @property
    def guarantee(self) -> float:
        r"""The least coverage that is proven, :math:`2\,\text{level} - 1` less a term of 1/n.

        In practice the coverage is near ``level``.
        """
        size = max(len(s) for s in self.scores)
        folds = len(self.scores)
        slack = 2.0 * (1.0 - 1.0 / folds) / (size + 1.0)
        return max(
            0.0, 2.0 * self.level - 1.0 - min(slack, (1.0 - folds / self.rows) / (folds + 1))
        )

    def region(self, x: Any) -> Region:
        r"""Give the region of each row: a union of intervals.

        A value y belongs to it if, of the n rows, at least :math:`(1 - \text{level})(n + 1)` (the
        new row counted) lie no more deeply inside their own fit's region than y does. Each row i
        adds one region at its own score; y is inside where enough of the n regions overlap.

        Args:
            x: New inputs, of N rows, as the fits take them.

        Returns:
            A :class:`~pyralloy.regions.Region` of batch shape (N,).
        """
        needed = self.rows + 1 - rank_of(self.rows, self.level)
        ends, counts = [], False
        for density, scores in zip(self.densities, self.scores, strict=True):
            new = density(x)
            counts = supports(new, "integer")
            ends += [region_of(new, score).intervals for score in scores]  # of (N, R, 2)
        return _overlap(torch.cat(ends, 1), needed, self.level, integer=counts)


def cross_calibrate(
    fit: Callable[[Any, Any], Callable[[Any], Any]],
    x: Any,
    y: ArrayLike | Tensor,
    *,
    folds: int = 10,
    level: float = 0.9,
    seed: int = 0,
) -> CrossConformal:
    """Calibrate regions where there are too few rows to hold any out.

    The rows are dealt into folds; the model is fitted once without each, and that fit's regions are
    calibrated on the fold. Every row serves both.

    Args:
        fit: ``(x, y) -> density``, where ``density(x_new)`` gives densities of batch shape (N,):
            ``lambda x, y: pa.fit(make_model(), x, y).density``.
        x: Inputs, N rows, indexable by an integer array.
        y: Targets, shape (N,).
        folds: Number of fits, at least 2 and at most N.
        level: What the regions are to hold, in (0, 1).
        seed: Of the dealing.

    Returns:
        A :class:`CrossConformal`.

    Raises:
        TypeError: ``folds`` is no integer.
        ValueError: ``level`` outside (0, 1), lengths that differ, or more folds than rows.

    References:
        Vovk, V. (2015). Cross-conformal predictors. Annals of Mathematics and Artificial
        Intelligence 74. doi:10.1007/s10472-013-9368-4. Barber, R. F., Candès, E. J., Ramdas, A., &
        Tibshirani, R. J. (2021). Predictive inference with the jackknife+. Annals of Statistics 49.
        doi:10.1214/20-AOS1965
    """
    level, folds = probability("level", level), integer("folds", folds, 2)
    inputs, targets = as_values("x", x), as_values("y", y)
    paired(inputs, targets)
    if folds > len(targets):
        raise ValueError(f"folds={folds} and y has {len(targets)} rows: give at most as many.")
    dealt = np.random.default_rng(seed).permutation(len(targets)) % folds
    densities, scores = [], []
    for fold in range(folds):
        out = torch.from_numpy(dealt == fold)
        density = fit(inputs[~out], targets[~out])
        left_out = density(inputs[out])
        if supports(left_out, "circular"):
            raise ValueError("y is an angle: cross_calibrate is of numbers; use calibrate.")
        held = hdr_pit(left_out, observed_rows(left_out, targets[out]))
        densities.append(density)
        scores.append(tuple(held.tolist()))
    return CrossConformal(level, tuple(densities), tuple(scores))


def _overlap(ends: Tensor, needed: int, level: float, *, integer: bool) -> Region:
    """Give where at least ``needed`` of the intervals (N, R, 2) overlap, ends included."""
    height = ends.new_full((len(ends),), math.nan)
    if needed <= 0:
        line = ends.new_tensor([-math.inf, math.inf]).expand(len(ends), 1, 2)
        return Region(line, level, height, integer=integer)
    lower, upper = ends.unbind(-1)
    places = torch.cat([lower, upper], 1)  # (N, 2 R)
    change = torch.cat([torch.ones_like(lower), -torch.ones_like(upper)], 1)
    change = torch.where(places.isnan(), 0.0, change)
    places, order = places.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).sort(
        dim=1, stable=True
    )  # of equal places, lower ends come first
    depth = change.gather(1, order).cumsum(1)
    inside = depth >= needed - 0.5
    steps = F.pad(inside.to(torch.int8), (1, 1)).diff(dim=1)
    rows, starts = (steps[:, :-1] > 0).nonzero(as_tuple=True)
    stops = (steps[:, 1:] < 0).nonzero(as_tuple=True)[1] + 1
    stops = stops.clamp_max(places.shape[1] - 1)
    size = torch.bincount(rows, minlength=len(ends))
    at = torch.arange(len(rows)) - (size.cumsum(0) - size)[rows]
    laid = ends.new_full((len(ends), max(1, int(size.max())), 2), math.nan)
    laid[rows, at] = torch.stack([places[rows, starts], places[rows, stops]], -1)
    return Region(laid, level, height, integer=integer)
