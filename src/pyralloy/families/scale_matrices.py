"""Two forms of a positive definite matrix: a lower triangle, or a few factors and a diagonal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyralloy.families.contract import scale_bounds, within
from pyralloy.numerics import soft_between, soft_between_inverse, soft_exp

__all__ = ["Full", "Known", "LowRank", "ScaleMatrix", "low_rank_solve"]

#: Bounds on how much of one dimension another explains, in units of what is left unexplained: a
#: correlation of 0.99995, or of 0.999 for each factor, whose capacitance float32 must factorise.
MOST_SLOPE, MOST_FACTOR = 100.0, 30.0


class Known(NamedTuple):
    """What a scale matrix says of the other dimensions once some are known.

    Attributes:
        shift: What the known gap moves the others by, shape (..., D - B).
        parts: The scale matrix of the others.
        squared: Squared Mahalanobis length of the known gap, shape (...).
    """

    shift: Tensor
    parts: list[Tensor]
    squared: Tensor


class ScaleMatrix(ABC):
    """How the scale matrix of a component is held: as which tensors, ``parts``.

    Attributes:
        name: What opens it at the door, as in ``MixtureHead(covariance=name)``.
        parameters: Names of the parts in the constructor of a Pyro distribution.
    """

    name: str
    parameters: tuple[str, ...]

    @abstractmethod
    def outputs(self, dims: int) -> int:
        """Count the raw outputs that make one matrix."""

    @abstractmethod
    def from_raw(self, raw: Sequence[Tensor], spread: float, dims: int) -> list[Tensor]:
        """Map raw outputs (..., P) to parts; no raw output makes a matrix singular or infinite."""

    @abstractmethod
    def to_raw(self, scale: Tensor, spread: float) -> Tensor:
        """Give raw outputs (..., P) of, nearly, a diagonal matrix of deviations (..., D)."""

    @abstractmethod
    def sources(self, parts: list[Tensor]) -> int:
        """Count the independent numbers that a draw is made from."""

    @abstractmethod
    def mixed(self, parts: list[Tensor], noise: Tensor) -> Tensor:
        """Turn independent numbers (..., sources) into a gap (..., D) of this scale matrix."""

    @abstractmethod
    def scaled(self, parts: list[Tensor], scale: Tensor) -> list[Tensor]:
        """Multiply rows and columns by ``scale``, broadcastable to (..., D)."""

    @abstractmethod
    def matrix(self, parts: list[Tensor]) -> Tensor:
        """Multiply out, shape (..., D, D)."""

    @abstractmethod
    def marginal(self, parts: list[Tensor], dims: list[int]) -> list[Tensor]:
        """Keep some rows and columns."""

    @abstractmethod
    def condition(
        self, parts: list[Tensor], given: list[int], rest: list[int], gap: Tensor
    ) -> Known:
        """Fix some dimensions, ``gap`` (..., B) away from their centre."""


class Full(ScaleMatrix):
    r"""A lower triangle: :math:`S = L L^\top`.

    Each row of L is a scale, softly bounded, times (slopes on the dimensions before it, 1): the
    scale is the standard deviation that is left when those dimensions are known.

    References:
        Pourahmadi, M. (1999). Joint mean-covariance models with applications to longitudinal data:
        unconstrained parameterisation. Biometrika 86. doi:10.1093/biomet/86.3.677
    """

    name = "full"
    parameters = ("scale_tril",)

    def outputs(self, dims: int) -> int:
        """Count a scale a dimension and a slope a pair."""
        return dims * (dims + 1) // 2

    def from_raw(self, raw: Sequence[Tensor], spread: float, dims: int) -> list[Tensor]:
        """Map log-scales, then slopes row by row, to L."""
        log_scale = torch.stack(list(raw[:dims]), -1)  # (..., D)
        unit = torch.eye(dims, dtype=log_scale.dtype, device=log_scale.device)
        unit = unit.expand(*log_scale.shape, -1).clone()  # (..., D, D)
        below = [(i, j) for i in range(dims) for j in range(i)]
        for slope, (i, j) in zip(raw[dims:], below, strict=True):
            unit[..., i, j] = soft_between(slope, -MOST_SLOPE, MOST_SLOPE)
        return [soft_exp(log_scale, *scale_bounds(spread))[..., None] * unit]

    def to_raw(self, scale: Tensor, spread: float) -> Tensor:
        """Invert :meth:`from_raw` for a diagonal matrix."""
        dims = scale.shape[-1]
        slopes = scale.new_zeros(*scale.shape[:-1], self.outputs(dims) - dims)
        return torch.cat([_raw_scale(scale, spread), slopes], -1)

    def sources(self, parts: list[Tensor]) -> int:
        """Count D."""
        return parts[0].shape[-1]

    def mixed(self, parts: list[Tensor], noise: Tensor) -> Tensor:
        """Multiply by L."""
        return (parts[0] @ noise[..., None])[..., 0]

    def scaled(self, parts: list[Tensor], scale: Tensor) -> list[Tensor]:
        """Scale the rows of L, and keep its diagonal positive."""
        return [_upright(scale[..., None] * parts[0])]

    def matrix(self, parts: list[Tensor]) -> Tensor:
        """Multiply out, shape (..., D, D)."""
        return parts[0] @ parts[0].mT

    def marginal(self, parts: list[Tensor], dims: list[int]) -> list[Tensor]:
        """Keep some rows, and make them a triangle again."""
        return [_triangle(parts[0], dims)]

    def condition(
        self, parts: list[Tensor], given: list[int], rest: list[int], gap: Tensor
    ) -> Known:
        """Bring the known dimensions to the front: the triangle then holds the answer."""
        tril, count = _triangle(parts[0], given + rest), len(given)
        above, beside, below = (
            tril[..., :count, :count], tril[..., count:, :count], tril[..., count:, count:]
        )  # fmt: skip
        z = torch.linalg.solve_triangular(above, gap[..., None], upper=False)  # (..., B, 1)
        return Known((beside @ z)[..., 0], [below], z[..., 0].square().sum(-1))


class LowRank(ScaleMatrix):
    r"""A few factors and a diagonal: :math:`S = W W^\top + \operatorname{diag}(d)`.

    Args:
        rank: Number of columns R of W.
    """

    name = "low_rank"
    parameters = ("cov_factor", "cov_diag")

    def __init__(self, rank: int = 1) -> None:
        self.rank = rank

    def outputs(self, dims: int) -> int:
        """Count a scale and R loadings a dimension."""
        return dims * (1 + self.rank)

    def from_raw(self, raw: Sequence[Tensor], spread: float, dims: int) -> list[Tensor]:
        """Map log-scales, then loadings in units of them, to W and d."""
        scale = soft_exp(torch.stack(list(raw[:dims]), -1), *scale_bounds(spread))
        loading = soft_between(torch.stack(list(raw[dims:]), -1), -MOST_FACTOR, MOST_FACTOR)
        return [scale[..., None] * loading.unflatten(-1, (dims, -1)), scale.square()]

    def to_raw(self, scale: Tensor, spread: float) -> Tensor:
        """Start from small loadings of many directions: where they are 0 there is no gradient."""
        dims = scale.shape[-1]
        angle = torch.arange(1, dims + 1, dtype=scale.dtype, device=scale.device)[:, None]
        angle = angle * torch.arange(1, self.rank + 1, dtype=scale.dtype, device=scale.device)
        loading = (0.3 * angle.cos()).flatten().expand(*scale.shape[:-1], -1)
        return torch.cat([_raw_scale(scale, spread), loading], -1)

    def sources(self, parts: list[Tensor]) -> int:
        """Count D + R."""
        return sum(parts[0].shape[-2:])

    def mixed(self, parts: list[Tensor], noise: Tensor) -> Tensor:
        """Multiply the last R by W, and add the others in the proportion of d."""
        own, factors = noise.tensor_split([parts[1].shape[-1]], -1)
        return (parts[0] @ factors[..., None])[..., 0] + parts[1].sqrt() * own

    def scaled(self, parts: list[Tensor], scale: Tensor) -> list[Tensor]:
        """Scale the rows of W and, squared, d."""
        return [scale[..., None] * parts[0], scale.square() * parts[1]]

    def matrix(self, parts: list[Tensor]) -> Tensor:
        """Multiply out, shape (..., D, D)."""
        return parts[0] @ parts[0].mT + parts[1].diag_embed()

    def marginal(self, parts: list[Tensor], dims: list[int]) -> list[Tensor]:
        """Keep some rows."""
        return [parts[0][..., dims, :], parts[1][..., dims]]

    def condition(
        self, parts: list[Tensor], given: list[int], rest: list[int], gap: Tensor
    ) -> Known:
        """Learn of the factors from the known dimensions: the rank stays what it was."""
        (factor, diagonal), other = self.marginal(parts, given), self.marginal(parts, rest)
        solved = low_rank_solve(factor, diagonal, gap)
        shift = (other[0] @ solved.factors[..., None])[..., 0]
        left = torch.linalg.solve_triangular(solved.tril.mT, other[0], upper=True, left=False)
        return Known(shift, [left, other[1]], solved.squared)


class LowRankSolved(NamedTuple):
    """What a gap says of the factors behind it.

    Attributes:
        factors: Their conditional mean, shape (..., R).
        tril: Lower triangle (..., R, R) of their conditional precision.
        squared: Squared Mahalanobis length of the gap, shape (...).
        log_det: Log determinant of the scale matrix, shape (...).
    """

    factors: Tensor
    tril: Tensor
    squared: Tensor
    log_det: Tensor


def low_rank_solve(factor: Tensor, diagonal: Tensor, gap: Tensor) -> LowRankSolved:
    r"""Solve :math:`W W^\top + \operatorname{diag}(d)` by the matrix of its factors alone.

    With :math:`C = I + W^\top D^{-1} W` the factors have mean :math:`m = C^{-1} W^\top D^{-1} g`,
    and :math:`g^\top S^{-1} g = \lVert g - W m \rVert^2_{D^{-1}} + \lVert m \rVert^2`: a sum of
    squares, where Woodbury's difference would lose digits.

    Args:
        factor: W, shape (..., D, R).
        diagonal: d, shape (..., D).
        gap: g, shape (..., D).

    Returns:
        A :class:`LowRankSolved`.
    """
    weighed = factor / diagonal[..., None]  # (..., D, R)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    tril = torch.linalg.cholesky(eye + factor.mT @ weighed)
    factors = torch.cholesky_solve(weighed.mT @ gap[..., None], tril)  # (..., R, 1)
    left = gap - (factor @ factors)[..., 0]
    squared = (left.square() / diagonal).sum(-1) + factors[..., 0].square().sum(-1)
    log_det = diagonal.log().sum(-1) + 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return LowRankSolved(factors[..., 0], tril, squared, log_det)


def _raw_scale(scale: Tensor, spread: float) -> Tensor:
    low, high = scale_bounds(spread)
    return soft_between_inverse(within(scale, math.exp(low), math.exp(high)).log(), low, high)


def _upright(tril: Tensor) -> Tensor:
    """Turn the signs of columns so that the diagonal is positive; the product stays."""
    return tril * tril.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def _triangle(tril: Tensor, rows: list[int]) -> Tensor:
    """Give the lower triangle whose product with itself is that of some rows of another."""
    if rows == list(range(len(rows))):
        return tril[..., : len(rows), : len(rows)]
    return _upright(torch.linalg.qr(tril[..., rows, :].mT).R.mT)
