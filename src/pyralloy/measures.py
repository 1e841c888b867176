"""Information in a mixture, in nats, and the regions of a vector that only draws can find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from pyralloy.algebra import MixtureAlgebra
from pyralloy.answers import EntropyParts, Estimate
from pyralloy.checks import integer, probability
from pyralloy.information import entropy
from pyralloy.level_sets import LevelSet, level_set
from pyralloy.pooling import log_pool_weights

__all__ = ["MixtureMeasures"]


class MixtureMeasures(MixtureAlgebra):
    """What a mixture and others have in common or apart; what is estimated says how well."""

    def entropy(self) -> Tensor:
        r"""Integrate :math:`-\int p \log p` by adaptive quadrature, in float64; of counts, sum it.

        The error is below 1e-9 nats.

        Returns:
            Entropies in nats, of the batch shape. Unless y counts something they are differential
            ones, which depend on y's units.

        Raises:
            ValueError: The density is of a vector: estimate it by
                ``-density.log_prob(density.sample((1000,))).mean(0)``.

        Example:
            >>> from pyro import distributions as dist
            >>> from pyralloy import Mixture
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> round(float(m.entropy()), 4)  # half the log of 2 pi e
            1.4189
        """
        self._require_scalar("entropy")
        wide = self.detach()._table(self.batch_shape, torch.float64)
        return entropy(wide).reshape(self.batch_shape).to(self.dtype)

    def entropy_decomposition(
        self, weights: Sequence[float] | Tensor | None = None, dim: int = 0
    ) -> EntropyParts:
        r"""Split the entropy of a pool into what its members have and what they disagree on.

        Over draws of a posterior or members of an ensemble, ``within`` is the noise that remains
        when the model is known (aleatoric), ``between`` the mutual information of y and the member
        (epistemic).

        Args:
            weights: Of the members along ``dim``; None means equal.
            dim: The batch dimension that holds the members.

        Returns:
            ``total``, ``within`` and ``between`` in nats, of the batch shape without ``dim``; the
            first is the sum of the others.

        Raises:
            ValueError: As for :meth:`pool` and :meth:`entropy`.

        References:
            Depeweg, S., Hernández-Lobato, J. M., Doshi-Velez, F., & Udluft, S. (2018).
            Decomposition of uncertainty in Bayesian deep learning. ICML. arXiv:1710.07283
        """
        total = type(self).pool(self, weights, dim).entropy()
        share = log_pool_weights(weights, self.batch_shape[dim], self.logits).exp()
        within = (self.entropy().movedim(dim, -1) * share).sum(-1)
        return EntropyParts(total, within, total - within)

    def kl_to(
        self, other: Self, draws: int = 1000, *, generator: torch.Generator | None = None
    ) -> Estimate:
        r"""Estimate the Kullback-Leibler divergence :math:`\int p \log (p / q)` from draws.

        Args:
            other: The density q, of the same batch and event shape.
            draws: Number of draws from this density, at least 2.
            generator: Source of randomness; None takes torch's default.

        Returns:
            ``value`` and its standard ``error``, in nats, of the batch shape.

        Raises:
            TypeError: ``draws`` is no integer.
            ValueError: Shapes that differ, or fewer than 2 draws.
        """
        if other.batch_shape != self.batch_shape or other.event_shape != self.event_shape:
            raise ValueError(
                f"other has batch {tuple(other.batch_shape)} and event {tuple(other.event_shape)}; "
                f"give {tuple(self.batch_shape)} and {tuple(self.event_shape)}, as here."
            )
        y = self.sample((integer("draws", draws, 2),), generator=generator)
        ratio = self.log_prob(y) - other.log_prob(y)
        return Estimate(ratio.mean(0), ratio.std(0) / draws**0.5)

    def level_set(
        self, level: float = 0.9, *, draws: int = 10_000, generator: torch.Generator | None = None
    ) -> LevelSet:
        r"""Estimate the highest-density region of a vector y, as a level of its density.

        Args:
            level: Probability inside, in (0, 1).
            draws: Number of draws a row; the probability inside errs by
                :math:`\sqrt{\text{level} (1 - \text{level}) / \text{draws}}`.
            generator: Source of randomness; None takes torch's default.

        Returns:
            A :class:`~pyralloy.level_sets.LevelSet`: ``log_density`` of shape (...), with
            ``contains(y)`` and ``volume()``.

        Raises:
            TypeError: ``draws`` is no integer.
            ValueError: ``level`` outside (0, 1), fewer than 100 draws, or a density of a scalar.

        References:
            Hyndman, R. J. (1996). Computing and graphing highest density regions. The American
            Statistician 50. doi:10.1080/00031305.1996.10474359

        Example:
            >>> from pyro import distributions as dist
            >>> from pyralloy import Mixture
            >>> normal = dist.Normal(torch.zeros(1, 2), 1.0).to_event(1)
            >>> disc = Mixture(dist.Categorical(torch.ones(1)), normal).level_set(0.9)
            >>> disc.contains(torch.tensor([[0.0, 2.0], [0.0, 2.3]])).tolist()  # radius 2.15
            [True, False]
        """
        if not self.event_shape:
            raise ValueError(
                "level_set is of a vector y; this density is of a scalar, whose "
                "highest_density_region(level) is exact."
            )
        level = probability("level", level)
        return level_set(self, level, integer("draws", draws, 100), generator)
