"""What mixtures are closed under: affine maps, pools, reduction, margins, conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pyralloy.checks import integer, positive
from pyralloy.families import kind_of
from pyralloy.margins import chosen, condition, vector_kind
from pyralloy.parts import MixtureParts
from pyralloy.pooling import (
    batch_size,
    check_alike,
    log_pool_weights,
    pool_batch,
    pool_components,
)
from pyralloy.reduction import reduce_normals
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


class MixtureAlgebra(MixtureParts):
    """The operations whose result is a mixture again.

    :class:`~pyralloy.Mixture` adds the questions that a prediction is asked.
    """

    truncate = truncate

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
            >>> from pyro import distributions as dist
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
            >>> from pyro import distributions as dist
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
            >>> from pyro import distributions as dist
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
        centre = self.components.mean
        loc = getattr(getattr(self.components, "base_dist", self.components), "loc", None)
        if loc is not None:  # a heavy tail has a centre, though it may have no mean
            centre = torch.where(centre.isfinite(), centre, loc)
        moved = kind_of(self.components).affine(self.components, centre * (1.0 - stretch), stretch)
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
            >>> from pyro import distributions as dist
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
            >>> from pyro import distributions as dist
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
            ValueError: The density is of a scalar, whose ``variance`` says it all, or of angles.
        """
        kind = vector_kind("covariance_matrix", self.components)
        if kind.support.circular:
            raise ValueError(
                "covariance_matrix is of numbers; angles have a circular variance only."
            )
        within = kind.covariance(self.components)
        gap = self.components.mean - self.mean[..., None, :]  # (..., K, D)
        both = within + gap[..., :, None] * gap[..., None, :]
        return (self.weights[..., None, None] * both).sum(-3)


def _broadcasts(shape: torch.Size, onto: torch.Size) -> bool:
    """Tell whether ``shape`` broadcasts to ``onto`` without making it larger."""
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(a in (1, b) for a, b in pairs)
