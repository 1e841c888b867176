"""Figures: each function draws on the axes it is given, or on new ones, and returns them.

Nothing is shown, no setting of Matplotlib is changed, and every figure keeps its meaning in grey:
what a colour says, a line style, an opacity or a lightness says too. Axes are called x and y unless
they have labels already; ``ax.set(xlabel="redshift", ylabel="distance (Mpc)")`` names them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyralloy.checks import as_values, integer, paired, positive
from pyralloy.mixture import Mixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from pyralloy.inference.fit import Fit

__all__ = ["components", "data", "density", "prior_predictive", "samples", "training"]

INK, BLUE, ORANGE = "0.25", "#0072b2", "#d55e00"
#: For components, whose opacity has a meaning: five hues of one lightness (L* = 40 in CIELAB).
HUES, LINE_WIDTH = ("#045cbb", "#b52600", "#026e00", "#a80ea1", "#715c00"), 3.0


def data(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    ax: Axes | None = None,
    size: float = 6.0,
    alpha: float = 0.5,
    color: str = INK,
    label: str | None = "data",
) -> Axes:
    """Draw the data as points.

    Args:
        x: Inputs, shape (N,) or (N, 1).
        y: Targets, likewise.
        ax: Where to draw; None makes a figure.
        size: Area of a point, in square points.
        alpha: Opacity of a point, in (0, 1].
        color: Colour of the points.
        label: Name in a legend; None for none.

    Returns:
        The axes.

    Raises:
        TypeError: Values that are not numeric.
        ValueError: Values not finite, of more than one column, or x and y of different length.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = data([0.0, 1.0], [2.0, 3.0], ax=Figure().subplots())
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('x', 'y')
    """
    x, y = _column("x", x), _column("y", y)
    paired(x, y)
    ax = _axes(ax)
    size, alpha = positive("size", size), positive("alpha", alpha, 1.0)
    dots = ax.scatter(x.numpy(), y.numpy(), s=size, alpha=alpha, color=color, label=label)
    dots.set(linewidths=0, rasterized=True)
    return ax


def samples(
    x: ArrayLike | Tensor,
    draws: ArrayLike | Tensor,
    *,
    ax: Axes | None = None,
    size: float = 3.0,
    alpha: float = 0.25,
    color: str = ORANGE,
    label: str | None = "samples",
) -> Axes:
    """Draw samples as points, for instance over the data.

    Args:
        x: Inputs, shape (N,) or (N, 1).
        draws: Samples at those inputs, shape (S, N), as ``Mixture.sample((S,))`` gives them, or
            (N,).
        ax: Where to draw; None makes a figure.
        size: Area of a point, in square points.
        alpha: Opacity of a point, in (0, 1].
        color: Colour of the points.
        label: Name in a legend; None for none.

    Returns:
        The axes.

    Raises:
        TypeError: Values that are not numeric.
        ValueError: ``draws`` has not one column for each x, or values are not finite.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = samples([0.0, 1.0], [[2.0, 3.0], [2.5, 3.5]], ax=Figure().subplots())
        >>> len(ax.collections[0].get_offsets())
        4
    """
    x, y = _column("x", x), as_values("draws", draws)
    if y.ndim > 2 or y.shape[-1] != x.shape[0]:
        raise ValueError(
            f"draws has shape {tuple(y.shape)}: give (S, {x.shape[0]}), one column for each x, "
            "as density.sample((S,)) does."
        )
    x, y = x.expand(y.shape).reshape(-1), y.reshape(-1)
    return data(x, y, ax=ax, size=size, alpha=alpha, color=color, label=label)


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

    x = _column("x", x)
    _rows_of(mixture, x)
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
    ax = _axes(ax)
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

    x, y = _grid("x", x), _grid("y", y)
    table = _density_table(x, y, density)
    top = positive("vmax", float(table.max()) if vmax is None else vmax)
    ax = _axes(ax)
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
    x = _column("x", x)
    shown = slice(integer("most", most))
    if not isinstance(densities, Mixture) or len(densities.batch_shape) != 2:
        raise TypeError(
            f"densities={densities!r}: give a Mixture of batch shape (S, N), for instance "
            "model.prior_densities(x)."
        )
    _rows_of(densities[0], x)
    lower, middle, upper = densities[shown].quantile([0.25, 0.5, 0.75]).cpu().numpy()
    ax = _axes(ax)
    for low, centre, high in zip(lower, middle, upper, strict=True):
        ax.fill_between(x.numpy(), low, high, color=color, alpha=0.08, linewidth=0)
        ax.plot(x.numpy(), centre, color=color, lw=1.0, alpha=0.7)
    return ax


def training(fit: Fit | Any, *, ax: Axes | None = None, limit: float | None = None) -> Axes:
    """Draw the negative log-likelihood over the steps of training.

    Two lines give it a scale: that of the marginal density of y, which ignores x, and, where the
    law is known, that of the exact conditional density, below which no model stays on fresh data.
    First steps that are far worse than the rest leave the figure through its top.

    Args:
        fit: A ``Fit``; or its ``history``, a table with columns step, train and validation.
        ax: Where to draw; None makes a figure.
        limit: Conditional entropy of y given x, in nats, where the problem's law is known.

    Returns:
        The axes, with a legend.

    Raises:
        TypeError: ``fit`` is neither a ``Fit`` nor a table with those columns.
        ValueError: The history is empty, or ``limit`` is not finite.

    Example:
        >>> from matplotlib.figure import Figure
        >>> table = np.rec.fromarrays(
        ...     [[0, 10, 20], [3.0, 2.0, 1.5], [3.1, 2.2, 1.9]], names="step,train,validation"
        ... )
        >>> training(table, limit=1.2, ax=Figure().subplots()).get_ylabel()
        'negative log-likelihood (nats per row)'
    """
    step, train, validation = _curves(getattr(fit, "history", fit))
    if limit is not None and not math.isfinite(limit):
        raise ValueError(f"limit={limit!r}: give a finite entropy in nats, or None.")
    marginal = getattr(fit, "marginal", None)
    ax = _axes(ax, "training step", "negative log-likelihood (nats per row)")
    if marginal is not None:
        ax.axhline(marginal, color=INK, lw=1.0, ls="--", label="marginal density of y")
    held_out = np.isfinite(validation)
    ax.plot(step, train, color=BLUE, lw=0.9, alpha=0.6, label="training")
    if held_out.any():
        ax.plot(step[held_out], validation[held_out], color=ORANGE, lw=1.8, label="validation")
        best = getattr(fit, "best_step", step[held_out][np.argmin(validation[held_out])])
        at = np.interp(best, step[held_out], validation[held_out])
        name = f"best step: {int(best):,}"
        ax.plot([best], [at], "o", ms=7, mfc="white", mec=ORANGE, mew=1.8, ls="none", label=name)
    if limit is not None:
        ax.axhline(limit, color=INK, lw=1.2, ls=":", label="exact density: the limit")
    lines = [v for v in (marginal, limit) if v is not None]
    _limit_height(ax, np.concatenate([train, validation]), lines)
    ax.set_xlim(0, max(1.0, step.max()))
    ax.legend(frameon=False)
    return ax


def _limit_height(ax: Axes, values: NDArray[Any], lines: list[float]) -> None:
    """End the y axis where the first, bad steps of training would stretch it."""
    values = values[np.isfinite(values)]
    low, high = min([values.min(), *lines]), max([np.quantile(values, 0.98), *lines])
    margin = 0.06 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)


def _curves(history: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    try:
        step, train, validation = (
            np.asarray(history[name], dtype=float) for name in ("step", "train", "validation")
        )
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise TypeError(
            f"fit is {type(history).__name__}: give a Fit, or a table with the columns step, "
            "train and validation."
        ) from error
    if not np.isfinite(train).any():
        raise ValueError("fit has an empty history: train for at least one step.")
    return step, train, validation


def _density_table(x: Tensor, y: Tensor, density: Any) -> NDArray[Any]:
    """Give the density values, shape (H, G)."""
    if isinstance(density, Mixture):
        _rows_of(density, x)
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


def _rows_of(mixture: Any, x: Tensor) -> None:
    if not isinstance(mixture, Mixture):
        raise TypeError(f"mixture is {type(mixture).__name__}: give a Mixture, fit.density(x).")
    if mixture.event_shape:
        raise ValueError(
            f"mixture has event_shape {tuple(mixture.event_shape)}: draw one dimension of y at a "
            "time, mixture.marginal(dim)."
        )
    if mixture.batch_shape != x.shape:
        raise ValueError(
            f"mixture has batch_shape {tuple(mixture.batch_shape)} and x has {x.shape[0]} rows: "
            "give the densities at those x, fit.density(x)."
        )


def _column(name: str, values: Any) -> Tensor:
    """Give one column of values on the CPU, shape (N,)."""
    column = as_values(name, values).cpu()
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(column.shape)}: give (N,) or (N, 1).")
    return column


def _grid(name: str, values: Any) -> Tensor:
    grid = _column(name, values)
    if grid.shape[0] < 2 or not bool((grid.diff() > 0).all()):
        raise ValueError(f"{name} is no grid: give at least 2 values, each above the one before.")
    return grid


def _paper_map() -> Colormap:
    """Give magma reversed, with its light end faded to white: paper stays paper.

    The lightness falls from 100 to 0 all along the map, so that a print in grey keeps the order.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    level = np.linspace(0.0, 1.0, 256)
    fade = np.clip(1.0 - level / 0.2, 0.0, 1.0)[:, None]
    return ListedColormap(fade + (1.0 - fade) * colormaps["magma_r"](level), name="paper")


def _axes(ax: Axes | None, x_label: str = "x", y_label: str = "y") -> Axes:
    """Label what is not labelled yet, on new axes where none are given."""
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    ax.set_xlabel(ax.get_xlabel() or x_label)
    ax.set_ylabel(ax.get_ylabel() or y_label)
    return ax
