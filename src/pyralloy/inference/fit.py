"""Fit: what every method of inference returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyralloy.checks import as_values
from pyralloy.mixture import Mixture
from pyralloy.model import MDN
from pyralloy.networks import evaluating

__all__ = ["Fit"]


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model and how it came to be.

    Attributes:
        model: The model, holding the weights that were best on the held-out rows.
        history: A table (numpy record array) with a row an evaluation: ``step``; ``train`` and
            ``validation``, mean negative log densities in nats, in y's units; ``seconds`` since the
            start. ``train`` is the mean over the minibatches since the row before; ``validation``
            is NaN where nothing was held out.
        marginal: Mean negative log density, on the same held-out rows (on the training rows where
            nothing was held out), of a density of y that ignores x: what the model must beat.
        best_step: The step whose weights the model holds.
        interrupted: Whether Ctrl-C ended the fit before its time.
        diagnostics: What looks wrong with the data or the fit, and what helps, a sentence each; the
            same are given as :class:`~pyralloy.inference.diagnostics.FitWarning`.

    Example:
        >>> import pyralloy as pa
        >>> problem = pa.datasets.inverse_sinusoid(200, seed=0)
        >>> model = pa.MDN(pa.networks.MLP(1, hidden=(16,)), pa.MixtureHead(16, components=5))
        >>> fit = pa.fit(model, problem.x, problem.y, max_steps=50, progress=False)
        >>> fit.density(problem.x[:3]).quantile([0.1, 0.9]).shape
        torch.Size([2, 3])
        >>> fit.history.dtype.names
        ('step', 'train', 'validation', 'seconds')
    """

    model: MDN
    history: np.recarray
    marginal: float
    best_step: int
    interrupted: bool = False
    diagnostics: tuple[str, ...] = ()

    def density(self, x: Any) -> Mixture:
        """Give the density of y at ``x``, without gradients.

        Args:
            x: Inputs, shape (N, F), or (N,) where F is 1: tensor, array or data frame.

        Returns:
            A ``Mixture`` of batch shape (N,), in y's units, float64.

        Raises:
            TypeError: ``x`` is not numeric.
            ValueError: NaN or infinity in ``x``, or features other than the model was fitted on.
        """
        with evaluating(self.model):
            return self.model.density(as_values("x", x))

    def __repr__(self) -> str:
        last = self.history[-1] if len(self.history) else None
        nll = "" if last is None else f", nll={self.best_nll:.4f}, marginal={self.marginal:.4f}"
        stopped = ", interrupted=True" if self.interrupted else ""
        return f"Fit(best_step={self.best_step}{nll}{stopped})"

    @property
    def best_nll(self) -> float:
        """The held-out negative log density of the weights kept (training, if none held out)."""
        row = self.history[self.history.step == self.best_step][0]
        return float(row.train if np.isnan(row.validation) else row.validation)
