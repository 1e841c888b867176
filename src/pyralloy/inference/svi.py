"""Maximum likelihood by stochastic variational inference with an empty guide."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyralloy.checks import integer, positive
from pyralloy.inference.batches import Batches, BatchSource
from pyralloy.inference.checkpoint import Files, Saving, checked_files, layout
from pyralloy.inference.data import Data, gather
from pyralloy.inference.diagnostics import FitWarning, settled
from pyralloy.inference.engine import Engine
from pyralloy.inference.fit import Fit
from pyralloy.inference.interrupts import Stop, interrupts
from pyralloy.inference.objective import FlatParameters, Objective, empty_guide, pyro_runtime
from pyralloy.inference.rows import Rows, standardised
from pyralloy.inference.schedules import Schedule, one_cycle
from pyralloy.inference.training import Callback, Plan, ended_by_itself, train
from pyralloy.initialise import place_components, redraw, spread_kinks
from pyralloy.marginal import marginal_density
from pyralloy.mixture import Mixture
from pyralloy.model import MDN
from pyralloy.networks import MLP
from pyralloy.scaling import INPUT_LIMIT

__all__ = ["fit"]

#: Rows of an evaluation at once.
CHUNK = 4096

#: Rows that the marginal density is made of and scored on: more would move it by 0.003 nats.
MOST_SCORED = 100_000


def fit(
    model: MDN,
    x: Any,
    y: Any = None,
    *,
    weights: Any = None,
    size: int | None = None,
    validation: float | tuple[Any, ...] | None = 0.1,
    patience: int | None = None,
    seed: int = 0,
    learning_rate: float = 0.015,
    schedule: Schedule = one_cycle,
    clip: float | None = None,
    batch_size: int | None = None,
    max_steps: int = 1500,
    initialise: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=1),
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
    callback: Callback | None = None,
    device: torch.device | str | None = None,
) -> Fit:
    r"""Train a model by maximum likelihood, through Pyro's ELBO with an empty guide.

    x and y are standardised with the training rows' means and deviations, the components are
    spread over y, and Adam minimises the negative log likelihood on minibatches under a one-cycle
    schedule. Of the weights seen, averaged over a few dozen steps, those best on the held-out rows
    are kept. Ctrl-C ends the fit at the next step, with a warning and the best weights so far in
    the model; a handler of one's own for that signal is left alone.

    Args:
        model: Trained in place.
        x: Inputs in their own units, shape (N, F), or (N,) for one feature: a tensor, an array or a
            data frame of numbers. Or, without ``y``, something that gives batches ``(x, y)`` or
            ``(x, y, weights)`` each time it is iterated, for instance a ``DataLoader``: for data
            that memory cannot hold. Their order and their size are its own. It is read through
            once, or until ``size`` rows were seen, to check every batch and to draw 100,000 rows
            (all, where there are no more) from which the standardisation and the start are found.
        y: Targets in their own units, shape (N,), or (N, D) for a head with ``targets=D``.
        weights: Of the rows, shape (N,), not negative; None means all alike. They are divided by
            their mean; a row of weight 2 counts in the loss, of rows held out too, as if it were
            there twice, and one of weight 0 is left out. The standardisation and ``marginal``'s
            density ignore them.
        size: Number of rows in the whole data, where ``x`` gives batches; else None.
        validation: What is held out to choose the weights: a fraction of the rows (no more than
            100,000 of them), a pair ``(x, y)``, a triple with weights, or None for nothing, when
            the last weights are kept.
        patience: Evaluations without improvement (there are 100 in ``max_steps``) that end the fit;
            None runs all steps. Needs held-out rows.
        seed: Source of the rows held out, the initial weights of the head and of an
            :class:`~pyralloy.networks.MLP`, the order of batches, and dropout.
        learning_rate: Peak of the schedule.
        schedule: Gives, of a step counted from 0 and the number of steps, the fraction of the
            learning rate: :func:`~pyralloy.inference.schedules.one_cycle`, ``cosine`` or
            ``constant`` of the same room, or a function of your own.
        clip: Longest that the gradient of the loss may be, in nats a row per unit of the weights;
            a longer one is shortened to it, and ``history.clipped`` counts them. None leaves all
            as they are.
        batch_size: Rows a step; all of them, where there are no more. None takes a sixteenth of the
            training rows, within 16 and 128: the noise of small batches keeps a small data set from
            being learnt by heart.
        max_steps: Steps of the schedule.
        initialise: Whether to draw the weights anew from ``seed`` and spread components over y (the
            weights of a trunk other than :class:`~pyralloy.networks.MLP` are left as they are);
            False goes on from the weights the model has.
        checkpoint: File to which all that the fit needs to go on is written, a ``.safetensors``;
            when the fit is interrupted and when it ends, too. Killed while it writes, the file is
            the one before, or the new one.
        checkpoint_every: Steps between writes, or a ``timedelta``.
        resume: Checkpoint of the same fit, of the same model, data and arguments, from which to go
            on; to the bit, on the same machine, as if it had not been ended (where ``x`` gives
            batches, if it gives the same ones again). None begins anew.
        progress: Whether to show a bar, with the held-out negative log density beside that of the
            marginal density of y.
        callback: Called at each evaluation as ``callback(step, metrics)``, without gradients, where
            ``metrics`` maps the other names of the history's columns to floats; a true
            answer ends the fit. The model then holds the weights that were evaluated.
        device: Where to train; None stays where the model is.

    Returns:
        A :class:`~pyralloy.Fit`.

    Raises:
        TypeError: Strings, objects or complex numbers in x or y; an argument of the wrong type.
        ValueError: NaN, infinity or no rows in x or y; lengths that differ; fewer than two rows to
            train on; a y without spread; an argument out of range; a checkpoint that is damaged,
            or of another fit.
        FileNotFoundError: No checkpoint to resume from, or no folder to write it to.
        Diverged: The loss is no longer finite (a ``FloatingPointError``).

    Example:
        >>> import pyralloy as pa
        >>> problem = pa.datasets.inverse_sinusoid(500, seed=0)
        >>> model = pa.MDN(pa.networks.MLP(1, hidden=(32,)), pa.MixtureHead(32, components=8))
        >>> result = fit(model, problem.x, problem.y, max_steps=200, progress=False)
        >>> result.best_nll < result.marginal
        True
    """
    if not isinstance(model, MDN):
        raise TypeError(f"model={model!r}: give a pyralloy.MDN.")
    seed, max_steps = integer("seed", seed, 0), integer("max_steps", max_steps)
    plan = Plan(
        learning_rate=positive("learning_rate", learning_rate),
        batch_size=0 if batch_size is None else integer("batch_size", batch_size),
        max_steps=max_steps,
        every=max(1, max_steps // 100),
        patience=None if patience is None else integer("patience", patience),
        schedule=schedule,
        clip=None if clip is None else positive("clip", clip),
        seed=seed,
        progress=progress,
        callback=callback,
    )
    if batch_size is not None and y is None:
        raise ValueError(f"batch_size={batch_size} goes with y: batches have a size of their own.")
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience} needs held-out rows: set validation too.")
    if next(model.parameters()).dtype not in (torch.float32, torch.float64):
        raise TypeError("model is in half precision: train it in float32, by model.float().")
    files = checked_files(checkpoint, checkpoint_every, resume)
    with interrupts() as stop:
        model.to(device)
        # Not named, so that nothing keeps the rows in their own units once they are standardised.
        ready = _prepare(
            model,
            gather(model, x, y, weights, size=size, validation=validation, seed=seed),
            plan,
            files,
            initialise=initialise,
        )
        fitted = _fit(model, ready, stop, begun=initialise)
    if fitted.interrupted:
        warnings.warn(
            f"the fit was interrupted at step {fitted.history.step[-1]} of {max_steps}; the model "
            f"holds the weights of step {fitted.best_step}.",
            stacklevel=2,
        )
    for said in fitted.diagnostics:
        warnings.warn(said, FitWarning, stacklevel=2)
    return fitted


class _Ready(NamedTuple):
    """A fit that can begin."""

    batches: BatchSource
    rows: Rows
    held_out: Rows | None
    plan: Plan
    size: int
    saving: Saving


def _prepare(model: MDN, data: Data, plan: Plan, files: Files, *, initialise: bool) -> _Ready:
    """Standardise, start the weights, and give what the loop needs."""
    identity = data.identity() if files.used else {}
    rows, held_out = data.rows, data.held_out
    support = model.head.family.support
    model.x_scaling.fit(rows.x, limit=INPUT_LIMIT)
    model.y_scaling.fit(rows.y, support)
    marginal = marginal_density(rows.y[_some(rows.y)], circular=support.circular)
    plan = replace(
        plan,
        batch_size=plan.batch_size or min(max(len(rows.y) // 16, 16), 128),
        offset=model.y_scaling.log_jacobian,
        baseline=_baseline(marginal, rows if held_out is None else held_out),
    )
    held_out = None if held_out is None else standardised(model, held_out)
    rows = standardised(model, rows, reuse=data.owned)
    if initialise:
        _initialise(model, rows.x, rows.y, data.generator)
    _require_one_density_a_row(model, rows.x)
    if files.used:
        identity |= plan.identity() | layout(model)
    saving = files.saving(identity)
    if data.reading is None:
        batches = Batches(rows.tensors(), plan.batch_size, plan.seed)
    else:
        batches = data.reading.batches(model)
        saving = replace(saving, riders={"batches": batches})
    return _Ready(batches, rows, held_out, plan, data.size, saving)


def _fit(model: MDN, ready: _Ready, stop: Stop, *, begun: bool) -> Fit:
    """Train through Pyro's ELBO, whose runtime is held meanwhile."""
    plan, device = ready.plan, next(model.parameters()).device
    evaluate = None if ready.held_out is None else _evaluation(model, ready.held_out)
    with (
        pyro_runtime(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        torch.manual_seed(plan.seed)  # for a trunk with dropout
        model.train()
        parameters = FlatParameters(model)
        try:
            engine = Engine(Objective(model, empty_guide, ready.size), parameters, plan.clip)
            trace = train(engine, ready.batches, plan, evaluate, stop=stop, saving=ready.saving)
        finally:
            parameters.release()
            model.eval()
    fitted = Fit(model, trace.history(), plan.baseline, trace.best_step, trace.interrupted)
    # Of weighted rows it cannot say yet which density is better.
    complete = begun and ended_by_itself(trace, plan) and ready.rows.weights is None
    return settled(fitted, ready.rows, ready.held_out, returns=trace.returns, complete=complete)


def _initialise(model: MDN, z: Tensor, t: Tensor, generator: torch.Generator) -> None:
    redraw(model.head, generator)
    if isinstance(model.trunk, MLP):
        redraw(model.trunk, generator)
        spread_kinks(model.trunk, z, generator)
    place_components(model.head, t, generator)


def _require_one_density_a_row(model: MDN, z: Tensor) -> None:
    """Run the network once, so that a trunk of the wrong shape fails before any work is done."""
    with torch.no_grad():
        shape = model.eval().network(z[:2]).batch_shape
    if shape != (2,):
        raise ValueError(
            f"trunk gives densities of batch shape {tuple(shape)} for 2 rows of x: it must map "
            "x (N, ...) to features (N, H)."
        )


def _evaluation(model: MDN, rows: Rows) -> Callable[[], float]:
    """Make the held-out loss: of standardised rows, through the plain network."""
    return lambda: _mean_nll(lambda z, t: model.network(z).log_prob(t), rows)


def _baseline(marginal: Mixture, rows: Rows) -> float:
    """Score a density that ignores x on rows: on evenly spaced ones, where there are many."""
    some = Rows(*(t[_some(t)] for t in rows.tensors()))
    # A kernel a row of y: fewer rows at once hold as many numbers as those of a model.
    return _mean_nll(lambda _, y: marginal.log_prob(y), some, CHUNK // 16)


def _some(values: Tensor) -> slice:
    return slice(None, None, -(-len(values) // MOST_SCORED))


@torch.no_grad()
def _mean_nll(
    log_prob: Callable[[Tensor, Tensor], Tensor], rows: Rows, chunk: int = CHUNK
) -> float:
    """Average minus ``log_prob`` over rows, in chunks, by their weights."""
    total, weight = 0.0, 0.0
    for x, y, *w in zip(*(t.split(chunk) for t in rows.tensors()), strict=True):
        found = log_prob(x, y)
        total += float((found * w[0] if w else found).sum(dtype=torch.float64))
        weight += float(w[0].sum(dtype=torch.float64)) if w else len(found)
    return -total / weight
