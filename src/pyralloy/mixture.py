"""The one type of every prediction: a finite mixture that answers exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyralloy.algebra import MixtureAlgebra
from pyralloy.answers import EntropyParts, Estimate, Interval, Modes
from pyralloy.checks import broadcast_shapes, integer, positive
from pyralloy.families import base_of, family_of, map_parameters
from pyralloy.information import entropy
from pyralloy.pooling import log_pool_weights
from pyralloy.regions import Region, highest_density, modes
from pyralloy.table import Table

__all__ = ["Mixture"]


class Mixture(MixtureAlgebra):
    r"""A mixture :math:`p(y) = \sum_k w_k f(y; \theta_k)` for each row of a batch.

    It is Pyro's ``MixtureSameFamily``, so it is a likelihood in any Pyro model, and it adds what a
    prediction is asked for: quantiles, intervals, CRPS, exact pooling and affine maps. Nothing is
    estimated by sampling.

    Args:
        mixture_distribution: ``Categorical`` over the K components, batch shape (...).
        component_distribution: A Pyro distribution with batch shape (..., K) and event shape () for
            a scalar y, or (D,), through ``.to_event(1)``, for a vector y.
        validate_args: As in torch; None takes the global setting.

    Raises:
        ValueError: The two disagree on the number of components or on the batch.

    References:
        Bishop, C. M. (1994). Mixture density networks. Aston University, NCRG/94/004.

    Example:
        >>> from pyro import distributions as dist
        >>> weights = dist.Categorical(probs=torch.tensor([0.3, 0.7]))
        >>> m = Mixture(weights, dist.Normal(torch.tensor([-2.0, 2.0]), torch.tensor([0.5, 0.5])))
        >>> round(float(m.mean), 4), round(float(m.cdf(torch.tensor(0.0))), 4)
        (0.8, 0.3)
        >>> [round(q, 4) for q in m.quantile([0.15, 0.65]).tolist()]
        [-2.0, 2.0]
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density, in nats.

        Args:
            value: y in its own units, broadcastable to the batch shape (+ event shape).

        Returns:
            Log densities, of the broadcast shape.

        Raises:
            ValueError: A shape that does not fit; a column (N, 1) beside N rows, which would score
                every value at every row.
        """
        return super().log_prob(value if self.event_shape else self._values("y", value))

    @property
    def mean(self) -> Tensor:
        """Mean, shape (...) + event; of angles the circular mean, in [-pi, pi)."""
        return family_of(self.components).mean(*self._parts())

    @property
    def variance(self) -> Tensor:
        """Variance, shape (...) + event; of angles the circular variance 1 - R, without unit.

        R is the mean resultant length, the length of the mean of the unit vectors.
        """
        return family_of(self.components).variance(*self._parts())

    @property
    def stddev(self) -> Tensor:
        """Standard deviation, shape (...) + event; of angles the circular one, in radians.

        That is the square root of -2 log R, which is not the root of the circular variance.
        """
        return family_of(self.components).stddev(*self._parts())

    def _parts(self) -> tuple[Tensor, Any, int]:
        """Give weights and components that broadcast, and the dimension of the components."""
        weights = self.weights.reshape(*self.weights.shape, *(1,) * self._event_ndims)
        return weights, base_of(self.components), -1 - self._event_ndims

    def cdf(self, y: Tensor) -> Tensor:
        r"""Evaluate :math:`F(y) = \sum_k w_k F_k(y)`.

        Args:
            y: Values in y's units, broadcastable to the batch shape.

        Returns:
            Probabilities, of the broadcast shape.

        Raises:
            ValueError: The density is of a vector: take :meth:`marginal` first.
        """
        self._require_scalar("cdf")
        y = self._values("y", y)
        cdf = family_of(self.components).cdf(base_of(self.components), y[..., None])  # (..., K)
        return (self.weights * cdf).sum(-1)

    def quantile(self, levels: float | Sequence[float] | Tensor) -> Tensor:
        """Invert the cdf at each level, for every row.

        A bracketed root between the components' own quantiles: exact to the precision of the
        dtype, however narrow or far apart the components are.

        Args:
            levels: Probabilities in (0, 1): a number, or Q of them.

        Returns:
            Quantiles in y's units: the batch shape for one level, (Q, ...) for several.

        Raises:
            ValueError: A level outside (0, 1), or a density of a vector.

        Example:
            >>> from pyro import distributions as dist
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> [round(q, 3) for q in m.quantile([0.025, 0.5, 0.975]).tolist()]
            [-1.96, 0.0, 1.96]
        """
        self._require_scalar("quantile")
        u = torch.as_tensor(levels, dtype=self.dtype, device=self.logits.device)
        if u.ndim > 1 or not bool(((u > 0) & (u < 1)).all()):
            raise ValueError(
                f"levels={levels!r}: give one probability or a flat sequence of probabilities "
                f"strictly between 0 and 1, as {self.dtype} rounds them (at 0 and 1 the quantile "
                "is infinite); density.to(torch.float64) tells finer ones apart."
            )
        shape = u.shape + self.batch_shape
        return self.icdf(u.reshape(u.shape + (1,) * len(self.batch_shape)).expand(shape))

    def icdf(self, u: Tensor) -> Tensor:
        """Invert the cdf at ``u``, elementwise: the torch spelling of :meth:`quantile`.

        Gradients flow to the parameters and to ``u`` by the implicit function theorem.

        Args:
            u: Probabilities in [0, 1], broadcastable with the batch shape.

        Returns:
            Quantiles in y's units, of the broadcast shape; infinite at 0 and 1 where y is
            unbounded.

        Raises:
            ValueError: ``u`` outside [0, 1], or a density of a vector.
        """
        self._require_scalar("icdf")
        u = self._values("u", u)
        if not bool(((u >= 0) & (u <= 1)).all()):
            raise ValueError(
                f"u holds values outside [0, 1] (min {float(u.min())}, max {float(u.max())}); "
                "a probability is needed."
            )
        shape = broadcast_shapes(u.shape, self.batch_shape)
        with torch.no_grad():
            y = self._table(shape).quantile(u.expand(shape).reshape(-1)).reshape(shape)
        if not torch.is_grad_enabled():
            return y
        surface = self.expand(shape).cdf(y) - u
        if not surface.requires_grad:
            return y
        slope = self.expand(shape).log_prob(y).detach().exp()
        # Where y has no density to speak of, between branches far apart, no gradient is right.
        per_slope = torch.where(slope > torch.finfo(y.dtype).tiny ** 0.5, 1.0 / slope, 0.0)
        return y - (surface - surface.detach()) * per_slope

    def _table(self, shape: torch.Size) -> Table:
        """Flatten into one row for each element of ``shape``, to which the batch broadcasts."""
        count, wide = self.num_components, self.expand(shape)
        components = map_parameters(wide.components, lambda p: p.reshape(-1, count), 0)
        return Table(wide.weights.reshape(-1, count), components)

    def interval(self, level: float = 0.9) -> Interval:
        """Give the equal-tailed interval that holds probability ``level``.

        Between two branches of a multimodal density this interval covers ground where y never
        falls; a highest-density region does not. Of angles it counts from the cut at -pi.

        Args:
            level: Probability inside, in (0, 1).

        Returns:
            ``(lower, upper)``, each of the batch shape, in y's units.

        Raises:
            ValueError: ``level`` outside (0, 1).
        """
        if positive("level", level) >= 1.0:
            raise ValueError(f"level={level!r}: give a probability strictly between 0 and 1.")
        lower, upper = self.quantile([(1.0 - level) / 2.0, (1.0 + level) / 2.0])
        return Interval(lower, upper)

    def highest_density_region(self, level: float = 0.9) -> Region:
        r"""Give the smallest region that holds probability ``level``: a union of intervals.

        .. math:: \{y : p(y) \ge t\}, \quad\text{where } P\{p(Y) \ge t\} = \text{level}

        Between two branches of a multimodal density it has a gap, where an equal-tailed interval
        covers ground on which y never falls. Its ends are bracketed roots and its mass comes from
        the cdf between them, so no component is too narrow to be found.

        Args:
            level: Probability inside, in (0, 1).

        Returns:
            A :class:`~pyralloy.regions.Region`: ``intervals`` of shape (..., R, 2) in y's units,
            padded with NaN to the row that has most, with ``contains(y)`` and ``volume()``.

        Raises:
            ValueError: ``level`` outside (0, 1), or a density of a vector.

        References:
            Hyndman, R. J. (1996). Computing and graphing highest density regions. The American
            Statistician 50. doi:10.1080/00031305.1996.10474359

        Example:
            >>> from pyro import distributions as dist
            >>> loc = torch.tensor([-5.0, 5.0])
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(loc, 1.0))
            >>> m.highest_density_region(0.9).intervals.round(decimals=1).tolist()
            [[-6.6, -3.4], [3.4, 6.6]]
            >>> [round(float(end), 1) for end in m.interval(0.9)]
            [-6.3, 6.3]
        """
        self._require_scalar("highest_density_region")
        if positive("level", level) >= 1.0:
            raise ValueError(f"level={level!r}: give a probability strictly between 0 and 1.")
        table = self.detach().to(torch.float64)._table(self.batch_shape)
        return highest_density(table, level).reshape(self.batch_shape)

    def modes(self) -> Modes:
        """Find all local maxima of the density, highest first.

        Returns:
            ``locations`` in y's units and ``log_densities``, each of shape (..., R), padded with
            NaN to the row that has most.

        Raises:
            ValueError: The density is of a vector.

        References:
            Carreira-Perpiñán, M. Á. (2000). Mode-finding for mixtures of Gaussian distributions.
            IEEE Transactions on Pattern Analysis and Machine Intelligence 22. doi:10.1109/34.888716

        Example:
            >>> from pyro import distributions as dist
            >>> weights = dist.Categorical(torch.tensor([0.3, 0.7]))
            >>> m = Mixture(weights, dist.Normal(torch.tensor([-5.0, 5.0]), 1.0))
            >>> m.modes().locations.round(decimals=2).tolist()
            [5.0, -5.0]
        """
        self._require_scalar("modes")
        found = modes(self.detach().to(torch.float64)._table(self.batch_shape))
        return Modes(*(v.reshape(*self.batch_shape, v.shape[-1]) for v in found))

    def crps(self, y: Tensor) -> Tensor:
        r"""Evaluate the continuous ranked probability score, in closed form.

        .. math:: \int \bigl(F(t) - 1\{t \ge y\}\bigr)^2 dt = E|Y - y| - \tfrac12 E|Y - Y'|

        Computed in float64, since the two terms nearly cancel far from the mass. Of angles it is
        the circular score, where the angular distance, in [0, pi], stands for the difference.

        Args:
            y: Observed values in y's units, broadcastable to the batch shape.

        Returns:
            Scores in y's units, smaller is better, of the broadcast shape.

        Raises:
            ValueError: The density is of a vector.

        References:
            Gneiting, T., & Raftery, A. E. (2007). Strictly proper scoring rules, prediction, and
            estimation. JASA 102. doi:10.1198/016214506000001437

        Example:
            >>> from pyro import distributions as dist
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> round(float(m.crps(torch.tensor(0.0))), 4)
            0.2337
        """
        self._require_scalar("crps")
        y = self._values("y", y)
        shape = broadcast_shapes(y.shape, self.batch_shape)
        y = y.to(torch.float64).expand(shape).reshape(-1)
        wide = self.to(torch.float64)
        # The dispersion does not depend on y: once a row, however many y are scored there.
        own = wide._table(self.batch_shape).dispersion().reshape(self.batch_shape)
        return (wide._table(shape).distance(y).reshape(shape) - own).to(self.dtype)

    def entropy(self) -> Tensor:
        r"""Integrate :math:`-\int p \log p` by quadrature, in float64.

        Pieces are cut at every component's quantiles, and each has a 12-point Gauss-Legendre rule:
        for Normal components the error is below 1e-9 nats.

        Returns:
            Differential entropies in nats, of the batch shape; they depend on y's units.

        Raises:
            ValueError: The density is of a vector: estimate it by
                ``-density.log_prob(density.sample((1000,))).mean(0)``.

        Example:
            >>> from pyro import distributions as dist
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> round(float(m.entropy()), 4)  # half the log of 2 pi e
            1.4189
        """
        self._require_scalar("entropy")
        wide = self.detach().to(torch.float64)._table(self.batch_shape)
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
        total = Mixture.pool(self, weights, dim).entropy()
        share = log_pool_weights(weights, self.batch_shape[dim], self.logits).exp()
        within = (self.entropy().movedim(dim, -1) * share).sum(-1)
        return EntropyParts(total, within, total - within)

    def kl_to(
        self, other: Mixture, draws: int = 1000, *, generator: torch.Generator | None = None
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

    # -- doors ------------------------------------------------------------------------------------

    def _require_scalar(self, name: str) -> None:
        if self.event_shape:
            raise ValueError(
                f"{name} is defined for a scalar y; this density has event_shape "
                f"{tuple(self.event_shape)}: take density.marginal(dim) first."
            )

    def _values(self, name: str, values: Any) -> Tensor:
        if not isinstance(values, Tensor):
            values = np.asarray(values)
        tensor = torch.as_tensor(values, device=self.mixture_distribution.logits.device)
        if not tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        if tensor.shape == (*self.batch_shape, 1) and self.batch_shape.numel() > 1:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} beside batch_shape "
                f"{tuple(self.batch_shape)}, and would be taken at every row: give "
                f"{name}.squeeze(-1) for one value a row, or expand a grid to (G, N)."
            )
        try:
            broadcast_shapes(tensor.shape, self.batch_shape)
        except ValueError:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, which does not broadcast with "
                f"batch_shape {tuple(self.batch_shape)}; give one value a row, or (S, N) of them."
            ) from None
        return tensor
