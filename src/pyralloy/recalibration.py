r"""Recalibration: one monotone map mends the PIT of every density, and the result is a density.

.. math:: F_{cal}(y) = R\bigl(F(y)\bigr)

It repairs what is wrong at every x alike: a bias in units of the density's own spread, a spread
too small or too large, a skew. It cannot move mass between branches at one x and not at another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyralloy.checks import as_values
from pyralloy.families import family_of
from pyralloy.mixture import Mixture
from pyralloy.pit_maps import FARTHEST, METHODS, PitMap, normal_score
from pyralloy.recalibrated_density import RecalibratedDensity

__all__ = ["RecalibratedDensity", "Recalibration", "recalibrate"]

#: Share of rows whose PIT may be beyond float64.
MOST_LOST = 0.01


@dataclass(frozen=True, eq=False)
class Recalibration:
    """A map of the PIT, fitted once and applied to any density of the same model.

    Attributes:
        map: The monotone map, of normal scores.
        rows: Number of rows it was fitted on.
    """

    map: PitMap
    rows: int

    def apply(self, density: Mixture) -> RecalibratedDensity:
        """Recalibrate other densities.

        Args:
            density: Densities of a scalar y, batch shape (N,).

        Returns:
            A :class:`RecalibratedDensity` of the same batch shape.

        Raises:
            ValueError: Densities of a vector, of counts or of angles.
        """
        return RecalibratedDensity(_continuous(density).detach().to(torch.float64), self.map)


def recalibrate(
    density: Mixture, y: ArrayLike | Tensor, *, method: str = "isotonic"
) -> Recalibration:
    """Fit a map of the PIT on rows that the density was not fitted on.

    Args:
        density: Densities of a scalar y, batch shape (N,).
        y: Observed values, shape (N,), N at least 20.
        method: ``"isotonic"``, a monotone piecewise linear map of normal scores, with as many
            pieces as the rows pay for and none where nothing is wrong; or ``"beta"``, the cdf of a
            beta distribution, of two parameters.

    Returns:
        A :class:`Recalibration`; ``apply`` it to densities.

    Raises:
        ValueError: An unknown method, fewer than 20 rows, densities that are hopelessly wrong, or
            of a vector, of counts or of angles, whose PIT is not continuous.

    References:
        Kuleshov, V., Fenner, N., & Ermon, S. (2018). Accurate uncertainties for deep learning
        using calibrated regression. ICML. arXiv:1807.00263. Ranjan, R., & Gneiting, T. (2010).
        Combining probability forecasts. JRSS B 72. doi:10.1111/j.1467-9868.2009.00726.x

    Example:
        >>> from pyro import distributions as dist
        >>> loc = torch.zeros(500, 1)
        >>> narrow = Mixture(dist.Categorical(torch.ones(500, 1)), dist.Normal(loc, 0.5))
        >>> y = torch.randn(500, generator=torch.Generator().manual_seed(0))
        >>> mended = recalibrate(narrow, y).apply(narrow[:1])
        >>> float(narrow[0].stddev), round(float(mended.stddev), 1)
        (0.5, 1.0)
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: choose one of {sorted(METHODS)}.")
    observed = as_values("y", y)
    wide = _continuous(density).detach().to(torch.float64)
    if observed.shape != wide.batch_shape or observed.ndim != 1:
        raise ValueError(
            f"y has shape {tuple(observed.shape)} and density batch_shape "
            f"{tuple(wide.batch_shape)}: give one row of each, (N,)."
        )
    if len(observed) < 20:
        raise ValueError(f"y has {len(observed)} rows: give at least 20 to fit a map on.")
    observed = observed.to(wide.logits)
    z = normal_score(wide.cdf(observed), wide.survival(observed))
    lost = int((z.abs() >= FARTHEST).sum())
    if lost > MOST_LOST * len(z):
        raise ValueError(
            f"y lies where the density is next to nothing in {lost} of {len(z)} rows: no map of "
            "the PIT can mend that. Fit again, with wider scales or a family of longer tails."
        )
    return Recalibration(METHODS[method](z), len(observed))


def _continuous(density: Mixture) -> Mixture:
    if not isinstance(density, Mixture):
        raise TypeError(f"density is {type(density).__name__}: give a Mixture, fit.density(x).")
    support = family_of(density.components).support if not density.event_shape else None
    if support is None or support.integer or support.circular:
        raise ValueError(
            "density is of a vector, of counts or of angles: recalibration maps the PIT of a "
            "continuous scalar; conformal.calibrate gives regions for counts and angles."
        )
    return density
