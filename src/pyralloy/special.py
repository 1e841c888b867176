"""Incomplete gamma and beta functions, stable and differentiable in every argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "betainc",
    "gammainc",
    "gammaincc",
    "log_beta_kernel",
    "log_gamma_kernel",
    "stirling_error",
    "student_cdf",
]

#: Steps of the continued fraction: enough for a and b of 1e7, and a bound on the time of a call.
MOST_STEPS = 10_000


def gammainc(a: Tensor, x: Tensor) -> Tensor:
    r"""Evaluate the cdf of a Gamma of concentration ``a`` and rate 1.

    .. math:: P(a, x) = \frac{1}{\Gamma(a)} \int_0^x t^{a-1} e^{-t} dt

    torch's own, which errs by up to 4e-10 where ``a`` is above 20 and ``x`` near it, and has no
    derivative in ``a``. Here that is a five-point difference, which errs by about 1e-9 of the
    largest slope; in ``x`` the derivative is the density.

    Args:
        a: Above 0, broadcastable with ``x``.
        x: At least 0.

    Returns:
        Probabilities, computed in float64 and of ``x``'s dtype.

    References:
        DLMF, 8.2.4. https://dlmf.nist.gov/8.2

    Example:
        >>> round(float(gammainc(torch.tensor(1.0), torch.tensor(2.0))), 5)
        0.86466
    """
    return _cdf_with_slopes(_gamma_lower, _gamma_density, x, a)


def gammaincc(a: Tensor, x: Tensor) -> Tensor:
    """Evaluate ``1 - gammainc(a, x)`` without cancellation.

    Args:
        a: Above 0, broadcastable with ``x``.
        x: At least 0.

    Returns:
        Probabilities, of ``x``'s dtype.
    """
    return _cdf_with_slopes(_gamma_upper, lambda x, a: -_gamma_density(x, a), x, a)


def betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    r"""Evaluate the regularised incomplete beta function, which is the cdf of a Beta.

    .. math:: I_x(a, b) = \frac{1}{B(a, b)} \int_0^x t^{a-1} (1-t)^{b-1} dt

    By a continued fraction, whose prefactor is written so that it keeps its digits however large
    ``a`` and ``b`` are; about ``sqrt(max(a, b))`` steps. Its derivative in ``x`` is the density; in
    ``a`` and ``b`` it is a five-point difference, which errs by about 1e-11 of the largest slope.

    Args:
        a: Above 0.
        b: Above 0, broadcastable with ``a``.
        x: Within [0, 1], broadcastable likewise.

    Returns:
        Probabilities, computed in float64 and of ``x``'s dtype.

    References:
        DLMF, 8.17.22. https://dlmf.nist.gov/8.17
        Loader, C. (2000). Fast and accurate computation of binomial probabilities. (The prefactor.)

    Example:
        >>> one, two, x = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.5)
        >>> float(betainc(two, one, x)), float(betainc(one, two, x))
        (0.25, 0.75)
    """
    return _cdf_with_slopes(
        lambda x, a, b: _betainc(a, b, x, 1 - x),
        lambda x, a, b: (log_beta_kernel(a, b, x, 1 - x) - x.log() - torch.log1p(-x)).exp(),
        x,
        a,
        b,
    )


def student_cdf(df: Tensor, z: Tensor) -> Tensor:
    r"""Evaluate the cdf of Student's t: half of :math:`I_{\nu/(\nu+z^2)}(\nu/2, 1/2)` below 0.

    Args:
        df: Degrees of freedom, above 0.
        z: Any real, broadcastable with ``df``.

    Returns:
        Probabilities, computed in float64 and of ``z``'s dtype; both tails keep their digits where
        a double can hold them.

    References:
        DLMF, 8.17. https://dlmf.nist.gov/8.17

    Example:
        >>> round(float(student_cdf(torch.tensor(3.0), torch.tensor(-2.0))), 5)
        0.06966
    """
    return _cdf_with_slopes(_student_cdf, _student_density, z, df)


def log_beta_kernel(a: Tensor, b: Tensor, x: Tensor, complement: Tensor) -> Tensor:
    r"""Evaluate :math:`\log\bigl( x^a (1-x)^b / B(a, b) \bigr)` without large terms that cancel.

    With :math:`n = a + b` it is minus ``n`` times the divergence of ``x`` from ``a / n``, plus
    :math:`\tfrac12 \log(ab / 2 \pi n)` and the errors of Stirling's formula.

    Args:
        a: Above 0.
        b: Above 0.
        x: Within (0, 1).
        complement: ``1 - x``, which the caller may know to more digits.

    Returns:
        The log, of the broadcast shape; ``-inf`` at both ends.

    References:
        Loader, C. (2000). Fast and accurate computation of binomial probabilities.
    """
    n = a + b
    # a log(x n / a) + b log((1 - x) n / b); each argument is near one where the density is high.
    gap = x * b - complement * a  # n (x - a / n)
    exponent = a * _log_ratio(gap / a, x * n / a) + b * _log_ratio(-gap / b, complement * n / b)
    stirling = stirling_error(n) - stirling_error(a) - stirling_error(b)
    return exponent + stirling + 0.5 * (a.log() + b.log() - n.log() - math.log(2 * math.pi))


def log_gamma_kernel(a: Tensor, x: Tensor) -> Tensor:
    r"""Evaluate :math:`\log\bigl( x^a e^{-x} / \Gamma(a) \bigr)` without large terms that cancel.

    By the divergence of ``x`` from ``a``, as in :func:`log_beta_kernel`.

    Args:
        a: Above 0.
        x: Above 0, broadcastable with ``a``.

    Returns:
        The log, of the broadcast shape; ``-inf`` at 0.

    References:
        Loader, C. (2000). Fast and accurate computation of binomial probabilities.
    """
    excess = (x - a) / a
    exponent = a * (_log_ratio(excess, x / a) - excess)
    return exponent - stirling_error(a) + 0.5 * (a / (2 * math.pi)).log()


def stirling_error(a: Tensor) -> Tensor:
    r"""Evaluate :math:`\log\Gamma(a) - (a - \tfrac12) \log a + a - \tfrac12 \log 2\pi`.

    Args:
        a: Above 0, any shape.

    Returns:
        The error of Stirling's formula, about ``1 / (12 a)``, to the precision of the dtype.

    References:
        DLMF, 5.11.1. https://dlmf.nist.gov/5.11
    """
    large = a.clamp_min(10.0)
    r = large.reciprocal().square()
    series = 1 / 1188 - r * (691 / 360360 - r / 156)
    series = (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r * series)))) / large
    small = a.clamp_max(10.0)
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    return torch.where(a > 10.0, series, direct)


def _log_ratio(excess: Tensor, ratio: Tensor) -> Tensor:
    """Evaluate ``log(ratio)``, where ``excess = ratio - 1`` has more digits if it is small."""
    near = excess.abs() < 0.5
    return torch.where(near, torch.log1p(torch.where(near, excess, 0.0)), ratio.log())


def _betainc(a: Tensor, b: Tensor, x: Tensor, complement: Tensor) -> Tensor:
    a, b, x, complement = torch.broadcast_tensors(a, b, x, complement)
    # The fraction converges fast below the mean; above it, the other tail is computed.
    swap = x > (a + 1) / (a + b + 2)
    a, b = torch.where(swap, b, a), torch.where(swap, a, b)
    x, complement = torch.where(swap, complement, x), torch.where(swap, x, complement)
    tail = (log_beta_kernel(a, b, x, complement) - a.log()).exp() * _beta_fraction(a, b, x)
    tail = torch.where(x <= 0, 0.0, tail)
    return torch.where(swap, 1 - tail, tail)


def _beta_fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Sum the continued fraction of the incomplete beta function by Lentz's method."""
    shape, result = x.shape, torch.ones_like(x).reshape(-1)
    a, b, x = (v.reshape(-1) for v in (a, b, x))
    rows = torch.arange(x.shape[0], device=x.device)
    c, d = torch.ones_like(x), 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    total = d.clone()
    for m in range(1, MOST_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            total = total * (c * d)
        if m % 8 and m > 8:
            continue  # now and then, drop what has converged
        keep = (c * d - 1).abs() > 1e-15
        result[rows] = total
        rows, a, b, x, c, d, total = (v[keep] for v in (rows, a, b, x, c, d, total))
        if rows.numel() == 0:
            break
    return result.reshape(shape)


def _away_from_zero(value: Tensor) -> Tensor:
    return torch.where(value.abs() < 1e-300, 1e-300, value)


def _gamma_lower(x: Tensor, a: Tensor) -> Tensor:
    return torch.special.gammainc(a, x)


def _gamma_upper(x: Tensor, a: Tensor) -> Tensor:
    return torch.special.gammaincc(a, x)


def _gamma_density(x: Tensor, a: Tensor) -> Tensor:
    return (log_gamma_kernel(a, x) - x.log()).exp()


def _student_cdf(z: Tensor, df: Tensor) -> Tensor:
    size = df + z.square()
    tail = 0.5 * _betainc(df / 2, torch.full_like(df, 0.5), df / size, z.square() / size)
    return torch.where(z < 0, tail, 1 - tail)


def _student_density(z: Tensor, df: Tensor) -> Tensor:
    # 1 / (sqrt(df) B(df / 2, 1 / 2)) * (1 + z^2 / df)^(-(df + 1) / 2)
    half = df / 2
    log_beta = torch.lgamma(half) + math.lgamma(0.5) - torch.lgamma(half + 0.5)
    return (-(half + 0.5) * torch.log1p(z.square() / df) - log_beta - 0.5 * df.log()).exp()


def _cdf_with_slopes(
    function: Callable[..., Tensor], density: Callable[..., Tensor], x: Tensor, *shapes: Tensor
) -> Tensor:
    """Apply ``function(x, *shapes)`` in float64, with ``density`` as its derivative in ``x``."""
    wide = torch.broadcast_tensors(*(v.to(torch.float64) for v in (x, *shapes)))
    result: Any = _CdfWithSlopes.apply(function, density, *wide)
    return result.to(x.dtype)


class _CdfWithSlopes(torch.autograd.Function):
    """A cdf whose derivative in the value is its density, and in a shape a five-point difference.

    The step is 1/500 of ``min(a, sqrt(a))``, the distance over which such functions change.
    """

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        density: Callable[..., Tensor],
        *arguments: Tensor,
    ) -> Tensor:
        ctx.function, ctx.density = function, density
        ctx.save_for_backward(*arguments)
        return function(*arguments)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,), (x, *shapes) = grad_outputs, ctx.saved_tensors
        slopes: list[Tensor | None] = [None, None]
        slopes.append(grad * ctx.density(x, *shapes) if ctx.needs_input_grad[2] else None)
        for i, shape in enumerate(shapes):
            if not ctx.needs_input_grad[3 + i]:
                slopes.append(None)
                continue
            step = 2e-3 * torch.minimum(shape, shape.sqrt())
            at = [
                ctx.function(x, *shapes[:i], shape + k * step, *shapes[i + 1 :])
                for k in (-2, -1, 1, 2)
            ]
            slopes.append(grad * (8 * (at[2] - at[1]) - (at[3] - at[0])) / (12 * step))
        return tuple(slopes)
