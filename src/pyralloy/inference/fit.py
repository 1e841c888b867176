"""Fit: what every method of inference returns."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyralloy import archive
from pyralloy.checks import as_values
from pyralloy.mixture import Mixture
from pyralloy.model import MDN
from pyralloy.networks import evaluating
from pyralloy.persistence import describe, fill, rebuild

__all__ = ["Fit", "load"]

#: What a file of a fit calls itself.
KIND = "fit"


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model and how it came to be.

    Attributes:
        model: The model, holding the weights that were best on the held-out rows.
        history: A table (numpy record array) with a row an evaluation: ``step``; ``train`` and
            ``validation``, mean negative log densities in nats, in y's units; ``seconds`` since the
            start; ``clipped``, the steps whose gradient was longer than ``clip``. ``train`` is the
            mean over the minibatches since the row before, and ``clipped`` their count;
            ``validation`` is NaN where nothing was held out.
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
        ('step', 'train', 'validation', 'seconds', 'clipped')
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to one file, which :func:`pyralloy.load` reads.

        The file holds numbers and a description, in safetensors' format with a digest, and no code:
        a model of an :class:`~pyralloy.networks.MLP` is made anew from it, and one of other parts
        has to be given to ``load``, which a warning says.

        Args:
            path: Of the file, a ``.safetensors``; one that is there is replaced.

        Raises:
            FileNotFoundError: The folder does not exist.
        """
        blueprint = describe(self.model)
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        names = list(self.history.dtype.names or ())
        for name in names:
            tensors[f"history.{name}"] = torch.from_numpy(np.array(self.history[name]))
        notes = {
            "model": blueprint,
            "history": names,
            "marginal": self.marginal,
            "best_step": self.best_step,
            "interrupted": self.interrupted,
        }
        archive.write(path, KIND, tensors, notes)
        if isinstance(blueprint, str):
            warnings.warn(
                f"{blueprint}, which a file cannot describe: make the same model again to read it, "
                f"pa.load({str(path)!r}, model=model).",
                stacklevel=2,
            )

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


def load(path: str | os.PathLike[str], *, model: MDN | None = None) -> Fit:
    """Read a fit that :meth:`Fit.save` wrote.

    Nothing in the file is run, and its SHA-256 is checked; so a file from elsewhere can be wrong,
    but cannot do harm.

    Args:
        path: Of the file.
        model: Where the weights go, of the same parts as the one saved; needed where these are not
            pyralloy's own. None makes the model anew, on the CPU.

    Returns:
        The :class:`Fit`, whose ``model`` is ``model`` if that was given.

    Raises:
        FileNotFoundError: There is no such file.
        Unreadable: It is damaged, no fit, or not of ``model`` (a ``ValueError``).
        TypeError: ``model`` is no ``MDN``.

    Example:
        >>> import tempfile
        >>> import pyralloy as pa
        >>> problem = pa.datasets.inverse_sinusoid(200, seed=0)
        >>> model = pa.MDN(pa.networks.MLP(1, hidden=(16,)), pa.MixtureHead(16, components=5))
        >>> fit = pa.fit(model, problem.x, problem.y, max_steps=50, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fit.save(f"{folder}/fit.safetensors")
        ...     again = pa.load(f"{folder}/fit.safetensors")
        >>> torch.equal(again.density(problem.x).mean, fit.density(problem.x).mean)
        True
    """
    if model is not None and not isinstance(model, MDN):
        raise TypeError(f"model={model!r}: give a pyralloy.MDN.")
    found = archive.read(path, KIND)
    notes, columns = found.notes, found.under("history")
    try:
        values = [columns[name].numpy() for name in notes["history"]]
        history = np.rec.fromarrays(values, names=notes["history"])
        blueprint, marginal = notes["model"], float(notes["marginal"])
        step, interrupted = int(notes["best_step"]), bool(notes["interrupted"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise archive.Unreadable(f"{str(path)!r} lacks what a fit holds ({error}).") from error
    if model is not None:
        fill(model, found.under("model"))
        model.eval()
    elif isinstance(blueprint, str):
        raise archive.Unreadable(
            f"{str(path)!r} cannot say how to make its model, for {blueprint}: make the same model "
            f"again, and pa.load({str(path)!r}, model=model)."
        )
    else:
        model = rebuild(blueprint, found.under("model"))
    return Fit(model, history, marginal, step, interrupted)
