"""MDN: a trunk and a mixture head as a Pyro generative model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from pyralloy.checks import as_values, integer
from pyralloy.families import kind_of
from pyralloy.heads import MixtureHead
from pyralloy.mixture import Mixture
from pyralloy.networks import evaluating
from pyralloy.priors import Prior, as_prior
from pyralloy.scaling import Standardizer
from pyralloy.seeds import seeded

__all__ = ["MDN", "Outputs", "local_parameters"]


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

    With a prior, each weight that has one is a site of its own name, as
    ``"trunk.layers.0.weight"``, sampled outside the plate; the network itself holds one value of
    them, which a fit sets to the centre of the posterior. Weights without a prior are parameters.

    Args:
        trunk: Network from x (N, F) to features (N, H); any ``nn.Module``.
        head: The :class:`~pyralloy.MixtureHead` on those features.
        prior: Of the weights, where x and y are standardised: one of :mod:`pyralloy.priors`; a Pyro
            distribution, for each weight; or None for maximum likelihood.

    Attributes:
        trunk, head: As given.
        prior: A :class:`~pyralloy.priors.Prior`, or None.
        x_scaling, y_scaling: Standardisation of x and y; the identity before a fit.

    Raises:
        TypeError: ``trunk`` is no module, ``head`` no ``MixtureHead``, ``prior`` no prior.
        ValueError: The prior does not fit a weight, or is of none.

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

    def __init__(self, trunk: nn.Module, head: MixtureHead, *, prior: Any = None) -> None:
        # Made under this setting, the module can keep its parameters to itself when it is trained.
        with local_parameters():
            super().__init__()
        if not isinstance(trunk, nn.Module):
            raise TypeError(f"trunk={trunk!r}: give a torch.nn.Module from x to features.")
        if not isinstance(head, MixtureHead):
            raise TypeError(f"head={head!r}: give a pyralloy.MixtureHead.")
        self.trunk, self.head = trunk, head
        self.x_scaling, self.y_scaling = Standardizer(), Standardizer()
        self.prior: Prior | None = None if prior is None else as_prior(prior)
        if self.prior is not None and not self.uncertain():
            raise ValueError(
                f"prior={prior!r} is of none of the weights {list(self.weights())}: name some, or "
                "take prior=None for maximum likelihood."
            )

    def weights(self) -> dict[str, Tensor]:
        """Give all weights by name, ``trunk.`` or ``head.`` first."""
        # Not by self.trunk, which within a Pyro program is a statement.
        parts = ((name, self._modules[name]) for name in ("trunk", "head"))
        return {
            f"{name}.{n}": p
            for name, part in parts
            if part is not None
            for n, p in part.named_parameters()
        }

    def uncertain(self) -> list[str]:
        """Name the weights that have a prior.

        Raises:
            ValueError: The prior does not fit a weight.
        """
        if self.prior is None:
            return []
        weights = self.weights()
        scales = {n: torch.ones_like(d.mean) for n, d in self.prior.scales(weights).items()}
        return list(self.prior.distributions(weights, scales))

    def without_prior(self) -> MDN:
        """Give a model of the same network, scalings and weights, all of them parameters."""
        model = MDN(self.trunk, self.head)
        model.x_scaling, model.y_scaling = self.x_scaling, self.y_scaling
        return model.train(self.training)

    def network(
        self,
        z: Tensor,
        weights: Mapping[str, Tensor] | None = None,
        *,
        stretch: Tensor | None = None,
    ) -> Mixture:
        """Give the density of standardised y at standardised inputs ``z`` (N, F).

        Args:
            z: Standardised inputs.
            weights: Values to take for some or all weights, by name; None takes the module's own.
            stretch: As for :class:`~pyralloy.MixtureHead`.
        """
        trunk, head = self.trunk, self.head
        if not weights:
            return head(trunk(z), stretch)
        features = functional_call(trunk, _part("trunk.", weights, z), (z,))
        return functional_call(head, _part("head.", weights, z), (features, stretch))

    def density(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Mixture:
        """Give the density of y at ``x``, in y's units and in float64, with gradients.

        Args:
            x: Inputs in their own units, shape (N, F); (N,) is taken as (N, 1).
            weights: As for :meth:`network`.

        Returns:
            A ``Mixture`` of batch shape (N,).

        Raises:
            ValueError: The number of features is not that of the data the model was fitted on.
        """
        return self.y_scaling.undo(self.network(self._standard(x), weights))

    def densities(self, x: Tensor, weights: Mapping[str, Tensor]) -> Mixture:
        """Give the density of y at ``x`` for each of S draws of the weights, without gradients.

        Args:
            x: Inputs in their own units, shape (N, F) or (N,).
            weights: Draws of some or all weights by name, shapes (S, ...).

        Returns:
            A ``Mixture`` of batch shape (S, N), in y's units and in float64.

        Raises:
            ValueError: As for :meth:`density`; ``weights`` names none of the model's.
        """
        with evaluating(self):
            z, known = self._standard(x), self.weights()
            draws = {n: w for n, w in weights.items() if n in known}
            if not draws:
                raise ValueError(
                    f"weights={sorted(weights)} names none of the model's: give draws of some of "
                    f"{sorted(known)}."
                )
            count = len(next(iter(draws.values())))
            each = [self.network(z, {n: w[s] for n, w in draws.items()}) for s in range(count)]
            return self.y_scaling.undo(_stack(each))

    def prior_densities(self, x: Any, draws: int = 20, *, seed: int = 0) -> Mixture:
        """Draw whole densities of y from the prior, so that a prior is chosen by looking.

        Before a fit x and y are taken as standardised, and weights without a prior are the
        module's own.

        Args:
            x: Inputs, shape (N, F) or (N,).
            draws: Number of draws S of the weights.
            seed: Source of the draws.

        Returns:
            A ``Mixture`` of batch shape (S, N).

        Raises:
            TypeError: ``draws`` is no integer.
            ValueError: The model has no prior, or ``draws`` is below 1.

        Example:
            >>> from pyralloy.networks import MLP
            >>> model = MDN(MLP(1, (16,)), MixtureHead(16, 3), prior=dist.Normal(0.0, 1.0))
            >>> model.prior_densities(torch.linspace(-2.0, 2.0, 5), draws=4).batch_shape
            torch.Size([4, 5])
        """
        draws = integer("draws", draws)
        if self.prior is None:
            raise ValueError("model has no prior: give MDN(..., prior=priors.FanIn()), for one.")
        device = next(self.parameters()).device
        with seeded(integer("seed", seed, 0), device), torch.no_grad():
            each = [self._draw_prior(self.prior) for _ in range(draws)]
        stacked = {n: torch.stack([one[n] for one in each]) for n in each[0]}
        return self.densities(as_values("x", x), stacked)

    def _draw_prior(self, prior: Prior) -> dict[str, Tensor]:
        weights = self.weights()
        scales = {n: d.sample() for n, d in prior.scales(weights).items()}
        return {n: d.sample() for n, d in prior.distributions(weights, scales).items()}

    def _sample_weights(self) -> dict[str, Tensor] | None:
        """Sample, as Pyro's sites, the weights that have a prior."""
        if self.prior is None:
            return None
        weights = self.weights()
        scales = {n: pyro.sample(n, d) for n, d in self.prior.scales(weights).items()}
        sites = self.prior.distributions(weights, scales)
        return {n: pyro.sample(n, d) for n, d in sites.items()}

    def _standard(self, x: Tensor) -> Tensor:
        """Standardise inputs, in the dtype of the weights."""
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
        return self.x_scaling(x.to(like.device), like.dtype)

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
        drawn = self._sample_weights()
        density = self.network(x, drawn) if standard else self.density(x, drawn)
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


class Outputs(nn.Module):
    """Give, of a model's network, the features (N, H) of z, and all that its head makes of them.

    These are what :meth:`MixtureHead.raw <pyralloy.MixtureHead.raw>` gives, side by side, (N, J).
    """

    def __init__(self, model: MDN) -> None:
        super().__init__()
        self.trunk, self.head = model.trunk, model.head

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map standardised inputs (N, F)."""
        features = self.trunk(z)
        return features, torch.cat(torch.broadcast_tensors(*self.head.raw(features)), -1)


def _part(prefix: str, weights: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): w.to(like) for n, w in weights.items() if n.startswith(prefix)}


def _stack(each: list[Mixture]) -> Mixture:
    """Join densities of the same rows along a new first batch dimension."""
    kind = kind_of(each[0].components)
    columns = zip(*(kind.values(m.components) for m in each), strict=True)
    logits = torch.stack([m.logits for m in each])
    components = kind.build([torch.stack(values) for values in columns])
    return Mixture(
        dist.Categorical(logits=logits, validate_args=False), components, validate_args=False
    )
