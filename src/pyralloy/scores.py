"""Proper scores and calibration numbers: a density and what was observed, one number a row.

Every score takes ``weights``, one a row, by which it is multiplied once they are scaled to a mean
of one: the mean of the scores then is their weighted mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyralloy.checks import integer
from pyralloy.families import kind_of
from pyralloy.mixture import Mixture

__all__ = [
    "brier",
    "crps",
    "energy",
    "hdr_pit",
    "interval",
    "log_score",
    "pinball",
    "pit",
    "randomised_pit",
]


def log_score(density: Mixture, y: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Evaluate the logarithmic score: minus the log density, in nats; smaller is better.

    Args:
        density: Batch shape (N,), of a scalar or a vector.
        y: Observed values, in y's units, shape (N,) or (N, D).
        weights: Of the rows, nonnegative, shape (N,); None means equal.

    Returns:
        Scores, shape (N,).

    Raises:
        ValueError: ``y`` is not one observation a row, or weights that are none.

    References:
        Good, I. J. (1952). Rational decisions. JRSS B 14. doi:10.1111/j.2517-6161.1952.tb00104.x

    Example:
        >>> from pyro import distributions as dist
        >>> m = Mixture(dist.Categorical(torch.ones(3, 1)), dist.Normal(torch.zeros(3, 1), 1.0))
        >>> [round(score, 4) for score in log_score(m, torch.zeros(3)).tolist()]
        [0.9189, 0.9189, 0.9189]
    """
    return _weighted(-density.log_prob(_observed(density, y)), weights)


def crps(density: Mixture, y: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Evaluate the continuous ranked probability score, exactly: see :meth:`Mixture.crps`.

    Args:
        density: Batch shape (N,), of a scalar.
        y: Observed values, shape (N,).
        weights: Of the rows, nonnegative, shape (N,); None means equal.

    Returns:
        Scores in y's units, shape (N,); smaller is better.

    Raises:
        ValueError: ``y`` is not one observation a row, or the density is of a vector.
    """
    return _weighted(density.crps(_observed(density, y)), weights)


def interval(
    density: Mixture, y: Tensor, level: float = 0.9, *, weights: Tensor | None = None
) -> Tensor:
    r"""Evaluate the interval (Winkler) score of the equal-tailed interval.

    .. math:: (u - l) + \tfrac{2}{\alpha} (l - y)_+ + \tfrac{2}{\alpha} (y - u)_+,
              \qquad \alpha = 1 - \text{level}

    Args:
        density: Batch shape (N,), of a scalar.
        y: Observed values, shape (N,).
        level: Probability of the interval, in (0, 1).
        weights: Of the rows, nonnegative, shape (N,); None means equal.

    Returns:
        Scores in y's units, shape (N,); smaller is better.

    Raises:
        ValueError: ``level`` outside (0, 1), or ``y`` is not one observation a row.

    References:
        Winkler, R. L. (1972). A decision-theoretic approach to interval estimation. JASA 67.
        doi:10.1080/01621459.1972.10481224
    """
    y = _observed(density, y)
    lower, upper = density.interval(level)
    miss = (lower - y).clamp_min(0.0) + (y - upper).clamp_min(0.0)
    return _weighted(upper - lower + 2.0 / (1.0 - level) * miss, weights)


def pinball(
    density: Mixture, y: Tensor, level: float = 0.5, *, weights: Tensor | None = None
) -> Tensor:
    r"""Evaluate the pinball (quantile) score of one quantile.

    .. math:: (\text{level} - 1\{y < q\}) \, (y - q)

    Its integral over all levels is half the CRPS.

    Args:
        density: Batch shape (N,), of a scalar.
        y: Observed values, shape (N,).
        level: Probability of the quantile, in (0, 1).
        weights: Of the rows, nonnegative, shape (N,); None means equal.

    Returns:
        Scores in y's units, shape (N,); smaller is better.

    Raises:
        ValueError: ``level`` outside (0, 1), or ``y`` is not one observation a row.

    References:
        Koenker, R., & Bassett, G. (1978). Regression quantiles. Econometrica 46.
        doi:10.2307/1913643
    """
    gap = _observed(density, y) - density.quantile(level)
    return _weighted(torch.maximum(level * gap, (level - 1.0) * gap), weights)


def brier(
    density: Mixture, y: Tensor, threshold: float | Tensor, *, weights: Tensor | None = None
) -> Tensor:
    r"""Evaluate the Brier score of the event that y is at most a threshold.

    .. math:: \bigl(F(\text{threshold}) - 1\{y \le \text{threshold}\}\bigr)^2

    Its integral over all thresholds is the CRPS.

    Args:
        density: Batch shape (N,), of a scalar.
        y: Observed values, shape (N,).
        threshold: In y's units, a number or one a row.
        weights: Of the rows, nonnegative, shape (N,); None means equal.

    Returns:
        Scores within 0 and 1, shape (N,); smaller is better.

    Raises:
        ValueError: ``y`` is not one observation a row, or weights that are none.

    References:
        Brier, G. W. (1950). Verification of forecasts expressed in terms of probability. Monthly
        Weather Review 78. doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """
    y = _observed(density, y)
    limit = torch.as_tensor(threshold, dtype=density.dtype, device=y.device)
    return _weighted((density.cdf(limit) - (y <= limit).to(density.dtype)).square(), weights)


def pit(density: Mixture, y: Tensor) -> Tensor:
    """Evaluate the probability integral transform ``F(y)``: uniform where densities are right.

    Of counts it is not, for it has steps: see :func:`randomised_pit`.

    Args:
        density: Batch shape (N,), of a scalar.
        y: Observed values, shape (N,).

    Returns:
        Probabilities in float64, shape (N,).

    Raises:
        ValueError: ``y`` is not one observation a row, or the density is of a vector.

    References:
        Dawid, A. P. (1984). Statistical theory: the prequential approach. JRSS A 147.
        doi:10.2307/2981683
    """
    return density.to(torch.float64).cdf(_observed(density, y).to(torch.float64))


def randomised_pit(
    density: Mixture, y: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Evaluate a PIT that is uniform for counts too: a uniform draw within each step of the cdf.

    .. math:: F(y - 1) + V \, \bigl(F(y) - F(y - 1)\bigr), \qquad V \sim U(0, 1)

    Of continuous y the steps have no height, and it is :func:`pit`.

    Args:
        density: Batch shape (N,), of a scalar.
        y: Observed values, shape (N,).
        generator: Source of randomness; None takes torch's default.

    Returns:
        Probabilities in float64, shape (N,).

    Raises:
        ValueError: ``y`` is not one observation a row, or the density is of a vector.

    References:
        Czado, C., Gneiting, T., & Held, L. (2009). Predictive model assessment for count data.
        Biometrics 65. doi:10.1111/j.1541-0420.2009.01191.x
    """
    upper = pit(density, y)
    if not kind_of(density.components).support.integer:
        return upper
    lower = pit(density, _observed(density, y) - 1.0)
    return lower + _uniform(upper, generator) * (upper - lower)


def hdr_pit(
    density: Mixture,
    y: Tensor,
    *,
    draws: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Evaluate the level of the highest-density region that ends at y: uniform where all is right.

    .. math:: P\{p(Y) > p(y)\}

    Below a level in just the rows whose region of that level holds y. Exact for a scalar; of
    counts, a uniform draw within the mass that is as likely as y is added, as in
    :func:`randomised_pit`; of a vector, the share of draws whose density is higher.

    Args:
        density: Batch shape (N,), of a scalar or a vector.
        y: Observed values, shape (N,) or (N, D).
        draws: Number of draws a row for a vector, at least 2.
        generator: Source of randomness, for counts and vectors; None takes torch's default.

    Returns:
        Probabilities in float64, shape (N,).

    Raises:
        TypeError: ``draws`` is no integer.
        ValueError: ``y`` is not one observation a row, or fewer than 2 draws.

    References:
        Dalmasso, N., Pospisil, T., Lee, A. B., Izbicki, R., Freeman, P. E., & Malz, A. I. (2020).
        Conditional density estimation tools in Python and R with applications to photometric
        redshifts and likelihood-free cosmological inference. Astronomy and Computing 30.
        doi:10.1016/j.ascom.2019.100362

    Example:
        >>> from pyro import distributions as dist
        >>> loc = torch.tensor([[-5.0, 5.0]])
        >>> m = Mixture(dist.Categorical(torch.ones(1, 2)), dist.Normal(loc, 1.0))
        >>> round(float(hdr_pit(m, torch.tensor([0.0]))), 3)  # between two branches
        1.0
    """
    wide = density.detach().to(torch.float64)
    log_p = wide.log_prob(_observed(density, y).to(torch.float64))
    if density.event_shape:
        drawn = wide.sample((integer("draws", draws, 2),), generator=generator)  # (S, N, D)
        return (wide.log_prob(drawn) > log_p).to(torch.float64).mean(0)
    above = wide.mass_above(log_p)
    if not kind_of(density.components).support.integer:
        return above
    upto = wide.mass_above(log_p - 1e-6 * (1.0 + log_p.abs()))
    return above + _uniform(above, generator) * (upto - above)


def energy(
    density: Mixture,
    y: Tensor,
    *,
    draws: int = 1000,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Estimate the energy score of a vector density from draws; of a scalar it is the CRPS, exact.

    .. math:: E\lVert Y - y \rVert - \tfrac12 E\lVert Y - Y' \rVert

    The estimate is unbiased; its standard error falls as one over the square root of ``draws``.

    Args:
        density: Batch shape (N,), event shape () or (D,).
        y: Observed values, shape (N,) or (N, D).
        draws: Number of draws, at least 2; used only where y is a vector.
        generator: Source of randomness; None takes torch's default.
        weights: Of the rows, nonnegative, shape (N,); None means equal.

    Returns:
        Scores in y's units, shape (N,); smaller is better.

    Raises:
        ValueError: ``y`` is not one observation a row, or fewer than 2 draws.

    References:
        Gneiting, T., & Raftery, A. E. (2007). Strictly proper scoring rules, prediction, and
        estimation. JASA 102. doi:10.1198/016214506000001437
    """
    y = _observed(density, y)
    if not density.event_shape:
        return _weighted(density.crps(y), weights)
    count = integer("draws", draws, 2)
    drawn = density.sample((count,), generator=generator)  # (S, N, D)
    near = (drawn - y).norm(dim=-1).mean(0)
    # Shifted pairs: every draw meets a partner, at S rather than S² distances a row.
    shifts = range(1, min(count, 9))
    apart = [(drawn - drawn.roll(shift, 0)).norm(dim=-1).mean(0) for shift in shifts]
    return _weighted(near - 0.5 * torch.stack(apart).mean(0), weights)


def _observed(density: Mixture, y: Tensor) -> Tensor:
    """Check that there is one observation a row: broadcasting would score all against all."""
    observed = torch.as_tensor(y, device=density.logits.device)
    wanted = density.batch_shape + density.event_shape
    if observed.shape != wanted:
        raise ValueError(
            f"y has shape {tuple(observed.shape)} and the density is of {tuple(wanted)}: give one "
            "observation a row."
        )
    return observed.to(density.dtype) if not observed.is_floating_point() else observed


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _weighted(score: Tensor, weights: Tensor | None) -> Tensor:
    """Multiply scores by weights of mean one."""
    if weights is None:
        return score
    given = torch.as_tensor(weights, dtype=score.dtype, device=score.device)
    usable = given.shape == score.shape and bool((given.isfinite() & (given >= 0)).all())
    if not usable or not bool(given.sum() > 0):
        raise ValueError(
            f"weights has shape {tuple(given.shape)} and sum {float(given.sum()):g}: give one "
            f"nonnegative finite weight a row, shape {tuple(score.shape)}, not all zero."
        )
    return score * (given / given.mean())
