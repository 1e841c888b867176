"""Component families: from a network's raw outputs to a Pyro distribution, and its closed forms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch import distributions as td

from pyralloy.numerics import soft_between, soft_between_inverse

__all__ = [
    "FAMILIES",
    "SCALE_CEILING",
    "SCALE_FLOOR",
    "Family",
    "NormalFamily",
    "base_of",
    "build",
    "family_of",
    "map_parameters",
]

#: Soft bounds on the scale of a component, relative to the spread of y. A finer floor lets
#: components collapse on single rows of a small or rounded data set.
SCALE_FLOOR, SCALE_CEILING = 1e-2, 1e2


class Family(ABC):
    """What pyralloy knows of one kind of component; subclass and register to add a kind.

    Attributes:
        name: What opens it at the door, as in ``MixtureHead(family=name)``.
        distribution: The Pyro distribution of one component.
        parameters: Names of its parameters, in the order of the raw outputs.
    """

    name: str
    distribution: type[Any]
    parameters: tuple[str, ...]

    @abstractmethod
    def from_raw(self, raw: Tensor, spread: float) -> Any:
        """Map raw outputs ``(..., P)`` to components ``(...)``; ``spread`` is y's, in its units."""

    @abstractmethod
    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Give the raw outputs ``(..., P)`` of components at ``loc`` with spread ``scale``."""

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the component's cumulative distribution function."""
        return component.cdf(y)

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the component's quantile function."""
        return component.icdf(u)

    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw once from each component, by inversion unless a family knows better."""
        like = getattr(component, self.parameters[0])
        u = torch.rand(
            component.batch_shape, generator=generator, dtype=like.dtype, device=like.device
        )
        return self.icdf(component, u.clamp_min(torch.finfo(u.dtype).tiny))

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give the distribution of ``shift + scale * y``.

        Raises:
            TypeError: The family is not closed under affine maps.
        """
        raise TypeError(
            f"family {self.name!r} is no location-scale family: shift + scale * y has no "
            "distribution of the same kind; transform y before fitting instead."
        )

    def distance(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate :math:`E|Y - y|` for each component, the first half of the CRPS.

        Raises:
            TypeError: No closed form is known.
        """
        raise TypeError(f"family {self.name!r} has no closed-form CRPS.")

    def dispersion(self, weights: Tensor, component: Any) -> Tensor:
        r"""Evaluate :math:`\tfrac12 E|Y - Y'|` of the mixture (..., K), the other half of the CRPS.

        Raises:
            TypeError: No closed form is known.
        """
        raise TypeError(f"family {self.name!r} has no closed-form CRPS.")


class NormalFamily(Family):
    """Normal components; scales lie softly between 1/100 and 100 times the spread of y."""

    name = "normal"
    distribution = dist.Normal
    parameters = ("loc", "scale")

    def from_raw(self, raw: Tensor, spread: float) -> Any:
        """Map ``raw`` (..., 2) to ``Normal(loc, scale)`` with the scale softly bounded."""
        loc, log_scale = raw.unbind(-1)
        return dist.Normal(loc, soft_between(log_scale, *_log_bounds(spread)).exp())

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`."""
        return torch.stack([loc, soft_between_inverse(scale.log(), *_log_bounds(spread))], -1)

    def cdf(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the cdf by ``erfc``: torch's ``ndtr`` is 1 + erf and loses the lower tail."""
        z = (y - component.loc) / component.scale
        return 0.5 * torch.special.erfc(z * -math.sqrt(0.5))

    def icdf(self, component: Any, u: Tensor) -> Tensor:
        """Evaluate the quantile function."""
        return component.loc + component.scale * torch.special.ndtri(u)

    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw once from each component."""
        loc, scale = torch.broadcast_tensors(component.loc, component.scale)
        noise = torch.empty_like(loc).normal_(generator=generator)
        return loc + scale * noise

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give ``Normal(shift + scale * loc, |scale| * scale_k)``."""
        return dist.Normal(shift + scale * component.loc, scale.abs() * component.scale)

    def distance(self, component: Any, y: Tensor) -> Tensor:
        r"""Evaluate :math:`A(y - \mu, \sigma)`, where :math:`A(m, s) = E|N(m, s^2)|`."""
        return _expected_absolute(y - component.loc, component.scale)

    def dispersion(self, weights: Tensor, component: Any) -> Tensor:
        r"""Evaluate half the expected distance between two draws, in closed form.

        .. math:: \tfrac12 \sum_{k,l} w_k w_l A(\mu_k - \mu_l, \sqrt{\sigma_k^2 + \sigma_l^2}),
                  \quad A(m, s) = E|N(m, s^2)|

        References:
            Grimit, E. P., Gneiting, T., Berrocal, V. J., & Johnson, N. A. (2006). The continuous
            ranked probability score for circular variables and its application to mesoscale
            forecast ensemble verification. QJRMS 132. doi:10.1256/qj.05.235
        """
        loc, scale = component.loc, component.scale
        i, j = torch.triu_indices(loc.shape[-1], loc.shape[-1], offset=1, device=loc.device)
        pairs = _expected_absolute(
            loc[..., i] - loc[..., j], torch.hypot(scale[..., i], scale[..., j])
        )  # (..., K (K - 1) / 2)
        cross = (weights[..., i] * weights[..., j] * pairs).sum(-1)
        return cross + (weights.square() * scale).sum(-1) / math.sqrt(math.pi)


def _log_bounds(spread: float) -> tuple[float, float]:
    return math.log(SCALE_FLOOR * spread), math.log(SCALE_CEILING * spread)


def _expected_absolute(mean: Tensor, scale: Tensor) -> Tensor:
    """Evaluate ``E|N(mean, scale**2)|``."""
    z = mean / scale
    density = torch.exp(-0.5 * z.square()) * math.sqrt(2.0 / math.pi)
    return scale * density + mean * torch.special.erf(z * math.sqrt(0.5))


#: The families by the name that opens them at the door.
FAMILIES: dict[str, Family] = {family.name: family for family in (NormalFamily(),)}


def family_of(component: Any) -> Family:
    """Look up the family of a component distribution, inside any ``Independent``.

    Args:
        component: A torch or Pyro distribution.

    Returns:
        The registered family.

    Raises:
        TypeError: No family is registered for the distribution.

    Example:
        >>> type(family_of(dist.Normal(0.0, 1.0))).__name__
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
    return next(c for c in distribution.__mro__ if c.__module__.startswith("torch.distributions"))
