"""Flat mixtures of a scalar, one a row: where the exact answers are computed, in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyralloy.families import Family, family_of, map_parameters
from pyralloy.numerics import invert_monotone

__all__ = ["Table"]

#: Elements of one intermediate (rows x components); small enough to stay in a core's cache.
CHUNK = 1 << 18


@dataclass(frozen=True)
class Table:
    """M mixtures of K scalar components each, as flat tensors.

    Attributes:
        weights: Shape (M, K), rows summing to one.
        components: A component distribution of batch shape (M, K).
    """

    weights: Tensor
    components: Any

    @property
    def family(self) -> Family:
        """The family of the components."""
        return family_of(self.components)

    def __len__(self) -> int:
        return self.weights.shape[0]

    def take(self, rows: Tensor | slice) -> Table:
        """Pick rows."""
        return Table(self.weights[rows], map_parameters(self.components, lambda p: p[rows], 0))

    def chunks(self, width: int) -> Iterator[slice]:
        """Split the rows so that an intermediate of ``width`` numbers a row fits in the cache."""
        step = max(1, CHUNK // width)
        return (slice(start, start + step) for start in range(0, len(self), step))

    def cdf(self, y: Tensor) -> Tensor:
        """Evaluate the cdf at ``y`` (M,)."""
        return (self.weights * self.family.cdf(self.components, y[:, None])).sum(-1)

    def log_prob(self, y: Tensor) -> Tensor:
        """Evaluate the log density at ``y``, one point a row (M,) or P of them (M, P)."""
        points, components = y[:, None], self.components
        if y.ndim > 1:
            points, components = y[..., None], map_parameters(components, lambda p: p[:, None], 0)
        log_weights = self.weights.log()[(slice(None), *(None,) * (y.ndim - 1))]
        return torch.logsumexp(log_weights + components.log_prob(points), -1)

    def quantile(self, u: Tensor) -> Tensor:
        """Invert the cdf at ``u`` (M,), from a bracket between the components' own quantiles."""
        return self._by_chunk(self.weights.shape[1], _quantile, u)

    def distance(self, y: Tensor) -> Tensor:
        """Evaluate the expected distance to ``y`` (M,)."""
        return self._by_chunk(self.weights.shape[1], _distance, y)

    def dispersion(self) -> Tensor:
        """Evaluate half the expected distance between two draws, shape (M,)."""
        count = self.weights.shape[1]
        parts = (self.take(part) for part in self.chunks(count * (count + 1) // 2))
        halves = [t.family.dispersion(t.weights, t.components) for t in parts]
        return torch.cat(halves) if halves else self.weights.sum(-1)

    def _by_chunk(
        self, width: int, function: Callable[[Table, Tensor], Tensor], values: Tensor
    ) -> Tensor:
        parts = [function(self.take(part), values[part]) for part in self.chunks(width)]
        return torch.cat(parts) if parts else values.clone()


def _distance(table: Table, y: Tensor) -> Tensor:
    return (table.weights * table.family.distance(table.components, y[:, None])).sum(-1)


def _quantile(table: Table, u: Tensor) -> Tensor:
    ends = table.family.icdf(table.components, u[:, None])  # (M, K)
    live = table.weights > 0
    low = torch.where(live, ends, math.inf).amin(-1)
    high = torch.where(live, ends, -math.inf).amax(-1)

    def cdf(y: Tensor, rows: Tensor) -> Tensor:
        return (table if rows.shape[0] == len(table) else table.take(rows)).cdf(y)

    return invert_monotone(cdf, u, low, high)
