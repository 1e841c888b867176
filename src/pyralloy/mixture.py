"""The one type of every prediction: a finite mixture that answers exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.families import base_of, family_of, map_parameters
from pyralloy.pooling import check_alike, log_pool_weights, pool_components
from pyralloy.table import Table

__all__ = ["Interval", "Mixture"]


class Interval(NamedTuple):
    """An interval for each row."""

    lower: Tensor
    upper: Tensor


class Mixture(dist.MixtureSameFamily):
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
        >>> weights = dist.Categorical(probs=torch.tensor([0.3, 0.7]))
        >>> m = Mixture(weights, dist.Normal(torch.tensor([-2.0, 2.0]), torch.tensor([0.5, 0.5])))
        >>> round(float(m.mean), 4), round(float(m.cdf(torch.tensor(0.0))), 4)
        (0.8, 0.3)
        >>> [round(q, 4) for q in m.quantile([0.15, 0.65]).tolist()]
        [-2.0, 2.0]
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mixture:
        """Expand to a larger batch shape, as a ``Mixture``."""
        return super().expand(batch_shape, self._get_checked_instance(Mixture, _instance))

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
        return self.component_distribution.mean.dtype

    def __getitem__(self, rows: Any) -> Mixture:
        """Index the batch, as one indexes a tensor of shape ``batch_shape``.

        Raises:
            IndexError: The density has no batch dimension, or ``rows`` is out of range.

        Example:
            >>> m = Mixture(dist.Categorical(torch.ones(4, 2)), dist.Normal(torch.zeros(4, 2), 1.0))
            >>> m[1:3].batch_shape
            torch.Size([2])
        """
        if not self.batch_shape:
            raise IndexError("a density with batch_shape () has no rows to index.")
        trailing = (slice(None),) * (1 + self._event_ndims)
        index = rows if isinstance(rows, tuple) else (rows,)
        if Ellipsis not in index:
            index = (*index, Ellipsis)
        if torch.zeros(()).expand(self.batch_shape)[rows].ndim > len(self.batch_shape):
            raise IndexError(f"rows={rows!r} adds a batch dimension; index with slices or a list.")
        return self._rebuild(self.logits[(*index, slice(None))], lambda p: p[(*index, *trailing)])

    def to(self, target: torch.dtype | torch.device | str) -> Mixture:
        """Move to a dtype or a device.

        Example:
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> m.to(torch.float64).dtype
            torch.float64
        """
        return self._rebuild(self.logits.to(target), lambda p: p.to(target))

    def detach(self) -> Mixture:
        """Cut the parameters from the graph that made them."""
        return self._rebuild(self.logits.detach(), Tensor.detach)

    def _rebuild(self, logits: Tensor, function: Any) -> Mixture:
        components = map_parameters(self.components, function, self._event_ndims)
        return Mixture(
            dist.Categorical(logits=logits, validate_args=False), components, validate_args=False
        )

    # -- moments and functions --------------------------------------------------------------------

    @property
    def stddev(self) -> Tensor:
        """Standard deviation, shape (...) + event."""
        return self.variance.sqrt()

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
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> [round(q, 3) for q in m.quantile([0.025, 0.5, 0.975]).tolist()]
            [-1.96, 0.0, 1.96]
        """
        weights = self.weights
        u = torch.as_tensor(levels, dtype=weights.dtype, device=weights.device)
        if u.ndim > 1 or not bool(((u > 0) & (u < 1)).all()):
            raise ValueError(
                f"levels={levels!r}: give one probability or a flat sequence of probabilities "
                "strictly between 0 and 1 (at 0 and 1 the quantile is infinite)."
            )
        return self.icdf(u.reshape(u.shape + (1,) * len(self.batch_shape)))

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
        shape = torch.broadcast_shapes(u.shape, self.batch_shape)
        with torch.no_grad():
            y = self._table(shape).quantile(u.expand(shape).reshape(-1)).reshape(shape)
        if not torch.is_grad_enabled():
            return y
        surface = self.expand(shape).cdf(y) - u
        if not surface.requires_grad:
            return y
        slope = self.log_prob(y).detach().exp().clamp_min(torch.finfo(y.dtype).tiny)
        return y - (surface - surface.detach()) / slope

    def _table(self, shape: torch.Size) -> Table:
        """Flatten into one row for each element of ``shape``, to which the batch broadcasts."""
        count, wide = self.num_components, self.expand(shape)
        components = map_parameters(wide.components, lambda p: p.reshape(-1, count), 0)
        return Table(wide.weights.reshape(-1, count), components)

    def interval(self, level: float = 0.9) -> Interval:
        """Give the equal-tailed interval that holds probability ``level``.

        Between two branches of a multimodal density this interval covers ground where y never
        falls; a highest-density region does not.

        Args:
            level: Probability inside, in (0, 1).

        Returns:
            ``(lower, upper)``, each of the batch shape, in y's units.

        Raises:
            ValueError: ``level`` outside (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level={level!r}: give a probability strictly between 0 and 1.")
        lower, upper = self.quantile([(1.0 - level) / 2.0, (1.0 + level) / 2.0])
        return Interval(lower, upper)

    def crps(self, y: Tensor) -> Tensor:
        r"""Evaluate the continuous ranked probability score, in closed form.

        .. math:: \int \bigl(F(t) - 1\{t \ge y\}\bigr)^2 dt = E|Y - y| - \tfrac12 E|Y - Y'|

        Computed in float64, since the two terms nearly cancel far from the mass.

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
            >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))
            >>> round(float(m.crps(torch.tensor(0.0))), 4)
            0.2337
        """
        self._require_scalar("crps")
        y = self._values("y", y)
        shape = torch.broadcast_shapes(y.shape, self.batch_shape)
        y = y.to(torch.float64).expand(shape).reshape(-1)
        wide = self.to(torch.float64)
        # The dispersion does not depend on y: once a row, however many y are scored there.
        own = wide._table(self.batch_shape).dispersion().reshape(self.batch_shape)
        return (wide._table(shape).distance(y).reshape(shape) - own).to(self.dtype)

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
        with torch.no_grad():
            size = torch.Size(sample_shape)
            draws, count = size.numel(), self.num_components
            cumulative = self.weights.cumsum(-1).reshape(-1, count)  # (N, K)
            u = torch.rand(
                cumulative.shape[0],
                draws,
                generator=generator,
                dtype=cumulative.dtype,
                device=cumulative.device,
            )
            chosen = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
            chosen = chosen.clamp_max(count - 1)  # (N, S)
            event = self.event_shape
            index = chosen.reshape(*chosen.shape, *(1,) * len(event)).expand(*chosen.shape, *event)
            picked = map_parameters(
                self.components,
                lambda p: torch.gather(p.reshape(-1, count, *event), 1, index),
                self._event_ndims,
            )
            values = (
                family_of(picked).draw(base_of(picked), generator).movedim(1, 0)
            )  # (S, N) + event
            return values.reshape(size + self.batch_shape + event)

    # -- algebra ----------------------------------------------------------------------------------

    def affine(self, shift: float | Tensor, scale: float | Tensor) -> Mixture:
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

    def _affine(self, shift: Tensor, scale: Tensor) -> Mixture:
        position = -1 - self._event_ndims  # of the component dimension
        family, base = family_of(self.components), base_of(self.components)
        shift, scale = (
            v.unsqueeze(position) if v.ndim > self._event_ndims else v for v in (shift, scale)
        )
        moved = family.affine(base, shift, scale)
        if self._event_ndims:
            moved = moved.to_event(self._event_ndims)
        return Mixture(self.mixture_distribution, moved, validate_args=False)

    @staticmethod
    def pool(
        many: Mixture | Sequence[Mixture],
        weights: Sequence[float] | Tensor | None = None,
        dim: int = 0,
    ) -> Mixture:
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
            >>> a = Mixture(dist.Categorical(torch.ones(1)), dist.Normal(torch.zeros(1), 1.0))
            >>> pooled = Mixture.pool([a, a.affine(2.0, 1.0)])
            >>> pooled.num_components, float(pooled.mean)
            (2, 1.0)
        """
        if isinstance(many, Mixture):
            return many._pool_batch(weights, dim)
        members = list(many)
        check_alike(members)
        log_weights = log_pool_weights(weights, len(members), members[0].logits)
        if len(members) == 1:
            return members[0]
        logits = torch.cat([m.logits + a for m, a in zip(members, log_weights, strict=True)], -1)
        components = pool_components([m.components for m in members], members[0]._event_ndims)
        return Mixture(
            dist.Categorical(logits=logits, validate_args=False), components, validate_args=False
        )

    def _pool_batch(self, weights: Sequence[float] | Tensor | None, dim: int) -> Mixture:
        rank = len(self.batch_shape)
        if not -rank <= dim < rank:
            raise ValueError(
                f"dim={dim}: the density has batch_shape {tuple(self.batch_shape)}, "
                "and only one of its dimensions can be pooled."
            )
        dim %= rank
        if self.batch_shape[dim] == 1 and weights is None:
            return self[(*(slice(None),) * dim, 0)]
        a = log_pool_weights(weights, self.batch_shape[dim], self.logits)
        logits = self.logits.movedim(dim, -2) + a[:, None]  # (..., M, K)
        return self._rebuild(
            logits.flatten(-2), lambda p: p.movedim(dim, rank - 1).flatten(rank - 1, rank)
        )

    def marginal(self, dims: int | Sequence[int]) -> Mixture:
        """Give the density of some dimensions of a vector y, the others integrated out.

        Args:
            dims: One dimension, for a density of a scalar; or several, for one of a vector.

        Returns:
            A ``Mixture`` with event shape () or (len(dims),).

        Raises:
            ValueError: The density is of a scalar, or a dimension is out of range.

        Example:
            >>> joint = Mixture(
            ...     dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
            ... )
            >>> joint.marginal(0).event_shape, joint.marginal([0, 2]).event_shape
            (torch.Size([]), torch.Size([2]))
        """
        if not self.event_shape:
            raise ValueError("marginal needs a density of a vector y; this one is of a scalar.")
        wanted = [dims] if isinstance(dims, int) else list(dims)
        size = self.event_shape[0]
        if not wanted or any(not isinstance(d, int) or not -size <= d < size for d in wanted):
            raise ValueError(f"dims={dims!r}: give dimensions of y, each within 0 to {size - 1}.")
        index = wanted[0] if isinstance(dims, int) else wanted
        picked = map_parameters(
            self.components, lambda p: p[..., index], 0 if isinstance(dims, int) else 1
        )
        return Mixture(self.mixture_distribution, picked, validate_args=False)

    # -- doors ------------------------------------------------------------------------------------

    def _require_scalar(self, name: str) -> None:
        if self.event_shape:
            raise ValueError(
                f"{name} is defined for a scalar y; this density has event_shape "
                f"{tuple(self.event_shape)}: take density.marginal(dim) first."
            )

    def _values(self, name: str, values: Any) -> Tensor:
        tensor = torch.as_tensor(values, device=self.mixture_distribution.logits.device)
        if not tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        try:
            torch.broadcast_shapes(tensor.shape, self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, which does not broadcast with "
                f"batch_shape {tuple(self.batch_shape)}; give one value a row, or (S, N) of them."
            ) from None
        return tensor


def _broadcasts(shape: torch.Size, onto: torch.Size) -> bool:
    """Tell whether ``shape`` broadcasts to ``onto`` without making it larger."""
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(a in (1, b) for a, b in pairs)
