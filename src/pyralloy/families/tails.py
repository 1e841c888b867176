"""How much of a component lies on either side of a point, and between two: exact in both tails."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyralloy.families.contract import Family

__all__ = ["Share", "bounds", "log_mass", "lower_tail", "shares", "upper_tail", "widen"]


class Share(NamedTuple):
    """Cdf and survival of the base before the lower end and at the upper, and what is between."""

    below: Tensor
    above: Tensor
    upto: Tensor
    beyond: Tensor
    mass: Tensor


def log_mass(family: Family, component: Any, low: Tensor, high: Tensor) -> Tensor:
    r"""Evaluate :math:`\log P(l \le Y \le u)` in float64, from the tail where it does not cancel.

    Args:
        family: Of the component.
        component: Batch shape (...).
        low: Lower ends, broadcastable to it; minus infinity for none.
        high: Upper ends, likewise.

    Returns:
        Log masses, of the broadcast shape, ``-inf`` where there is none; its relative error is that
        of the dtype times the mass beyond the nearer end over the mass inside.
    """
    mass = shares(family, widen(family, component), low, high).mass
    some = (mass > 0) | mass.isnan()
    return torch.where(some, mass, 1.0).log().masked_fill(~some, -math.inf)


def bounds(component: Any) -> tuple[Tensor, Tensor]:
    """Give the ends of a component's support, infinite where there is none."""
    support = component.support
    return (
        torch.as_tensor(getattr(support, "lower_bound", -math.inf), dtype=torch.float64),
        torch.as_tensor(getattr(support, "upper_bound", math.inf), dtype=torch.float64),
    )


def widen(family: Family, component: Any) -> Any:
    """Give the component in float64."""
    values = (getattr(component, p).to(torch.float64) for p in family.parameters)
    return family.distribution(*values, validate_args=False)


def shares(family: Family, base: Any, lower: Tensor, upper: Tensor) -> Share:
    """Evaluate what a float64 component has before, between and beyond two ends."""
    low, high = lower.to(torch.float64), upper.to(torch.float64)
    if family.support.integer:
        low, high = low.ceil() - 1, high.floor()
    below, above = lower_tail(family, base, low), upper_tail(family, base, low)
    upto, beyond = lower_tail(family, base, high), upper_tail(family, base, high)
    mass = torch.where(below > above, above - beyond, upto - below)
    return Share(below, above, upto, beyond, mass.clamp_min(0.0))


def lower_tail(family: Family, base: Any, y: Tensor) -> Tensor:
    """Evaluate the cdf of a float64 component, known at and beyond the ends of its support.

    There it is not evaluated, for its gradient might be NaN.
    """
    known, over, at = _ends_of_support(family, base, y)
    return torch.where(known, over.to(y), family.cdf(base, at))


def upper_tail(family: Family, base: Any, y: Tensor) -> Tensor:
    """Evaluate the survival likewise."""
    known, over, at = _ends_of_support(family, base, y)
    return torch.where(known, (~over).to(y), family.survival(base, at))


def _ends_of_support(family: Family, base: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = (v.to(y.device) for v in bounds(base))
    over = y >= high
    known = over | (y <= low - float(family.support.integer))
    return known, over, torch.where(known, base.mean.detach().nan_to_num(0.0), y)
