"""Families on an interval whose ends are given."""

from __future__ import annotations

import math
from typing import Any, Self

from pyralloy.checks import as_values, positive
from pyralloy.families.contract import Family, Support

__all__ = ["IntervalFamily"]


class IntervalFamily(Family):
    """A family on a given interval: its two ends are the last two parameters, and no outputs.

    Args:
        low: Lower end of y's interval, in the units the head works in.
        high: Upper end.

    Raises:
        ValueError: An end that is not finite, or the higher end first.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"low={low!r}, high={high!r}: give two finite numbers, the lower first."
            )
        self.support = Support(float(low), float(high))

    @classmethod
    def around(cls, y: Any, margin: float | None = None) -> Self:
        """Take the ends from data: the least and the greatest of y, and a margin on either side.

        It is for y whose range ends sharply, at ends that are not known: where a histogram of y
        breaks off. A y that is seen later and lies outside has no density at all: by the default
        margin the next does with a probability of about 1e-4 / N where N values are spread evenly
        to both ends, and far more often where the range of y has tails.

        Args:
            y: Observed values, in y's units, shape (N,): those that are fitted, and no others.
            margin: As a share of the range of y; None means 10 / N, ten gaps between neighbours.

        Returns:
            The family on that interval.

        Raises:
            TypeError: ``y`` is not numeric.
            ValueError: ``y`` is no vector of two different finite values or more, or a margin not
                above 0.

        Example:
            >>> from pyralloy.families import TruncatedNormalFamily
            >>> TruncatedNormalFamily.around([0.0, 2.0, 10.0], margin=0.01)
            TruncatedNormalFamily(-0.1, 10.1)
        """
        values = as_values("y", y)
        if values.ndim != 1 or len(values) < 2 or not bool(values.min() < values.max()):
            raise ValueError(
                f"y has shape {tuple(values.shape)}: give a vector of two different values or more."
            )
        low, high = float(values.min()), float(values.max())
        share = 10.0 / len(values) if margin is None else positive("margin", margin)
        return cls(low - share * (high - low), high + share * (high - low))

    def __repr__(self) -> str:
        """Show the interval."""
        return f"{type(self).__name__}({self.support.low!r}, {self.support.high!r})"

    @property
    def outputs(self) -> int:
        """One a parameter but the two ends, which are given."""
        return len(self.parameters) - 2
