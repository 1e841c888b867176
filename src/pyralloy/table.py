"""Flat mixtures of a scalar, one a row: where the exact answers are computed, in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributions as td

from pyralloy.families import Family, family_of, map_parameters, wrap
from pyralloy.normal_quantiles import normal_quantiles
from pyralloy.numerics import invert_monotone
from pyralloy.slopes import Ready, Slopes, ready

__all__ = ["Table"]

#: Elements of one intermediate (rows x components); small enough to stay in a core's cache.
CHUNK = 1 << 18

#: The same for slopes and for the CRPS, which are made of more intermediates.
SMALL_CHUNK = 1 << 16

#: Where landmarks lie, in standard units; uneven, lest one be a stationary point of the density.
UNITS = (0.03, 0.57, 1.13, 1.79, 2.57, 3.73, 5.53, 9.03)

#: The same for Normals, whose flanks hide least; the last of all at both ends of a row only.
NORMAL_UNITS = (0.03, 0.9, 1.8, 3.0, 5.5)

#: A bound on the steps of Newton's method, of which 3 to 6 are usual.
MAX_STEPS = 200


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

        def pick(p: Tensor) -> Tensor:  # indexing by a tensor is four times slower
            return p.index_select(0, rows) if isinstance(rows, Tensor) else p[rows]

        return Table(pick(self.weights), map_parameters(self.components, pick, 0))

    def among(self, rows: Tensor) -> Table:
        """Pick distinct rows, in order, without a copy where they are all."""
        return self if rows.shape[0] == len(self) else self.take(rows)

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

    def slopes(self, y: Tensor) -> Slopes:
        r"""Evaluate the log density at ``y`` (M, P), with its derivatives.

        .. math:: (\log p)' = \sum_k r_k (\log f_k)', \quad
                  (\log p)'' = \sum_k r_k \{(\log f_k)'^2 + (\log f_k)''\} - (\log p)'^2,
                  \quad r_k = w_k f_k / p

        Scaled by ``p``, the slope keeps its sign where the density itself underflows.
        """
        points = y.shape[1]
        # Components lead, (K, M, P): sums over them then run along whole vectors.
        values = [v.T[..., None].contiguous() for v in self.ready.values]
        result = Slopes(*(torch.empty_like(y) for _ in range(3)))
        across = max(1, SMALL_CHUNK // self.weights.shape[1])
        down = max(1, across // max(points, 1))
        for top in range(0, len(self), down):
            rows = slice(top, top + down)
            for left in range(0, points, across):
                where = (rows, slice(left, left + across))
                found = self.ready.slopes([v[:, rows] for v in values], y[where], 0)
                for whole, piece in zip(result, found, strict=True):
                    whole[where] = piece
        return result

    def slopes_at(self, rows: Tensor, y: Tensor) -> Slopes:
        """Evaluate :meth:`slopes` at one point ``y`` (Q,) of each of ``rows`` (Q,)."""
        found = [self.ready.slopes(v, at, 1) for _, v, at in self._gathered(rows, y)]
        return Slopes(*(torch.cat(v) for v in zip(*found, strict=True)))

    def at(self, rows: Tensor, y: Tensor) -> tuple[Slopes, Tensor]:
        """Evaluate :meth:`slopes_at`, and the cdf (Q,) too."""
        slopes, cdfs = [], []
        for part, values, at in self._gathered(rows, y):
            slopes.append(self.ready.slopes(values, at, 1))
            cdfs.append(self.ready.cdf(self.weights.index_select(0, part), values, at))
        return Slopes(*(torch.cat(v) for v in zip(*slopes, strict=True))), torch.cat(cdfs)

    def _gathered(self, rows: Tensor, y: Tensor) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        """Go through ``rows`` and ``y`` (Q,) in chunks: what is ready of them, points (Q', 1)."""
        step = max(1, SMALL_CHUNK // self.weights.shape[1])
        for part, at in zip(rows.split(step), y.split(step), strict=True):
            yield part, [v.index_select(0, part) for v in self.ready.values], at[:, None]

    @cached_property
    def ready(self) -> Ready:
        """What evaluates the slopes and the cdf, and what they are given of components (M, K)."""
        return ready(self.components, self.weights.log())

    def support(self) -> tuple[Tensor, Tensor]:
        """Give the ends of the support, (M,) each, infinite where there is none."""
        support, live, general = self.components.support, self.weights > 0, self.family.support
        like = {"dtype": self.weights.dtype, "device": self.weights.device}
        low = torch.as_tensor(getattr(support, "lower_bound", general.low), **like)
        high = torch.as_tensor(getattr(support, "upper_bound", general.high), **like)
        return (
            torch.where(live, low, math.inf).amin(-1),
            torch.where(live, high, -math.inf).amax(-1),
        )

    def limit(self, end: Tensor, near: Tensor) -> Tensor:
        """Evaluate the log density (M,) at ``end``, or at ``near`` where it is not a number."""
        value, beside = self.log_prob(end), self.log_prob(near)
        beside = beside.nan_to_num(-math.inf, math.inf, -math.inf)
        return torch.where(value.isnan(), beside, value)

    def crossing(
        self,
        rows: Tensor,
        t: Tensor,
        ends: tuple[Tensor, Tensor],
        values: tuple[Tensor, Tensor],
        guess: Tensor,
        tolerance: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Solve ``log p(y) = t`` in brackets where the density is monotone.

        Newton's method, halving the bracket where a step would leave it or gains too little.

        Args:
            rows: Whose density is meant, shape (Q,).
            t: Log densities to reach, shape (Q,).
            ends: The brackets, (Q,) each; one of no width is its own answer.
            values: Log densities at the ends.
            guess: Where to start, (Q,); interpolated where that is outside or NaN.
            tolerance: How far the log density may be from ``t``, and how much mass may lie
                between, (Q,).

        Returns:
            The solutions and the slopes of the log density there, (Q,) each; the slope is infinite
            where the bracket has no width.
        """
        (a, b), rise = ends, values[1] - values[0]
        chord = a + (b - a) * ((t - values[0]) / rise)
        guess = torch.where((guess > a) & (guess < b), guess, chord)

        def gap(y: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            at, goal = self.slopes_at(rows[which], y), t[which]
            gap, slope = at.value - goal, at.first
            left_over = (at.second / 2 * (gap / slope).square()).abs()
            mass = left_over / slope.abs() * goal.exp()
            return gap, slope, torch.maximum(left_over, mass) <= tolerance[which]

        return newton(gap, ends, guess, rise > 0)

    def turning(
        self, rows: Tensor, ends: tuple[Tensor, Tensor], rising: Tensor, guess: Tensor
    ) -> Tensor:
        """Solve ``(log p)'(y) = 0`` in brackets.

        Args:
            rows: Whose density is meant, shape (Q,).
            ends: The brackets, (Q,) each.
            rising: Whether the slope rises from below zero to above, (Q,).
            guess: Where to start, (Q,).

        Returns:
            The solutions, (Q,).
        """
        a, b = ends
        resolution = 1e-6 * (b - a)  # of a step, and so the square of it after the step

        def slope(y: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            at = self.slopes_at(rows[which], y)
            close = (at.first / at.second).abs() <= resolution[which]
            return at.first, at.second, close

        return newton(slope, ends, guess, rising)[0]

    def wide(self) -> Table:
        """Give the table in float64, without gradients."""
        components = map_parameters(self.components, lambda p: p.detach().to(torch.float64), 0)
        return Table(self.weights.detach().to(torch.float64), components)

    def blank(self) -> Tensor:
        """Tell in which rows (M,) a weight or a parameter is NaN: they have no answers."""
        values = [self.weights, *self.family.values(self.components)]
        return torch.stack([v.isnan().any(-1) for v in values]).any(0)

    def landmarks(self) -> Landmarks:
        """Place points throughout each component, in its own units."""
        return landmarks(self.components)

    def quantile(self, u: Tensor) -> Tensor:
        """Invert the cdf at ``u``, one level a row (M,) or Q of them (Q, M), in a bracket."""
        if u.ndim == 1:
            return self.quantile(u[None])[0]
        u = u.to(torch.promote_types(u.dtype, self.weights.dtype))
        y, left = quick_quantiles(self.components, self.weights, u)
        if len(left) > 0:
            rest = self.take(left % max(1, len(self)))
            y.view(-1)[left] = rest._by_chunk(self.weights.shape[1], _quantile, u.flatten()[left])
        return y

    def distance(self, y: Tensor) -> Tensor:
        """Evaluate the expected distance to ``y`` (M,)."""
        return self._by_chunk(self.weights.shape[1], _distance, y)

    def dispersion(self) -> Tensor:
        """Evaluate half the expected distance between two draws, shape (M,)."""
        width = self.family.dispersion_width(self.weights.shape[1])
        parts = (self.take(part) for part in self.chunks(width))
        halves = [t.family.dispersion(t.weights, t.components) for t in parts]
        return torch.cat(halves) if halves else self.weights.sum(-1)

    def _by_chunk(
        self, width: int, function: Callable[[Table, Tensor], Tensor], values: Tensor
    ) -> Tensor:
        parts = [function(self.take(part), values[part]) for part in self.chunks(width)]
        return torch.cat(parts) if parts else values.clone()


def newton(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    ends: tuple[Tensor, Tensor],
    guess: Tensor,
    rising: Tensor,
) -> tuple[Tensor, Tensor]:
    """Find a root in each bracket by Newton's method, halving where a step leaves it or is poor.

    Args:
        function: ``(y, rows) -> (values, derivatives, whether one more step is close enough)``, all
            of shape (M',).
        ends: The brackets, (M,) each; one of no width is its own answer.
        guess: Where to start, (M,); the middle is taken where that is outside.
        rising: Whether the function rises from below zero to above, (M,).

    Returns:
        The roots and the derivatives there (infinite for a bracket of no width), (M,) each.
    """
    a, b = ends
    root, rate = a.clone(), torch.full_like(a, math.inf)
    rows = (b > a).nonzero()[:, 0]
    a, b, y, rising, before = (v[rows] for v in (a, b, guess, rising, rate))
    y = torch.where((y > a) & (y < b), y, (a + b) / 2)
    for _ in range(MAX_STEPS):
        if rows.numel() == 0:
            break
        value, slope, close = function(y, rows)
        left = (value > 0) == rising
        a, b = torch.where(left, a, y), torch.where(left, y, b)
        new = y - value / slope
        safe = (new > a) & (new < b) & (value.abs() < 0.5 * before)
        near = close & (new >= a) & (new <= b)
        root[rows], rate[rows] = torch.where(near, new, y), slope
        narrow = b - a <= 4 * torch.finfo(y.dtype).eps * torch.maximum(a.abs(), b.abs())
        y = torch.where(safe, new, (a + b) / 2)
        keep = ~(near | narrow)
        left = keep.nonzero()[:, 0]
        if len(left) < len(rows):
            rows, a, b, y, rising, value = (
                v.index_select(0, left) for v in (rows, a, b, y, rising, value)
            )
        before = value.abs()
    return root, rate


class Landmarks(NamedTuple):
    """Points throughout mixtures.

    Attributes:
        own: Those of each component, (M, K, L), in order unless they are on a circle.
        further: Those that are no component's, (M, E).
    """

    own: Tensor
    further: Tensor

    def flat(self) -> Tensor:
        """Give all, (M, K L + E), in no order."""
        return torch.cat([self.own.flatten(1), self.further], 1)


@singledispatch
def landmarks(component: Any) -> Landmarks:
    """Place points throughout components (M, K) of any family, by their quantiles."""
    family = family_of(component)
    like = getattr(component, family.parameters[0])
    units = torch.tensor([-u for u in reversed(UNITS[:-1])] + list(UNITS[:-1])).to(like)
    levels = torch.special.ndtr(units)[:, None, None].expand(-1, *like.shape)
    points = family.icdf(component, levels)  # (P', M, K)
    centre = getattr(component, "loc", points[len(points) // 2])
    # A density may have a kink at its location: a point on either side.
    gap = 1e-9 * (points[-1] - points[0]).abs()
    beside = torch.stack([centre - gap, centre + gap])
    return Landmarks(points.movedim(0, -1), beside.movedim(0, -1).flatten(1))


@landmarks.register
def _(component: td.Normal) -> Landmarks:
    loc, scale = component.loc, component.scale
    units = torch.tensor([*(-u for u in reversed(NORMAL_UNITS[1:])), *NORMAL_UNITS]).to(loc)
    far = UNITS[-1] * scale
    ends = (loc - far).amin(1), (loc + far).amax(1)
    return Landmarks(loc[..., None] + scale[..., None] * units, torch.stack(ends, 1))


@landmarks.register
def _(component: td.VonMises) -> Landmarks:
    units = torch.tensor([-u for u in UNITS] + list(UNITS)).to(component.loc)
    # As those of a Normal where it is narrow; half a turn at most.
    width = (component.concentration + (UNITS[-1] / math.pi) ** 2).rsqrt()
    places = wrap(component.loc[..., None] + width[..., None] * units)
    ends = torch.tensor([-math.pi, math.pi], dtype=units.dtype, device=units.device)
    return Landmarks(places, ends.expand(len(places), 2))  # the circle is covered


@singledispatch
def quick_quantiles(component: Any, weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Solve for quantiles (Q, M) what a family can at once; the flat indices of the rest."""
    return torch.empty_like(u), torch.arange(u.numel(), device=u.device)


@quick_quantiles.register
def _(component: td.Normal, weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    weights, loc, scale = (v.to(u.dtype) for v in (weights, component.loc, component.scale))
    return normal_quantiles(weights, loc, scale, u)


def _distance(table: Table, y: Tensor) -> Tensor:
    return (table.weights * table.family.distance(table.components, y[:, None])).sum(-1)


def _quantile(table: Table, u: Tensor) -> Tensor:
    ends = table.family.icdf(table.components, u[:, None])  # (M, K)
    live = table.weights > 0
    low = torch.where(live, ends, math.inf).amin(-1)
    high = torch.where(live, ends, -math.inf).amax(-1)

    chosen: dict[str, Any] = {"rows": None, "table": table}

    def cdf(y: Tensor, rows: Tensor) -> Tensor:
        if rows is not chosen["rows"]:  # the same rows are asked for several times in turn
            chosen.update(rows=rows, table=table.among(rows))
        return chosen["table"].cdf(y)

    y = invert_monotone(cdf, u, low, high)
    return _least_integer(table, u, y) if table.family.support.integer else y


def _least_integer(table: Table, u: Tensor, near: Tensor) -> Tensor:
    """Give the least integer whose cdf reaches ``u``; the root of a step lies within one of it."""
    found = near.round() + 2.0
    for step in (1.0, 0.0, -1.0, -2.0):
        below = near.round() + step
        reached = (table.cdf(below) >= u) & (below >= 0.0)
        found = torch.where(reached & (found == below + 1.0), below, found)
    return torch.where(u > 0, found, near)
