"""Standardisation of inputs and targets, undone exactly by ``Mixture.affine``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from pyralloy.families import Support
from pyralloy.mixture import Mixture

#: No bounds: free to be shifted and scaled.
REAL_LINE = Support()

#: Rows farther from the median than this many robust spreads are left out of mean and deviation:
#: none of ordinary data, of a log-normal of sigma 2 one in forty, and every typing error.
FENCE = 20.0

#: Standardised inputs beyond it grow only as a logarithm, or one of them would drown the network.
INPUT_LIMIT = 20.0

#: Numbers that are standardised at once: what is in float64 for a moment is no second copy of x.
BLOCK = 2**18

#: Rows that quantiles are taken from; more would not move them by much.
MOST_ROWS = 100_000

#: Quantiles at both ends, and between them the width of a standard Normal: the first pair that
#: differs gives the robust spread, so that half the rows, or 97 in 100, may be one value.
LEVELS = ((0.25, 1.34898), (0.1, 2.56310), (0.05, 3.28971), (0.01, 4.65270))

__all__ = ["FENCE", "INPUT_LIMIT", "Bulk", "Standardizer", "bulk"]


class Bulk(NamedTuple):
    """Where most rows of each column lie: what no outlier moves.

    Attributes:
        middle: Medians, shape () or (F,), float64.
        spread: Robust spreads, equal to the standard deviation of a Normal column; infinite where
            98 rows in 100 are one value, and nothing robust can be said.
    """

    middle: Tensor
    spread: Tensor

    def farness(self, values: Tensor) -> Tensor:
        """Count robust spreads from the middle, of the shape of ``values``, float64."""
        # Divided first: the difference of two values near 1e308 would overflow.
        size = torch.where(self.spread.isfinite(), self.spread, 1.0)
        gap = (values.to(torch.float64) / size - self.middle / size).abs()
        return torch.where(self.spread.isfinite(), gap, 0.0)


def bulk(values: Tensor) -> Bulk:
    """Find the bulk of ``values`` (N, ...), column by column.

    The spread is the interquartile range over 1.349, or where that is zero the range between the
    first wider pair of quantiles that differ.

    References:
        Huber, P. J., & Ronchetti, E. M. (2009). Robust Statistics. Wiley.
        doi:10.1002/9780470434697

    Example:
        >>> found = bulk(torch.tensor([0.0, 1.0, 2.0, 3.0, 1e6]))
        >>> float(found.middle), round(float(found.spread), 2)
        (2.0, 1.48)
    """
    rows = values.shape[0]
    if rows > MOST_ROWS:  # at random: a stride would meet the period of a series
        generator = torch.Generator().manual_seed(0)
        values = values[torch.randint(rows, (MOST_ROWS,), generator=generator).to(values.device)]
    ordered = values.detach().to(torch.float64).sort(0).values
    spread = torch.full_like(ordered[0], math.inf)
    for level, width in reversed(LEVELS):
        low, high = _quantile(ordered, level), _quantile(ordered, 1 - level)
        differ = high - low > _rounding(torch.maximum(low.abs(), high.abs()))
        spread = torch.where(differ, high / width - low / width, spread)
    return Bulk(_quantile(ordered, 0.5), spread)


class Standardizer(nn.Module):
    """Centre and scale each column, in float64, whatever the network's dtype.

    It starts as the identity; :meth:`fit` sets it from data. Mean and deviation are those of the
    rows within 20 robust spreads of the median, which for ordinary data are all: an outlier of a
    million would otherwise squeeze every other row into one point. Columns without spread keep
    scale 1.

    Attributes:
        shift: Column means, shape () or (F,), float64.
        scale: Column standard deviations, likewise; never zero.
        limit: Standardised values beyond it grow only as a logarithm: infinite unless :meth:`fit`
            is given one, and then not undone.

    Example:
        >>> z = Standardizer().fit(torch.tensor([[1.0], [3.0]]))
        >>> z(torch.tensor([[5.0]]), torch.float32).item()
        3.0
    """

    shift: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("limit", torch.full((), math.inf, dtype=torch.float64))
        self.register_load_state_dict_pre_hook(_take_columns)

    def fit(
        self, values: Tensor, support: Support = REAL_LINE, *, limit: float = math.inf
    ) -> Standardizer:
        r"""Set shift and scale from ``values`` (N, ...), column by column; returns itself.

        Args:
            values: Observations, shape (N, ...).
            support: Where they can lie: what is positive is only scaled, and what lies on an
                interval or counts something stays as it is.
            limit: Where standardised values bend: :math:`z` with :math:`|z|` above the limit
                :math:`c` becomes :math:`\pm (c + \log(1 + |z| - c))`.
        """
        values = values.detach()
        shift, scale = _moments(values, bulk(values))
        self.shift = shift * float(support.shifts)
        self.scale = scale if support.scales else torch.ones_like(scale)
        self.limit = self.limit.new_full((), limit)
        return self

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Standardise ``values`` in float64, then cast to ``dtype``."""
        if values.numel() <= BLOCK or values.requires_grad:
            return self._standard(values).to(dtype)
        shape = torch.broadcast_shapes(values.shape, self.shift.shape)
        result = torch.empty(shape, dtype=dtype, device=values.device)
        for into, block in zip(_blocks(result), _blocks(values), strict=True):
            into.copy_(self._standard(block))
        return result

    def undo(self, density: Mixture) -> Mixture:
        """Give a density of standardised values as one of the original values, in float64."""
        wide = density.to(torch.float64)
        if bool((self.scale == 1).all() & (self.shift == 0).all()):
            return wide
        return wide._affine(self.shift, self.scale)

    def _standard(self, values: Tensor) -> Tensor:
        wide = values.to(torch.float64)
        z = (wide - self.shift) / self.scale
        # Values near the largest double: their difference overflows, or their ratio to the scale.
        z = torch.where(z.isinf(), wide / self.scale - self.shift / self.scale, z)
        z = z.nan_to_num(nan=math.nan)
        inner = z.clamp(-self.limit, self.limit)
        return inner + (z - inner).sign() * (z - inner).abs().log1p()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Follow a module to another device, but stay float64 when it changes its dtype."""
        exact = (self.shift, self.scale, self.limit)
        super()._apply(fn, recurse)
        self.shift, self.scale, self.limit = (v.to(self.shift.device) for v in exact)
        return self

    @property
    def log_jacobian(self) -> float:
        """Nats to add to a negative log density of standardised values, to have it in their units.

        The sum over columns of the log of the scale.
        """
        return float(self.scale.log().sum())


def _moments(values: Tensor, centre: Bulk) -> tuple[Tensor, Tensor]:
    """Give mean and deviation of the rows of the bulk, by columns; 1 where a column is flat."""
    origin = values[0].to(torch.float64)
    # Row 0 may be an outlier itself; the middle keeps the digits of a small spread as well.
    origin = torch.where(centre.farness(origin) > FENCE, centre.middle, origin)
    size, low, high = torch.zeros_like(origin), origin, origin
    for block, inside in _within(values, centre):
        away = torch.where(inside, (block - origin).abs(), 0.0)
        size = torch.maximum(size, away.amax(0))
        kept = torch.where(inside, block, origin)
        low, high = torch.minimum(low, kept.amin(0)), torch.maximum(high, kept.amax(0))
    flat = high - low <= _rounding(torch.maximum(low.abs(), high.abs()))
    # The largest size is divided out: squares of values above 1e154 would overflow.
    size = torch.where(size > 0, size, 1.0)
    count, total, squares = (torch.zeros_like(origin) for _ in range(3))
    for block, inside in _within(values, centre):
        count += inside.sum(0)
        total += torch.where(inside, (block - origin) / size, 0.0).sum(0)
    mean = total / count
    for block, inside in _within(values, centre):
        unit = (block - origin) / size - mean
        squares += torch.where(inside, unit, 0.0).square().sum(0)
    spread = (squares / count).sqrt() * size
    return origin + mean * size, torch.where(flat, 1.0, spread)


def _within(values: Tensor, centre: Bulk) -> Iterator[tuple[Tensor, Tensor]]:
    """Give rows block by block in float64, and which of them lie in the bulk of each column."""
    for block in _blocks(values):
        yield block.to(torch.float64), centre.farness(block) <= FENCE


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    return values.split(max(1, BLOCK // max(1, values[0].numel())))


def _quantile(ordered: Tensor, level: float) -> Tensor:
    """Interpolate a quantile of rows that are in order; torch's own refuses many of them."""
    place = level * (ordered.shape[0] - 1)
    low, part = math.floor(place), place - math.floor(place)
    high = min(low + 1, ordered.shape[0] - 1)
    return (1 - part) * ordered[low] + part * ordered[high]


def _rounding(size: Tensor) -> Tensor:
    """Give the differences that rounding makes between equal values of this size."""
    return 4 * torch.finfo(size.dtype).eps * size


def _take_columns(
    module: Standardizer, state: Mapping[str, Tensor], prefix: str, *_rest: Any
) -> None:
    """Make room for the columns of a state to be loaded: a fresh standardizer has none."""
    for name in ("shift", "scale"):
        if prefix + name in state:
            setattr(module, name, getattr(module, name).new_empty(state[prefix + name].shape))
