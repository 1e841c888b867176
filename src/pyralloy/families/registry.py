"""The table of families, and how a component distribution finds its row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch import distributions as td

from pyralloy.checks import integer
from pyralloy.families.circular import VonMisesFamily
from pyralloy.families.contract import Family
from pyralloy.families.counts import NegativeBinomialFamily, PoissonFamily
from pyralloy.families.interval_beta import BetaFamily
from pyralloy.families.joint import JOINT, JointFamily
from pyralloy.families.location_scale import (
    LaplaceFamily,
    LogisticFamily,
    NormalFamily,
    StudentTFamily,
)
from pyralloy.families.positive import GammaFamily, LogNormalFamily, WeibullFamily
from pyralloy.families.scale_matrices import LowRank
from pyralloy.families.truncated import Truncated, truncated_family
from pyralloy.families.truncated_normal import TruncatedNormalFamily
from pyralloy.families.vector import VectorFamily, product_of

__all__ = [
    "FAMILIES",
    "as_family",
    "base_of",
    "build",
    "family_of",
    "find_family",
    "kind_of",
    "map_components",
    "map_parameters",
]

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
    if isinstance(base, Truncated):
        return truncated_family(family_of(base.base))
    for family in FAMILIES.values():
        if isinstance(base, _torch_type(family.distribution)):
            return family
    raise TypeError(
        f"component distribution {type(base).__name__} belongs to no known family; "
        f"known: {sorted(FAMILIES)}. Register one in pyralloy.families.FAMILIES."
    )


def kind_of(component: Any) -> Family | VectorFamily:
    """Look up what is known of components, of a scalar or of a vector.

    Args:
        component: A torch or Pyro distribution.

    Returns:
        The family of a scalar; a product of it for ``Independent`` dimensions; the joint family of
        correlated ones.

    Raises:
        TypeError: None is registered for the distribution.

    Example:
        >>> import torch
        >>> loc = torch.zeros(2)
        >>> kind_of(td.Independent(td.Normal(loc, 1.0), 1)).name
        'normal'
        >>> kind_of(td.MultivariateNormal(loc, scale_tril=torch.eye(2))).name
        'normal, full covariance'
    """
    if isinstance(component, td.Independent) and component.event_shape:
        return product_of(family_of(component), len(component.event_shape))
    for joint in JOINT.values():
        if isinstance(component, _torch_type(joint.distribution)):
            return joint
    return family_of(component)


def as_family(family: Any) -> Family:
    """Look up a scalar family by its name, or give a family as it is.

    Raises:
        ValueError: A name that is unknown, or neither a name nor a family of a scalar.
    """
    if isinstance(family, Family):
        return family
    if isinstance(family, type) and issubclass(family, Family):
        raise ValueError(f"family={family!r} is a class: make one, as {family.__name__}(...).")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(
            f"family={family!r} is unknown: choose one of {sorted(FAMILIES)}, or give a Family of "
            "a scalar, as TruncatedNormalFamily(0, 100)."
        )
    return FAMILIES[family]


def find_family(
    family: str | Family, targets: int | None, covariance: str, rank: int | None
) -> Family | VectorFamily:
    """Look up the family that a head's arguments name.

    Args:
        family: Name of a scalar family, or the family itself.
        targets: None for a scalar y, else the number of dimensions.
        covariance: ``"diagonal"``, ``"full"`` or ``"low_rank"``.
        rank: Number of factors of a low-rank covariance; None means 1 there.

    Returns:
        A family of the scalar, or of the vector.

    Raises:
        TypeError: ``rank`` is no integer.
        ValueError: A name that is unknown, or arguments that do not go together.
    """
    scalar = as_family(family)
    if covariance not in ("diagonal", "full", "low_rank"):
        raise ValueError(
            f"covariance={covariance!r} is unknown: choose 'diagonal', 'full' or 'low_rank'."
        )
    if rank is not None and covariance != "low_rank":
        raise ValueError(f"rank={rank!r} is for covariance='low_rank', not {covariance!r}.")
    if covariance == "diagonal":
        return scalar if targets is None else product_of(scalar, 1)
    if targets is None:
        raise ValueError(
            f"covariance={covariance!r} needs a vector y: give targets, the number of dimensions."
        )
    if (scalar.name, covariance) not in JOINT:
        known = sorted({name for name, _ in JOINT})
        raise ValueError(
            f"covariance={covariance!r} needs a family of {known}, not {scalar.name!r}, whose "
            "dimensions are independent within a component: covariance='diagonal'."
        )
    if covariance == "low_rank":
        return JointFamily(
            JOINT[scalar.name, covariance].law,
            LowRank(1 if rank is None else integer("rank", rank)),
        )
    return JOINT[scalar.name, covariance]


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
    return build(family, [function(value) for value in family.values(base)], event_dims)


def map_components(component: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Rebuild components with ``function`` applied to each parameter, of scalar or vector y alike.

    Args:
        component: A component distribution, of batch shape (..., K).
        function: Tensor to tensor, given each parameter as (..., K, E): E numbers a component. It
            may change any dimension but the last.

    Returns:
        Components of the same kind.
    """
    kind, lead = kind_of(component), len(component.batch_shape)

    def mapped(value: Tensor) -> Tensor:
        own = value.shape[lead:]
        result = function(value.reshape(*value.shape[:lead], math.prod(own)))
        return result.reshape(*result.shape[:-1], *own)

    return kind.build([mapped(value) for value in kind.values(component)])


def build(family: Family, values: list[Tensor], event_dims: int) -> Any:
    """Make components of a family from parameter values, the last ``event_dims`` independent."""
    built = family.build(values)
    return built.to_event(event_dims) if event_dims else built


def _torch_type(distribution: type[Any]) -> type[Any]:
    """Find the torch class that a Pyro distribution specialises, so that both are recognised."""
    return next(
        (c for c in distribution.__mro__ if c.__module__.startswith("torch.distributions")
         and c not in (td.Distribution, td.TransformedDistribution, td.ExponentialFamily)),
        distribution,
    )  # fmt: skip
