"""Fit: what every method of inference returns."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyralloy import archive
from pyralloy.answers import EntropyParts
from pyralloy.checks import as_values, integer
from pyralloy.inference.pooled import joined, pooled
from pyralloy.inference.posterior import Draws, Members, Posterior
from pyralloy.inference.storage import (
    Stored,
    describe_chains,
    describe_posterior,
)
from pyralloy.mixture import Mixture
from pyralloy.model import MDN
from pyralloy.networks import evaluating
from pyralloy.persistence import describe
from pyralloy.seeds import another

__all__ = ["KIND", "Fit"]

#: What a file of a fit calls itself.
KIND = "fit"

#: Components of an unpooled density that are made at once: rows are cut to keep below it.
AT_ONCE = 4_000_000


class VarianceParts(NamedTuple):
    """A variance and its parts: what the weights leave open, and what they disagree on."""

    total: Tensor
    within: Tensor
    between: Tensor


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model and how it came to be.

    Where weights are uncertain, ``posterior`` draws them, and every answer is of draws of it:
    pooled into one density by :meth:`density`, one by one by :meth:`densities`.

    Attributes:
        model: The model, holding the weights that were best on the held-out rows; of a posterior
            its centre, or where the chains began.
        history: A table (numpy record array) with a row an evaluation: ``step``; ``train`` and
            ``validation``, mean negative log densities in nats, in y's units; ``seconds`` since the
            start; ``clipped``, the steps whose gradient was longer than ``clip``. ``train`` is the
            mean over the minibatches since the row before, with the noise of ``x_noise`` (with a
            guide, minus the evidence bound a row), and ``clipped`` their count; ``validation`` is
            NaN where nothing was held out. With ``stretch`` it is of the density as it would be
            with the best width, and in the row of ``best_step`` of the model as it is.
        marginal: Mean negative log density, on the same held-out rows (on the training rows where
            nothing was held out), of a density of y that ignores x: what the model must beat.
        best_step: The step whose weights the model holds.
        interrupted: Whether Ctrl-C ended the fit before its time.
        diagnostics: What looks wrong with the data or the fit, and what helps, a sentence each; the
            same are given as :class:`~pyralloy.inference.diagnostics.FitWarning`.
        posterior: Draws weights; None where they are one value, as after maximum likelihood or MAP.
        guide: The trained guide of Pyro's, for Pyro's own tools; None where there is none.
        temperature: T of a posterior in which the likelihood is raised to the power 1 / T. At 1 it
            is Bayes'; below 1 the data is counted more than once.
        chains: What Markov chain Monte Carlo says of itself: see :func:`pyralloy.nuts`; else None.

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
    posterior: Posterior | None = None
    guide: Any = None
    temperature: float = 1.0
    chains: Any = None

    def density(
        self, x: Any, draws: int = 100, *, seed: int = 0, reduce: int | None = None
    ) -> Mixture:
        """Give the density of y at ``x``, without gradients.

        Of a posterior, it is the exact pool of ``draws`` densities: a mixture of S K components.

        Args:
            x: Inputs, shape (N, F), or (N,) where F is 1: tensor, array or data frame.
            draws: Number S of draws of the weights; of an ensemble of posteriors the next multiple
                of its members. Of no effect where they are one value.
            seed: Source of the draws: the same seed, the same weights.
            reduce: Components to merge the pool into, chunk by chunk, as
                :meth:`Mixture.reduce <pyralloy.Mixture.reduce>` does; None keeps all.

        Returns:
            A ``Mixture`` of batch shape (N,), in y's units, float64.

        Raises:
            TypeError: ``x`` is not numeric, ``draws`` is no integer.
            ValueError: NaN or infinity in ``x``, features other than the model was fitted on, or
                ``draws`` below 1.
        """
        _require_draws(draws, seed)
        if reduce is not None:
            integer("reduce", reduce)
        if self.posterior is None:
            with evaluating(self.model):
                whole = self.model.density(as_values("x", x))
            return whole if reduce is None else whole.reduce(min(reduce, whole.num_components))
        chunks = self._chunks(x, draws, seed)
        return joined([pooled(each, reduce) for each in chunks])

    def densities(self, x: Any, draws: int = 100, *, seed: int = 0) -> Mixture:
        """Give the density of y at ``x`` for each draw of the weights, not pooled.

        Args:
            x: Inputs, as for :meth:`density`.
            draws: Number S of draws; where weights are one value, the result holds one.
            seed: Source of the draws, as in :meth:`density`.

        Returns:
            A ``Mixture`` of batch shape (S, N), in y's units, float64.

        Raises:
            TypeError, ValueError: As for :meth:`density`.
        """
        _require_draws(draws, seed)
        if self.posterior is None:
            point = self.density(x)
            return point.reshape(1, *point.batch_shape)
        return joined(list(self._chunks(x, draws, seed)), dim=1)

    def predictive(self, x: Any, draws: int = 100, *, seed: int = 0) -> Tensor:
        """Draw y from the posterior predictive, one value from each draw of the weights.

        Of one fit with a guide it is equal in law to ``pyro.infer.Predictive(fit.model,
        guide=fit.guide, num_samples=draws)``; an ensemble has no guide of its own.

        Args:
            x: Inputs, as for :meth:`density`.
            draws: Number S of draws; of an ensemble of posteriors the next multiple of its members.
            seed: Source of the draws.

        Returns:
            Shape (S, N) or (S, N, D), in y's units.

        Raises:
            TypeError, ValueError: As for :meth:`density`.
        """
        _require_draws(draws, seed)
        if self.posterior is None:
            density = self.density(x)
            generator = torch.Generator(density.logits.device).manual_seed(seed)
            return density.sample((draws,), generator=generator)
        parts = []
        for each in self._chunks(x, draws, seed):
            # Not the seed that drew the weights: noise and weights must not share their numbers.
            generator = torch.Generator(each.logits.device).manual_seed(another(seed, len(parts)))
            parts.append(each.sample(generator=generator))  # (S, N', ...)
        return torch.cat(parts, 1)

    def entropy(self, x: Any, draws: int = 20, *, seed: int = 0) -> EntropyParts:
        """Split the entropy of y at ``x`` into what noise and what ignorance of the weights give.

        Args:
            x: Inputs, as for :meth:`density`.
            draws: Number S of draws of the weights; time grows with S K, where draws agree.
            seed: Source of the draws.

        Returns:
            ``total``, ``within`` (aleatoric) and ``between`` (epistemic, the mutual information of
            y and the weights), in nats, shape (N,). See
            :meth:`Mixture.entropy_decomposition <pyralloy.Mixture.entropy_decomposition>`.

        Raises:
            TypeError, ValueError: As for :meth:`density`; a vector y.
        """
        return self.densities(x, draws, seed=seed).entropy_decomposition()

    def variance(self, x: Any, draws: int = 100, *, seed: int = 0) -> VarianceParts:
        r"""Split the variance of y at ``x`` by the law of total variance.

        .. math:: \operatorname{Var} y = \operatorname{E}_w \operatorname{Var}(y \mid w)
                  + \operatorname{Var}_w \operatorname{E}(y \mid w)

        Args:
            x: Inputs, as for :meth:`density`.
            draws: Number S of draws of the weights.
            seed: Source of the draws.

        Returns:
            ``total``, ``within`` (aleatoric) and ``between`` (epistemic), in y's units squared,
            shape (N,) or (N, D).

        Raises:
            TypeError, ValueError: As for :meth:`density`; an angle, of which the law does not hold.
        """
        each = self.densities(x, draws, seed=seed)
        if self.model.head.family.support.circular:
            raise ValueError("variance of an angle does not add up; take fit.entropy(x).")
        within, between = each.variance.mean(0), each.mean.var(0, correction=0)
        return VarianceParts(within + between, within, between)

    def weights(self, draws: int = 100, *, seed: int = 0) -> dict[str, Tensor]:
        """Draw from the posterior, by the names of the sites.

        Args:
            draws: Number S of draws.
            seed: Source of the draws: those that :meth:`density` pools for the same seed.

        Returns:
            Draws, shapes (S, ...), of what has a prior. Empty where the weights are one value.

        Raises:
            TypeError: ``draws`` is no integer.
            ValueError: ``draws`` below 1.
        """
        _require_draws(draws, seed)
        if self.posterior is None:
            return {}
        return self.posterior.draw(draws, torch.Generator().manual_seed(seed))

    def to_arviz(self, x: Any, y: Any, *, draws: int = 1000, seed: int = 0) -> Any:
        """Convert the fit, with data, to the labelled tree of arrays that ArviZ works on.

        Where the weights are one value, or one a member, the tree holds the density on rows that
        were not fitted, and ``loo`` refuses it. Of a posterior it holds draws of the weights by
        chain, and on those rows each draw's log likelihood and exact cdf: give the fitted rows for
        ``loo``.

        Args:
            x: Inputs, as for :meth:`density`; the index and the columns of a data frame are kept.
            y: Observed targets, shape (N,) or (N, D).
            draws: Draws of y a row, where the weights are one value; draws of the weights, at
                most, of a posterior: chains are thinned to it.
            seed: Source of the draws.

        Returns:
            An ``xarray.DataTree``: see :func:`pyralloy.inference_data.density_to_arviz` and
            :func:`~pyralloy.inference_data.posterior_to_arviz`.

        Raises:
            ImportError: ArviZ is not installed.
            TypeError, ValueError: As for :meth:`density`; lengths that differ.
        """
        from pyralloy.inference_data import density_to_arviz, posterior_to_arviz

        _require_draws(draws, seed)
        rows = as_values("x", x)
        if self.posterior is None or isinstance(self.posterior, Members):
            # Members are no draws: one axis where there are several, and loo means nothing of them.
            count = 1 if self.posterior is None else len(self.posterior)
            each = self.density if self.posterior is None else self.densities
            return density_to_arviz(
                lambda part: each(rows[part], count), x, y, draws=draws, seed=seed
            )
        weights = self.posterior.chained(draws, torch.Generator().manual_seed(seed))
        stats = None
        if isinstance(self.posterior, Draws):
            thin = self.posterior.kept(draws)
            stats = {name: values[:, thin] for name, values in self.posterior.stats.items()}
        flat = {name: values.flatten(0, 1) for name, values in weights.items()}
        return posterior_to_arviz(
            weights,
            lambda part: self.model.densities(rows[part], flat),
            x,
            y,
            sample_stats=stats,
            seed=another(seed, 0),
            attrs={"temperature": self.temperature},
        )

    def _chunks(self, x: Any, draws: int, seed: int) -> Iterator[Mixture]:
        """Give unpooled densities (S, N') of one chunk of rows after the other."""
        rows, weights = as_values("x", x), self.weights(draws, seed=seed)
        size = max(1, AT_ONCE // (draws * self.model.head.components))
        for part in rows.split(size):
            yield self.model.densities(part, weights)

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's guides forget their model when they are pickled; the posterior says what they know.
        return {**self.__dict__, "guide": None}

    def save(self, path: str | os.PathLike[str], *, draws: int = 1000) -> None:
        """Write the fit to one file, which :func:`pyralloy.load` reads.

        The file holds numbers and a description, in safetensors' format with a digest, and no code:
        a model of an :class:`~pyralloy.networks.MLP` and of pyralloy's families and priors is made
        anew from it, and one of other parts has to be given to ``load``, which a warning says. A
        posterior that numbers alone cannot give back, of a guide of one's own or through a
        normalising flow, is written as so many draws, which a warning says too. ``guide`` is not
        written.

        Args:
            path: Of the file, a ``.safetensors``; one that is there is replaced.
            draws: Draws of the weights to write for such a posterior.

        Raises:
            FileNotFoundError: The folder does not exist.
            TypeError, ValueError: ``draws`` is no integer of 1 or more.
        """
        blueprint = describe(self.model)
        stored, drawn = describe_posterior(self.posterior), integer("draws", draws)
        if exact := stored is not None:
            posterior = stored
        else:
            kept = {n: v[None] for n, v in self.weights(drawn).items()}
            posterior = describe_posterior(Draws(kept)) or Stored({}, {})
        chains, names = describe_chains(self.chains), list(self.history.dtype.names or ())
        columns = {n: torch.from_numpy(np.array(self.history[n])) for n in names}
        tensors = {
            **archive.named("model", self.model.state_dict()),
            **archive.named("posterior", posterior.tensors),
            **archive.named("chains", chains.tensors),
            **archive.named("history", columns),
        }
        notes = {
            "model": blueprint,
            "posterior": posterior.notes,
            "chains": chains.notes,
            "history": names,
            "marginal": self.marginal,
            "best_step": self.best_step,
            "interrupted": self.interrupted,
            "diagnostics": self.diagnostics,
            "temperature": self.temperature,
        }
        archive.write(path, KIND, tensors, notes)
        if isinstance(blueprint, str):
            warnings.warn(
                f"{blueprint}, which a file cannot describe: make the same model again to read it, "
                f"pa.load({str(path)!r}, model=model).",
                stacklevel=2,
            )
        if not exact:
            warnings.warn(
                f"the posterior is drawn by a guide, and no numbers that a file can hold: this one "
                f"holds {drawn} draws of it in its place; save(path, draws=S) keeps more, and a "
                "guide of pyro.infer.autoguide that is Normal is kept exactly.",
                stacklevel=2,
            )

    def __repr__(self) -> str:
        if not len(self.history):
            score = ""
        elif self.model.prior is None or self.chains is not None or self._was_held_out():
            score = f", nll={self.best_nll:.4f}, marginal={self.marginal:.4f}"
        else:  # the prior counts in it: not to be compared with the marginal density's
            score = f", loss={self.best_nll:.4f}"
        stopped = ", interrupted=True" if self.interrupted else ""
        warm = "" if self.temperature == 1.0 else f", temperature={self.temperature:g}"
        return f"Fit(best_step={self.best_step}{score}{warm}{stopped})"

    @property
    def best_nll(self) -> float:
        """The held-out negative log density of the weights kept.

        Where nothing was held out, the training loss: with a guide, minus the evidence bound a row.
        """
        row = self._best_row()
        return float(row.validation if self._was_held_out() else row.train)

    def _best_row(self) -> Any:
        return self.history[self.history.step == self.best_step][0]

    def _was_held_out(self) -> bool:
        return not np.isnan(self._best_row().validation)


def _require_draws(draws: int, seed: int) -> None:
    integer("draws", draws)
    integer("seed", seed, 0)
