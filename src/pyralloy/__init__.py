"""Mixture density networks as Pyro models: regression whose answer is a distribution.

Every prediction is a :class:`Mixture`, which answers exactly. :class:`MDNRegressor` is the
scikit-learn face, :class:`MDN` with :func:`fit` the Pyro one, :class:`MixtureHead` a layer for a
network of your own.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from pyralloy import datasets, networks
from pyralloy import priors as priors
from pyralloy.heads import MixtureHead
from pyralloy.inference.ensemble import ensemble
from pyralloy.inference.fit import Fit
from pyralloy.inference.loading import load
from pyralloy.inference.mcmc import nuts
from pyralloy.inference.svi import fit
from pyralloy.mixture import Mixture
from pyralloy.model import MDN

if TYPE_CHECKING:
    from pyralloy import plot
    from pyralloy.estimator import MDNRegressor

__all__ = [
    "MDN",
    "Fit",
    "MDNRegressor",
    "Mixture",
    "MixtureHead",
    "datasets",
    "ensemble",
    "fit",
    "load",
    "networks",
    "nuts",
    "plot",
]

#: Names whose rooms import scikit-learn, SciPy or matplotlib, for which only their users wait.
_LAZY = {
    "MDNRegressor": ("pyralloy.estimator", "MDNRegressor"),
    "calibration": ("pyralloy.calibration", None),
    "conformal": ("pyralloy.conformal", None),
    "plot": ("pyralloy.plot", None),
    "scorers": ("pyralloy.scorers", None),
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = _import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
