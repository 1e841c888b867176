"""MDN: a trunk and a mixture head as a Pyro generative model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyralloy.checks import as_values
from pyralloy.heads import MixtureHead
from pyralloy.mixture import Mixture
from pyralloy.scaling import Standardizer

__all__ = ["MDN", "local_parameters"]


class _Users:
    """Who has Pyro keep parameters in their modules at the moment, in any thread."""

    lock, count, before = threading.Lock(), 0, False


@contextmanager
def local_parameters() -> Iterator[None]:
    """Let Pyro keep parameters in their modules instead of its global store.

    The setting is one for all threads: it comes back when the last that asked for it has left,
    where Pyro's own context would switch it off under those who came in between.
    """
    with _Users.lock:
        if not _Users.count:
            _Users.before = pyro.settings.get("module_local_params")
            pyro.settings.set(module_local_params=True)
        _Users.count += 1
    try:
        yield
    finally:
        with _Users.lock:
            _Users.count -= 1
            if not _Users.count:
                pyro.settings.set(module_local_params=_Users.before)


class MDN(PyroModule):
    r"""Model y given x as a mixture whose parameters are a network's outputs.

    .. math:: y_n \sim \sum_k w_k(x_n) \, f\bigl(\theta_k(x_n)\bigr), \qquad n = 1 \dots N

    As a Pyro model it observes the site ``"y"`` in the plate ``"data"``, in y's own units, so that
    Pyro's SVI, ``Predictive`` and ``poutine`` work on it as on any other. :func:`pyralloy.fit`
    trains it, and sets its two :class:`~pyralloy.scaling.Standardizer` from the training rows.
    Pyro's own tools keep parameters by name in one global store, where a second model of the same
    layers would be taken for the first: call them within ``pyro.get_param_store().scope()``.

    Args:
        trunk: Network from x (N, F) to features (N, H); any ``nn.Module``.
        head: The :class:`~pyralloy.MixtureHead` on those features.

    Attributes:
        trunk, head: As given.
        x_scaling, y_scaling: Standardisation of x and y; the identity before a fit.

    Raises:
        TypeError: ``trunk`` is no module or ``head`` no ``MixtureHead``.

    References:
        Bishop, C. M. (1994). Mixture density networks. Aston University, NCRG/94/004.

    Example:
        >>> from pyralloy.networks import MLP
        >>> model = MDN(MLP(1, hidden=(16,)), MixtureHead(16, components=3))
        >>> x = torch.linspace(-1.0, 1.0, 5)[:, None]
        >>> model.density(x).batch_shape
        torch.Size([5])
        >>> y = torch.zeros(5)
        >>> trace = pyro.poutine.trace(model).get_trace(x, y)
        >>> bool(torch.isclose(trace.log_prob_sum(), model.density(x).log_prob(y).sum()))
        True
    """

    def __init__(self, trunk: nn.Module, head: MixtureHead) -> None:
        # Made under this setting, the module can keep its parameters to itself when it is trained.
        with local_parameters():
            super().__init__()
        if not isinstance(trunk, nn.Module):
            raise TypeError(f"trunk={trunk!r}: give a torch.nn.Module from x to features.")
        if not isinstance(head, MixtureHead):
            raise TypeError(f"head={head!r}: give a pyralloy.MixtureHead.")
        self.trunk, self.head = trunk, head
        self.x_scaling, self.y_scaling = Standardizer(), Standardizer()

    def network(self, z: Tensor) -> Mixture:
        """Give the density of standardised y at standardised inputs ``z`` (N, F)."""
        return self.head(self.trunk(z))

    def density(self, x: Tensor) -> Mixture:
        """Give the density of y at ``x``, in y's units and in float64, with gradients.

        Args:
            x: Inputs in their own units, shape (N, F); (N,) is taken as (N, 1).

        Returns:
            A ``Mixture`` of batch shape (N,).

        Raises:
            ValueError: The number of features is not that of the data the model was fitted on.
        """
        if not isinstance(x, Tensor):
            x = as_values("x", x)
        columns = self.x_scaling.shift.shape
        if x.ndim == 1:
            x = x[:, None]
        if columns and x.shape[1:] != columns:
            raise ValueError(
                f"x has {tuple(x.shape[1:])} features a row and the model was fitted on "
                f"{tuple(columns)}: give the same columns in the same order."
            )
        like = next(self.parameters())
        z = self.x_scaling(x.to(like.device), like.dtype)
        return self.y_scaling.undo(self.network(z))

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        size: int | None = None,
        standard: bool = False,
    ) -> Tensor:
        """Run the generative model: sample y given x, or score it where it is observed.

        Args:
            x: Inputs, shape (N, F).
            y: Observed targets, shape (N,) or (N, D); None samples them.
            weights: How often each row counts, shape (N,), above 0; None means once.
            size: Rows in the whole data set, where ``x`` is a minibatch of it; the log likelihood
                is scaled by size / N.
            standard: Whether ``x`` and ``y`` are standardised already: what the density then is of.

        Returns:
            ``y``, sampled or as given.
        """
        # The network runs outside the plate: inside it, sampled weights would gain its dimension.
        density = self.network(x) if standard else self.density(x)
        rows = density.batch_shape[-1]
        wanted = density.batch_shape + density.event_shape
        if y is not None and y.shape != wanted[len(wanted) - y.ndim :]:
            raise ValueError(
                f"y has shape {tuple(y.shape)} and x predicts {tuple(wanted)}: give one target a "
                "row; y.squeeze(-1) turns a column into that."
            )
        subsample = None if size is None else torch.arange(rows, device=x.device)
        counting = nullcontext() if weights is None else poutine.scale(scale=weights)
        with pyro.plate("data", size or rows, subsample=subsample, dim=-1), counting:
            return pyro.sample("y", density, obs=y)
