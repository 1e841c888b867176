"""Markov chain Monte Carlo: Pyro's No-U-Turn sampler on a whitened potential."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer import NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from tqdm import tqdm

from pyralloy.checks import integer, positive, probability
from pyralloy.inference.chains import Chains
from pyralloy.inference.data import gather
from pyralloy.inference.fit import Fit
from pyralloy.inference.objective import pyro_runtime
from pyralloy.inference.posterior import Draws, unpack
from pyralloy.inference.potential import Potential
from pyralloy.inference.rows import Rows, standardised
from pyralloy.inference.svi import fit
from pyralloy.inference.whitening import Captured, Whitened
from pyralloy.model import MDN
from pyralloy.seeds import seeded, sow

__all__ = ["Chains", "nuts"]

#: Rows at which chains are compared, and the largest R-hat and share of rows above it that pass.
POINTS, R_HAT, SHARE = 100, 1.05, 0.05
#: Iterations of all chains from which compiling the potential pays.
HASTE = 500
#: Iterations of each chain for which the history has no more rows than this.
RECORDS = 100


def nuts(
    model: MDN,
    x: Any,
    y: Any,
    *,
    weights: Any = None,
    size: float | None = None,
    warmup: int = 500,
    draws: int = 500,
    chains: int = 2,
    seed: int = 0,
    start: int = 500,
    initialise: bool = True,
    temperature: float = 1.0,
    target_acceptance: float = 0.8,
    depth: int = 10,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Fit:
    r"""Draw the weights that have a prior from their posterior, by the No-U-Turn sampler.

    Each chain starts at the most probable weights near a maximum-likelihood fit of its own (near
    one fit for all, where some weights have no prior: those stay as fitted). Every gradient is of
    all rows. Chains run one after the other. Ctrl-C ends the run with Python's
    ``KeyboardInterrupt``.

    Args:
        model: With a prior; it ends with the weights where the first chain started.
        x: Inputs in their own units, shape (N, F), or (N,) for one feature.
        y: Targets in their own units, shape (N,) or (N, D).
        weights: Of the rows, shape (N,), as in :func:`pyralloy.fit`: the likelihood of a row is
            raised to the power of its weight, once they are divided by their mean.
        size: Number of rows that the weights count as together, as in :func:`pyralloy.fit`.
        warmup: Iterations a chain that adapt the step and the scales, and are dropped.
        draws: Draws a chain that are kept, at least 4.
        chains: Number of chains C.
        seed: Source of all randomness.
        start: Steps of the fits from which chains start; 0 starts them where ``initialise`` does.
        initialise: As in :func:`pyralloy.fit`; False starts every chain at the model's weights.
        temperature: T of a posterior in which the likelihood is raised to the power 1 / T.
        target_acceptance: Acceptance probability the step is adapted to: nearer 1, smaller steps.
        depth: An iteration takes up to 2 to the power ``depth`` gradients.
        progress: Whether to show a bar.
        device: Where to run; None stays where the model is.

    Returns:
        A :class:`~pyralloy.Fit` whose ``posterior`` is the draws, and whose ``chains`` is a
        :class:`Chains`. Its history holds, of each chain in turn, the negative log density of the
        training rows a row.

    Raises:
        TypeError: As for :func:`pyralloy.fit`.
        ValueError: As for :func:`pyralloy.fit`; a model without a prior.

    References:
        Hoffman, M. D., & Gelman, A. (2014). The No-U-Turn sampler. JMLR 15. arXiv:1111.4246

    Example:
        >>> import pyralloy as pa
        >>> problem = pa.datasets.inverse_sinusoid(30, seed=0)
        >>> trunk, head = pa.networks.MLP(1, hidden=(3,)), pa.MixtureHead(3, components=2)
        >>> model = pa.MDN(trunk, head, prior=pa.priors.FanIn())
        >>> with warnings.catch_warnings():  # four draws say little, and the fit says so
        ...     warnings.simplefilter("ignore")
        ...     fit = nuts(model, problem.x, problem.y, warmup=4, draws=4, depth=3, progress=False)
        >>> fit.density(problem.x[:5], draws=8).num_components
        16
    """
    if not isinstance(model, MDN):
        raise TypeError(f"model={model!r}: give a pyralloy.MDN.")
    if model.prior is None:
        raise ValueError("model has no prior: give MDN(..., prior=priors.FanIn()), for one.")
    warmup, draws = integer("warmup", warmup), integer("draws", draws, 4)
    chains, seed = integer("chains", chains), integer("seed", seed, 0)
    options = {
        "target_accept_prob": probability("target_acceptance", target_acceptance),
        "max_tree_depth": integer("depth", depth),
    }
    temperature, start = positive("temperature", temperature), integer("start", start, 0)
    model.to(device)
    began = time.perf_counter()
    data = gather(model, x, y, weights, size=size, validation=None, seed=seed)
    rows, marginal, starts = _starts(model, data.rows, chains, seed, start, initialise=initialise)
    counts = None if rows.weights is None else rows.weights * data.worth
    potential = Potential(model, rows.x, rows.y, temperature, counts=counts)
    history, found = [], []
    iterations = chains * (warmup + draws)
    device = next(model.parameters()).device
    with _runtime(device), _bar(iterations, shown=progress) as bar:
        slope = Captured(Whitened(potential), hasten=iterations >= HASTE)
        for number, vector in enumerate(starts):
            sow(_mix(seed, number), device)
            record = _Record(history, potential, model, data.size, began, bar)
            slope.aim(_descend(potential, vector))
            found.append(_chain(slope, warmup, draws, options, record))
    vectors = torch.stack([chain.vectors for chain in found])  # (C, S, P)
    stats = {name: torch.stack([c.stats[name] for c in found]) for name in found[0].stats}
    posterior = Draws(unpack(potential.sites, vectors), stats)
    r_hat, ess = _agreement(model, posterior, rows)
    divergences, acceptance, step_size = zip(*(c.said for c in found), strict=True)
    report = Chains(r_hat, ess, divergences, acceptance, step_size, slope.calls)
    _warn(report, draws)
    kinds = [("step", np.int64), *((n, np.float64) for n in ("train", "validation", "seconds"))]
    table = np.array(history, dtype=kinds).view(np.recarray)
    last = int(table.step[-1])
    return Fit(
        model, table, marginal, last, posterior=posterior, temperature=temperature, chains=report
    )


class _Found(NamedTuple):
    vectors: Tensor
    said: tuple[int, float, float]
    stats: dict[str, Tensor]


class _Record:
    """Note the potential now and then, and move the bar."""

    def __init__(
        self,
        history: list[tuple[int, float, float, float]],
        potential: Potential,
        model: MDN,
        rows: float,
        began: float,
        bar: Any,
    ) -> None:
        self._history, self._potential, self._rows = history, potential, rows
        self._offset, self._began, self._bar = model.y_scaling.log_jacobian, began, bar
        self._first = history[-1][0] if history else 0

    def __call__(self, iteration: int, total: int, vector: Tensor, stage: str) -> None:
        if iteration % max(1, total // RECORDS) == 0 or iteration == total:
            with torch.no_grad():
                nll = float(self._potential.likelihood(vector)) / self._rows + self._offset
            seconds = time.perf_counter() - self._began
            self._history.append((self._first + iteration, nll, float("nan"), seconds))
            if self._bar is not None:
                self._bar.set_postfix_str(f"{stage}, train NLL {nll:.3f}", refresh=False)
        if self._bar is not None:
            self._bar.update()


def _starts(
    model: MDN, data: Rows, chains: int, seed: int, steps: int, *, initialise: bool
) -> tuple[Rows, float, list[Tensor]]:
    """Fit once a chain; give standardised rows, the marginal's loss, and where each chain starts.

    The model ends with the weights of the first fit.
    """
    plain = model.without_prior()
    own = initialise and set(model.uncertain()) == set(model.weights())
    vectors: list[Tensor] = []
    first, marginal, rows = {}, 0.0, None
    for number in range(chains if own else 1):
        begun = fit(
            plain,
            data.x,
            data.y,
            weights=data.weights,
            validation=None,
            seed=_mix(seed, number) % 2**31,
            max_steps=max(steps, 1),
            learning_rate=0.015 if steps else 1e-12,
            initialise=initialise,
            progress=False,
        )
        rows = standardised(model, data)
        vectors.append(Potential(model, rows.x, rows.y).start)
        if number == 0:
            first = {n: w.detach().clone() for n, w in model.weights().items()}
            marginal = begun.marginal
    with torch.no_grad():
        for name, weight in model.weights().items():
            weight.copy_(first[name])
    vectors += vectors[:1] * (chains - len(vectors))
    return rows, marginal, vectors  # pyright: ignore[reportReturnType]


def _descend(potential: Potential, vector: Tensor) -> Tensor:
    """Go to the most probable weights nearby, where there are any."""
    return vector if potential.hierarchical else potential.minimise(vector)


def _chain(
    slope: Captured, warmup: int, draws: int, options: dict[str, Any], record: _Record
) -> _Found:
    """Run one chain from where the potential was whitened."""
    kernel, whitened = NUTS(potential_fn=slope, **options), slope.whitened
    kernel.initial_params = {"u": torch.zeros_like(whitened.centre)}
    kernel.setup(warmup)
    values, kept, steps, means = kernel.initial_params, [], [], [0.0]
    for iteration in range(1, warmup + draws + 1):
        before = slope.calls
        values = kernel.sample(values)
        vector = whitened.weights(values["u"].detach(), whitened.centre, whitened.sizes)
        if iteration > warmup:
            kept.append(vector)
            steps.append(slope.calls - before)
            means.append(kernel._mean_accept_prob)
        stage = "warm-up" if iteration <= warmup else "draws"
        record(iteration, warmup + draws, vector, stage)
    diverged = kernel.diagnostics()["divergences"]
    acceptance, step_size = float(kernel.logging()["acc. prob"]), float(kernel.step_size)
    kernel.cleanup()
    stats = _stats(diverged, steps, means, step_size)
    return _Found(torch.stack(kept), (len(diverged), acceptance, step_size), stats)


def _stats(
    diverged: list[int], steps: list[int], means: list[float], step_size: float
) -> dict[str, Tensor]:
    """Tell each draw's part, (S,), by the names that ArviZ knows; ``means`` are running means."""
    diverging = torch.zeros(len(steps), dtype=torch.bool)
    diverging[diverged] = True
    taken, running = torch.tensor(steps), torch.tensor(means, dtype=torch.float64)
    rate = (running * torch.arange(len(means))).diff().clamp(0.0, 1.0)
    depth = (taken + 1.0).log2().ceil().long()  # a tree of depth d has up to 2^d - 1 steps
    return {
        "diverging": diverging,
        "acceptance_rate": rate,
        "n_steps": taken,
        "tree_depth": depth,
        "step_size": torch.full((len(steps),), step_size, dtype=torch.float64),
    }


@torch.no_grad()
def _agreement(model: MDN, posterior: Draws, rows: Rows) -> tuple[Tensor, Tensor]:
    """Give R-hat and effective sample size of the log density at some rows, each (R,)."""
    step = max(1, len(rows.x) // POINTS)
    z, t = rows.x[::step][:POINTS], rows.y[::step][:POINTS]
    shape = next(iter(posterior.chains.values())).shape[:2]
    flat = {n: v.flatten(0, 1) for n, v in posterior.chains.items()}
    each = [
        model.network(z, {n: v[s] for n, v in flat.items()}).log_prob(t)
        for s in range(shape.numel())
    ]
    values = torch.stack(each).to(torch.float64).unflatten(0, shape)  # (C, S, R)
    return split_gelman_rubin(values), effective_sample_size(values)


def _warn(report: Chains, draws: int) -> None:
    apart = float((report.r_hat > R_HAT).to(torch.float64).mean())
    if not bool(report.r_hat.isfinite().all()) or apart > SHARE:
        warnings.warn(
            f"chains disagree: R-hat is above {R_HAT} at {apart:.0%} of the rows compared (the "
            f"largest is {float(report.r_hat.max()):.2f}); take more warmup and draws, a smaller "
            "network, or a stronger prior.",
            stacklevel=3,
        )
    divergent = sum(report.divergences)
    if divergent > 0.01 * draws * len(report.divergences):
        warnings.warn(
            f"{divergent} of {draws * len(report.divergences)} draws diverged: the sampler could "
            "not follow the posterior there; raise target_acceptance, or take lighter tails.",
            stacklevel=3,
        )


@contextmanager
def _runtime(device: torch.device) -> Iterator[None]:
    with (
        pyro_runtime(),
        seeded(0, device),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        yield


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Any]:
    if not shown:
        yield None
        return
    with tqdm(total=total, desc="nuts", unit="draw", mininterval=0.2) as bar:
        yield bar


def _mix(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number * 7_368_787 + 12_345) % 2**63
