"""Data and samples as points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy.typing import ArrayLike
from torch import Tensor

from pyralloy.checks import as_values, paired, positive
from pyralloy.plot.axes import INK, ORANGE, axes_of, column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["data", "samples"]


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
    x, y = column("x", x), column("y", y)
    paired(x, y)
    ax = axes_of(ax)
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
    x, y = column("x", x), as_values("draws", draws)
    if y.ndim > 2 or y.shape[-1] != x.shape[0]:
        raise ValueError(
            f"draws has shape {tuple(y.shape)}: give (S, {x.shape[0]}), one column for each x, "
            "as density.sample((S,)) does."
        )
    x, y = x.expand(y.shape).reshape(-1), y.reshape(-1)
    return data(x, y, ax=ax, size=size, alpha=alpha, color=color, label=label)
