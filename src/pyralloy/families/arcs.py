r"""Angles, and integrals of the von Mises density over arcs of the circle.

The density of an angle t from the mean direction is written as below, where nothing overflows.

.. math:: f(t) = \frac{e^{-2 \kappa \sin^2(t / 2)}}{2 \pi e^{-\kappa} I_0(\kappa)}
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyralloy.numerics import invert_monotone

__all__ = [
    "concentration_of",
    "dispersion_of",
    "invert_tail",
    "mean_resultant",
    "resultant_angle",
    "tail",
    "tail_area",
    "wrap",
]


def _unit_rule(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Give Gauss-Legendre nodes and weights on [0, 1].

    NumPy's weights near the ends err by up to 1e-13, for the nodes are rounded before they are
    computed: both are polished in the longest floating-point type that there is.
    """
    x = np.polynomial.legendre.leggauss(count)[0].astype(np.longdouble)
    slope = np.ones_like(x)
    for _ in range(2):
        before, now = np.ones_like(x), x
        for n in range(2, count + 1):
            before, now = now, ((2 * n - 1) * x * now - (n - 1) * before) / n
        slope = count * (before - x * now) / (1 - x * x)
        x = x - now / slope
    weights = 2 / ((1 - x * x) * slope**2)
    return ((x + 1) / 2).astype(np.float64), (weights / 2).astype(np.float64)


#: Beyond the angle where the density has fallen by exp(-38) there is nothing to integrate; until
#: there 30 nodes have a relative error near 1e-15.
DROP = 38.0
NODES, WEIGHTS = _unit_rule(30)
#: The longest Fourier series, enough for concentrations of 2e8.
MOST_TERMS = 100_000
#: Elements of one block of the quadrature, and of one of the Fourier series: they fit in a cache.
BLOCK, SERIES_BLOCK = 1 << 12, 1 << 20


def wrap(angle: Tensor) -> Tensor:
    """Bring angles into [-pi, pi), pi as the dtype rounds it; those inside stay as they are."""
    inside = (angle >= -math.pi) & (angle < math.pi)
    turned = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    # A remainder just below a full turn rounds to one.
    turned = torch.where(turned >= math.pi, turned - 2 * math.pi, turned)
    return torch.where(inside, angle, turned)


def resultant_angle(sine: Tensor, cosine: Tensor) -> Tensor:
    """Give the angle of a vector in [-pi, pi]; 0, with a finite gradient, where it is zero."""
    cosine = torch.where((sine == 0) & (cosine == 0), 1.0, cosine)
    return torch.atan2(sine, cosine)


def mean_resultant(concentration: Tensor) -> Tensor:
    r"""Evaluate :math:`A(\kappa) = I_1(\kappa) / I_0(\kappa)`, in float64.

    Args:
        concentration: At least 0, any shape.

    Returns:
        The length of the mean of the unit vectors, between 0 and 1, in float64.
    """
    kappa = concentration.to(torch.float64)
    return torch.special.i1e(kappa) / torch.special.i0e(kappa)


@torch.no_grad()
def concentration_of(resultant: Tensor) -> Tensor:
    """Invert :func:`mean_resultant` by Newton's method, up to concentrations of about 1e6.

    References:
        Sra, S. (2012). A short note on parameter approximation for von Mises-Fisher distributions.
        Computational Statistics 27. doi:10.1007/s00180-011-0232-x
    """
    goal = resultant.to(torch.float64)
    kappa = goal * (2 - goal.square()) / (1 - goal.square())
    for _ in range(6):
        now = mean_resultant(kappa)
        # A(k) / k tends to 1/2 at 0.
        ratio = torch.where(kappa > 1e-8, now / kappa.clamp_min(1e-8), 0.5)
        kappa = (kappa - (now - goal) / (1 - ratio - now.square())).clamp_min(0.0)
    return kappa


# -- arcs that end opposite the mean direction ----------------------------------------------------


def tail(angle: Tensor, concentration: Tensor) -> Tensor:
    r"""Evaluate :math:`T(x) = \int_x^\pi f(t) \, dt`, to a relative error of about 1e-14.

    By Gauss-Legendre quadrature between x and the angle beyond which nothing is left. Gradients
    flow to both arguments: to x it is the density, to the concentration an integral of its own.

    Args:
        angle: Angles x from the mean direction, in [0, pi], float64.
        concentration: At least 0, broadcastable with it.

    Returns:
        Probabilities between 0 and 1/2.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> [round(float(tail(x * one, one)), 6) for x in (0.0, 1.0, math.pi)]
        [0.5, 0.205645, 0.0]
    """
    every = torch.broadcast_tensors(angle, concentration)
    return _arcs(*every)[0]


def tail_area(angle: Tensor, concentration: Tensor) -> Tensor:
    r"""Evaluate :math:`\int_x^\pi T(t) \, dt = \int_x^\pi (t - x) f(t) \, dt`, as :func:`tail`."""
    every = torch.broadcast_tensors(angle, concentration)
    return _arcs(*every)[1]


@torch.no_grad()
def invert_tail(probability: Tensor, concentration: Tensor) -> Tensor:
    r"""Solve :math:`T(x) = q` for x, in float64 and without gradient.

    The root is bracketed by :math:`T(x) \le \tfrac12 e^{-2 \kappa \sin^2(x / 2)}`.

    Args:
        probability: q in [0, 1/2].
        concentration: At least 0, broadcastable with it.

    Returns:
        Angles in [0, pi], of the broadcast shape.
    """
    q, kappa = torch.broadcast_tensors(probability, concentration)
    shape, q, kappa = q.shape, q.reshape(-1), kappa.reshape(-1)
    sine = (-(2 * q).log() / (2 * kappa)).nan_to_num(1.0).clamp(0.0, 1.0).sqrt()
    high = (2 * sine.asin() * (1 + 1e-10) + 1e-300).clamp_max(math.pi)

    def function(x: Tensor, rows: Tensor) -> Tensor:
        return -_quadrature(x, kappa[rows], slopes=False)[0]

    return invert_monotone(function, -q, torch.zeros_like(q), high).reshape(shape)


def _arcs(angle: Tensor, concentration: Tensor) -> tuple[Tensor, Tensor]:
    result: Any = _Arcs.apply(angle, concentration)
    return result


class _Arcs(torch.autograd.Function):
    """The tail and its area, with the derivatives that the same nodes give."""

    @staticmethod
    def forward(ctx: Any, angle: Tensor, concentration: Tensor) -> tuple[Tensor, Tensor]:
        slopes = any(ctx.needs_input_grad)
        flat = (angle.reshape(-1), concentration.reshape(-1))
        found = [v.reshape(angle.shape) for v in _quadrature(*flat, slopes=slopes)]
        if slopes:
            density = _density(angle, concentration)
            ctx.save_for_backward(density, found[0], *found[2:])
        return found[0], found[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        (one, two), (density, tail, tail_rate, area_rate) = grad_outputs, ctx.saved_tensors
        return -one * density - two * tail, one * tail_rate + two * area_rate


def _density(angle: Tensor, kappa: Tensor) -> Tensor:
    exponent = -2 * kappa * (angle / 2).sin().square()
    return exponent.exp() / (2 * math.pi * torch.special.i0e(kappa))


def _quadrature(angle: Tensor, kappa: Tensor, *, slopes: bool) -> tuple[Tensor, ...]:
    """Integrate over flat tensors (Q,), block by block."""
    blocks = zip(angle.split(BLOCK), kappa.split(BLOCK), strict=True)
    parts = [_integrate(x, k, slopes=slopes) for x, k in blocks]
    if not parts:
        return (angle,) * (4 if slopes else 2)
    return tuple(torch.cat(many) for many in zip(*parts, strict=True))


def _integrate(x: Tensor, kappa: Tensor, *, slopes: bool) -> tuple[Tensor, ...]:
    """Give the tail, its area, and with ``slopes`` their derivatives in the concentration."""
    nodes, weights = (torch.as_tensor(v).to(x) for v in (NODES, WEIGHTS))
    start = (x / 2).sin().square()
    last = (start + DROP / (2 * kappa)).clamp_max(1.0)
    end = torch.where(last < 1, 2 * last.sqrt().asin(), math.pi)
    width = (end - x).clamp_min(0.0)
    step = 0.5 * nodes[:, None] * width  # (G, Q), half of t - x
    # sin^2(t / 2) - sin^2(x / 2), without cancellation.
    rise = (x + step).sin() * step.sin()
    values = (-2 * kappa * rise).exp()
    unit = _density(x, kappa) * width
    area_weights = 2 * weights[:, None] * step
    parts = [unit * (weights @ values), unit * (area_weights * values).sum(0)]
    if slopes:
        # (cos t - A) f = (1 - A - 2 sin^2(t / 2)) f
        values.mul_(1 - mean_resultant(kappa) - 2 * (start + rise))
        parts += [unit * (weights @ values), unit * (area_weights * values).sum(0)]
    return tuple(parts)


# -- the mean distance of two draws ---------------------------------------------------------------


def dispersion_of(weights: Tensor, loc: Tensor, concentration: Tensor) -> Tensor:
    r"""Evaluate half the mean angular distance between two draws of a mixture.

    The distance in [0, pi] is :math:`\tfrac{\pi}{2} - \tfrac{4}{\pi} \sum_n \cos(n \theta) / n^2`
    over odd n, and so

    .. math:: \tfrac12 E\,d(Y, Y') = \frac{\pi}{4} - \frac{2}{\pi} \sum_{n \text{ odd}}
              \frac{|c_n|^2}{n^2}, \quad
              c_n = \sum_k w_k \frac{I_n(\kappa_k)}{I_0(\kappa_k)} e^{i n \mu_k}

    The series is summed until its terms are below 1e-17, which takes about 3 times the square root
    of the largest concentration of them, each of K operations; no pairs are formed.

    Args:
        weights: Shape (..., K), summing to one, float64.
        loc: Mean directions, likewise.
        concentration: Likewise.

    Returns:
        Half the mean distance in radians, shape (...), to about 1e-14; to 1e-5 where a
        concentration is above 2e8.

    References:
        Grimit, E. P., Gneiting, T., Berrocal, V. J., & Johnson, N. A. (2006). The continuous
        ranked probability score for circular variables and its application to mesoscale forecast
        ensemble verification. QJRMS 132. doi:10.1256/qj.05.235
    """
    every = torch.broadcast_tensors(weights, loc, concentration)
    flat = (v.reshape(-1, v.shape[-1]) for v in every)
    total: Any = _OddSeries.apply(*flat)
    return math.pi / 4 - 2 / math.pi * total.reshape(every[0].shape[:-1])


class _OddSeries(torch.autograd.Function):
    """The sum of ``|c_n|^2 / n^2`` over odd n; its gradient is summed along with it."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, loc: Tensor, kappa: Tensor) -> Tensor:
        largest = float(kappa.nan_to_num(0.0).max()) if kappa.numel() else 0.0
        terms = min(int(math.sqrt(DROP * largest)) + 12, MOST_TERMS)
        terms += 1 - terms % 2
        rows = max(1, SERIES_BLOCK // (terms * max(1, kappa.shape[1])))
        slopes = any(ctx.needs_input_grad)
        parts = [
            _odd_series(w, mu, k, terms, slopes=slopes)
            for w, mu, k in zip(*(v.split(rows) for v in (weights, loc, kappa)), strict=True)
        ]
        total, *partials = (torch.cat(many) for many in zip(*parts, strict=True))
        if slopes:
            ctx.save_for_backward(*partials)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(grad_outputs[0][:, None] * partial for partial in ctx.saved_tensors)


def _odd_series(
    weights: Tensor, loc: Tensor, kappa: Tensor, terms: int, *, slopes: bool
) -> tuple[Tensor, ...]:
    """Sum over n = 1, 3, ..., ``terms`` for rows (M, K): the value (M,) and partials (M, K)."""
    ratios = _bessel_ratios(kappa, terms + 1)  # (n + 1, M, K)
    n = torch.arange(1, terms + 1, 2, dtype=kappa.dtype, device=kappa.device)[:, None, None]
    moments = ratios[:-1].cumprod(0)[::2]  # I_n / I_0 at odd n
    cosine, sine = (n * loc).cos(), (n * loc).sin()
    weighted = weights * moments
    real, imaginary = ((weighted * v).sum(-1, keepdim=True) for v in (cosine, sine))  # (n, M, 1)
    total = ((real.square() + imaginary.square()) / n.square()).sum((0, -1))
    if not slopes:
        return (total,)
    shared = 2 / n.square() * moments
    along = shared * (real * cosine + imaginary * sine)
    across = shared * n * (imaginary * cosine - real * sine)
    # I_n' / I_n = I_(n+1) / I_n + n / kappa
    rate = ratios[1::2] + n / kappa.clamp_min(1e-150) - ratios[0]
    return total, along.sum(0), weights * across.sum(0), weights * (along * rate).sum(0)


def _bessel_ratios(kappa: Tensor, count: int) -> Tensor:
    r"""Give :math:`I_n(\kappa) / I_{n-1}(\kappa)` for n = 1 to ``count``, shape (count, ...).

    Backwards, where the recurrence is stable, from an estimate ten terms beyond.

    References:
        Amos, D. E. (1974). Computation of modified Bessel functions and their ratios. Mathematics
        of Computation 28. doi:10.1090/S0025-5718-1974-0333287-7
    """
    ratios, last = kappa.new_empty((count, *kappa.shape)), count + 10
    twice = 2 / kappa.clamp_min(1e-150)
    ratio = kappa / (last + (last**2 + kappa.square()).sqrt())
    for n in range(last - 1, 0, -1):
        ratio = (n * twice + ratio).reciprocal()
        if n <= count:
            ratios[n - 1] = ratio
    return ratios
