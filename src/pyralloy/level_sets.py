"""Highest-density regions of a vector: a level of the density, found by draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyralloy.answers import Estimate

__all__ = ["LevelSet", "level_set"]

#: Draws x components x dimensions of one step, so that memory stays moderate.
CHUNK = 1 << 24


@dataclass(frozen=True)
class LevelSet:
    r"""A region :math:`\{y : p(y) \ge t\}` for each row of a batch of vector densities.

    Attributes:
        density: The ``Mixture``.
        level: The probability inside.
        log_density: :math:`\log t`, shape (...).
        mass_error: Standard error of the probability inside.
        size: The volume, in the product of the units of y, with its standard error, (...) each.
    """

    density: Any
    level: float
    log_density: Tensor
    mass_error: float
    size: Estimate

    def __repr__(self) -> str:
        return f"LevelSet(level={self.level:g}, density={self.density!r})"

    @property
    def batch_shape(self) -> torch.Size:
        """The shape (...) of the batch."""
        return self.log_density.shape

    def contains(self, y: Any) -> Tensor:
        """Tell which vectors lie inside.

        Args:
            y: In its own units, broadcastable to the batch shape + (D,).

        Returns:
            Booleans of the broadcast batch shape; False where ``y`` holds NaN.
        """
        return self.density.log_prob(y) >= self.log_density

    def volume(self) -> Tensor:
        """Give the volume, (...), in the product of the units of y; ``size`` has its error too."""
        return self.size.value


def level_set(
    density: Any, level: float, draws: int, generator: torch.Generator | None
) -> LevelSet:
    r"""Estimate the level of the density above which a given probability lies.

    The log density at a draw of y exceeds :math:`\log t` with probability ``level``: t is a
    quantile of it, and the standard error of the mass is
    :math:`\sqrt{\text{level} (1 - \text{level}) / S}`. The volume is
    :math:`E[1\{p(Y) \ge t\} / p(Y)]`.

    Args:
        density: A ``Mixture`` of a vector.
        level: Probability inside, in (0, 1).
        draws: Number S of draws a row.
        generator: Source of randomness; None takes torch's default.

    Returns:
        A :class:`LevelSet`.

    References:
        Hyndman, R. J. (1996). Computing and graphing highest density regions. The American
        Statistician 50. doi:10.1080/00031305.1996.10474359
    """
    shape, parts = density.batch_shape, []
    wide = density.detach().to(torch.float64).reshape(shape.numel())
    step = max(1, CHUNK // (draws * density.num_components * density.event_shape.numel()))
    for start in range(0, shape.numel(), step):
        part = wide[start : start + step]
        log_p = part.log_prob(part.sample((draws,), generator=generator))  # (S, N')
        t = log_p.quantile(1.0 - level, 0)
        share = torch.where(log_p >= t, (t - log_p).exp(), 0.0)  # of 1 / t
        scale = (-t).exp()
        parts.append((t, scale * share.mean(0), scale * share.std(0) / draws**0.5))
    columns = (torch.cat(column).reshape(shape) for column in zip(*parts, strict=True))
    threshold, value, error = (c.to(density.dtype) for c in columns)
    mass_error = (level * (1.0 - level) / draws) ** 0.5
    return LevelSet(density, level, threshold, mass_error, Estimate(value, error))
