"""Densities over x: components, the density itself and its regions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyralloy.checks import as_values, integer, positive
from pyralloy.mixture import Mixture
from pyralloy.plot.axes import BLUE, HUES, axes_of, column, grid, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from pyralloy.regions import Region

__all__ = ["components", "density", "prior_predictive", "regions", "ridges"]

LINE_WIDTH = 3.0


def components(
    x: ArrayLike | Tensor, mixture: Mixture, *, ax: Axes | None = None, threshold: float = 0.01
) -> Axes:
    """Draw the mean of each component over x, as opaque as its weight is large.

    Where a weight is below ``threshold`` the mean is not drawn: the likelihood hardly constrains it
    there. The opacity is the square root of the weight; colours only tell components apart.

    Args:
        x: Inputs, shape (N,) or (N, 1), in any order; lines join neighbours.
        mixture: Densities of a scalar y at those inputs, batch shape (N,).
        ax: Where to draw; None makes a figure.
        threshold: Smallest weight drawn, in [0, 1).

    Returns:
        The axes, with one line collection for each component that is seen, and a key of weights
        for ``ax.legend()``.

    Raises:
        ValueError: ``mixture`` has not one row for each x, is of a vector, or has one row only;
            ``threshold`` outside [0, 1).

    Example:
        >>> from matplotlib.figure import Figure
        >>> from pyro import distributions as dist
        >>> logits, loc = torch.zeros(5, 2), torch.tensor([-1.0, 1.0]).expand(5, 2)
        >>> m = Mixture(dist.Categorical(logits=logits), dist.Normal(loc, 1.0))
        >>> len(components(torch.arange(5.0), m, ax=Figure().subplots()).collections)
        2
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba_array

    x = column("x", x)
    rows_of(mixture, x)
    if x.shape[0] < 2:
        raise ValueError("x has 1 row: give at least 2, so that there is a line to draw.")
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold={threshold!r}: give the smallest weight drawn, in [0, 1).")
    order = torch.argsort(x)
    with torch.no_grad():
        loc = mixture.components.mean.expand(*mixture.batch_shape, mixture.num_components)
        loc, weights = (v.cpu()[order].numpy() for v in (loc, mixture.weights))  # (N, K)
    points = np.stack([np.broadcast_to(x[order, None].numpy(), loc.shape), loc], -1)  # (N, K, 2)
    seen = np.minimum(weights[:-1], weights[1:]) >= threshold  # (N - 1, K)
    opacity = np.where(seen, np.sqrt(0.5 * (weights[:-1] + weights[1:])), 0.0)
    # Short translucent pieces blur where they meet: equal steps of opacity are drawn as one line.
    opacity = np.round(32.0 * opacity) / 32.0
    shown = np.flatnonzero(opacity.any(0))
    height = (weights * loc).sum(0) / np.maximum(weights.sum(0), np.finfo(weights.dtype).tiny)
    ax = axes_of(ax)
    for place, k in enumerate(shown[np.argsort(height[shown])]):
        cuts = np.flatnonzero(np.diff(opacity[:, k])) + 1
        runs = [r for r in np.split(np.arange(len(opacity)), cuts) if opacity[r[0], k] > 0]
        lines = [points[r[0] : r[-1] + 2, k] for r in runs]
        colors = to_rgba_array(HUES[place % len(HUES)], [opacity[r[0], k] for r in runs])
        drawn = LineCollection(lines, colors=colors, linewidths=LINE_WIDTH, capstyle="butt")
        ax.add_collection(drawn)
    for weight in (1.0, 0.2, 0.05):
        name, strength = f"weight {weight:g}", math.sqrt(weight)
        ax.plot([], [], color="0", alpha=strength, lw=LINE_WIDTH, label=name)
    ax.autoscale_view()
    return ax


def density(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    density: Mixture | ArrayLike | Tensor,
    *,
    ax: Axes | None = None,
    vmax: float | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a conditional density as a heat map: each column is the density of y at one x.

    The lightness follows the square root of the density, which shows ridges and their flanks in
    one picture. Give two panels one ``vmax`` and their shades compare.

    Args:
        x: Grid of inputs, shape (G,) or (G, 1), increasing.
        y: Grid of targets, shape (H,), increasing.
        density: Densities of a scalar y at the grid of inputs, batch shape (G,); or a matrix of
            density values, shape (H, G), for instance ``log_density(x, y[:, None]).exp()``.
        ax: Where to draw; None makes a figure.
        vmax: Density at the dark end; None takes the largest on the grid.
        colorbar: Whether to draw a colour bar beside the axes.

    Returns:
        The axes; ``ax.collections[-1]`` is the mesh, for a colour bar that panels share or for
        another colour map.

    Raises:
        ValueError: A grid that does not increase, a matrix of another shape, negative or not
            finite, a mixture of another batch, or a ``vmax`` not above 0.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from pyro import distributions as dist
        >>> m = Mixture(dist.Categorical(torch.ones(9, 1)), dist.Normal(torch.zeros(9, 1), 1.0))
        >>> grid = torch.linspace(-3.0, 3.0, 50)
        >>> ax = density(torch.arange(9.0), grid, m, ax=Figure().subplots(), colorbar=False)
        >>> ax.collections[-1].get_array().shape
        (50, 9)
    """
    from matplotlib.colors import PowerNorm

    x, y = grid("x", x), grid("y", y)
    table = _density_table(x, y, density)
    top = positive("vmax", float(table.max()) if vmax is None else vmax)
    ax = axes_of(ax)
    norm = PowerNorm(0.5, 0.0, top)
    mesh = ax.pcolormesh(
        x.numpy(),
        y.numpy(),
        table,
        norm=norm,
        cmap=_paper_map(),
        shading="nearest",
        rasterized=True,
    )
    if colorbar:
        extend = "max" if table.max() > top else "neither"
        label = "density of y given x (per unit of y)"
        ax.figure.colorbar(mesh, ax=ax, label=label, extend=extend)
    return ax


def prior_predictive(
    x: ArrayLike | Tensor,
    densities: Mixture,
    *,
    ax: Axes | None = None,
    most: int = 12,
    color: str = BLUE,
) -> Axes:
    """Draw what a prior, or a posterior, holds possible: of each draw its median and half its mass.

    Args:
        x: Inputs, shape (N,) or (N, 1), in order.
        densities: Of batch shape (S, N), as ``model.prior_densities(x)`` and ``fit.densities(x)``
            give them.
        ax: Where to draw; None makes a figure.
        most: Draws to show at most.
        color: Colour of the draws.

    Returns:
        The axes.

    Raises:
        TypeError: ``densities`` is no ``Mixture``, or ``most`` no integer.
        ValueError: Densities of a vector y, or not of those x.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from pyralloy import MDN, MixtureHead, networks, priors
        >>> model = MDN(networks.MLP(1, (8,)), MixtureHead(8, 3), prior=priors.FanIn())
        >>> x = torch.linspace(-2.0, 2.0, 9)
        >>> ax = prior_predictive(x, model.prior_densities(x, draws=5), ax=Figure().subplots())
        >>> len(ax.lines)
        5
    """
    x = column("x", x)
    shown = slice(integer("most", most))
    if not isinstance(densities, Mixture) or len(densities.batch_shape) != 2:
        raise TypeError(
            f"densities={densities!r}: give a Mixture of batch shape (S, N), for instance "
            "model.prior_densities(x)."
        )
    rows_of(densities[0], x)
    lower, middle, upper = densities[shown].quantile([0.25, 0.5, 0.75]).cpu().numpy()
    ax = axes_of(ax)
    for low, centre, high in zip(lower, middle, upper, strict=True):
        ax.fill_between(x.numpy(), low, high, color=color, alpha=0.08, linewidth=0)
        ax.plot(x.numpy(), centre, color=color, lw=1.0, alpha=0.7)
    return ax


def ridges(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    density: Mixture | ArrayLike | Tensor,
    *,
    ax: Axes | None = None,
    height: float = 0.9,
    color: str = BLUE,
) -> Axes:
    """Draw the densities at a few x as curves that stand on those x and rise to the right.

    All have one scale, so that a sharp density is seen to be sharp: the highest of them rises by
    ``height`` times the least gap between two x.

    Args:
        x: Inputs, shape (G,), increasing; a dozen or so.
        y: Grid of targets, shape (H,), increasing.
        density: Densities of a scalar y at those inputs, batch shape (G,), or a matrix (H, G).
        ax: Where to draw; None makes a figure.
        height: Rise of the highest, in gaps of x.
        color: Colour of the curves, whose fill is pale.

    Returns:
        The axes.

    Raises:
        ValueError: As for :func:`density`.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from pyro import distributions as dist
        >>> m = Mixture(dist.Categorical(torch.ones(3, 1)), dist.Normal(torch.zeros(3, 1), 1.0))
        >>> ax = ridges(torch.arange(3.0), torch.linspace(-3, 3, 50), m, ax=Figure().subplots())
        >>> len(ax.lines)
        3
    """
    x, y = grid("x", x), grid("y", y)
    table = _density_table(x, y, density)
    rise = positive("height", height) * float(x.diff().min()) / max(float(table.max()), 1e-300)
    ax = axes_of(ax)
    for place, values in zip(x.tolist(), table.T, strict=True):
        edge = place + rise * values
        ax.fill_betweenx(y.numpy(), place, edge, color=color, alpha=0.25, lw=0)
        ax.plot(edge, y.numpy(), color=color, lw=1.2)
    return ax


def regions(
    x: ArrayLike | Tensor,
    region: Region,
    *,
    ax: Axes | None = None,
    color: str = BLUE,
    alpha: float = 0.3,
    label: str | None = None,
) -> Axes:
    """Draw the region of each x: bars where y is to be expected, with their gaps.

    Args:
        x: Inputs, shape (N,) or (N, 1), in any order; a bar reaches half way to its neighbours.
        region: From ``highest_density_region`` or ``conformal``, batch shape (N,).
        ax: Where to draw; None makes a figure.
        color: Colour of the bars.
        alpha: Their opacity, in (0, 1].
        label: Name in a legend; None names the probability that the region holds.

    Returns:
        The axes. Infinite ends are drawn as far as the finite ones reach.

    Raises:
        ValueError: ``region`` has not one row for each x.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from pyralloy.regions import Region
        >>> r = Region(torch.tensor([[[0.0, 1.0]], [[0.5, 2.0]]]), 0.9, torch.zeros(2))
        >>> ax = regions([0.0, 1.0], r, ax=Figure().subplots())
        >>> len(ax.collections[0].get_paths())
        2
    """
    from matplotlib.collections import PolyCollection

    x = column("x", x)
    if tuple(region.batch_shape) != tuple(x.shape):
        raise ValueError(
            f"region has batch_shape {tuple(region.batch_shape)} and x has {x.shape[0]} rows: give "
            "the regions at those x."
        )
    order = torch.argsort(x)
    at = x[order].double().numpy()
    ends = region.intervals.detach().cpu()[order].double().numpy()  # (N, R, 2)
    finite = ends[np.isfinite(ends)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    ends = np.where(np.isinf(ends), np.where(ends > 0, high, low), ends)
    middle = (at[1:] + at[:-1]) / 2.0
    left, right = np.concatenate([at[:1], middle]), np.concatenate([middle, at[-1:]])
    bars = [
        [(left[i], a), (right[i], a), (right[i], b), (left[i], b)]
        for i, row in enumerate(ends)
        for a, b in row
        if not math.isnan(a)
    ]
    ax = axes_of(ax)
    name = f"{100 * region.level:.3g} % region" if label is None else label
    drawn = PolyCollection(bars, facecolor=color, alpha=positive("alpha", alpha, 1.0), label=name)
    drawn.set(linewidths=0, rasterized=True)
    ax.add_collection(drawn)
    ax.autoscale_view()
    return ax


def _density_table(x: Tensor, y: Tensor, density: Any) -> NDArray[Any]:
    """Give the density values, shape (H, G)."""
    if isinstance(density, Mixture):
        rows_of(density, x)
        with torch.no_grad():
            rows = [density.log_prob(at) for at in y.to(density.logits)]  # H of (G,)
            return torch.stack(rows).exp().cpu().numpy()
    table = as_values("density", density).cpu()
    if table.shape != (y.shape[0], x.shape[0]):
        raise ValueError(
            f"density has shape {tuple(table.shape)}: give a matrix of shape "
            f"({y.shape[0]}, {x.shape[0]}), a row for each y and a column for each x."
        )
    if bool((table < 0).any()):
        raise ValueError("density holds negative values: give densities, not their logs.")
    return table.numpy()


def _paper_map() -> Colormap:
    """Give magma reversed, with its light end faded to white: paper stays paper.

    The lightness falls from 100 to 0 all along the map, so that a print in grey keeps the order.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    level = np.linspace(0.0, 1.0, 256)
    fade = np.clip(1.0 - level / 0.2, 0.0, 1.0)[:, None]
    return ListedColormap(fade + (1.0 - fade) * colormaps["magma_r"](level), name="paper")
