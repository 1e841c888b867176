"""Whether to trust a density: calibration with its sampling bands, and what is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyralloy.answers import EntropyParts
from pyralloy.bands import ecdf_band, ecdf_steps, proportion_interval
from pyralloy.calibration import Report, Transforms, transforms
from pyralloy.checks import integer
from pyralloy.plot.axes import BLUE, INK, ORANGE, PALE, axes_of, column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["calibration", "calibration_along", "coverage", "reliability", "uncertainty"]

Array = NDArray[Any]


def calibration(
    density: Any,
    y: ArrayLike | Tensor | None = None,
    *,
    ax: Axes | None = None,
    level: float = 0.95,
) -> Axes:
    """Draw how far the PIT and the highest-density PIT are from uniform.

    The lines are their empirical distributions less the uniform one. Right densities keep each
    line inside the band, everywhere at once, with probability ``level``.

    Args:
        density: Densities of a scalar y, batch shape (N,), or what ``calibration.report`` takes; or
            a ``Report``.
        y: Observed values, shape (N,); None beside a ``Report``.
        ax: Where to draw; None makes a figure.
        level: Of the band, in (0, 1).

    Returns:
        The axes, with a legend.

    Raises:
        TypeError: ``y`` is missing.
        ValueError: As for ``calibration.report``.

    References:
        Säilynoja, T., Bürkner, P.-C., & Vehtari, A. (2022). Graphical test for discrete uniformity
        and its applications in goodness-of-fit evaluation and multiple sample comparison.
        Statistics and Computing 32. doi:10.1007/s11222-022-10090-6

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from pyro import distributions as dist
        >>> from pyralloy import Mixture
        >>> m = Mixture(dist.Categorical(torch.ones(99, 1)), dist.Normal(torch.zeros(99, 1), 1.0))
        >>> calibration(m, m.sample(), ax=Figure().subplots()).get_ylabel()
        'proportion of rows less probability'
    """
    found = _transforms(density, y)
    ax = axes_of(ax, "probability", "proportion of rows less probability")
    band = ecdf_band(len(found.pit), level)
    _band(
        ax,
        band.points,
        band.lower - band.points,
        band.upper - band.points,
        f"{100 * level:.0f} % band",
    )
    ax.axhline(0.0, color=INK, lw=0.8)
    for values, name, (color, ls) in (
        (found.pit, "PIT", (BLUE, "-")),
        (found.hdr, "highest-density PIT", (ORANGE, "--")),
    ):
        points = ecdf_band(len(values), level).points
        steps = ecdf_steps(values) - points
        ax.plot([0.0, *points, 1.0], [0.0, *steps, 0.0], lw=1.6, color=color, ls=ls, label=name)
    ax.set_xlim(0.0, 1.0)
    ax.legend(frameon=False)
    return ax


def coverage(
    density: Any,
    y: ArrayLike | Tensor | None = None,
    *,
    ax: Axes | None = None,
    level: float = 0.95,
) -> Axes:
    """Draw how often central intervals and highest-density regions hold y, at every probability.

    Args:
        density: As for :func:`calibration`.
        y: Observed values; None beside a ``Report``.
        ax: Where to draw; None makes a figure.
        level: Of the band, in (0, 1).

    Returns:
        The axes, with a legend.

    Raises:
        TypeError: ``y`` is missing.
        ValueError: As for ``calibration.report``.
    """
    found = _transforms(density, y)
    ax = axes_of(ax, "probability of the region", "proportion of rows inside")
    band = ecdf_band(len(found.pit), level)
    _band(ax, band.points, band.lower, band.upper, f"{100 * level:.0f} % band")
    ax.plot([0.0, 1.0], [0.0, 1.0], color=INK, lw=0.8)
    for values, name, (color, ls) in (
        (np.abs(2.0 * found.pit - 1.0), "central interval", (BLUE, "-")),
        (found.hdr, "highest-density region", (ORANGE, "--")),
    ):
        points = ecdf_band(len(values), level).points
        ax.plot(
            [0.0, *points, 1.0],
            [0.0, *ecdf_steps(values), 1.0],
            lw=1.6,
            color=color,
            ls=ls,
            label=name,
        )
    ax.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    ax.legend(frameon=False, loc="upper left")
    return ax


def reliability(
    density: Any, y: ArrayLike | Tensor | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw how often y lies below its predicted quantiles, with 95 % confidence intervals.

    Args:
        density: As for :func:`calibration`.
        y: Observed values; None beside a ``Report``.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes.

    Raises:
        TypeError: ``y`` is missing.
        ValueError: As for ``calibration.report``.
    """
    found = _transforms(density, y)
    ax = axes_of(ax, "level of the predicted quantile", "proportion of rows below it")
    levels = np.arange(1, 20) / 20.0
    n = len(found.pit)
    count = (found.pit <= levels[:, None]).sum(-1)
    lower, upper = proportion_interval(count, n)
    ax.plot([0.0, 1.0], [0.0, 1.0], color=INK, lw=0.8)
    ax.vlines(levels, lower, upper, color=BLUE, lw=1.4, label="95 % confidence interval")
    ax.plot(levels, count / n, "o", ms=4, color=BLUE, label="observed")
    ax.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    ax.legend(frameon=False, loc="upper left")
    return ax


def calibration_along(
    x: ArrayLike | Tensor,
    density: Any,
    y: ArrayLike | Tensor | None = None,
    *,
    ax: Axes | None = None,
    bins: int = 12,
    level: float = 0.95,
) -> Axes:
    """Draw where along a feature the density is wrong.

    The rows are put into bins of equal number along x. In each, the proportions of rows below the
    predicted 10, 50 and 90 % quantiles are drawn, with the band within which right densities keep
    each of them with probability ``level``.

    Args:
        x: The feature, or a prediction, shape (N,) or (N, 1).
        density: As for :func:`calibration`.
        y: Observed values; None beside a ``Report``.
        ax: Where to draw; None makes a figure.
        bins: Number of bins, at least 2.
        level: Of each band, in (0, 1).

    Returns:
        The axes, each quantile named beside them.

    Raises:
        TypeError: ``y`` is missing; ``bins`` is no integer.
        ValueError: Lengths that differ, or fewer than 5 rows a bin.
    """
    from scipy.stats import binom

    found, along = _transforms(density, y), column("x", x).double().numpy()
    count = integer("bins", bins, 2)
    if len(along) != len(found.pit) or len(along) < 5 * count:
        raise ValueError(
            f"x has {len(along)} rows, y has {len(found.pit)} and bins={count}: give one x a row, "
            "and at least 5 rows a bin."
        )
    ax = axes_of(ax, "x", "proportion of rows below quantile")
    parts = np.array_split(np.argsort(along, kind="stable"), count)
    edges = np.array([along[p[0]] for p in parts] + [along[parts[-1][-1]]])
    size = np.array([len(p) for p in parts])
    for goal, look in ((0.9, ":"), (0.5, "-"), (0.1, "--")):
        low, high = (
            binom.ppf(tail, size, goal) / size for tail in ((1 - level) / 2, (1 + level) / 2)
        )
        seen = np.array([(found.pit[p] <= goal).mean() for p in parts])
        lower, upper = _stairs(low), _stairs(high)
        label = f"{100 * level:.0f} % bands" if goal == 0.5 else None
        ax.fill_between(edges, lower, upper, step="post", color=PALE, lw=0, label=label)
        ax.axhline(goal, color=INK, lw=0.6)
        ax.step(edges, _stairs(seen), where="post", ls=look, color=BLUE, lw=1.8)
        at = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": "small"}
        ax.annotate(f"{100 * goal:.0f} %", (1.01, goal), **at)
    ax.set_ylim(0.0, 1.0)
    ax.legend(frameon=False, loc="center", bbox_to_anchor=(0.5, 0.3), fontsize="small")
    return ax


def uncertainty(parts: EntropyParts, *, ax: Axes | None = None) -> Axes:
    """Draw what is not known of the model against what is noise, a point a row.

    Args:
        parts: Of ``entropy_decomposition`` over draws or members: total, within and between, in
            nats, shape (N,) each.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: Parts of other than one dimension.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> parts = EntropyParts(torch.ones(3), torch.tensor([0.7, 0.8, 0.9]), torch.ones(3) * 0.2)
        >>> uncertainty(parts, ax=Figure().subplots()).get_xlabel()
        'aleatoric: entropy within members (nats)'
    """
    within, between = column("within", parts.within), column("between", parts.between)
    ax = axes_of(
        ax,
        "aleatoric: entropy within members (nats)",
        "epistemic: information between them (nats)",
    )
    dots = ax.scatter(within.numpy(), between.numpy(), s=8, color=BLUE, alpha=0.5, label="rows")
    dots.set(linewidths=0, rasterized=True)
    ax.set_ylim(bottom=0.0)
    return ax


def _transforms(density: Any, y: Any) -> Transforms:
    if isinstance(density, Report):
        return density.transforms
    if isinstance(density, Transforms):
        return density
    if y is None:
        raise TypeError("y is missing: give what was observed beside the densities, or a Report.")
    return transforms(density, y)


def _band(ax: Axes, points: Array, lower: Array, upper: Array, label: str) -> None:
    ax.fill_between(points, lower, upper, color=PALE, lw=0, label=label)


def _stairs(values: Array) -> Array:
    return np.append(values, values[-1])
