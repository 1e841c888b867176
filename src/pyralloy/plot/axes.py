"""What figures share: axes, inks, and columns of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyralloy.checks import as_values
from pyralloy.mixture import Mixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLUE", "HUES", "INK", "ORANGE", "PALE", "axes_of", "column", "grid", "rows_of"]

INK, BLUE, ORANGE, PALE = "0.25", "#0072b2", "#d55e00", "0.88"
#: For components, whose opacity has a meaning: five hues of one lightness (L* = 40 in CIELAB).
HUES = ("#045cbb", "#b52600", "#026e00", "#a80ea1", "#715c00")


def rows_of(mixture: Any, x: Tensor) -> None:
    """Check that there is one density of a scalar y for each x."""
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


def column(name: str, values: Any) -> Tensor:
    """Give one column of values on the CPU, shape (N,)."""
    found = as_values(name, values).cpu()
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(found.shape)}: give (N,) or (N, 1).")
    return found


def grid(name: str, values: Any) -> Tensor:
    """Give an increasing column of values."""
    points = column(name, values)
    if points.shape[0] < 2 or not bool((points.diff() > 0).all()):
        raise ValueError(f"{name} is no grid: give at least 2 values, each above the one before.")
    return points


def axes_of(ax: Axes | None, x_label: str = "x", y_label: str = "y") -> Axes:
    """Label what is not labelled yet, on new axes where none are given."""
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    ax.set_xlabel(ax.get_xlabel() or x_label)
    ax.set_ylabel(ax.get_ylabel() or y_label)
    return ax
