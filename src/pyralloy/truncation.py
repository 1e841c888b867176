"""The density of y given that it lies between two ends, which is a mixture again."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyralloy.checks import broadcast_shapes
from pyralloy.families import Family, base_of, family_of, log_mass, map_parameters, truncated

__all__ = ["truncate"]

M = TypeVar("M")


def truncate(  # noqa: D417
    self: M, low: float | Tensor | None = None, high: float | Tensor | None = None
) -> M:
    r"""Give the density of y given that ``low <= y <= high``, exactly.

    .. math:: p(y \mid l \le Y \le h) = \sum_k w_k' \, f_k(y \mid l \le Y \le h), \qquad
              w_k' \propto w_k \, P_k(l \le Y \le h)

    Weights are renormalised in logs, and masses counted from the tail in which they do not cancel:
    an interval far out, of mass 1e-300 in float64 components or in float32 ones, keeps its digits.
    Normal components become truncated normals, others
    :class:`~pyralloy.families.truncated.Truncated`; their quantiles, regions and pools are exact,
    and their moments and CRPS are integrals by quadrature, to about 1e-8 of a component's width.
    Counts include both ends: ``truncate(low=1)`` of a Poisson is the zero-truncated one.

    Args:
        low: Lower end in y's units, a number or one a row; None or minus infinity for none.
        high: Upper end, likewise.

    Returns:
        A ``Mixture`` of the same batch shape.

    Raises:
        ValueError: ``low`` not below ``high``, NaN, a shape that does not fit, a row without mass
            inside, or a density of a vector.

    References:
        Johnson, N. L., Kotz, S., & Balakrishnan, N. (1994). Continuous Univariate Distributions,
        volume 1. Wiley.

    Example:
        >>> from pyro import distributions as dist
        >>> from pyralloy import Mixture
        >>> m = Mixture(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([0.0, 5.0]), 1.0))
        >>> above = m.truncate(low=2.5)
        >>> [round(q, 2) for q in above.quantile([0.05, 0.5]).tolist()], float(above.cdf(2.5))
        ([3.36, 5.0], 0.0)
    """
    density: Any = self
    if density.event_shape:
        raise ValueError(
            f"truncate is defined for a scalar y; this density has event_shape "
            f"{tuple(density.event_shape)}: take density.marginal(dim) first."
        )
    if low is None and high is None:
        return self
    least, most = _ends(density, low, high)
    family, base = family_of(density.components), base_of(density.components)
    logits = density.logits + log_mass(family, base, least, most)  # (..., K)
    _require_mass(density, family, logits, (least, most))
    inside = truncated(base, family, least, most)
    # A component without mass has no truncated form; the heaviest stands in, with no weight.
    pick = torch.arange(density.num_components, device=logits.device).expand(logits.shape)
    pick = torch.where(logits == -math.inf, logits.argmax(-1, keepdim=True), pick)
    inside = map_parameters(inside, lambda p: p.gather(-1, pick), 0)
    return density._of(torch.log_softmax(logits, -1).to(density.dtype), inside)


def _ends(
    density: Any, low: float | Tensor | None, high: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Check both ends and give them in the density's dtype, shape (..., 1)."""
    ends = []
    for name, value, absent in (("low", low, -math.inf), ("high", high, math.inf)):
        end = torch.as_tensor(absent if value is None else value, device=density.logits.device)
        end, rows = end.to(density.dtype), density.batch_shape
        try:
            fits = broadcast_shapes(end.shape, rows) == rows
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} has shape {tuple(end.shape)}: give a number, or what broadcasts to the "
                f"batch shape {tuple(rows)}."
            )
        ends.append(end.expand(rows)[..., None])
    low_end, high_end = ends
    wrong = ~(low_end < high_end)
    if bool(wrong.any()):
        raise ValueError(
            f"low={float(low_end[wrong][0])!r}, high={float(high_end[wrong][0])!r}: give two "
            f"numbers, as {density.dtype} rounds them, the lower first, or None for an open end."
        )
    return low_end, high_end


def _require_mass(
    density: Any, family: Family, logits: Tensor, ends: tuple[Tensor, Tensor]
) -> None:
    empty = (logits == -math.inf).all(-1)
    if not bool(empty.any()):
        return
    row = tuple(int(i) for i in empty.nonzero()[0])
    middle = density.detach()[row] if row else density.detach()
    place = ", ".join(f"{q:.4g}" for q in middle.quantile([0.001, 0.999]).tolist())
    where = f" in {int(empty.sum())} of {empty.numel()} rows, the first at row {row}" if row else ""
    low, high = (float(end[row][0]) for end in ends)
    least, most, *_ = family.support
    raise ValueError(
        f"low={low!r}, high={high!r}: the density has no mass between them that float64 can "
        f"hold{where}. It lies within ({place}) with probability 0.998, and "
        f"components of family {family.name!r} within {least:g} to {most:g}: choose ends that "
        "overlap it."
    )
