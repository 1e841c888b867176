"""Quantiles of Normal mixtures: many levels a row, by Halley's method in a bracket."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyralloy.numerics import add_up, holds

__all__ = ["normal_quantiles"]

#: Bytes of one intermediate, (K, Q, M'), of which a few stay in a core's cache.
CHUNK = 1 << 20
#: Atoms that stand for a component where the first guess is made.
ATOMS = 3
#: Rounds that all roots take together, and those that what is left then takes: a bound, for the
#: last of them halve a bracket.
TOGETHER, MOST = 4, 60


class _Normals(NamedTuple):
    """Components that lead, (K, ...): half the weights, the places, and rates 1 / (sqrt(2) s)."""

    half: Tensor
    loc: Tensor
    rate: Tensor

    def pick(self, columns: Tensor) -> _Normals:
        return _Normals(*(v.index_select(1, columns) for v in self))


class _Search(NamedTuple):
    """Roots that are sought: levels, where they are now, and brackets, all of one shape."""

    u: Tensor
    y: Tensor
    low: Tensor
    high: Tensor

    def pick(self, where: Tensor) -> _Search:
        return _Search(*(v.index_select(0, where) for v in self))


def normal_quantiles(
    weights: Tensor, loc: Tensor, scale: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Solve :math:`\sum_k w_k \Phi((y - \mu_k) / \sigma_k) = u` for several levels of each row.

    From the quantiles of a few atoms a component, each round takes a step of Halley's method, for
    which the density and its slope cost little beside the cdf, or halves the bracket where that
    step would leave it. A root is found when the residual is at the precision of the dtype, or when
    neither step nor bracket can move it.

    Args:
        weights: Shape (M, K), rows summing to one.
        loc: Shape (M, K).
        scale: Shape (M, K), above 0.
        u: Probabilities, shape (Q, M).

    Returns:
        The solutions (Q, M), and the flat indices of those that were not found: of NaN, of levels
        that are 0, 1 or nearly, or in need of more rounds.

    References:
        Halley, E. (1694). A new, exact and easy method of finding the roots of any equations
        generally. Philosophical Transactions 18. doi:10.1098/rstl.1694.0029

    Example:
        >>> row = [torch.tensor([v]) for v in ([0.5, 0.5], [-2.0, 2.0], [1.0, 1.0])]
        >>> normal_quantiles(*row, torch.tensor([[0.3], [0.7]]))[0].round(decimals=3).tolist()
        [[-1.747], [1.747]]
    """
    (levels, rows), count = u.shape, max(1, weights.shape[1])
    room = max(1, CHUNK // (weights.element_size() * count))
    across = max(1, min(levels, room))
    down = max(1, room // across)
    y = torch.full_like(u, math.nan)
    unsolved = torch.ones_like(u, dtype=torch.bool)
    late: list[tuple[_Normals, _Search, Tensor]] = []
    places = torch.arange(u.numel(), device=u.device).reshape(u.shape)
    for left in range(0, rows, down):
        part = slice(left, left + down)
        # A component without weight must not widen a bracket: the heaviest stands in for it.
        w, at, width = _alive(weights[part], loc[part], scale[part])
        normals = _Normals(
            *(v.T.contiguous() for v in (0.5 * w, at, math.sqrt(0.5) * width.reciprocal()))
        )
        for top in range(0, levels, across):
            block = (slice(top, top + across), part)
            search = _start(u[block], w, at, width)
            wide = _Normals(*(v[:, None] for v in normals))
            for _ in range(TOGETHER):
                search, found = _round(wide, search)
            y[block], unsolved[block] = search.y, ~found
            flat = (~found).flatten().nonzero()[:, 0]
            columns = flat % search.y.shape[1]
            search = _Search(*(v.flatten() for v in search)).pick(flat)
            late.append((normals.pick(columns), search, places[block].flatten()[flat]))
    _finish(late, room, y.view(-1), unsolved.view(-1))
    least = 1e-30 if u.dtype == torch.float32 else 1e-280
    unsolved |= ~((u > least) & (u < 1))
    return y, unsolved.flatten().nonzero()[:, 0]


def _finish(
    late: list[tuple[_Normals, _Search, Tensor]], room: int, y: Tensor, unsolved: Tensor
) -> None:
    """Go on with the roots that the common rounds left, and write them at their flat places."""
    if not late:
        return
    normals = _Normals(*(torch.cat(v, 1) for v in zip(*(n for n, _, _ in late), strict=True)))
    search = _Search(*(torch.cat(v) for v in zip(*(s for _, s, _ in late), strict=True)))
    places = torch.cat([p for _, _, p in late])
    # Many at once: few are left after a round or two, and calls on few cost as much.
    for start in range(0, len(places), TOGETHER * room):
        part = slice(start, start + TOGETHER * room)
        now = _Search(*(v[part] for v in search))
        at, here = _Normals(*(v[:, part] for v in normals)), places[part]
        for _ in range(MOST):
            now, found = _round(at, now)
            y[here], unsolved[here] = now.y, ~found
            left = (~found).nonzero()[:, 0]
            if len(left) == 0:
                break
            now, at, here = now.pick(left), at.pick(left), here[left]


def _alive(w: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    live = w > 0
    if bool(live.all()):
        return w, loc, scale
    heaviest = w.argmax(-1, keepdim=True)
    loc, scale = (torch.where(live, v, v.gather(-1, heaviest)) for v in (loc, scale))
    return w, loc, scale


def _start(u: Tensor, w: Tensor, loc: Tensor, scale: Tensor) -> _Search:
    """Bracket quantiles (Q, M) between those of the components, and guess them by atoms.

    Each component is taken for a few equal atoms; between them, sorted, the cdf is interpolated.
    """
    normal = torch.special.ndtri(u)  # (Q, M)
    ends = torch.addcmul(loc.T[:, None], scale.T[:, None], normal)  # (K, Q, M)
    low, high = ends.amin(0), ends.amax(0)
    units = torch.special.ndtri((torch.arange(ATOMS).to(u) + 0.5) / ATOMS)
    atoms = torch.addcmul(loc[..., None], scale[..., None], units).flatten(1)  # (M, K A)
    atoms, order = atoms.sort(-1)
    each = (w / ATOMS).gather(1, order // ATOMS)
    below = each.cumsum(-1) - each / 2
    levels = u.T.contiguous()
    place = torch.searchsorted(below, levels).clamp(1, atoms.shape[1] - 1)  # (M, Q)
    (y0, y1), (u0, u1) = ((v.gather(1, place - 1), v.gather(1, place)) for v in (atoms, below))
    y = torch.lerp(y0, y1, ((levels - u0) / (u1 - u0)).clamp(0.0, 1.0))
    y = torch.minimum(torch.maximum(y.T.contiguous(), low), high)
    return _Search(u, y, low, high)


def _round(normals: _Normals, search: _Search) -> tuple[_Search, Tensor]:
    """Evaluate the cdf and its derivatives, shrink the brackets and move what is not found yet."""
    u, y, low, high = search
    half, loc, rate = normals
    single, eps = y.dtype == torch.float32, torch.finfo(y.dtype).eps
    # Beyond this erfc and exp are below all levels, and nearly subnormal numbers, which are slow.
    most = 9.0 if single else 26.0
    x = (loc - y).mul_(rate).clamp_(-most, most)  # (K, ...)
    gap = add_up(torch.special.erfc(x).mul_(half)) - u
    kernel = x.square().neg_().exp_().mul_(half * rate)
    slope = add_up(x.mul_(kernel).mul_(rate))  # half the derivative of the density
    density = add_up(kernel).clamp_min(torch.finfo(y.dtype).tiny)  # times sqrt(pi) / 2
    above = holds(torch.gt, gap, torch.zeros_like(gap))
    low, high = torch.lerp(y, low, above), torch.lerp(high, y, above)
    newton = gap / density * (0.5 * math.sqrt(math.pi))
    new = y - newton / (1 - newton * (slope / density)).clamp(0.5, 2.0)
    new = torch.minimum(torch.maximum(new, low), high)
    found = (gap.abs() <= 4 * eps * u) | (new == y) | (high - low <= 2 * eps * y.abs())
    strictly = holds(torch.gt, new, low) * holds(torch.lt, new, high)
    new = torch.lerp((low + high) / 2, new, strictly)
    return _Search(u, torch.lerp(new, y, found.to(y.dtype)), low, high), found
