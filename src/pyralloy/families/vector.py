"""Components of a vector y: independent dimensions, or dimensions that depend on each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributions as td

from pyralloy.families.contract import Family, Support

__all__ = ["Conditioned", "Product", "VectorFamily", "product_of"]


class Conditioned(NamedTuple):
    """What is known of components once some dimensions are.

    Attributes:
        log_density: Log density of the known values, shape (..., K).
        component: Of the dimensions left, batch shape (..., K).
    """

    log_density: Tensor
    component: Any


class VectorFamily(ABC):
    """What pyralloy knows of one kind of component of a vector y, event shape (D,).

    Attributes:
        name: What errors call it.
        parameters: Names of its parameters, in the order of :meth:`values`.
        support: Where each dimension of y lies.
    """

    name: str
    parameters: tuple[str, ...]
    support: Support = Support()

    @abstractmethod
    def outputs_for(self, dims: int) -> int:
        """Count the raw outputs that make one component of ``dims`` dimensions."""

    @abstractmethod
    def widths_for(self, dims: int) -> tuple[int, ...]:
        """Say which raw outputs are logs of a width, as a scalar family's ``widths`` does."""

    @abstractmethod
    def from_raw(self, raw: Sequence[Tensor], spread: float, dims: int) -> Any:
        """Map P raw outputs ``(...)`` to components ``(...)`` of ``dims`` dimensions."""

    @abstractmethod
    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Give the raw outputs ``(..., P)`` of components of mean and deviation ``(..., D)``."""

    @abstractmethod
    def values(self, component: Any) -> list[Tensor]:
        """Give the parameters, each of shape batch + its own event shape."""

    @abstractmethod
    def build(self, values: list[Tensor]) -> Any:
        """Make components from parameters."""

    def log_prob(self, component: Any, y: Tensor) -> Tensor:
        """Evaluate the log density of vectors (..., D), in nats."""
        return component.log_prob(y)

    @abstractmethod
    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw once from each component, shape (..., D)."""

    @abstractmethod
    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Give the distribution of ``shift + scale * y``, dimension by dimension."""

    def mean(self, weights: Tensor, component: Any) -> Tensor:
        """Give the mean (..., D) of a mixture of weights (..., K)."""
        return (weights[..., None] * component.mean).sum(-2)

    def variance(self, weights: Tensor, component: Any) -> Tensor:
        """Give the variances (..., D) of a mixture: within components and of their means."""
        gap = component.mean - self.mean(weights, component)[..., None, :]
        return (weights[..., None] * (component.variance + gap.square())).sum(-2)

    def stddev(self, weights: Tensor, component: Any) -> Tensor:
        """Give the standard deviations (..., D) of a mixture."""
        return self.variance(weights, component).sqrt()

    @abstractmethod
    def covariance(self, component: Any) -> Tensor:
        """Evaluate the covariance matrix, shape (..., D, D)."""

    @abstractmethod
    def marginal(self, component: Any, dims: int | list[int]) -> Any:
        """Integrate out all dimensions but ``dims``; one given as an int leaves a scalar."""

    @abstractmethod
    def condition(
        self, component: Any, given: list[int], rest: list[int], value: Tensor
    ) -> Conditioned:
        """Fix the dimensions ``given`` at ``value`` (..., K or 1, B); ``rest`` are left."""


class Product(VectorFamily):
    """Dimensions that are independent within a component, each of one scalar family.

    Args:
        family: Of each dimension.
        rank: Number of event dimensions; vectors have one.
    """

    def __init__(self, family: Family, rank: int = 1) -> None:
        self.family, self.rank, self.name = family, rank, family.name
        self.parameters, self.support = family.parameters, family.support

    def outputs_for(self, dims: int) -> int:
        """Count the raw outputs: those of the scalar family for each dimension."""
        return dims * self.family.outputs

    def widths_for(self, dims: int) -> tuple[int, ...]:
        """Give the widths of each dimension."""
        count = self.family.outputs
        return tuple(i * count + place for i in range(dims) for place in self.family.widths)

    def from_raw(self, raw: Sequence[Tensor], spread: float, dims: int) -> Any:
        """Map raw outputs, those of one dimension side by side."""
        count = self.family.outputs
        each = [torch.stack(list(raw[i::count]), -1) for i in range(count)]  # (..., D)
        return self.family.from_raw(each, spread).to_event(1)

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw`."""
        return self.family.to_raw(loc, scale, spread).flatten(-2)

    def values(self, component: Any) -> list[Tensor]:
        """Give the parameters, each of shape batch + (D,)."""
        return self.family.values(self._base(component))

    def build(self, values: list[Tensor]) -> Any:
        """Make components from parameters of shape batch + (D,)."""
        return self.family.build(values).to_event(self.rank)

    def log_prob(self, component: Any, y: Tensor) -> Tensor:
        """Add up the log densities of the dimensions."""
        return self.family.log_prob(self._base(component), y).sum(tuple(range(-self.rank, 0)))

    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw each dimension."""
        return self.family.draw(self._base(component), generator)

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Map each dimension."""
        return self.family.affine(self._base(component), shift, scale).to_event(self.rank)

    def mean(self, weights: Tensor, component: Any) -> Tensor:
        """Give the mean of each dimension, as the scalar family has it."""
        return self.family.mean(*self._mixed(weights, component))

    def variance(self, weights: Tensor, component: Any) -> Tensor:
        """Give the variance of each dimension, likewise."""
        return self.family.variance(*self._mixed(weights, component))

    def stddev(self, weights: Tensor, component: Any) -> Tensor:
        """Give the standard deviation of each dimension, likewise."""
        return self.family.stddev(*self._mixed(weights, component))

    def covariance(self, component: Any) -> Tensor:
        """Put the variances on a diagonal."""
        return component.variance.diag_embed()

    def marginal(self, component: Any, dims: int | list[int]) -> Any:
        """Pick dimensions."""
        picked = self.family.build([v[..., dims] for v in self.values(component)])
        return picked if isinstance(dims, int) else picked.to_event(1)

    def condition(
        self, component: Any, given: list[int], rest: list[int], value: Tensor
    ) -> Conditioned:
        """Score the known dimensions; the others know nothing of them."""
        log_density = self.marginal(component, given).log_prob(value)
        return Conditioned(log_density, self.marginal(component, rest).expand(log_density.shape))

    def _mixed(self, weights: Tensor, component: Any) -> tuple[Tensor, Any, int]:
        """Give weights and components that broadcast, and the dimension of the components."""
        wide = weights.reshape(*weights.shape, *(1,) * self.rank)
        return wide, self._base(component), -1 - self.rank

    @staticmethod
    def _base(component: Any) -> Any:
        """Strip the ``Independent`` wrappers."""
        while isinstance(component, td.Independent):
            component = component.base_dist
        return component


@cache
def product_of(family: Family, rank: int) -> Product:
    """Give the one :class:`Product` of a family, so that alike components compare as such."""
    return Product(family, rank)
