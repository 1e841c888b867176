"""The table of families, and how a component distribution finds its row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch import distributions as td

from pyralloy.families.bounded import BetaFamily, TruncatedNormalFamily
from pyralloy.families.circular import VonMisesFamily
from pyralloy.families.contract import Family
from pyralloy.families.counts import NegativeBinomialFamily, PoissonFamily
from pyralloy.families.location_scale import (
    LaplaceFamily,
    LogisticFamily,
    NormalFamily,
    StudentTFamily,
)
from pyralloy.families.positive import GammaFamily, LogNormalFamily, WeibullFamily

__all__ = ["FAMILIES", "base_of", "build", "family_of", "map_parameters"]

#: The families by the name that opens them at the door.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        NormalFamily(),
        StudentTFamily(),
        LaplaceFamily(),
        LogisticFamily(),
        LogNormalFamily(),
        GammaFamily(),
        WeibullFamily(),
        BetaFamily(),
        TruncatedNormalFamily(),
        PoissonFamily(),
        NegativeBinomialFamily(),
        VonMisesFamily(),
    )
}


def family_of(component: Any) -> Family:
    """Look up the family of a component distribution, inside any ``Independent``.

    Args:
        component: A torch or Pyro distribution.

    Returns:
        The registered family.

    Raises:
        TypeError: No family is registered for the distribution.

    Example:
        >>> type(family_of(td.Normal(0.0, 1.0))).__name__
        'NormalFamily'
    """
    base = base_of(component)
    for family in FAMILIES.values():
        if isinstance(base, _torch_type(family.distribution)):
            return family
    raise TypeError(
        f"component distribution {type(base).__name__} belongs to no known family; "
        f"known: {sorted(FAMILIES)}. Register one in pyralloy.families.FAMILIES."
    )


def base_of(component: Any) -> Any:
    """Strip ``Independent`` wrappers from a distribution."""
    while isinstance(component, td.Independent):
        component = component.base_dist
    return component


def map_parameters(component: Any, function: Callable[[Tensor], Tensor], event_dims: int) -> Any:
    """Rebuild a component with ``function`` applied to each parameter, broadcast to full shape.

    Args:
        component: A component distribution, possibly ``Independent``.
        function: Tensor to tensor, given each parameter with shape batch + (K,) + event.
        event_dims: How many trailing dimensions of the result are event dimensions.

    Returns:
        A distribution of the same family, wrapped in ``Independent`` where ``event_dims > 0``.
    """
    family, base = family_of(component), base_of(component)
    shape = base.batch_shape
    values = [function(getattr(base, name).expand(shape)) for name in family.parameters]
    return build(family, values, event_dims)


def build(family: Family, values: list[Tensor], event_dims: int) -> Any:
    """Make components of a family from parameter values, the last ``event_dims`` independent."""
    built = family.distribution(*values, validate_args=False)
    return built.to_event(event_dims) if event_dims else built


def _torch_type(distribution: type[Any]) -> type[Any]:
    """Find the torch class that a Pyro distribution specialises, so that both are recognised."""
    return next(
        (c for c in distribution.__mro__ if c.__module__.startswith("torch.distributions")
         and c not in (td.Distribution, td.TransformedDistribution, td.ExponentialFamily)),
        distribution,
    )  # fmt: skip
