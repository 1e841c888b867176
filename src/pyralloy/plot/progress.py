"""How a fit came to be: the likelihood over the steps of training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyralloy.plot.axes import BLUE, INK, ORANGE, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyralloy.inference.fit import Fit

__all__ = ["training"]


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
    ax = axes_of(ax, "training step", "negative log-likelihood (nats per row)")
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
