"""Intervals at whose ends a log density and its derivatives are known, and what they tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyralloy.slopes import Slopes

__all__ = ["Cells", "join", "touching"]

#: The part of their range by which a log density may leave the bounds that its tangents give it;
#: in nats, where the range is more than one.
_DOUBT = 0.2


class Cells(NamedTuple):
    """Intervals (Q,) of the rows, with the log density and its derivatives at both ends.

    ``origin`` tells between which points each came to be, by number, whatever it was split into.
    """

    rows: Tensor
    origin: Tensor
    a: Tensor
    b: Tensor
    value_a: Tensor
    value_b: Tensor
    first_a: Tensor
    first_b: Tensor
    second_a: Tensor
    second_b: Tensor

    @classmethod
    def between(cls, y: Tensor, slopes: Slopes, mask: Tensor) -> Cells:
        """Make cells between neighbours of sorted points (M, P), where ``mask`` (M, P - 1) is."""
        rows, left = mask.nonzero(as_tuple=True)
        left = left.add_(rows, alpha=y.shape[1])
        right = left + 1
        ends = (v.flatten().index_select(0, i) for v in (y, *slopes) for i in (left, right))
        return cls(rows, left, *ends)

    def pick(self, mask: Tensor) -> Cells:
        """Pick those where ``mask`` (Q,) is true."""
        return self.take(mask.nonzero()[:, 0])

    def take(self, where: Tensor) -> Cells:
        """Pick by number."""
        return Cells(*(v.index_select(0, where) for v in self))

    def split(self, y: Tensor, at: Slopes) -> tuple[Cells, Cells]:
        """Split each at a point (Q,) inside, of which the slopes are known."""
        return (
            self._replace(b=y, value_b=at.value, first_b=at.first, second_b=at.second),
            self._replace(a=y, value_a=at.value, first_a=at.first, second_a=at.second),
        )

    def reaches(self, low: Tensor, high: Tensor) -> Tensor:
        """Tell where the log density may come into a window, as far as its tangents bound it.

        They do where the curvature keeps its sign, or changes it once.
        """
        width = self.b - self.a
        left, right = self.value_a, self.value_b
        over, under = left + width * self.first_a, right - width * self.first_b
        # Tangents meet at a, or b, or between, where the curvature keeps its sign.
        meet = left + self.first_a * ((under - left) / (self.first_a - self.first_b))
        alike = (self.second_a > 0) == (self.second_b > 0)
        over, under = torch.where(alike, meet, over), torch.where(alike, meet, under)
        return _meets(left, right, over, under, low, high)

    def spans(self, low: Tensor, high: Tensor) -> Tensor:
        """Tell where the log density comes into a window between the ends, if it is monotone."""
        least, top = (f(self.value_a, self.value_b) for f in (torch.minimum, torch.maximum))
        return (top >= low) & (least <= high)

    def turning(self) -> Tensor:
        """Tell where the slope changes sign."""
        return ((self.first_a > 0) != (self.first_b > 0)) & (self.b > self.a)

    def doubtful(self) -> Tensor:
        """Tell where the slope may have zeros that its signs at the ends do not show.

        A tangent at an end leads to zero inside the cell, yet there is no change of sign; or there
        is one, and the tangents do not reach it together.
        """
        left, right = -self.first_a / self.second_a, self.first_b / self.second_b
        left = torch.where(left > 0, left, math.inf)
        right = torch.where(right > 0, right, math.inf)
        width, nearer = self.b - self.a, torch.minimum(left, right)
        short = (left + right < 0.7 * width) | (
            torch.maximum(left, right).isinf() & (nearer < 0.35 * width)
        )
        near = torch.where((self.first_a > 0) == (self.first_b > 0), nearer < width, short)
        return near & (width > 1e-13 * torch.maximum(self.a.abs(), self.b.abs()))

    def crossed(self, t: Tensor) -> Tensor:
        """Tell where the log density passes ``t`` (Q,) between the ends."""
        return (self.value_a > t) != (self.value_b > t)

    def guess(self, t: Tensor) -> Tensor:
        """Guess where a monotone log density is ``t`` (Q,), between the values at the ends."""
        ends = (self.a, self.b), (self.value_a, self.value_b), (self.first_a, self.first_b)
        return self.inside(_interpolate(t, *ends), (self.a + self.b) / 2)

    def summit(self) -> Tensor:
        """Guess where a slope that changes sign is zero, (Q,)."""
        ends = (self.a, self.b), (self.first_a, self.first_b), (self.second_a, self.second_b)
        return self.inside(_interpolate(torch.zeros_like(self.a), *ends), (self.a + self.b) / 2)

    def inside(self, y: Tensor, other: Tensor) -> Tensor:
        """Give ``y`` (Q,) where it lies between the ends, and ``other`` elsewhere."""
        return torch.where((y > self.a) & (y < self.b), y, other)


def _interpolate(
    t: Tensor,
    ends: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    rates: tuple[Tensor, Tensor],
) -> Tensor:
    """Guess where a monotone function is ``t`` (Q,), of which both ends are known.

    The rational quadratic that agrees with values and rates there is monotone too, and inverted by
    one square root: a parabola's own root, where the function is one.

    References:
        Gregory, J. A., & Delbourgo, R. (1982). Piecewise rational quadratic interpolation to
        monotonic data. IMA Journal of Numerical Analysis 2. doi:10.1093/imanum/2.2.123
    """
    (a, b), (low, high) = ends, values
    width, rise = b - a, high - low
    share, scale = (t - low) / rise, width / rise
    linear = scale * rates[0] - share * (scale * (rates[0] + rates[1]) - 2.0)
    root = (linear.square() + 4.0 * share * (1.0 - linear)).clamp_min(0.0).sqrt()
    return torch.addcmul(a, width, 2.0 * share / (linear + root))


def join(many: Sequence[Cells]) -> Cells:
    """Put cells together."""
    return Cells(*(torch.cat(v) for v in zip(*many, strict=True)))


def touching(y: Tensor, slopes: Slopes, low: Tensor, high: Tensor) -> Tensor:
    """Tell cheaply which cells :meth:`Cells.reaches` need be asked of.

    Args:
        y: Sorted points (M, P).
        slopes: Slopes there.
        low: Lower end of the window, (M,).
        high: Its upper end.

    Returns:
        Whether the tangents, run through the cell between neighbours, touch it, (M, P - 1).
    """
    width, (left, right) = y.diff(dim=-1), (slopes.value[:, :-1], slopes.value[:, 1:])
    over = torch.addcmul(left, width, slopes.first[:, :-1])
    under = torch.addcmul(right, width, slopes.first[:, 1:], value=-1.0)
    return _meets(left, right, over, under, low[:, None], high[:, None])


def _meets(a: Tensor, b: Tensor, c: Tensor, d: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Tell where the range of four values comes near a window."""
    top = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    least = torch.minimum(torch.minimum(a, b), torch.minimum(c, d))
    doubt = (top - least).clamp_max_(1.0).mul_(_DOUBT)
    # What is not a number may be anywhere.
    return ~((top + doubt < low) | (least - doubt > high))
