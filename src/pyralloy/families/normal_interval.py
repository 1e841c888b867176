"""The standard normal between two ends: its mass and moments there, in float64, where none cancel.

An end may be infinite, and no gradient is NaN for that.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["mass_between", "moments_between", "phi", "standard"]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)

#: Below this width in units of the density's own decay, moments are sums over nodes.
NARROW = 3.0


def standard(end: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Give ``(end - loc) / scale`` in float64; an infinite end stays that, without gradient."""
    end, loc, scale = (v.to(torch.float64) for v in (end, loc, scale))
    finite = end.isfinite()
    return torch.where(finite, (torch.where(finite, end, loc) - loc) / scale, end.detach())


def mass_between(alpha: Tensor, beta: Tensor) -> Tensor:
    r"""Evaluate :math:`\Phi(\beta) - \Phi(\alpha)` in the tail where it does not cancel."""
    flip = alpha > 0
    low, high = torch.where(flip, -beta, alpha), torch.where(flip, -alpha, beta)
    return _ndtr(high) - _ndtr(low)


def moments_between(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    r"""Evaluate mean and variance of a standard normal given that it lies between two ends.

    .. math:: E = \frac{\varphi(\alpha) - \varphi(\beta)}{Z}, \quad
              V = 1 + \frac{\alpha \varphi(\alpha) - \beta \varphi(\beta)}{Z} - E^2, \quad
              Z = \Phi(\beta) - \Phi(\alpha)

    Their terms cancel between ends that are close: there both are sums over 20 nodes.

    Returns:
        The mean and the variance, of the broadcast shape.

    References:
        Johnson, N. L., Kotz, S., & Balakrishnan, N. (1994). Continuous Univariate Distributions,
        volume 1, section 10.1. Wiley.
    """
    alpha, beta = torch.broadcast_tensors(alpha, beta)
    steep = 1 + torch.maximum(alpha.abs(), beta.abs())
    narrow = (beta - alpha) * steep < NARROW
    mass = torch.where(narrow, 1.0, mass_between(alpha, beta))
    moved = (phi(alpha) - phi(beta)) / mass
    spread = 1 + (_phi_times(alpha) - _phi_times(beta)) / mass - moved.square()
    first, last = torch.where(narrow, alpha, 0.0), torch.where(narrow, beta, 1.0)
    mean, variance = _node_moments(first, last)
    return torch.where(narrow, mean, moved), torch.where(narrow, variance, spread)


def phi(z: Tensor) -> Tensor:
    """Evaluate the standard normal density."""
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _phi_times(z: Tensor) -> Tensor:
    finite = z.isfinite()
    at = torch.where(finite, z, 0.0)
    return torch.where(finite, at * phi(at), 0.0)


def _node_moments(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    half, middle = (beta - alpha) / 2, (beta + alpha) / 2
    nodes, weights = (torch.as_tensor(v).to(alpha) for v in (NODES, WEIGHTS))
    step = half[..., None] * nodes  # (..., 20)
    share = weights * torch.exp(-step * (middle[..., None] + step / 2))
    share = share / share.sum(-1, keepdim=True)
    mean = (share * step).sum(-1)
    return middle + mean, (share * (step - mean[..., None]).square()).sum(-1)


def _ndtr(z: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(z * -math.sqrt(0.5))
