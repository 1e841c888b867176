"""The probability of the region that is at least as dense as what was observed."""

from __future__ import annotations

import torch
from torch import Tensor

from pyralloy.circle import cut_open
from pyralloy.families import family_of, wrap
from pyralloy.integers import _probabilities
from pyralloy.mixture import Mixture
from pyralloy.regions import _crossings, _landscape, _wide
from pyralloy.table import Table

__all__ = ["hdr_pit"]

#: Draws among which an observation is ranked where the exact answer would cost too much.
DRAWS = 199
#: Components from which it does: an exact answer looks at about 10 points for each of them.
MANY = 1000


def hdr_pit(density: Mixture, y: Tensor) -> Tensor:
    r"""Evaluate the highest-density PIT: uniform where densities are right.

    .. math:: H(y) = P\{p(Y) \ge p(y)\}

    It is the level of the highest-density region on whose boundary ``y`` lies; of counts, the
    probability of all that are at least as likely as ``y``.

    Args:
        density: Batch shape (N,), of a scalar.
        y: Observed values, shape (N,).

    Returns:
        Probabilities in float64, shape (N,).

    References:
        Harrison, D., Sutton, D., Carvalho, P., & Hobson, M. (2015). Validation of Bayesian
        posterior distributions using a multidimensional Kolmogorov-Smirnov test. MNRAS 451.
        doi:10.1093/mnras/stv1110

    Example:
        >>> from pyro import distributions as dist
        >>> m = Mixture(dist.Categorical(torch.ones(2, 1)), dist.Normal(torch.zeros(2, 1), 1.0))
        >>> [round(v, 3) for v in hdr_pit(m, torch.tensor([0.0, -1.645])).tolist()]
        [0.0, 0.9]
    """
    wide = density.detach().to(torch.float64)
    y = y.to(torch.float64)
    integer = family_of(density.components).support.integer
    if density.num_components > MANY and not integer:
        return _ranks(wide, y)
    with torch.no_grad():
        if integer:
            return _of_counts(wide._table(wide.batch_shape), y)
        table, turn = cut_open(_wide(wide._table(wide.batch_shape)))
        y = wrap(y + turn) if table.family.support.circular else y
        chunks = table.chunks(4 * table.weights.shape[1])
        return torch.cat([_content(table.take(rows), y[rows]) for rows in chunks])


def _content(table: Table, y: Tensor) -> Tensor:
    land, t = _landscape(table), table.log_prob(y)
    held = torch.zeros_like(t)
    rows = (t.isfinite()).nonzero()[:, 0]
    lines = torch.full_like(land.points[:, 1:], torch.nan)
    owner, ends, _ = _crossings(table, land, rows, t[rows], lines)
    cdf = table.take(rows[owner]).cdf(ends).reshape(-1, 2)
    held.index_add_(0, rows[owner[::2]], cdf[:, 1] - cdf[:, 0])
    # Outside the support everything else is denser; at a pole nothing is.
    held = torch.where(t.isfinite() | (t == torch.inf), held, 1.0)
    return held.clamp(0.0, 1.0)


def _of_counts(table: Table, y: Tensor) -> Tensor:
    own, parts, start = table.log_prob(y).exp(), [], 0
    for _, p in _probabilities(table):
        at = own[start : start + len(p), None] * (1.0 - 1e-12)  # ties are as likely
        parts.append(torch.where(p >= at, p, 0.0).sum(-1))
        start += len(p)
    return torch.cat(parts).clamp(0.0, 1.0)


def _ranks(density: Mixture, y: Tensor) -> Tensor:
    """Rank the density at ``y`` among those at draws, ties counted as denser."""
    generator = torch.Generator(density.logits.device).manual_seed(0)
    parts, step = [], max(1, (1 << 24) // (DRAWS * density.num_components))
    for start in range(0, len(y), step):
        rows = slice(start, start + step)
        part = density[rows]
        drawn = part.log_prob(part.sample((DRAWS,), generator=generator))  # (S, N')
        parts.append((1.0 + (drawn >= part.log_prob(y[rows])).sum(0)) / (1.0 + DRAWS))
    return torch.cat(parts)
