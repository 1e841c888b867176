"""What mixtures are closed under: indexing, expansion, affine maps, pools, margins; samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.checks import integer, positive
from pyralloy.families import base_of, kind_of, map_components
from pyralloy.margins import chosen, condition, vector_kind
from pyralloy.pooling import (
    batch_size,
    check_alike,
    log_pool_weights,
    pool_batch,
    pool_components,
)
from pyralloy.reduction import reduce_normals
from pyralloy.sampling import draw
from pyralloy.truncation import truncate

__all__ = ["MixtureAlgebra", "Reduction"]


class Reduction(NamedTuple):
    """A mixture of fewer components, and how far it may be from the one it came from.

    Attributes:
        density: The ``Mixture``.
        bound: Upper bound on the Kullback-Leibler divergence, in nats, of the batch shape.
    """

    density: Any
    bound: Tensor


class MixtureAlgebra(dist.MixtureSameFamily):
    """Pyro's ``MixtureSameFamily`` with the operations whose result is a mixture again.

    :class:`~pyralloy.Mixture` adds the questions that a prediction is asked.
    """

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

    truncate = truncate

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

    # -- algebra ----------------------------------------------------------------------------------

    def affine(self, shift: float | Tensor, scale: float | Tensor) -> Self:
        """Give the density of ``shift + scale * y``, exactly.

        Args:
            shift: In the new units; a number, or broadcastable to batch_shape + event_shape.
            scale: New units per old unit, nonzero; likewise.

        Returns:
            A ``Mixture`` of the same weights.

        Raises:
            ValueError: A scale of zero, a value that is not finite, or a shape that does not fit.
            TypeError: The components are no location-scale family.

        Example:
            >>> from pyralloy import Mixture
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> celsius = m.affine(shift=20.0, scale=5.0)
            >>> float(celsius.mean), float(celsius.stddev)
            (20.0, 5.0)
        """
        like = {"dtype": self.dtype, "device": self.logits.device}
        shift, scale = torch.as_tensor(shift, **like), torch.as_tensor(scale, **like)
        rows = self.batch_shape + self.event_shape
        for name, value in (("shift", shift), ("scale", scale)):
            if not _broadcasts(value.shape, rows):
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}: give a number, or what broadcasts to "
                    f"{tuple(rows)}, the shape of y."
                )
        if not bool((scale.isfinite() & (scale != 0)).all() & shift.isfinite().all()):
            raise ValueError(
                f"shift={shift}, scale={scale}: both must be finite and scale nonzero."
            )
        return self._affine(shift, scale)

    def _affine(self, shift: Tensor, scale: Tensor) -> Self:
        position = -1 - self._event_ndims  # of the component dimension
        shift, scale = (
            v.unsqueeze(position) if v.ndim > self._event_ndims else v for v in (shift, scale)
        )
        moved = kind_of(self.components).affine(self.components, shift, scale)
        return type(self)(self.mixture_distribution, moved, validate_args=False)

    @classmethod
    def pool(
        cls,
        many: Self | Sequence[Self],
        weights: Sequence[float] | Tensor | None = None,
        dim: int = 0,
    ) -> Self:
        r"""Average densities into one: the linear pool :math:`\sum_m a_m p_m(y)`, exactly.

        Args:
            many: M densities of one batch shape; or one density whose batch dimension ``dim``
                holds them.
            weights: M nonnegative weights, normalised here; None means equal.
            dim: The batch dimension to pool, where ``many`` is one density.

        Returns:
            A ``Mixture`` of all components of all members; a pool of one is that one.

        Raises:
            ValueError: Nothing to pool, members of different batch, event or family, or weights
                that are negative, not finite or of the wrong number.

        References:
            Stone, M. (1961). The opinion pool. Annals of Mathematical Statistics 32.
            doi:10.1214/aoms/1177704873

        Example:
            >>> from pyralloy import Mixture
            >>> a = Mixture(dist.Categorical(torch.ones(1)), dist.Normal(torch.zeros(1), 1.0))
            >>> pooled = Mixture.pool([a, a.affine(2.0, 1.0)])
            >>> pooled.num_components, float(pooled.mean)
            (2, 1.0)
        """
        if isinstance(many, cls):
            share = log_pool_weights(weights, batch_size(many.batch_shape, dim), many.logits)
            if len(share) == 1 and weights is None:
                return many[(*(slice(None),) * (dim % len(many.batch_shape)), 0)]
            return cls._of(*pool_batch(many.logits, many.components, share, dim))
        members = list(many)
        check_alike(members)
        share = log_pool_weights(weights, len(members), members[0].logits)
        if len(members) == 1:
            return members[0]
        logits = torch.cat([m.logits + a for m, a in zip(members, share, strict=True)], -1)
        return cls._of(logits, pool_components([m.components for m in members]))

    def reduce(self, components: int) -> Self:
        """Merge components until few are left: the density of :meth:`reduction`."""
        return self.reduction(components).density

    def reduction(self, components: int) -> Reduction:
        """Merge Normal components until few are left, each row keeping its mean and variance.

        A vector y whose components are correlated keeps its covariance, and has full covariances
        then; where dimensions are independent within a component they stay so.

        Args:
            components: Number of components to keep; no more than there are.

        Returns:
            A :class:`Reduction`: the ``Mixture`` of that many components, and ``bound``, shape
            (...), an upper bound in nats on the Kullback-Leibler divergence from this density to
            it.

        Raises:
            TypeError: Components other than Normal.
            ValueError: A number below 1, or above the number there are.

        References:
            Runnalls, A. R. (2007). Kullback-Leibler approach to Gaussian mixture reduction. IEEE
            Transactions on Aerospace and Electronic Systems 43. doi:10.1109/TAES.2007.4383588

        Example:
            >>> from pyralloy import Mixture
            >>> loc = torch.tensor([0.0, 0.01, 5.0])
            >>> m = Mixture(dist.Categorical(torch.ones(3)), dist.Normal(loc, 1.0))
            >>> fewer, bound = m.reduction(components=2)
            >>> fewer.num_components, bool(bound < 1e-4), bool(torch.isclose(fewer.mean, m.mean))
            (2, True, True)
        """
        total = self.num_components
        if integer("components", components) > total:
            raise ValueError(f"components={components}: this density has only {total} to keep.")
        wide = self.to(torch.float64)
        weights, kept, bound = reduce_normals(wide.weights, wide.components, components)
        return Reduction(self._of(weights.log(), kept).to(self.dtype), bound.to(self.dtype))

    def tempered(self, *, weight: float = 1.0, scale: float = 1.0) -> Self:
        r"""Sharpen or flatten the density, as one does before sampling a sequence.

        Weights become proportional to :math:`w_k^{1 / \text{weight}}` and each component is
        stretched about its centre by ``scale``; below 1 both make samples more typical.

        Args:
            weight: Temperature of the weights, above 0.
            scale: Factor on the components' scales, above 0.

        Returns:
            A ``Mixture``.

        Raises:
            TypeError: The components are no location-scale family.
            ValueError: A temperature not above 0.

        References:
            Ha, D., & Eck, D. (2018). A neural representation of sketch drawings. ICLR.
            arXiv:1704.03477 (whose temperature is ``weight``, and the square of ``scale``).
        """
        positive("weight", weight)
        stretch = torch.tensor(
            positive("scale", scale), dtype=self.dtype, device=self.logits.device
        )
        centre = self.components.mean * (1.0 - stretch)
        moved = kind_of(self.components).affine(self.components, centre, stretch)
        return self._of(self.logits / weight, moved)

    def marginal(self, dims: int | Sequence[int]) -> Self:
        """Give the density of some dimensions of a vector y, the others integrated out.

        Args:
            dims: One dimension, for a density of a scalar; or several, for one of a vector.

        Returns:
            A ``Mixture`` with event shape () or (len(dims),).

        Raises:
            ValueError: The density is of a scalar, or a dimension is out of range.

        Example:
            >>> from pyralloy import Mixture
            >>> joint = Mixture(
            ...     dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
            ... )
            >>> joint.marginal(0).event_shape, joint.marginal([0, 2]).event_shape
            (torch.Size([]), torch.Size([2]))
        """
        kind = vector_kind("marginal", self.components)
        picked = kind.marginal(self.components, chosen(dims, self.event_shape[0]))
        return type(self)(self.mixture_distribution, picked, validate_args=False)

    def condition(self, given: Mapping[int, float | Tensor]) -> Self:
        r"""Give the density of the other dimensions of a vector y where some are known.

        .. math:: p(y_a \mid y_b) = \sum_k w_k' f_k(y_a \mid y_b), \qquad
                  w_k' \propto w_k f_k(y_b)

        Args:
            given: Dimension to value, in y's units: a number, or values that broadcast with the
                batch shape, so that (S, N) values make a batch of (S, N).

        Returns:
            A ``Mixture`` of the dimensions left, in their order; of a scalar, event shape (), where
            one is left.

        Raises:
            ValueError: The density is of a scalar; no dimension given, all of them, or one out of
                range; a value that is not finite or does not broadcast.

        References:
            Bishop, C. M. (2006). Pattern Recognition and Machine Learning, 2.3.1 and 2.3.9.
            Springer. Ding, P. (2016). On the conditional distribution of the multivariate t
            distribution. The American Statistician 70. doi:10.1080/00031305.2016.1164756

        Example:
            >>> from pyralloy import Mixture
            >>> tril = torch.tensor([[[1.0, 0.0], [0.8, 0.6]]])  # a correlation of 0.8
            >>> joint = Mixture(
            ...     dist.Categorical(torch.ones(1)),
            ...     dist.MultivariateNormal(torch.zeros(1, 2), scale_tril=tril),
            ... )
            >>> known = joint.condition({0: 2.0})
            >>> round(float(known.mean), 3), round(float(known.stddev), 3)
            (1.6, 0.6)
        """
        logits, left = condition(self.logits, self.components, given)
        return self._of(logits, left)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariance of a vector y, shape (..., D, D): within components and between their means.

        Raises:
            ValueError: The density is of a scalar: ``variance`` says it all.
        """
        within = vector_kind("covariance_matrix", self.components).covariance(self.components)
        gap = self.components.mean - self.mean[..., None, :]  # (..., K, D)
        both = within + gap[..., :, None] * gap[..., None, :]
        return (self.weights[..., None, None] * both).sum(-3)


def _broadcasts(shape: torch.Size, onto: torch.Size) -> bool:
    """Tell whether ``shape`` broadcasts to ``onto`` without making it larger."""
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(a in (1, b) for a, b in pairs)
