r"""Regions and intervals that hold what they say, whatever the density.

A conformal region of level 0.9 holds a new y with probability at least 0.9, and at most
:math:`0.9 + 1 / (n + 1)`, over the draw of the n calibration rows and of the new one: the only
assumption is that they are exchangeable, as independent rows of one source are. The density may be
wrong; a better one gives smaller regions. The probability is an average over x, unless groups are
named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from pyralloy.answers import Interval
from pyralloy.checks import as_values, integer, paired, probability
from pyralloy.content import hdr_pit
from pyralloy.families import family_of
from pyralloy.mixture import Mixture
from pyralloy.recalibration import RecalibratedDensity, Recalibration, recalibrate
from pyralloy.regions import Region

__all__ = [
    "ConformalIntervals",
    "ConformalRegions",
    "CrossConformal",
    "RecalibratedDensity",
    "Recalibration",
    "calibrate",
    "calibrate_intervals",
    "cross_calibrate",
    "recalibrate",
]

#: A level nearer to one than this is beyond what a region can be found for: the whole line.
NEAREST_ONE = 1e-7
#: The group of all rows, where none are named.
EVERY = "all rows"


@dataclass(frozen=True, eq=False)
class ConformalRegions:
    """Highest-density regions whose level was adjusted until they held what they say.

    Attributes:
        level: What they hold, at least.
        levels: The level asked of the density instead, of each group; 1 is the whole line.
        rows: Calibration rows of each group.
    """

    level: float
    levels: dict[Any, float]
    rows: dict[Any, int]

    def region(self, density: Any, groups: ArrayLike | None = None) -> Region:
        """Give the region of each row: a union of intervals.

        Args:
            density: New densities of the same model, batch shape (N,).
            groups: Their groups, (N,), where the calibration rows had groups.

        Returns:
            A :class:`~pyralloy.regions.Region` of batch shape (N,), whose ``level`` is what it
            holds. A row of a group with too few calibration rows is the whole line.

        Raises:
            ValueError: Groups missing, unasked for, unknown, or of another length.
        """
        parts = [
            (rows, _region(density[rows], self.levels[group]))
            for group, rows in _grouped(groups, self.levels, density.batch_shape)
        ]
        return _assemble(parts, self.level, density.batch_shape[0])

    def __str__(self) -> str:
        head = f"Conformal highest-density regions that hold {self.level:.1%} or more"
        said = [
            f"{group}: {rows:,} calibration rows, {_asked(self.levels[group], rows, self.level)}"
            for group, rows in self.rows.items()
        ]
        return "\n".join([head, *said])


@dataclass(frozen=True, eq=False)
class ConformalIntervals:
    """Equal-tailed intervals, widened or narrowed by a margin until they held what they say.

    Attributes:
        level: What they hold, at least.
        margins: Added at both ends, in y's units, of each group; infinite for too few rows.
        rows: Calibration rows of each group.
    """

    level: float
    margins: dict[Any, float]
    rows: dict[Any, int]

    def interval(self, density: Any, groups: ArrayLike | None = None) -> Interval:
        """Give the interval of each row.

        Args:
            density: New densities of the same model, batch shape (N,).
            groups: Their groups, (N,), where the calibration rows had groups.

        Returns:
            ``(lower, upper)``, each (N,), in y's units. Ends that a negative margin would make
            cross both lie at the middle.

        Raises:
            ValueError: As for :meth:`ConformalRegions.region`.
        """
        lower, upper = density.interval(self.level)
        margin = torch.empty_like(lower)
        for group, rows in _grouped(groups, self.margins, density.batch_shape):
            margin[rows] = self.margins[group]
        middle = (lower + upper) / 2.0
        return Interval(
            torch.minimum(lower - margin, middle), torch.maximum(upper + margin, middle)
        )

    def __str__(self) -> str:
        head = f"Conformal intervals that hold {self.level:.1%} or more"
        said = [
            f"{group}: {rows:,} calibration rows, a margin of {self.margins[group]:.4g} at each end"
            for group, rows in self.rows.items()
        ]
        return "\n".join([head, *said])


def calibrate(
    density: Any, y: ArrayLike | Tensor, *, level: float = 0.9, groups: ArrayLike | None = None
) -> ConformalRegions:
    r"""Adjust the level of highest-density regions on rows that the density was not fitted on.

    The score of a row is :math:`H(y) = P\{p(Y) \ge p(y)\}`, the level of the region on whose
    boundary y lies. With q the :math:`\lceil (n + 1)\,\text{level} \rceil`-th smallest of n scores,
    the density's own region of level q holds a new y with probability ``level`` or more. Where
    there are fewer rows than that (n below ``level / (1 - level)``), only the whole line does.

    Args:
        density: Densities of a scalar y, batch shape (N,).
        y: Observed values, shape (N,).
        level: What the regions are to hold, in (0, 1).
        groups: A label of each row, (N,); each group is calibrated by itself, so that its regions
            hold what they say within the group (Mondrian).

    Returns:
        A :class:`ConformalRegions`.

    Raises:
        ValueError: ``level`` outside (0, 1), lengths that differ, or densities of a vector.

    References:
        Izbicki, R., Shimizu, G., & Stern, R. B. (2022). CD-split and HPD-split: efficient conformal
        regions in high dimensions. JMLR 23. https://jmlr.org/papers/v23/20-797.html. Vovk, V.,
        Gammerman, A., & Shafer, G. (2005). Algorithmic Learning in a Random World. Springer.
        doi:10.1007/b106715

    Example:
        >>> from pyro import distributions as dist
        >>> from pyralloy import Mixture
        >>> loc = torch.zeros(999, 1)
        >>> narrow = Mixture(dist.Categorical(torch.ones(999, 1)), dist.Normal(loc, 0.7))
        >>> y = torch.randn(999, generator=torch.Generator().manual_seed(0))
        >>> regions = calibrate(narrow, y)
        >>> print(regions)
        Conformal highest-density regions that hold 90.0% or more
        all rows: 999 calibration rows, the density's own region of level 0.982
        >>> regions.region(narrow[:1]).intervals.round(decimals=1).tolist()
        [[[-1.7, 1.7]]]
    """
    level = probability("level", level)
    observed = _observed(density, y)
    own = getattr(density, "hdr_pit", None)
    scores = own(observed) if own is not None else hdr_pit(density, observed)
    levels = _by_group(scores, groups, level)
    counts = _counts(groups, len(observed))
    return ConformalRegions(level, {g: min(q, 1.0) for g, q in levels.items()}, counts)


def calibrate_intervals(
    density: Any, y: ArrayLike | Tensor, *, level: float = 0.9, groups: ArrayLike | None = None
) -> ConformalIntervals:
    r"""Find the margin that makes equal-tailed intervals hold what they say (CQR).

    The score of a row is :math:`\max(l - y, y - u)`, how far y is outside its interval; the margin
    is the :math:`\lceil (n + 1)\,\text{level} \rceil`-th smallest of n scores. Where y has several
    branches :func:`calibrate` gives smaller regions.

    Args:
        density: Densities of a scalar y, batch shape (N,).
        y: Observed values, shape (N,).
        level: What the intervals are to hold, in (0, 1).
        groups: A label of each row, (N,), as for :func:`calibrate`.

    Returns:
        A :class:`ConformalIntervals`.

    Raises:
        ValueError: ``level`` outside (0, 1), lengths that differ, or densities of a vector.

    References:
        Romano, Y., Patterson, E., & Candès, E. J. (2019). Conformalized quantile regression.
        NeurIPS. arXiv:1905.03222
    """
    level = probability("level", level)
    observed = _observed(density, y)
    lower, upper = density.interval(level)
    scores = torch.maximum(lower - observed, observed - upper)
    return ConformalIntervals(
        level, _by_group(scores, groups, level), _counts(groups, len(observed))
    )


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
        needed = self.rows + 1 - _rank(self.rows, self.level)
        ends, counts = [], False
        for density, scores in zip(self.densities, self.scores, strict=True):
            new = density(x)
            counts = _support(new, "integer")
            ends += [_region(new, score).intervals for score in scores]  # of (N, R, 2)
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
        if _support(left_out, "circular"):
            raise ValueError("y is an angle: cross_calibrate is of numbers; use calibrate.")
        held = hdr_pit(left_out, _observed(left_out, targets[out]))
        densities.append(density)
        scores.append(tuple(held.tolist()))
    return CrossConformal(level, tuple(densities), tuple(scores))


def _observed(density: Any, y: Any) -> Tensor:
    if tuple(density.event_shape):
        raise ValueError(
            f"density has event_shape {tuple(density.event_shape)}: calibrate one dimension at a "
            "time, density.marginal(dim)."
        )
    observed = as_values("y", y)
    if len(density.batch_shape) != 1 or observed.shape != density.batch_shape:
        raise ValueError(
            f"y has shape {tuple(observed.shape)} and density batch_shape "
            f"{tuple(density.batch_shape)}: give one row of each, (N,)."
        )
    return observed.to(density.logits)


def _quantile(scores: Tensor, level: float) -> float:
    """Give the ceil((n + 1) level)-th smallest score; infinite where n is less than that."""
    rank = _rank(len(scores), level)
    return math.inf if rank > len(scores) else float(scores.sort().values[rank - 1])


def _rank(rows: int, level: float) -> int:
    # A hair less, so that (n + 1) level is not carried over a whole number by its rounding.
    return math.ceil((rows + 1) * level - 1e-9)


def _by_group(scores: Tensor, groups: Any, level: float) -> dict[Any, float]:
    if groups is None:
        return {EVERY: _quantile(scores, level)}
    labels = _labels(groups, len(scores))
    return {
        g: _quantile(scores[torch.from_numpy(labels == g)], level)
        for g in np.unique(labels).tolist()
    }


def _counts(groups: Any, rows: int) -> dict[Any, int]:
    if groups is None:
        return {EVERY: rows}
    found, counts = np.unique(_labels(groups, rows), return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _labels(groups: Any, rows: int) -> NDArray[Any]:
    labels = np.asarray(groups)
    if labels.shape != (rows,):
        raise ValueError(f"groups has shape {labels.shape}: give one label a row, ({rows},).")
    return labels


def _grouped(groups: Any, known: dict[Any, Any], shape: Any) -> Iterator[tuple[Any, Tensor]]:
    """Give each group that is there with its rows."""
    rows = shape[0]
    if (groups is None) != (list(known) == [EVERY]):
        wanted = "without groups" if groups is not None else f"on the groups {list(known)}"
        raise ValueError(f"groups={groups!r}, but the rows were calibrated {wanted}: do the same.")
    if groups is None:
        yield EVERY, torch.arange(rows)
        return
    labels = _labels(groups, rows)
    for group in np.unique(labels).tolist():
        if group not in known:
            raise ValueError(
                f"groups holds {group!r}, on which nothing was calibrated: {list(known)}."
            )
        yield group, torch.from_numpy(np.flatnonzero(labels == group))


def _region(density: Any, level: float) -> Region:
    """Give the region of a level that may be 0 or 1."""
    if level > 1.0 - NEAREST_ONE:
        rows, circular = len(density.logits), _support(density, "circular")
        end = math.pi if circular else math.inf
        line = density.logits.new_tensor([-end, end]).expand(rows, 1, 2)
        height = density.logits.new_full((rows,), -math.inf)
        return Region(line, level, height, circular, _support(density, "integer"))
    return density.highest_density_region(max(level, NEAREST_ONE))


def _support(density: Any, kind: str) -> bool:
    if not isinstance(density, Mixture):
        return False
    return bool(getattr(family_of(density.components).support, kind))


def _assemble(parts: list[tuple[Tensor, Region]], level: float, rows: int) -> Region:
    """Put the regions of groups back in the order of the rows."""
    first = parts[0][1]
    width = max(part.intervals.shape[1] for _, part in parts)
    ends = first.intervals.new_full((rows, width, 2), math.nan)
    height = first.intervals.new_full((rows,), math.nan)
    for where, part in parts:
        ends[where] = F.pad(
            part.intervals, (0, 0, 0, width - part.intervals.shape[1]), value=math.nan
        )
        height[where] = part.log_density.to(height)
    circular, whole = (any(getattr(p, k) for _, p in parts) for k in ("circular", "integer"))
    return Region(ends, level, height, circular, whole)


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


def _asked(asked: float, rows: int, level: float) -> str:
    least = math.ceil(level / (1.0 - level) - 1e-9)
    if rows < least:
        return f"the whole line: {least} rows are the least for this level"
    if asked > 1.0 - NEAREST_ONE:
        return "the whole line: the density gives y next to no probability; recalibrate it first"
    return f"the density's own region of level {asked:.3f}"
