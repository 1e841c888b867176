"""Adaptive quadrature of many functions at once: pieces are cut until two rules agree on each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["coarsest", "fences", "integrate"]

#: The nonnegative nodes of Kronrod's rule of 15, its weights, and those of Gauss's rule of 7 in it.
KRONROD = (
    (0.9914553711208126392, 0.0229353220105292249, 0.0),
    (0.9491079123427585245, 0.0630920926299785532, 0.129484966168869693),
    (0.8648644233597690727, 0.1047900103222501838, 0.0),
    (0.7415311855993944398, 0.1406532597155259187, 0.279705391489276668),
    (0.5860872354676911302, 0.1690047266392679028, 0.0),
    (0.4058451513773971669, 0.1903505780647854099, 0.381830050505118945),
    (0.2077849550078984676, 0.2044329400752988924, 0.0),
    (0.0, 0.2094821410847278280, 0.417959183673469388),
)
#: Weights below which a component may be overlooked.
NOTHING = 1e-15
#: How often a piece may be cut.
DEPTH = 200
#: Elements of one intermediate; small enough to stay in a core's cache.
CHUNK = 1 << 16
#: What the rounding of y leaves of a sum over nodes, in units of its last place: a deviation.
ROUNDING = 0.05


def integrate(
    function: Callable[[Tensor, Tensor], Tensor],
    cuts: Tensor,
    bumps: tuple[Tensor, Tensor],
    *,
    absolute: float = 0.0,
    relative: float = 0.0,
    width: int = 1,
) -> Tensor:
    r"""Integrate a function for each of M rows, from the first of the row's cuts to its last.

    It starts from as few pieces as :func:`coarsest` allows. Where Gauss's rule of 7 nodes and
    Kronrod's of 15 disagree a piece is cut in two: at the middle one of the cuts inside it, or
    halfway where there are none. The error is far below the disagreement, where nodes miss nothing
    and y is not rounded. Differentiable by what the function is made of.

    Args:
        function: ``(rows, y) -> values``: for rows (Q,), at points y (Q, 15), values (Q, 15).
        cuts: Ascending, shape (M, P), P at least 2; between neighbours the function is smooth.
        bumps: Lower and upper ends (M, B), from among the cuts, of what is so narrow that all nodes
            of a wider piece may miss it: see :func:`fences`.
        absolute: How far apart both rules may be on a piece.
        relative: The same, as a share of the row's integral as it is first estimated; the larger
            of both holds.
        width: Numbers that the function makes for each y: as many pieces are taken at once as fit
            in the cache.

    Returns:
        Integrals, shape (M,).

    References:
        Piessens, R., de Doncker-Kapenga, E., Überhuber, C. W., & Kahaner, D. K. (1983). QUADPACK.
        Springer. doi:10.1007/978-3-642-61786-7

    Example:
        >>> cuts = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
        >>> bumps = cuts[:, :1], cuts[:, 1:]
        >>> integrate(lambda rows, y: y.square(), cuts, bumps, absolute=1e-12).tolist()
        [0.333..., 2.666...]
    """
    with torch.no_grad():
        rows, a, b, values = _settled(function, cuts, bumps, absolute, relative, width)
    if torch.is_grad_enabled() and function(rows[:1], a[:1, None].expand(-1, 15)).requires_grad:
        parts = zip(*(v.split(_step(width)) for v in (rows, a, b)), strict=True)
        values = torch.cat([_both_rules(function, *part)[0] for part in parts])
    return torch.zeros_like(cuts[:, 0]).index_add(0, rows, values)


def _settled(
    function: Callable[[Tensor, Tensor], Tensor],
    cuts: Tensor,
    bumps: tuple[Tensor, Tensor],
    absolute: float,
    relative: float,
    width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut pieces until the rules agree: their rows, both ends and integrals, (Q,) each."""
    rows, i = coarsest(cuts, *bumps).nonzero(as_tuple=True)
    together = (rows[1:] == rows[:-1]).nonzero()[:, 0]
    rows, i, j = rows[together], i[together], i[together + 1]  # the cuts at both ends
    a, b = cuts[rows, i], cuts[rows, j]
    tolerance, taken = torch.full_like(cuts[:, 0], absolute), []
    for depth in range(DEPTH + 1):
        # Made beforehand: small results between large intermediates would leave no room unbroken.
        value, apart, rounding = (torch.empty_like(a) for _ in range(3))
        for start in range(0, len(rows), _step(width)):
            some = slice(start, start + _step(width))
            found = _both_rules(function, rows[some], a[some], b[some])
            value[some], apart[some], rounding[some] = found
        if depth == 0:
            guess = torch.zeros_like(tolerance).index_add(0, rows, value)
            tolerance = (relative * guess.abs()).clamp_min(absolute)
        inside = j - i >= 2  # are cuts
        middle = torch.where(inside, cuts[rows, (i + j) // 2], (a + b) / 2)
        # Halfway between floats that are neighbours lies neither.
        rough = (inside | ((middle > a) & (middle < b))) & (depth < DEPTH)
        rough &= apart > torch.maximum(tolerance[rows], rounding)
        taken.append(tuple(v[~rough] for v in (rows, a, b, value)))
        if not bool(rough.any()):
            break
        rows, i, j, a, b, middle, inside = (v[rough] for v in (rows, i, j, a, b, middle, inside))
        between = torch.where(inside, (i + j) // 2, j)
        i, j = torch.cat([i, between]), torch.cat([between, j])
        rows, a, b = torch.cat([rows, rows]), torch.cat([a, middle]), torch.cat([middle, b])
    rows, a, b, value = (torch.cat(v) for v in zip(*taken, strict=True))
    return rows, a, b, value


def fences(
    points: Tensor, weights: Tensor, *, kinks: Tensor | None = None, further: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Give cuts and bumps such that no piece holds two points of one component, nor a kink.

    A piece that begins within the last two points of a component ends no farther beyond them than
    they are apart: what little is left there is seen.

    Args:
        points: Of each component, ascending, such as quantiles, shape (M, K, L); the first and the
            last of a row are where its integral begins and ends.
        weights: Of the components, shape (M, K); one of next to none may hide.
        kinks: Of each component's density, shape (M, K).
        further: Other cuts, shape (M, E).

    Returns:
        Cuts (M, P), and lower and upper ends of bumps (M, B), for :func:`integrate`.
    """
    loose = [v for v in (kinks, further) if v is not None]
    every = torch.cat([points.flatten(1), *([] if further is None else [further])], 1)
    low, high = every.amin(-1)[:, None, None], every.amax(-1)[:, None, None]
    before = 2 * points[..., :1] - points[..., 1:2]
    after = 2 * points[..., -1:] - points[..., -2:-1]
    before = torch.where(before.isfinite(), before, points[..., :1])
    after = torch.where(after.isfinite(), after, points[..., -1:])
    chain = torch.cat([before, points, after], -1).clamp(low, high)
    cuts = torch.cat([chain.flatten(1), *loose], 1).clamp(low[..., 0], high[..., 0])
    cuts = cuts.sort(-1).values.contiguous()
    lower, upper = chain[..., :-1], chain[..., 1:]
    upper = torch.where((weights > NOTHING)[..., None], upper, lower)
    lower, upper = lower.flatten(1), upper.flatten(1)
    if kinks is not None:  # each between its two neighbours, so that no piece holds it
        at = torch.searchsorted(cuts, kinks.clamp(low[..., 0], high[..., 0]).contiguous())
        last = cuts.shape[1] - 1
        lower = torch.cat([lower, cuts.gather(1, (at - 1).clamp_min(0))], 1)
        upper = torch.cat([upper, cuts.gather(1, (at + 1).clamp_max(last))], 1)
    return cuts, (lower, upper)


def coarsest(cuts: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Pick the fewest cuts between whose neighbours lies no whole bump, both ends among them.

    Two neighbouring cuts may have one between them.

    Args:
        cuts: Ascending, shape (M, P).
        lower: Lower ends of the bumps, from among the cuts, shape (M, B).
        upper: Upper ends, likewise; one that is not above the lower end makes no bump.

    Returns:
        Whether each cut is picked, shape (M, P).

    Example:
        >>> cuts = torch.tensor([[0.0, 1, 2, 3, 4]])
        >>> coarsest(cuts, lower=torch.tensor([[2.0]]), upper=torch.tensor([[4.0]])).tolist()
        [[True, False, False, True, True]]
    """
    count = cuts.shape[1]
    begins = torch.searchsorted(cuts, lower.contiguous(), right=True) - 1
    ends = torch.searchsorted(cuts, upper.contiguous())
    ends = torch.where(lower < upper, ends, count)
    first = torch.full_like(cuts, count, dtype=ends.dtype)  # end of a bump from this cut on
    first = first.scatter_reduce(1, begins.clamp_min(0), ends, "amin")
    first = first.flip(-1).cummin(-1).values.flip(-1)
    place = torch.arange(count, device=cuts.device)
    # From each cut the farthest that may follow it; then by jumps of twice as many at a time.
    follow = torch.maximum(first - 1, place + 1).clamp_max(count - 1)
    picked = torch.zeros_like(cuts, dtype=torch.bool)
    picked[:, [0, -1]] = True
    for _ in range(count.bit_length()):
        reached = torch.where(picked, follow, count - 1)
        picked = picked.scatter(1, reached, value=True)
        follow = follow.gather(1, follow)
    return picked


def _both_rules(
    function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Integrate from ``a`` to ``b``: values, how far apart rules are, how far rounding moves them.

    All are of shape (Q,).
    """
    nodes, kronrod, gauss = torch.tensor(KRONROD, dtype=a.dtype, device=a.device).T
    nodes = torch.cat([nodes, -nodes[:-1]])
    kronrod, gauss = (torch.cat([w, w[:-1]]) for w in (kronrod, gauss))
    half = (b - a) / 2
    y = (a + half)[:, None] + half[:, None] * nodes  # (Q, 15)
    values = function(rows, y)
    value = half * (values * kronrod).sum(-1)
    apart = (value - half * (values * gauss).sum(-1)).abs()
    # Where y is rounded, the function is as if it were taken a little beside.
    moved = ROUNDING * torch.finfo(y.dtype).eps * torch.maximum(a.abs(), b.abs())
    return value, apart, moved * values.abs().amax(-1)


def _step(width: int) -> int:
    """Give how many pieces are taken at once."""
    return max(1, CHUNK // (15 * width))
