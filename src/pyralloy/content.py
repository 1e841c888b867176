"""The probability of the region that is at least as dense as what was observed."""

from __future__ import annotations

import torch
from torch import Tensor

from pyralloy.families import family_of
from pyralloy.mixture import Mixture

__all__ = ["hdr_pit"]

#: Draws among which an observation is ranked where the exact answer would cost too much.
DRAWS = 199
#: Components from which it does: an exact answer looks at about 10 points for each of them.
MANY = 1000
#: Log probabilities of counts that differ by less, relatively, are ties.
TIE = 1e-6


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
    log_p = wide.log_prob(y)
    held = wide.mass_above(log_p - integer * TIE * (1.0 + log_p.abs()))
    # Outside the support the log density may be no number; everything else is denser.
    impossible = (log_p.isnan() | (log_p == -torch.inf)) & ~y.isnan()
    return torch.where(impossible, 1.0, held)


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
