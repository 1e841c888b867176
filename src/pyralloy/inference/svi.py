"""Maximum likelihood, MAP and variational inference: Pyro's SVI on minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyralloy.checks import integer, positive
from pyralloy.inference.engine import Engine
from pyralloy.inference.fit import Fit
from pyralloy.inference.objective import FlatParameters, Objective, empty_guide, pyro_runtime
from pyralloy.inference.rows import Rows, checked, require_spread, split, standardised
from pyralloy.inference.training import Batches, Callback, Plan, Trace, train
from pyralloy.inference.variational import Approximation, approximate, require_guide
from pyralloy.initialise import place_components, redraw, spread_kinks
from pyralloy.marginal import marginal_density
from pyralloy.model import MDN
from pyralloy.networks import MLP

__all__ = ["fit"]

#: Rows of an evaluation at once.
CHUNK = 4096


def fit(
    model: MDN,
    x: Any,
    y: Any,
    *,
    guide: Any = None,
    start: int | None = None,
    temperature: float = 1.0,
    warm_up: float = 0.0,
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
    r"""Train a model: by maximum likelihood, or, where its weights have a prior, a guide of them.

    x and y are standardised with the training rows' means and deviations, the components are
    spread over y, and Adam minimises the negative log likelihood on minibatches under a one-cycle
    schedule. Of the weights seen, averaged over a few dozen steps, those best on the held-out rows
    are kept. Ctrl-C ends the fit at the next step, with a warning and the best weights so far in
    the model; a handler of one's own for that signal is left alone.

    With a ``guide`` there are two runs. The first is the one above, without the prior: guides that
    start far from a good fit stay there. The second trains the guide by Pyro's ELBO from where the
    first ended, with a small spread, under the same schedule, to its end. The held-out rows then
    only report how well the pool of a few draws predicts: chosen by them, a guide would be stopped
    before it has a spread (``patience`` does choose, and so do guides of one value). ``AutoDelta``
    gives the most probable weights, ``AutoLaplaceApproximation`` a Normal about them with the
    curvature of the training rows (with ``validation=None``, exactly at the mode nearby).

    Args:
        model: Trained in place.
        x: Inputs in their own units, shape (N, F), or (N,) for one feature: a tensor, an array or a
            data frame of numbers.
        y: Targets in their own units, shape (N,), or (N, D) for a head with ``targets=D``.
        guide: With a model that has a prior: a class of ``pyro.infer.autoguide``, for instance
            ``AutoNormal``; a function that makes a guide from the model; or a guide that is a
            module and is called as the model is. Its sites must be reparameterised. None is
            maximum likelihood.
        start: Steps of the first run; None takes half of ``max_steps``; 0 starts the guide at the
            weights where ``initialise`` puts them.
        temperature: T in (0, 1] or above, of a posterior in which the likelihood is raised to the
            power 1 / T. Below 1 it is narrower than Bayes' (Wenzel et al. 2020), and the fit says
            so in ``temperature``.
        warm_up: Fraction of the guide's steps over which the divergence from the prior comes into
            force, in [0, 1).
        validation: What is held out to choose the weights: a fraction of the rows, a pair
            ``(x, y)``, or None for nothing, when the last weights are kept.
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
            train on; a y without spread; an argument out of range; a prior without a guide or a
            guide without a prior; a guide that is not pathwise.
        Diverged: The loss is no longer finite (a ``FloatingPointError``).

    References:
        Kucukelbir, A., et al. (2017). Automatic differentiation variational inference. JMLR 18.
        arXiv:1603.00788. Wenzel, F., et al. (2020). How good is the Bayes posterior in deep neural
        networks really? ICML. arXiv:2002.02405

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
    require_guide(model, guide)
    how = Approximation(guide, positive("temperature", temperature), _fraction("warm_up", warm_up))
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
    if batch_size is None:
        plan = replace(plan, batch_size=min(max(len(trained.y) // 16, 16), 128))
    drawn = generator if initialise else None
    if guide is None:
        return _fit(model, trained, held_out, plan, drawn)
    return _fit_guide(model, trained, held_out, plan, drawn, how=how, first=_first(plan, start))


def _first(plan: Plan, start: int | None) -> Plan | None:
    """Plan the run before that of a guide; None for no run."""
    steps = plan.max_steps // 2 if start is None else integer("start", start, 0)
    every = max(1, steps // 100)
    return None if steps == 0 else replace(plan, max_steps=steps, every=every, callback=None)


def _fit(
    model: MDN, rows: Rows, held_out: Rows | None, plan: Plan, generator: torch.Generator | None
) -> Fit:
    """Train on rows that were checked; ``generator`` is None where the weights stay."""
    plan = _prepare(model, rows, held_out, plan, generator)
    batches = Batches(standardised(model, rows), plan.batch_size, plan.seed)
    evaluate = None if held_out is None else _evaluation(model, standardised(model, held_out))
    with _seeded(plan, rows.x):
        model.train()
        parameters = FlatParameters(model)
        try:
            engine = Engine(Objective(model, empty_guide, len(rows.x)), parameters)
            trace = train(engine, batches, plan, evaluate)
        finally:
            parameters.release()
            model.eval()
    _tell_interrupt(trace, plan)
    return Fit(model, trace.history(), plan.baseline, trace.best_step, trace.interrupted)


def _prepare(
    model: MDN, rows: Rows, held_out: Rows | None, plan: Plan, generator: torch.Generator | None
) -> Plan:
    """Fit the scalings, start the weights, and give the plan what it shows."""
    reference = rows if held_out is None else held_out
    model.x_scaling.fit(rows.x)
    model.y_scaling.fit(rows.y, model.head.family.support)
    z, t = standardised(model, rows)
    circular = model.head.family.support.circular
    if generator is not None:
        _initialise(model, z, t, generator)
    _require_one_density_a_row(model, z)
    return replace(
        plan,
        offset=model.y_scaling.log_jacobian,
        baseline=_mean_nll(marginal_density(rows.y, circular=circular).log_prob, reference.y),
    )


@contextmanager
def _seeded(plan: Plan, like: Tensor) -> Iterator[None]:
    """Hold Pyro's runtime, and torch's generator, whose state comes back, at the plan's seed."""
    devices = [like.device] if like.is_cuda else []
    with (
        pyro_runtime(),
        torch.random.fork_rng(devices),  # for dropout, and for draws from a guide
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        torch.manual_seed(plan.seed)
        yield


def _tell_interrupt(trace: Trace, plan: Plan) -> None:
    if trace.interrupted:
        warnings.warn(
            f"the fit was interrupted at step {trace.rows[-1][0]} of {plan.max_steps}; the model "
            f"holds the weights of step {trace.best_step}.",
            stacklevel=4,
        )


def _fit_guide(
    model: MDN,
    rows: Rows,
    held_out: Rows | None,
    plan: Plan,
    generator: torch.Generator | None,
    *,
    how: Approximation,
    first: Plan | None,
) -> Fit:
    """Train the network alone, then a guide of its weights."""
    plain = model.without_prior()
    if first is None:
        plan = _prepare(plain, rows, held_out, plan, generator)
    else:
        begun = _fit(plain, rows, held_out, first, generator)
        if begun.interrupted:
            raise KeyboardInterrupt("the fit was interrupted before its guide was begun.")
        plan = replace(plan, offset=model.y_scaling.log_jacobian, baseline=begun.marginal)
    scaled = standardised(model, rows)
    out = None if held_out is None else standardised(model, held_out)
    with _seeded(plan, scaled.x):
        model.train()
        try:
            guided = approximate(model, how, scaled, out, plan)
        finally:
            model.eval()
    trace = guided.trace
    _tell_interrupt(trace, plan)
    return Fit(
        model,
        trace.history(),
        plan.baseline,
        trace.best_step,
        trace.interrupted,
        posterior=guided.posterior,
        guide=guided.guide,
        temperature=how.temperature,
    )


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


def _fraction(name: str, value: float) -> float:
    return 0.0 if value == 0 else positive(name, value, 1.0)
