"""Maximum likelihood by stochastic variational inference with an empty guide."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyralloy.checks import integer, positive
from pyralloy.inference.diagnostics import FitWarning, settled
from pyralloy.inference.engine import Engine
from pyralloy.inference.fit import Fit
from pyralloy.inference.objective import FlatParameters, Objective, empty_guide, pyro_runtime
from pyralloy.inference.rows import (
    Rows,
    checked,
    require_reach,
    require_spread,
    split,
    standardised,
)
from pyralloy.inference.training import Batches, Callback, Plan, ended_by_itself, train
from pyralloy.initialise import place_components, redraw, spread_kinks
from pyralloy.marginal import marginal_density
from pyralloy.model import MDN
from pyralloy.networks import MLP
from pyralloy.scaling import INPUT_LIMIT

__all__ = ["fit"]

#: Rows of an evaluation at once.
CHUNK = 4096


def fit(
    model: MDN,
    x: Any,
    y: Any,
    *,
    validation: float | tuple[Any, Any] | None = 0.1,
    patience: int | None = None,
    seed: int = 0,
    learning_rate: float = 0.015,
    batch_size: int | None = None,
    max_steps: int = 1500,
    initialise: bool = True,
    progress: bool = True,
    callback: Callback | None = None,
    device: torch.device | str | None = None,
) -> Fit:
    r"""Train a model by maximum likelihood, through Pyro's ELBO with an empty guide.

    x and y are standardised with the means and deviations of the training rows, without those
    beyond 20 robust spreads of the median; inputs farther than 20 deviations grow only as a
    logarithm, whatever their size. The components are spread over y, and Adam minimises the
    negative log likelihood on minibatches under a one-cycle schedule. Of the weights seen, averaged
    over a few dozen steps, those best on the held-out rows are kept. Ctrl-C ends the fit at the
    next step, with a warning and the best weights so far in the model; a handler of one's own for
    that signal is left alone.

    Where a loss or a weight is no longer finite, the fit goes back to finite weights and on at half
    the rate, at most eight times. Weights that in the end are not better than the density of y that
    ignores x, beyond chance on the held-out rows, are replaced by that density, as far as the
    components can express it. What looks wrong is said as a
    :class:`~pyralloy.inference.diagnostics.FitWarning` and kept in ``diagnostics``.

    Args:
        model: Trained in place.
        x: Inputs in their own units, shape (N, F), or (N,) for one feature: a tensor, an array or a
            data frame of numbers.
        y: Targets in their own units, shape (N,), or (N, D) for a head with ``targets=D``.
        validation: What is held out to choose the weights: a fraction of the rows, of which copies
            of one another stay together, a pair ``(x, y)``, or None for nothing, when the last
            weights are kept.
        patience: Evaluations without improvement (there are 100 in ``max_steps``) that end the fit;
            None runs all steps. Needs held-out rows.
        seed: Source of the rows held out, the initial weights of the head and of an
            :class:`~pyralloy.networks.MLP`, the order of batches, and dropout.
        learning_rate: Peak of the schedule.
        batch_size: Rows a step; all of them, where there are no more. None takes a sixteenth of the
            training rows, within 16 and 128: the noise of small batches keeps a small data set from
            being learnt by heart.
        max_steps: Steps of the schedule.
        initialise: Whether to draw the weights anew from ``seed`` and spread components over y (the
            weights of a trunk other than :class:`~pyralloy.networks.MLP` are left as they are);
            False goes on from the weights the model has.
        progress: Whether to show a bar, with the held-out negative log density beside that of the
            marginal density of y.
        callback: Called at each evaluation as ``callback(step, metrics)``, without gradients, where
            ``metrics`` maps ``"train"``, ``"validation"`` and ``"seconds"`` to floats; a true
            answer ends the fit. The model then holds the weights that were evaluated.
        device: Where to train; None stays where the model is.

    Returns:
        A :class:`~pyralloy.Fit`.

    Raises:
        TypeError: Strings, objects or complex numbers in x or y; an argument of the wrong type.
        ValueError: NaN, infinity or no rows in x or y; lengths that differ; fewer than two rows to
            train on; a y without spread, or farther than 1e9 robust spreads from the others; an
            argument out of range.
        Diverged: The loss is no longer finite, however often the rate is halved (a
            ``FloatingPointError``); the model holds the best weights before.

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
        seed=seed,
        progress=progress,
        callback=callback,
    )
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience} needs held-out rows: set validation too.")
    if next(model.parameters()).dtype not in (torch.float32, torch.float64):
        raise TypeError("model is in half precision: train it in float32, by model.float().")
    model.to(device)
    generator = torch.Generator().manual_seed(seed % 2**63)
    trained, held_out = split(checked(model, x, y), validation, model, generator)
    require_spread(trained.y)
    require_reach(trained.y, None if held_out is None else held_out.y, model.head.family)
    if batch_size is None:
        plan = replace(plan, batch_size=min(max(len(trained.y) // 16, 16), 128))
    return _fit(model, trained, held_out, plan, generator if initialise else None)


def _fit(
    model: MDN, rows: Rows, held_out: Rows | None, plan: Plan, generator: torch.Generator | None
) -> Fit:
    """Train on rows that were checked; ``generator`` is None where the weights stay."""
    reference = rows if held_out is None else held_out
    model.x_scaling.fit(rows.x, limit=INPUT_LIMIT)
    model.y_scaling.fit(rows.y, model.head.family.support)
    z, t = standardised(model, rows)
    circular = model.head.family.support.circular
    if generator is not None:
        _initialise(model, z, t, generator)
    _require_one_density_a_row(model, z)
    plan = replace(
        plan,
        offset=model.y_scaling.log_jacobian,
        baseline=_mean_nll(marginal_density(rows.y, circular=circular).log_prob, reference.y),
    )
    batches = Batches((z, t), plan.batch_size, plan.seed)
    evaluate = None if held_out is None else _evaluation(model, standardised(model, held_out))

    devices = [z.device] if z.is_cuda else []
    with (
        pyro_runtime(),
        torch.random.fork_rng(devices),  # for a trunk with dropout
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        torch.manual_seed(plan.seed)
        model.train()
        parameters = FlatParameters(model)
        try:
            engine = Engine(Objective(model, empty_guide, len(rows.x)), parameters)
            trace = train(engine, batches, plan, evaluate)
        finally:
            parameters.release()
            model.eval()
    if trace.interrupted:
        warnings.warn(
            f"the fit was interrupted at step {trace.rows[-1][0]} of {plan.max_steps}; the model "
            f"holds the weights of step {trace.best_step}.",
            stacklevel=3,
        )
    fitted = Fit(model, trace.history(), plan.baseline, trace.best_step, trace.interrupted)
    fitted = settled(
        fitted,
        Rows(z, t),
        None if held_out is None else standardised(model, held_out),
        returns=trace.returns,
        complete=generator is not None and ended_by_itself(trace, plan),
    )
    for said in fitted.diagnostics:
        warnings.warn(said, FitWarning, stacklevel=3)
    return fitted


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
    return lambda: _mean_nll(lambda z, t: model.network(z).log_prob(t), *rows)


@torch.no_grad()
def _mean_nll(log_prob: Callable[..., Tensor], *tensors: Tensor) -> float:
    """Average minus ``log_prob`` over rows, in chunks."""
    parts = zip(*(t.split(CHUNK) for t in tensors), strict=True)
    total = sum(float(log_prob(*part).sum(dtype=torch.float64)) for part in parts)
    return -total / len(tensors[0])
