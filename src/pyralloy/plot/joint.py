"""A density of a vector: each dimension, and each pair of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyralloy.checks import as_values
from pyralloy.mixture import Mixture
from pyralloy.plot.axes import BLUE, INK, ORANGE

__all__ = ["corner"]

#: Points of a grid along one dimension, and the probability left out at each end of it.
POINTS, TAIL = 120, 1e-3
LEVELS = (0.9, 0.5)


def corner(
    density: Mixture,
    *,
    ax: NDArray[Any] | None = None,
    y: ArrayLike | Tensor | None = None,
    names: Sequence[str] | None = None,
) -> NDArray[Any]:
    """Draw a density of a vector: its dimensions on the diagonal, pairs of them below.

    Nothing is drawn from draws: the margins are mixtures too. Contours hold 50 and 90 % of the
    probability.

    Args:
        density: Of one row, batch shape () or (1,), event shape (D,).
        ax: Axes to draw on, an array of shape (D, D), as ``plt.subplots(D, D)`` gives it; None
            makes a figure.
        y: What was observed, shape (D,), drawn as lines and a cross.
        names: Names of the dimensions, with units; None calls them y0, y1, ...

    Returns:
        The axes, shape (D, D); those above the diagonal are empty.

    Raises:
        ValueError: More than one row, a scalar, or axes of another shape.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from pyro import distributions as dist
        >>> normal = dist.Normal(torch.zeros(1, 2), 1.0).to_event(1)
        >>> m = Mixture(dist.Categorical(torch.ones(1)), normal)
        >>> corner(m, ax=Figure().subplots(2, 2)).shape
        (2, 2)
    """
    if len(density.event_shape) != 1 or density.batch_shape.numel() != 1:
        raise ValueError(
            f"density has batch_shape {tuple(density.batch_shape)} and event_shape "
            f"{tuple(density.event_shape)}: give one row of a vector density, density[i]."
        )
    row = density.detach().to(torch.float64).reshape(1)
    dims = row.event_shape[0]
    named = [f"y{i}" for i in range(dims)] if names is None else list(names)
    seen = None if y is None else as_values("y", y).reshape(-1).double().numpy()
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(
            dims, dims, figsize=(2.2 * dims, 2.2 * dims), layout="constrained", squeeze=False
        )
    axes = np.asarray(ax)
    if axes.shape != (dims, dims):
        raise ValueError(f"ax has shape {axes.shape}: give ({dims}, {dims}) axes.")
    margins = [row.marginal(i) for i in range(dims)]
    ends = [m.quantile([TAIL, 1.0 - TAIL])[:, 0] for m in margins]
    grids = [torch.linspace(float(a), float(b), POINTS, dtype=torch.float64) for a, b in ends]
    for i in range(dims):
        for j in range(dims):
            each = axes[i, j]
            if j > i:
                each.set_axis_off()
                continue
            _panel(each, row, (j, i), grids)
            if seen is not None:
                _mark(each, seen, (j, i))
            each.set_xlabel(named[j] if i == dims - 1 else "")
            each.set_ylabel("density" if i == j == 0 else named[i] if j == 0 else "")
    return axes


def _panel(ax: Any, row: Mixture, pair: tuple[int, int], grids: list[Tensor]) -> None:
    j, i = pair
    if i == j:
        height = row.marginal(i).log_prob(grids[i][:, None])[:, 0].exp()
        ax.plot(grids[i].numpy(), height.numpy(), color=BLUE, lw=1.6)
        ax.set_ylim(bottom=0.0)
        return
    across, up = torch.meshgrid(grids[j], grids[i], indexing="xy")  # (H, W)
    points = torch.stack([across, up], -1)[..., None, :]  # (H, W, 1, 2)
    p = row.marginal([j, i]).log_prob(points)[..., 0].exp().numpy()
    heights = np.sort(p, axis=None)[::-1]
    held = np.cumsum(heights) / heights.sum()
    cuts = [float(heights[np.searchsorted(held, level)]) for level in LEVELS]
    ax.contourf(across, up, p, [*cuts, p.max() * 1.001], colors=["0.85", "0.65"])
    ax.contour(across, up, p, cuts, colors=[BLUE], linewidths=[0.8, 1.4])


def _mark(ax: Any, seen: NDArray[Any], pair: tuple[int, int]) -> None:
    j, i = pair
    if i == j:
        ax.axvline(seen[i], color=ORANGE, lw=1.2, ls="--")
    else:
        ax.plot(seen[j], seen[i], "x", color=INK, ms=7, mew=1.8)
