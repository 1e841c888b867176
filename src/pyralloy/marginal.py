"""The density of y that ignores x: what every model must beat."""

from __future__ import annotations

import math

import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.families import VonMises, wrap
from pyralloy.mixture import Mixture

__all__ = ["marginal_density"]

#: Kernels of the estimate; more would change its log density in the third digit.
MOST_KERNELS = 1_000


def marginal_density(y: Tensor, *, circular: bool = False) -> Mixture:
    r"""Estimate the marginal density of y by Normal kernels.

    The bandwidth in each dimension is Silverman's robust rule,
    :math:`0.9 \min(s, \mathrm{IQR} / 1.34)\, N^{-1 / (D + 4)}`.

    Args:
        y: Observations, shape (N,) or (N, D), at least two of them distinct.
        circular: Whether they are angles in radians; the kernels then are von Mises, of
            concentration one over the bandwidth squared.

    Returns:
        A ``Mixture`` of batch shape (), with a component for each row (for 1,000 evenly spaced
        rows in the order of y, or for D > 1 in the order given, where there are more).

    References:
        Silverman, B. W. (1986). Density Estimation for Statistics and Data Analysis. Chapman &
        Hall. doi:10.1201/9781315140919

    Example:
        >>> density = marginal_density(torch.tensor([0.0, 1.0, 5.0]))
        >>> density.num_components, round(float(density.mean), 4)
        (3, 2.0)
    """
    y = y.to(torch.float64)
    # The spread of angles is measured on a circle that is cut opposite their mean.
    middle_angle = torch.atan2(y.sin().mean(0), y.cos().mean(0))
    y = wrap(y - middle_angle) if circular else y
    rows, dims = y.shape[0], 1 if y.ndim == 1 else y.shape[1]
    ordered = y.sort(0).values
    middle = ordered[round(0.75 * (rows - 1))] - ordered[round(0.25 * (rows - 1))]
    deviation = y.std(0)
    spread = torch.where(middle > 0, torch.minimum(deviation, middle / 1.34), deviation)
    bandwidth = 0.9 * spread * rows ** (-1.0 / (dims + 4))
    bandwidth = bandwidth.clamp_min(1e-6 * deviation.clamp_min(torch.finfo(y.dtype).tiny))
    count = min(rows, MOST_KERNELS)
    index = ((torch.arange(count, device=y.device) + 0.5) * (rows / count)).long()
    places = (ordered if y.ndim == 1 else y)[index]
    if circular:
        kernels = VonMises(wrap(places + middle_angle), bandwidth.reciprocal().square())
    else:
        kernels = dist.Normal(places, bandwidth)
    weights = torch.full((count,), -math.log(count), dtype=y.dtype, device=y.device)
    return Mixture(dist.Categorical(logits=weights), kernels.to_event(y.ndim - 1))
