r"""Regions and intervals that hold what they say, whatever the density.

A conformal region of level 0.9 holds a new y with probability at least 0.9, and at most
:math:`0.9 + 1 / (n + 1)` where scores do not tie (those of counts do), over the draw of the n
calibration rows and of the new one. The only assumption is that they are exchangeable, as
independent rows of one source are. The density may be wrong; a better one gives smaller regions.
The probability is an average over x, unless groups are named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from pyralloy.answers import Interval
from pyralloy.checks import probability
from pyralloy.conformal_levels import NEAREST_ONE, observed_rows, region_of, score_quantile
from pyralloy.content import hdr_pit
from pyralloy.cross_conformal import CrossConformal, cross_calibrate
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
            (rows, region_of(density[rows], self.levels[group]))
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
    observed = observed_rows(density, y)
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
    observed = observed_rows(density, y)
    lower, upper = density.interval(level)
    scores = torch.maximum(lower - observed, observed - upper)
    return ConformalIntervals(
        level, _by_group(scores, groups, level), _counts(groups, len(observed))
    )


def _by_group(scores: Tensor, groups: Any, level: float) -> dict[Any, float]:
    if groups is None:
        return {EVERY: float(score_quantile(scores, level))}
    labels = _labels(groups, len(scores))
    return {
        g: float(score_quantile(scores[torch.from_numpy(labels == g)], level))
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


def _asked(asked: float, rows: int, level: float) -> str:
    least = math.ceil(level / (1.0 - level) - 1e-9)
    if rows < least:
        return f"the whole line: {least} rows are the least for this level"
    if asked > 1.0 - NEAREST_ONE:
        return "the whole line: the density gives y next to no probability; recalibrate it first"
    return f"the density's own region of level {asked:.3f}"
