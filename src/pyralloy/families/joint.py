"""Normal and Student's t components whose dimensions are correlated.

A component is a law (Normal or t) around a scale matrix, held in one of two forms. Laws and forms
combine freely: four families.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyralloy.families.contract import Family
from pyralloy.families.location_scale import LOG_DF, START_DF, NormalFamily, StudentTFamily
from pyralloy.families.scale_matrices import Full, LowRank, ScaleMatrix, low_rank_solve
from pyralloy.families.vector import Conditioned, VectorFamily
from pyralloy.numerics import soft_between_inverse, soft_exp

__all__ = ["JOINT", "JointFamily", "LowRankMultivariateStudentT"]


class LowRankMultivariateStudentT(TorchDistribution):
    r"""A multivariate t of scale matrix :math:`W W^\top + \operatorname{diag}(d)`.

    Pyro's ``MultivariateStudentT`` with the scale matrix as in ``LowRankMultivariateNormal``.

    Args:
        df: Degrees of freedom, above 0, shape (...).
        loc: Centre, shape (..., D).
        cov_factor: W, shape (..., D, R).
        cov_diag: d, above 0, shape (..., D).
        validate_args: As in torch.

    References:
        Kotz, S., & Nadarajah, S. (2004). Multivariate t distributions and their applications.
        Cambridge University Press. doi:10.1017/CBO9780511550683

    Example:
        >>> t = LowRankMultivariateStudentT(
        ...     torch.tensor(3.0), torch.zeros(2), torch.ones(2, 1), torch.ones(2)
        ... )
        >>> t.variance.tolist(), round(float(t.log_prob(torch.zeros(2))), 4)
        ([6.0, 6.0], -2.3872)
    """

    has_rsample = True

    def __init__(
        self,
        df: Tensor | float,
        loc: Tensor,
        cov_factor: Tensor,
        cov_diag: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.as_tensor(df, dtype=loc.dtype, device=loc.device)[..., None, None]
        shape, loc, cov_factor, cov_diag = torch.broadcast_tensors(
            shape, loc[..., None], cov_factor, cov_diag[..., None]
        )
        self.df, self.loc, self.cov_diag = shape[..., 0, 0], loc[..., 0], cov_diag[..., 0]
        self.cov_factor = cov_factor
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankMultivariateStudentT:
        """Expand to a larger batch shape."""
        batch = torch.Size(batch_shape)
        values = (self.loc, self.cov_factor, self.cov_diag)
        rank = len(self.batch_shape)
        wide = (v.expand(*batch, *v.shape[rank:]) for v in values)
        return LowRankMultivariateStudentT(
            self.df.expand(batch), *wide, validate_args=self._validate_args
        )

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """What is checked when the distribution is made."""
        return {
            "df": constraints.positive,
            "loc": constraints.real_vector,
            "cov_factor": constraints.independent(constraints.real, 2),
            "cov_diag": constraints.independent(constraints.positive, 1),
        }

    @property
    def support(self) -> constraints.Constraint:
        """All of space."""
        return constraints.real_vector

    @property
    def mean(self) -> Tensor:
        """The centre; NaN where there is no mean, at one degree of freedom or fewer."""
        return torch.where(self.df[..., None] > 1, self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        """Variances, (..., D): infinite at two degrees of freedom or fewer."""
        scale = self.cov_factor.square().sum(-1) + self.cov_diag
        return _variance_ratio(self.df)[..., None] * scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density."""
        if self._validate_args:
            self._validate_sample(value)
        solved = low_rank_solve(self.cov_factor, self.cov_diag, value - self.loc)
        half, dims = self.df / 2, self.loc.shape[-1]
        norm = torch.lgamma(half + dims / 2) - torch.lgamma(half)
        norm = norm - dims / 2 * (math.pi * self.df).log() - solved.log_det / 2
        return norm - (half + dims / 2) * torch.log1p(solved.squared / self.df)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw samples with a gradient: a Normal over the root of a chi-squared mean."""
        shape = self._extended_shape(sample_shape)
        like = {"dtype": self.loc.dtype, "device": self.loc.device}
        noise = torch.randn(shape, **like) * self.cov_diag.sqrt()
        factors = torch.randn(*shape[:-1], self.cov_factor.shape[-1], 1, **like)
        gamma = dist.Gamma(self.df / 2, self.df / 2, validate_args=False)
        heavy = gamma.rsample(torch.Size(sample_shape)).rsqrt()[..., None]
        return self.loc + heavy * (noise + (self.cov_factor @ factors)[..., 0])


class Law(ABC):
    """What an elliptical component adds to its centre and scale matrix.

    Attributes:
        name: What opens it at the door, as in ``MixtureHead(family=name)``.
        scalar: The family of one dimension.
        parameters: Names of the shape parameters, which come before the centre.
        distributions: Of components, by the name of the form of the scale matrix.
    """

    name: str
    scalar: Family
    parameters: tuple[str, ...]
    distributions: ClassVar[dict[str, type[Any]]]

    @abstractmethod
    def from_raw(self, raw: Sequence[Tensor]) -> list[Tensor]:
        """Map raw outputs (..., number of shape parameters) to shape parameters (...)."""

    @abstractmethod
    def to_raw(self, like: Tensor) -> tuple[Tensor, float]:
        """Give raw outputs to start from, and the ratio there of deviation to scale."""

    @abstractmethod
    def known(self, shapes: list[Tensor], count: int, squared: Tensor) -> list[Tensor]:
        """Give the shape parameters once ``count`` dimensions are known."""

    @abstractmethod
    def widening(self, shapes: list[Tensor], count: int, squared: Tensor) -> Tensor:
        """Give the factor on the scale of the others then, broadcastable to (...)."""

    @abstractmethod
    def variance_ratio(self, shapes: list[Tensor]) -> Tensor:
        """Give the ratio of the covariance to the scale matrix, broadcastable to (...)."""

    @abstractmethod
    def spherical(
        self, shapes: list[Tensor], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draw as many as ``like`` (..., D), around 0, the scale matrix being the identity."""


class NormalLaw(Law):
    """The Normal: gaps are as they are."""

    name = "normal"
    scalar = NormalFamily()
    parameters = ()
    distributions: ClassVar = {
        "full": dist.MultivariateNormal,
        "low_rank": dist.LowRankMultivariateNormal,
    }

    def from_raw(self, raw: Sequence[Tensor]) -> list[Tensor]:
        """Give none."""
        return []

    def to_raw(self, like: Tensor) -> tuple[Tensor, float]:
        """Give none."""
        return like[..., :0], 1.0

    def known(self, shapes: list[Tensor], count: int, squared: Tensor) -> list[Tensor]:
        """Give none."""
        return []

    def widening(self, shapes: list[Tensor], count: int, squared: Tensor) -> Tensor:
        """Give 1: the spread of a Normal does not depend on what is known."""
        return squared.new_ones(())

    def variance_ratio(self, shapes: list[Tensor]) -> Tensor:
        """Give 1."""
        return torch.ones(())

    def spherical(
        self, shapes: list[Tensor], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draw standard Normals."""
        return torch.empty_like(like).normal_(generator=generator)


class StudentTLaw(Law):
    """Student's t: what is known changes degrees of freedom and scale.

    References:
        Ding, P. (2016). On the conditional distribution of the multivariate t distribution. The
        American Statistician 70. doi:10.1080/00031305.2016.1164756
    """

    name = "student_t"
    scalar = StudentTFamily()
    parameters = ("df",)
    distributions: ClassVar = {
        "full": dist.MultivariateStudentT,
        "low_rank": LowRankMultivariateStudentT,
    }

    def from_raw(self, raw: Sequence[Tensor]) -> list[Tensor]:
        """Map to degrees of freedom, bounded as those of the scalar family."""
        return [soft_exp(raw[0], *LOG_DF)]

    def to_raw(self, like: Tensor) -> tuple[Tensor, float]:
        """Start from 8 degrees of freedom, as the scalar family."""
        raw = soft_between_inverse(torch.full_like(like, math.log(START_DF)), *LOG_DF)
        return raw, math.sqrt(START_DF / (START_DF - 2))

    def known(self, shapes: list[Tensor], count: int, squared: Tensor) -> list[Tensor]:
        """Gain a degree of freedom for each known dimension."""
        return [(shapes[0] + count).expand(squared.shape)]

    def widening(self, shapes: list[Tensor], count: int, squared: Tensor) -> Tensor:
        """Widen where the known dimensions lie far out."""
        return ((shapes[0] + squared) / (shapes[0] + count)).sqrt()

    def variance_ratio(self, shapes: list[Tensor]) -> Tensor:
        """Give df / (df - 2), infinite at two or fewer."""
        return _variance_ratio(shapes[0])

    def spherical(
        self, shapes: list[Tensor], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draw one dimension after another, each given those before it."""
        df, squared, drawn = shapes[0], torch.zeros_like(like[..., 0]), []
        for count in range(like.shape[-1]):
            one = dist.StudentT(df + count, torch.zeros_like(squared), 1.0, validate_args=False)
            z = self.scalar.draw(one, generator) * self.widening(shapes, count, squared)
            squared = squared + z.square()
            drawn.append(z)
        return torch.stack(drawn, -1)


class JointFamily(VectorFamily):
    """Elliptical components: a law around a scale matrix of one form.

    Args:
        law: Normal or Student's t.
        form: How the scale matrix is held.
    """

    def __init__(self, law: Law, form: ScaleMatrix) -> None:
        self.law, self.form = law, form
        self.name = f"{law.name}, {form.name} covariance"
        self.distribution = law.distributions[form.name]
        self.parameters = (*law.parameters, "loc", *form.parameters)

    def outputs_for(self, dims: int) -> int:
        """Count shape parameters, centres and what the scale matrix takes."""
        return len(self.law.parameters) + dims + self.form.outputs(dims)

    def widths_for(self, dims: int) -> tuple[int, ...]:
        """Give the scales, with which each form of the matrix begins and by which it grows."""
        first = len(self.law.parameters) + dims
        return tuple(range(first, first + dims))

    def from_raw(self, raw: Sequence[Tensor], spread: float, dims: int) -> Any:
        """Map shapes, centres and the scale matrix, in this order."""
        count = len(self.law.parameters)
        loc = torch.stack(list(raw[count : count + dims]), -1)  # (..., D)
        parts = self.form.from_raw(raw[count + dims :], spread, dims)
        return self.build([*self.law.from_raw(raw[:count]), loc, *parts])

    def to_raw(self, loc: Tensor, scale: Tensor, spread: float) -> Tensor:
        """Place components whose dimensions are, nearly, uncorrelated."""
        shapes, ratio = self.law.to_raw(loc[..., :1])
        return torch.cat([shapes, loc, self.form.to_raw(scale / ratio, spread)], -1)

    def values(self, component: Any) -> list[Tensor]:
        """Give the parameters, each of shape batch + its own event shape."""
        return [getattr(component, name) for name in self.parameters]

    def build(self, values: list[Tensor]) -> Any:
        """Make components from parameters."""
        return self.distribution(
            **dict(zip(self.parameters, values, strict=True)), validate_args=False
        )

    def draw(self, component: Any, generator: torch.Generator | None) -> Tensor:
        """Draw once from each component."""
        shapes, loc, parts = self._split(component)
        like = loc.new_empty(1).expand(*loc.shape[:-1], self.form.sources(parts))
        return loc + self.form.mixed(parts, self.law.spherical(shapes, like, generator))

    def affine(self, component: Any, shift: Tensor, scale: Tensor) -> Any:
        """Move the centre and scale the matrix."""
        shapes, loc, parts = self._split(component)
        return self.build([*shapes, shift + scale * loc, *self.form.scaled(parts, scale)])

    def covariance(self, component: Any) -> Tensor:
        """Evaluate the covariance matrix, infinite where there is none."""
        shapes, _, parts = self._split(component)
        return self.law.variance_ratio(shapes)[..., None, None] * self.form.matrix(parts)

    def marginal(self, component: Any, dims: int | list[int]) -> Any:
        """Keep some centres and some of the scale matrix."""
        shapes, loc, parts = self._split(component)
        kept = self.form.marginal(parts, [dims] if isinstance(dims, int) else dims)
        if isinstance(dims, int):
            scale = self.form.matrix(kept)[..., 0, 0].sqrt()
            return self.law.scalar.build([*shapes, loc[..., dims], scale])
        return self.build([*shapes, loc[..., dims], *kept])

    def condition(
        self, component: Any, given: list[int], rest: list[int], value: Tensor
    ) -> Conditioned:
        """Move and, for the t, widen the others by what is known."""
        log_density = self.marginal(component, given).log_prob(value)  # (..., K)
        shapes, loc, parts = self._split(component)
        found = self.form.condition(parts, given, rest, value - loc[..., given])
        factor = self.law.widening(shapes, len(given), found.squared)[..., None]
        shapes = self.law.known(shapes, len(given), found.squared)
        parts = self.form.scaled(found.parts, factor)
        left = self.build([*shapes, loc[..., rest] + found.shift, *parts])
        return Conditioned(log_density, left.expand(log_density.shape))

    def _split(self, component: Any) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Part the parameters into those of the law, the centre and the scale matrix."""
        values, count = self.values(component), len(self.law.parameters)
        return values[:count], values[count], values[count + 1 :]


#: The families of correlated components, by the names of law and form.
JOINT: dict[tuple[str, str], JointFamily] = {
    (law.name, form.name): JointFamily(law, form)
    for law in (NormalLaw(), StudentTLaw())
    for form in (Full(), LowRank())
}


def _variance_ratio(df: Tensor) -> Tensor:
    return torch.where(df > 2, df / (df - 2), math.inf)
