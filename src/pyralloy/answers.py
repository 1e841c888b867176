"""The shapes of answers that have more than one part."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["EntropyParts", "Estimate", "Interval", "Modes"]


class Interval(NamedTuple):
    """An interval for each row."""

    lower: Tensor
    upper: Tensor


class Modes(NamedTuple):
    """Local maxima of each density, highest first, padded with NaN: each of shape (..., R)."""

    locations: Tensor
    log_densities: Tensor


class EntropyParts(NamedTuple):
    """The entropy of a pool, in nats: ``total = within + between``."""

    total: Tensor
    within: Tensor
    between: Tensor


class Estimate(NamedTuple):
    """What was estimated from draws, with its standard error."""

    value: Tensor
    error: Tensor
