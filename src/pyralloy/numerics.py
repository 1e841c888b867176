"""Numerical ground floor: bounded log-scales and the inverse of a monotone function."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "add_up",
    "holds",
    "invert_monotone",
    "soft_between",
    "soft_between_inverse",
    "soft_exp",
    "spaced",
]

#: Rows already solved are dropped when fewer than this fraction is left.
KEEP = 0.7


def spaced(values: Tensor, most: int, dim: int = 0) -> Tensor:
    """Give evenly spaced ones along a dimension, at most ``most`` of them: a view.

    Example:
        >>> spaced(torch.arange(10), 4).tolist(), spaced(torch.arange(10), 10).shape
        ([0, 3, 6, 9], torch.Size([10]))
    """
    step = max(1, math.ceil(values.shape[dim] / most))
    return values[(slice(None),) * dim + (slice(None, None, step),)]


def soft_between(raw: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    r"""Map the real line into ``(low, high)``, close to the identity away from both ends.

    .. math:: \ell + \mathrm{softplus}\bigl(h - \mathrm{softplus}(h - a) - \ell\bigr)

    The gradient never vanishes abruptly as a clamp's does, and no value of ``raw`` overflows: with
    ``raw`` a log-scale, ``exp`` of the result is finite and positive whatever a network emits.

    Args:
        raw: Any shape, unbounded.
        low: Lower end, broadcastable to ``raw``.
        high: Upper end, broadcastable to ``raw``, above ``low``.

    Returns:
        A tensor of ``raw``'s shape, within ``[low, high + log1p(exp(low - high))]``.

    Example:
        >>> soft_between(torch.tensor([-1e6, 0.0, 1e6]), -7.0, 5.0).round(decimals=1).tolist()
        [-7.0, -0.0, 5.0]
    """
    return low + F.softplus(high - F.softplus(high - raw) - low)


def soft_exp(raw: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    r"""Evaluate ``soft_between(raw, low, high).exp()`` by one logistic function.

    .. math:: e^{\ell + \mathrm{softplus}(h - \mathrm{softplus}(h - a) - \ell)}
              = e^\ell + e^h \, \sigma(a - h)

    Args:
        raw: Any shape, unbounded.
        low: Log of the lower end, broadcastable to ``raw``.
        high: Log of the upper end, broadcastable to ``raw``, above ``low``.

    Returns:
        A tensor of ``raw``'s shape, within ``[exp(low), exp(low) + exp(high)]``.

    Example:
        >>> soft_exp(torch.tensor([-1e6, 0.0, 1e6]), -7.0, 5.0).log().round(decimals=1).tolist()
        [-7.0, -0.0, 5.0]
    """
    floor, ceiling = (v.exp() if isinstance(v, Tensor) else math.exp(v) for v in (low, high))
    return floor + ceiling * torch.sigmoid(raw - high)


def soft_between_inverse(value: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Invert :func:`soft_between`.

    Args:
        value: Any shape, strictly between ``low`` and ``high``.
        low: Lower end.
        high: Upper end.

    Returns:
        The ``raw`` for which ``soft_between(raw, low, high)`` is ``value``.
    """
    inner = low + _softplus_inverse(value - low)
    return high - _softplus_inverse(high - inner)


def _softplus_inverse(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


def add_up(terms: Tensor) -> Tensor:
    """Add up (K, ...) to (...), pairwise, in an order that depends on K alone.

    That of torch's own sum depends on the shape, and the last digit of an answer then on how many
    others were asked for.

    Example:
        >>> add_up(torch.arange(5.0))
        tensor(10.)
    """
    spare = None
    while len(terms) > 1:
        half = len(terms) // 2
        if len(terms) % 2:
            spare = terms[-1] if spare is None else spare + terms[-1]
        terms = terms[:half] + terms[half : 2 * half]
    return terms[0] if spare is None else terms[0] + spare


def invert_monotone(
    function: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    max_steps: int = 200,
    resolution: float = 0.0,
) -> Tensor:
    """Solve ``function(y, row) = target`` for a nondecreasing function, row by row, in a bracket.

    Chandrupatla's method: inverse quadratic interpolation wherever it is known to help, bisection
    elsewhere, so that the bracket always shrinks and no row can escape it. A row is done when its
    bracket cannot be split further or its residual is at the precision of the dtype.

    Args:
        function: ``(y, rows) -> values``, all of shape ``(M',)``; ``rows`` indexes the problem, and
            is the same tensor from call to call until rows already solved are dropped.
        target: Values to reach, shape ``(M,)``.
        low: Lower ends of the brackets, shape ``(M,)``, with ``function(low) <= target``.
        high: Upper ends, shape ``(M,)``, with ``function(high) >= target``.
        max_steps: Bound on the iterations; bisection alone needs about 60 in float64.
        resolution: A bracket as narrow as this is not split further: where the function is known
            to fewer digits than its dtype has, more would be spent on its rounding.

    Returns:
        The solutions, shape ``(M,)``.

    References:
        Chandrupatla, T. R. (1997). A new hybrid quadratic/bisection algorithm for finding the zero
        of a nonlinear function without using derivatives. Advances in Engineering Software 28.
        doi:10.1016/S0965-9978(96)00051-8

    Example:
        >>> u = torch.tensor([0.25, 0.5], dtype=torch.float64)
        >>> root = invert_monotone(lambda y, rows: y**3, u, torch.zeros_like(u), torch.ones_like(u))
        >>> bool(torch.allclose(root**3, u))
        True
    """
    eps = torch.finfo(target.dtype).eps
    rows = torch.arange(target.shape[0], device=target.device)
    known = ~target.isnan()
    solution = torch.where(known, low, target)  # a copy; NaN targets stay NaN
    rows = rows[(high > low) & torch.isfinite(low) & torch.isfinite(high) & known]
    a, b = low[rows], high[rows]
    goal = target[rows]
    fa, fb = function(a, rows) - goal, function(b, rows) - goal
    # Rounding can put the residual of an end on the wrong side: that end then is the answer.
    done = (fa >= 0) | (fb <= 0)
    solution[rows[done]] = torch.where(fa >= 0, a, b)[done]
    a, b, fa, fb, goal, rows = (v[~done] for v in (a, b, fa, fb, goal, rows))
    frozen, t = torch.zeros_like(a, dtype=torch.bool), torch.full_like(a, 0.5)
    for _ in range(max_steps if len(rows) else 0):
        middle = torch.addcmul(a, t, b - a)
        fm = function(middle, rows) - goal
        same = holds(torch.gt, fm.sign() * fa.sign(), torch.zeros_like(fa))
        c, fc = torch.lerp(b, a, same), torch.lerp(fb, fa, same)
        b, fb = torch.lerp(a, b, same), torch.lerp(fa, fb, same)
        a, fa = middle, fm
        best = torch.lerp(b, a, holds(torch.lt, fa.abs(), fb.abs()))
        finest = eps * (best.abs() + torch.finfo(a.dtype).tiny)
        smallest = finest.clamp_min(resolution) / (b - a).abs()
        # Relative to the target, or small probabilities would keep few of their digits.
        done = (smallest > 0.5) | (fm.abs() <= 2 * eps * goal.abs())
        solved = (done > frozen).nonzero()[:, 0]
        solution[rows[solved]] = best[solved]
        frozen |= done
        left = (~frozen).nonzero()[:, 0]
        if len(left) == 0:
            break
        if len(left) < KEEP * len(rows):  # copying what is left costs about one evaluation
            a, b, c, fa, fb, fc, goal, rows, smallest = (
                v.index_select(0, left) for v in (a, b, c, fa, fb, fc, goal, rows, smallest)
            )
            frozen = torch.zeros_like(a, dtype=torch.bool)
        least = smallest.clamp_max(0.5)
        t = _chandrupatla_fraction(a, b, c, fa, fb, fc).clamp(least, 1 - least)
    return solution


def holds(relation: Callable[..., Tensor], left: Tensor, right: Tensor) -> Tensor:
    """Give 1.0 where a relation holds and 0.0 elsewhere: ``lerp`` by it is a quick ``where``."""
    return relation(left, right, out=torch.empty_like(left))


def _chandrupatla_fraction(
    a: Tensor, b: Tensor, c: Tensor, fa: Tensor, fb: Tensor, fc: Tensor
) -> Tensor:
    """Place the next point as a fraction of the way from ``a`` to ``b``, all of shape ``(M,)``."""
    xi = (a - b) / (c - b)
    phi = (fa - fb) / (fc - fb)
    quadratic = holds(torch.lt, phi * phi, xi) * holds(torch.lt, (1 - phi) ** 2, 1 - xi)
    step = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    half = torch.full_like(step, 0.5)
    return torch.lerp(half, step.nan_to_num(0.5, 0.5, 0.5), quadratic)
