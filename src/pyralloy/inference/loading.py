"""Loading: a fit from the file that it wrote."""

from __future__ import annotations

import os

import numpy as np

from pyralloy import archive
from pyralloy.inference.fit import KIND, Fit
from pyralloy.inference.storage import Stored, chains_of, posterior_of_file
from pyralloy.model import MDN
from pyralloy.persistence import fill, rebuild

__all__ = ["load"]


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
        >>> import torch
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
        said, temperature = tuple(map(str, notes["diagnostics"])), float(notes["temperature"])
        parts = {n: Stored(found.under(n), dict(notes[n])) for n in ("posterior", "chains")}
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
    return Fit(
        model,
        history,
        marginal,
        step,
        interrupted,
        said,
        posterior=posterior_of_file(parts["posterior"], model),
        temperature=temperature,
        chains=chains_of(parts["chains"]),
    )
