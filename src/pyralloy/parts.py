"""The parts of a mixture, its rows and its draws: the ground of what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.checks import beside, broadcast_shapes, require_components
from pyralloy.families import base_of, kind_of, map_components, map_parameters
from pyralloy.sampling import draw
from pyralloy.table import Table

__all__ = ["MixtureParts"]

#: Elements (rows x components) of the parts of a large batch that are made wide in turn.
PART = 1 << 20


class MixtureParts(dist.MixtureSameFamily):
    """Pyro's ``MixtureSameFamily`` that can be indexed, reshaped, moved and sampled by row."""

    def __init__(
        self,
        mixture_distribution: Any,
        component_distribution: Any,
        validate_args: Any = None,
    ) -> None:
        super().__init__(mixture_distribution, component_distribution, validate_args=validate_args)
        require_components(component_distribution, check=self._validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Expand to a larger batch shape, as a ``Mixture``."""
        return super().expand(batch_shape, self._get_checked_instance(type(self), _instance))

    def __repr__(self) -> str:
        kind = type(base_of(self.components)).__name__
        return (
            f"Mixture({kind}, components={self.num_components}, "
            f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"
        )

    # -- parts ------------------------------------------------------------------------------------

    @property
    def components(self) -> Any:
        """The component distribution, batch shape (..., K)."""
        return self.component_distribution

    @property
    def num_components(self) -> int:
        """The number of components K."""
        return self.component_distribution.batch_shape[-1]

    @property
    def logits(self) -> Tensor:
        """Log weights, normalised, shape (..., K)."""
        return torch.log_softmax(self.mixture_distribution.logits, -1).expand(
            *self.batch_shape, self.num_components
        )

    @property
    def weights(self) -> Tensor:
        """Weights, shape (..., K), summing to one over the last dimension."""
        return self.logits.exp()

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters."""
        # Not of the mean, which may be an integral.
        return kind_of(self.components).values(self.components)[0].dtype

    def __getitem__(self, rows: Any) -> Self:
        """Index the batch, as one indexes a tensor of shape ``batch_shape``.

        Raises:
            IndexError: The density has no batch dimension, or ``rows`` is out of range.

        Example:
            >>> from pyralloy import Mixture
            >>> m = Mixture(dist.Categorical(torch.ones(4, 2)), dist.Normal(torch.zeros(4, 2), 1.0))
            >>> m[1:3].batch_shape
            torch.Size([2])
        """
        if not self.batch_shape:
            raise IndexError("a density with batch_shape () has no rows to index.")
        index = rows if isinstance(rows, tuple) else (rows,)
        index = tuple(torch.as_tensor(i) if isinstance(i, np.ndarray) else i for i in index)
        if not any(i is Ellipsis for i in index):
            index = (*index, Ellipsis)
        if torch.zeros(()).expand(self.batch_shape)[index].ndim > len(self.batch_shape):
            raise IndexError(f"rows={rows!r} adds a batch dimension; index with slices or a list.")
        every = slice(None)
        return self._rebuild(self.logits[(*index, every)], lambda p: p[(*index, every, every)])

    def to(self, target: torch.dtype | torch.device | str) -> Self:
        """Move to a dtype or a device.

        Example:
            >>> from pyralloy import Mixture
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> m.to(torch.float64).dtype
            torch.float64
        """
        return self._rebuild(self.logits.to(target), lambda p: p.to(target))

    def reshape(self, *batch_shape: int) -> Self:
        """Give the same rows in another batch shape, as ``Tensor.reshape`` does.

        Example:
            >>> from pyralloy import Mixture
            >>> m = Mixture(dist.Categorical(torch.ones(6, 2)), dist.Normal(torch.zeros(6, 2), 1.0))
            >>> m.reshape(2, -1).batch_shape
            torch.Size([2, 3])
        """
        rows = torch.zeros(()).expand(self.batch_shape).reshape(batch_shape).shape
        count = self.num_components
        return self._rebuild(
            self.logits.reshape(*rows, count), lambda p: p.reshape(*rows, count, p.shape[-1])
        )

    def detach(self) -> Self:
        """Cut the parameters from the graph that made them."""
        return self._rebuild(self.logits.detach(), Tensor.detach)

    def _rebuild(self, logits: Tensor, function: Any) -> Self:
        return self._of(logits, map_components(self.components, function))

    @classmethod
    def _of(cls, logits: Tensor, components: Any) -> Self:
        weights = dist.Categorical(logits=logits, validate_args=False)
        return cls(weights, components, validate_args=False)

    # -- sampling ---------------------------------------------------------------------------------

    def sample(
        self, sample_shape: Any = torch.Size(), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples; only the chosen component of each draw is sampled.

        Args:
            sample_shape: Shape of the draws, for instance ``(10,)``.
            generator: Source of randomness; None takes torch's default, as Pyro does.

        Returns:
            Samples in y's units, shape sample_shape + batch_shape + event_shape, without gradient.
        """
        size = torch.Size(sample_shape)
        drawn = draw(self.weights, self.components, size.numel(), generator)
        return drawn.reshape(size + self.batch_shape + self.event_shape)

    # -- doors ------------------------------------------------------------------------------------

    def _require_scalar(self, name: str) -> None:
        if self.event_shape:
            raise ValueError(
                f"{name} is defined for a scalar y; this density has event_shape "
                f"{tuple(self.event_shape)}: take density.marginal(dim) first, or "
                "density.level_set(level) for a joint region."
            )

    def _values(self, name: str, values: Any) -> Tensor:
        if self.event_shape:  # what fits is for the validation of samples to say
            return values if isinstance(values, Tensor) else self.logits.new_tensor(values)
        return beside(name, values, self.batch_shape, self.logits)

    def _over_rows(self, function: Callable[[Tensor, Any, Tensor], Tensor], y: Tensor) -> Tensor:
        """Evaluate ``function(logits, components, y)`` for a scalar y.

        In parts, where so much is asked that memory counts and no gradient needs it all.
        """
        count, shape = self.num_components, broadcast_shapes(y.shape, self.batch_shape)
        logits, components = self.mixture_distribution.logits, self.components
        given = (y, logits, *kind_of(components).values(components))
        traced = torch.is_grad_enabled() and any(v.requires_grad for v in given)
        if traced or shape.numel() * count <= 4 * PART:
            return function(logits, components, y)
        if len(shape) > len(self.batch_shape):
            y = y.expand(shape)
            if len(y) == 1:
                return self._over_rows(function, y[0])[None]
            parts = y.split(max(1, 4 * PART * len(y) // (shape.numel() * count)))
            return torch.cat([self._over_rows(function, part) for part in parts])

        def flat(p: Tensor) -> Tensor:
            return p.expand(*shape, count).reshape(-1, count)

        logits, y = flat(logits), y.expand(shape).reshape(-1)
        components, parts = map_parameters(self.expand(shape).components, flat, 0), []
        for start in range(0, len(y), max(1, PART // count)):
            rows = slice(start, start + max(1, PART // count))
            own = map_parameters(components, lambda p, rows=rows: p[rows], 0)
            parts.append(function(logits[rows], own, y[rows]))
        return torch.cat(parts).reshape(shape)

    def _table(self, shape: torch.Size, dtype: torch.dtype | None = None) -> Table:
        """Flatten into one row for each element of ``shape``, to which the batch broadcasts."""
        ((_, table),) = self._tables(shape, dtype, max(1, shape.numel()))
        return table

    def _tables(
        self, shape: torch.Size, dtype: torch.dtype | None = None, rows: int | None = None
    ) -> Iterator[tuple[slice, Table]]:
        """Give :meth:`_table` in parts of some rows: no wide copy of all is there at once."""
        count, wide = self.num_components, self.expand(shape)
        dtype, rows = dtype or self.dtype, rows or max(1, PART // count)

        def flat(p: Tensor) -> Tensor:
            return p.expand(*shape, count).reshape(-1, count)

        logits = flat(wide.mixture_distribution.logits)
        components = map_parameters(wide.components, flat, 0)
        for start in range(0, max(1, shape.numel()), rows):
            part = slice(start, start + rows)
            own = map_parameters(components, lambda p, part=part: p[part].to(dtype), 0)
            yield part, Table(_shares(logits[part].to(dtype)), own)


def _shares(logits: Tensor) -> Tensor:
    """Give weights that sum to one in the dtype of the answer, of logits that do so in theirs.

    No such logit is far above 0; in float64 ``softmax`` takes three times as long to see to that.
    """
    if logits.dtype != torch.float64:
        return torch.softmax(logits, -1)
    shares = logits.exp()
    return shares / shares.sum(-1, keepdim=True)
