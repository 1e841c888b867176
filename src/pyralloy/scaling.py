"""Standardisation of inputs and targets, undone exactly by ``Mixture.affine``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from pyralloy.families import Support
from pyralloy.mixture import Mixture

#: No bounds: free to be shifted and scaled.
REAL_LINE = Support()

__all__ = ["Standardizer"]


class Standardizer(nn.Module):
    """Centre and scale each column, in float64, whatever the network's dtype.

    It starts as the identity; :meth:`fit` sets it from data. Columns without spread keep scale 1.

    Attributes:
        shift: Column means, shape () or (F,), float64.
        scale: Column standard deviations, likewise; never zero.

    Example:
        >>> z = Standardizer().fit(torch.tensor([[1.0], [3.0]]))
        >>> z(torch.tensor([[5.0]]), torch.float32).item()
        3.0
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_load_state_dict_pre_hook(_take_columns)

    def fit(self, values: Tensor, support: Support = REAL_LINE) -> Standardizer:
        """Set shift and scale from ``values`` (N, ...), column by column; returns itself.

        Args:
            values: Observations, shape (N, ...).
            support: Where they can lie: what is positive is only scaled, and what lies on an
                interval or counts something stays as it is.
        """
        wide = values.detach().to(torch.float64)
        origin = wide[0]
        away = wide - origin  # keeps the digits of a small spread far from zero
        # The largest size is divided out first: squares of values above 1e154 would overflow.
        size = away.abs().amax(0)
        size = torch.where(size > 0, size, 1.0)
        unit = away / size
        centre = unit.mean(0)
        spread = (unit - centre).square().mean(0).sqrt() * size
        self.shift = (origin + centre * size) * float(support.shifts)
        # Rounding leaves a constant column with a spread near eps times its size.
        flat = wide.amax(0) - wide.amin(0) <= 4 * torch.finfo(wide.dtype).eps * wide.abs().amax(0)
        self.scale = torch.where(flat | (not support.scales), 1.0, spread)
        return self

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Standardise ``values`` in float64, then cast to ``dtype``."""
        return ((values.to(torch.float64) - self.shift) / self.scale).to(dtype)

    def undo(self, density: Mixture) -> Mixture:
        """Give a density of standardised values as one of the original values, in float64."""
        wide = density.to(torch.float64)
        if bool((self.scale == 1).all() & (self.shift == 0).all()):
            return wide
        return wide._affine(self.shift, self.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Follow a module to another device, but stay float64 when it changes its dtype."""
        exact = (self.shift, self.scale)
        super()._apply(fn, recurse)
        self.shift, self.scale = (v.to(self.shift.device) for v in exact)
        return self

    @property
    def log_jacobian(self) -> float:
        """Nats to add to a negative log density of standardised values, to have it in their units.

        The sum over columns of the log of the scale.
        """
        return float(self.scale.log().sum())


def _take_columns(
    module: Standardizer, state: Mapping[str, Tensor], prefix: str, *_rest: Any
) -> None:
    """Make room for the columns of a state to be loaded: a fresh standardizer has none."""
    for name in ("shift", "scale"):
        if prefix + name in state:
            setattr(module, name, getattr(module, name).new_empty(state[prefix + name].shape))
