"""Leave-one-out PIT of a Bayesian fit, from the draws of one posterior."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LeaveOneOut", "loo_pit"]

Array = NDArray[np.float64]

#: The PIT is kept off 0 and 1 by this: an exact end would be infinite in normal scores.
EDGE = 1e-12
#: Numbers of one piece of draws x rows.
CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """PIT values of rows, each from the posterior without it.

    Attributes:
        pit: Shape (N,), inside (0, 1).
        elpd: Leave-one-out log predictive densities, shape (N,), in nats.
        k_hat: Shape of the Pareto tail of each row's weights, shape (N,).
        good_k: What k-hat may be for so many draws: min(1 - 1 / log10(S), 0.7).
        unreliable: The rows whose k-hat is above that: refit without them, or read past them.
    """

    pit: Array = field(repr=False)
    elpd: Array = field(repr=False)
    k_hat: Array = field(repr=False)
    good_k: float

    @property
    def unreliable(self) -> NDArray[np.int64]:
        """The rows whose k-hat is too large."""
        return np.flatnonzero(~(self.k_hat <= self.good_k))

    def __str__(self) -> str:
        bad, n = self.unreliable, len(self.pit)
        error = np.sqrt(n) * self.elpd.std()
        head = f"Leave-one-out over {n:,} rows: elpd {self.elpd.sum():.1f} ± {error:.1f} nats."
        worst = f"The largest k-hat is {np.max(self.k_hat):.2f}"
        if len(bad) == 0:
            return f"{head} {worst}: every row is reliable (up to {self.good_k:.2f})."
        shown = ", ".join(str(row) for row in bad[np.argsort(-self.k_hat[bad])][:10])
        return (
            f"{head} {worst}; {len(bad)} rows are above {self.good_k:.2f}, where the weights fail: "
            f"refit without rows {shown}{', ...' if len(bad) > 10 else ''}."
        )


def loo_pit(log_likelihood: ArrayLike, cdf: ArrayLike, *, r_eff: float = 1.0) -> LeaveOneOut:
    r"""Evaluate the PIT of each row under the posterior without that row.

    .. math:: \sum_s w_{si} F(y_i \mid \theta_s), \qquad w_{si} \propto 1 / p(y_i \mid \theta_s)

    with the weights of each row smoothed by a Pareto fit of their tail (PSIS). The cdfs are exact:
    no predictive draw is made, unlike ``arviz_stats.loo_pit``, whose values are counts of draws.

    Args:
        log_likelihood: :math:`\log p(y_i \mid \theta_s)`, shape (S, N), or (chain, draw, N).
        cdf: :math:`F(y_i \mid \theta_s)`, of the same shape.
        r_eff: Effective draws over draws; 1 for independent draws.

    Returns:
        A :class:`LeaveOneOut`, with ``k_hat`` to tell where the weights fail.

    Raises:
        ImportError: ArviZ is not installed.
        ValueError: Shapes that differ, fewer than 100 draws, values that are not finite, or cdfs
            outside [0, 1].

    References:
        Vehtari, A., Simpson, D., Gelman, A., Yao, Y., & Gabry, J. (2024). Pareto smoothed
        importance sampling. JMLR 25. https://jmlr.org/papers/v25/19-556.html

    Example:
        >>> theta = np.random.default_rng(0).standard_normal((1000, 1)) * 0.1
        >>> y = np.linspace(-2, 2, 5)
        >>> from scipy.stats import norm
        >>> found = loo_pit(norm.logpdf(y, theta), norm.cdf(y, theta))
        >>> found.pit.round(2).tolist(), found.unreliable.tolist()
        ([0.02, 0.16, 0.5, 0.84, 0.98], [])
    """
    try:
        from arviz_stats.base.array import array_stats
    except ImportError as error:
        raise ImportError(
            "loo_pit needs ArviZ for its Pareto smoothing: pip install 'pyralloy[arviz]'."
        ) from error
    log_p, below = _matrix("log_likelihood", log_likelihood), _matrix("cdf", cdf)
    if log_p.shape != below.shape:
        raise ValueError(
            f"log_likelihood has shape {log_p.shape} and cdf {below.shape}, draws x rows: give "
            "both of the same draws and rows."
        )
    draws, rows = log_p.shape
    if draws < 100:
        raise ValueError(f"log_likelihood has {draws} draws: give at least 100.")
    if below.min() < 0.0 or below.max() > 1.0:
        raise ValueError(
            f"cdf lies within {below.min():g} and {below.max():g}: give probabilities."
        )
    psislw: Any = array_stats.psislw  # whose r_eff is annotated by its default, an int
    pit, elpd, k_hat = (np.empty(rows) for _ in range(3))
    for start in range(0, rows, max(1, CHUNK // draws)):
        part = slice(start, start + max(1, CHUNK // draws))
        log_w, k = psislw(log_p[:, part].T, r_eff=r_eff, axis=-1)  # (N', S)
        log_w = log_w - np.logaddexp.reduce(log_w, -1, keepdims=True)
        pit[part] = (np.exp(log_w) * below[:, part].T).sum(-1)
        elpd[part] = np.logaddexp.reduce(log_w + log_p[:, part].T, -1)
        k_hat[part] = k
    good = min(1.0 - 1.0 / np.log10(draws), 0.7)
    return LeaveOneOut(np.clip(pit, EDGE, 1.0 - EDGE), elpd, k_hat, float(good))


def _matrix(name: str, values: ArrayLike) -> Array:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim == 3:
        matrix = matrix.reshape(-1, matrix.shape[-1])
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {matrix.shape}: give (S, N), or (chain, draw, N).")
    if not np.isfinite(matrix).all():
        bad = np.flatnonzero(~np.isfinite(matrix).all(0))
        raise ValueError(
            f"{name} is not finite at {len(bad)} rows, the first {int(bad[0])}: leave out rows "
            "that some draw holds impossible."
        )
    return matrix
