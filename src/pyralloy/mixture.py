"""The one type of every prediction: a finite mixture that answers exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyralloy.answers import Interval, Modes
from pyralloy.checks import broadcast_shapes, outside_message, probability
from pyralloy.families import base_of, family_of, kind_of
from pyralloy.measures import MixtureMeasures
from pyralloy.regions import Region, highest_density, mass_above, modes
from pyralloy.table import SMALL_CHUNK

__all__ = ["Mixture"]


class Mixture(MixtureMeasures):
    r"""A mixture :math:`p(y) = \sum_k w_k f(y; \theta_k)` for each row of a batch.

    It is Pyro's ``MixtureSameFamily``, so it is a likelihood in any Pyro model, and it adds what a
    prediction is asked for: quantiles, intervals, regions, modes and scores, pools and affine maps,
    margins and conditionals. Nothing is estimated by sampling, but for :meth:`kl_to` and
    :meth:`level_set`, which give their standard errors.

    Args:
        mixture_distribution: ``Categorical`` over the K components, batch shape (...).
        component_distribution: A Pyro distribution with batch shape (..., K) and event shape () for
            a scalar y, or (D,) for a vector: independent dimensions through ``.to_event(1)``, or
            ``MultivariateNormal``, ``MultivariateStudentT`` and their low-rank kin.
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
                every value at every row; where arguments are validated, a value outside the
                support.
        """
        value = self._values("y", value)
        try:
            if self._validate_args:
                self._validate_sample(value)
            kind = kind_of(self.components)
            if not self.event_shape:
                return self._over_rows(
                    # A Categorical keeps its logits normalised.
                    lambda w, parts, y: torch.logsumexp(w + kind.log_prob(parts, y[..., None]), -1),
                    value,
                )
            parts = kind.log_prob(self.components, self._pad(value))  # (..., K)
        except (ValueError, IndexError) as error:
            message = outside_message(value, self)
            if message is None:
                raise
            raise ValueError(message) from error
        return torch.logsumexp(self.mixture_distribution.logits + parts, -1)

    @property
    def mean(self) -> Tensor:
        """Mean, shape (...) + event; of angles the circular mean, in [-pi, pi)."""
        return kind_of(self.components).mean(self.weights, self.components)

    @property
    def variance(self) -> Tensor:
        """Variance, shape (...) + event; of angles the circular variance 1 - R, without unit.

        R is the mean resultant length, the length of the mean of the unit vectors.
        """
        return kind_of(self.components).variance(self.weights, self.components)

    @property
    def stddev(self) -> Tensor:
        """Standard deviation, shape (...) + event; of angles the circular one, in radians.

        That is the square root of -2 log R, which is not the root of the circular variance.
        """
        return kind_of(self.components).stddev(self.weights, self.components)

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
        cdf = family_of(self.components).cdf  # (..., K)
        return self._over_rows(
            lambda w, parts, y: (_weights(w) * cdf(base_of(parts), y[..., None])).sum(-1), y
        )

    def survival(self, y: Tensor) -> Tensor:
        r"""Evaluate :math:`1 - F(y) = \sum_k w_k \bigl(1 - F_k(y)\bigr)`, SciPy's ``sf``.

        Far in the upper tail, where ``1 - density.cdf(y)`` is 0, it keeps its digits. Args,
        Returns and Raises as for :meth:`cdf`.
        """
        self._require_scalar("survival")
        y = self._values("y", y)
        tail = family_of(self.components).survival
        return self._over_rows(
            lambda w, parts, y: (_weights(w) * tail(base_of(parts), y[..., None])).sum(-1), y
        )

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
                f"strictly between 0 and 1, as {self.dtype} rounds them (at 0 and 1 it is an "
                "end of y's range, or infinite: icdf gives it); density.to(torch.float64) tells "
                "finer ones apart."
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
            rank = len(self.batch_shape)
            lead, rows = shape[: len(shape) - rank], shape[len(shape) - rank :]
            # Levels lead: the components of a row are there once, however many are asked.
            levels = u.detach().expand(shape).reshape(lead.numel(), rows.numel())
            y = self._table(rows).quantile(levels).reshape(shape)
        sources = (u, self.logits, *kind_of(self.components).values(self.components))
        if not torch.is_grad_enabled() or not any(v.requires_grad for v in sources):
            return y
        surface = self.expand(shape).cdf(y) - u
        slope = self.expand(shape).log_prob(y).detach().exp()
        # Where y has no density to speak of, between branches far apart, no gradient is right.
        per_slope = torch.where(slope > torch.finfo(y.dtype).tiny ** 0.5, 1.0 / slope, 0.0)
        return y - (surface - surface.detach()) * per_slope

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
        level = probability("level", level)
        lower, upper = self.quantile([(1.0 - level) / 2.0, (1.0 + level) / 2.0])
        return Interval(lower, upper)

    def highest_density_region(self, level: float = 0.9) -> Region:
        r"""Give the smallest region that holds probability ``level``: a union of intervals.

        .. math:: \{y : p(y) \ge t\}, \quad\text{where } P\{p(Y) \ge t\} = \text{level}

        Between two branches of a multimodal density it has a gap, where an equal-tailed interval
        covers ground on which y never falls. Its ends are bracketed roots and its mass comes from
        the cdf between them, so no component is too narrow to be found. Of counts it is a set of
        integers, of angles one of arcs.

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
        probability("level", level)
        table = self.detach()._table(self.batch_shape, torch.float64)
        return highest_density(table, level).reshape(self.batch_shape)

    def mass_above(self, log_density: Tensor) -> Tensor:
        r"""Give the probability that y falls where the density is higher: :math:`P\{p(Y) > t\}`.

        The inverse of :meth:`highest_density_region`: the level of the region that ends at t. Of
        counts it is a sum over the integers that are more likely.

        Args:
            log_density: The log of t in nats, broadcastable to the batch shape.

        Returns:
            Probabilities in float64, of the broadcast shape, without gradient.

        Raises:
            ValueError: The density is of a vector, or shapes do not fit.

        Example:
            >>> from pyro import distributions as dist
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> round(float(m.mass_above(m.log_prob(torch.tensor(1.6449)))), 3)
            0.9
        """
        self._require_scalar("mass_above")
        t = self._values("log_density", log_density).detach()
        shape = broadcast_shapes(t.shape, self.batch_shape)
        table = self.detach()._table(shape, torch.float64)
        return mass_above(table, t.expand(shape).reshape(-1)).reshape(shape)

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
        found = modes(self.detach()._table(self.batch_shape, torch.float64))
        return Modes(*(v.reshape(*self.batch_shape, v.shape[-1]) for v in found))

    def crps(self, y: Tensor) -> Tensor:
        r"""Evaluate the continuous ranked probability score: in closed form, or by quadrature.

        .. math:: \int \bigl(F(t) - 1\{t \ge y\}\bigr)^2 dt = E|Y - y| - \tfrac12 E|Y - Y'|

        A closed form where the components are Normal, and 1,000 at most; a sum for counts; and
        otherwise a quadrature of one of the terms, to about 1e-8 of its value. Computed in float64.
        Of angles it is the circular score, where the angular distance, in [0, pi], stands for the
        difference.

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
        halves, far = [], []
        # Few rows at a time: what is made of them is then still in the cache.
        some = max(1, SMALL_CHUNK // self.num_components)
        for part, table in self._tables(self.batch_shape, torch.float64, some):
            halves.append(table.dispersion())
            if shape == self.batch_shape:
                far.append(table.distance(y[part]))
        # The dispersion does not depend on y: once a row, however many y are scored there.
        if shape != self.batch_shape:
            far = [t.distance(y[part]) for part, t in self._tables(shape, torch.float64, some)]
        dispersion = torch.cat(halves).reshape(self.batch_shape)
        return (torch.cat(far).reshape(shape) - dispersion).to(self.dtype)


def _weights(logits: Tensor) -> Tensor:
    """Give weights as ``Mixture.weights`` does."""
    return torch.log_softmax(logits, -1).exp()
