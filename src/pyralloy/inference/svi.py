"""Maximum likelihood, MAP and variational inference: Pyro's SVI on minibatches."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any, Literal

import torch

from pyralloy.inference.checkpoint import checked_files
from pyralloy.inference.data import gather
from pyralloy.inference.diagnostics import FitWarning
from pyralloy.inference.fit import Fit
from pyralloy.inference.interrupts import interrupts
from pyralloy.inference.ready import prepare
from pyralloy.inference.runs import fit_guide, fit_weights, require_precision
from pyralloy.inference.schedules import Schedule, one_cycle
from pyralloy.inference.training import Callback, planned
from pyralloy.inference.variational import Approximation, require_guide
from pyralloy.model import MDN

__all__ = ["fit"]


def fit(
    model: MDN,
    x: Any,
    y: Any = None,
    *,
    guide: Any = None,
    start: int | None = None,
    temperature: float = 1.0,
    warm_up: float = 0.0,
    weights: Any = None,
    size: float | None = None,
    validation: float | tuple[Any, ...] | None = 0.1,
    patience: int | None = None,
    seed: int = 0,
    learning_rate: float = 0.015,
    schedule: Schedule = one_cycle,
    x_noise: float = 0.0,
    clip: float | None = None,
    batch_size: int | None = None,
    max_steps: int = 1500,
    compile: bool | Literal["auto"] = False,  # noqa: A002 - as torch spells it
    stretch: bool = True,
    initialise: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=1),
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
    callback: Callback | None = None,
    device: torch.device | str | None = None,
) -> Fit:
    r"""Train a model: by maximum likelihood, or, where its weights have a prior, a guide of them.

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

    With a ``guide`` there are two runs. The first is the one above, without the prior: guides that
    start far from a good fit stay there. The second trains the guide by Pyro's ELBO from where the
    first ended, with a small spread, under the same schedule, to its end. The held-out rows then
    only report how well the pool of a few draws predicts: chosen by them, a guide would be stopped
    before it has a spread (``patience`` does choose, and so do guides of one value). ``AutoDelta``
    gives the most probable weights. ``AutoLaplaceApproximation`` is a Normal with the curvature of
    the training rows: about the weights of the first run, which then takes all steps, or, with
    ``validation=None`` and no ``x_noise``, about the most probable ones nearby.

    Args:
        model: Trained in place.
        x: Inputs in their own units, shape (N, F), or (N,) for one feature: a tensor, an array or a
            data frame of numbers. Or, without ``y``, something that gives batches ``(x, y)`` or
            ``(x, y, weights)`` each time it is iterated, for instance a ``DataLoader``: for data
            that memory cannot hold. Their order and their size are its own. It is read through
            once, or until ``size`` rows were seen, to check every batch and to draw 100,000 rows
            (all, where there are no more) from which the standardisation and the start are found.
        y: Targets in their own units, shape (N,), or (N, D) for a head with ``targets=D``.
        guide: With a model that has a prior: a class of ``pyro.infer.autoguide``, for instance
            ``AutoNormal``; a function that makes a guide from the model; or a guide that is a
            module and is called as the model is. Its sites must be reparameterised. None is
            maximum likelihood.
        start: Steps of the first run; None takes half of ``max_steps``; 0 starts the guide at the
            weights where ``initialise`` puts them. Neither it nor ``warm_up`` goes with a Laplace
            approximation that has no second run.
        temperature: T in (0, 1] or above, of a posterior in which the likelihood is raised to the
            power 1 / T. Below 1 it is narrower than Bayes' (Wenzel et al. 2020), and the fit says
            so in ``temperature``.
        warm_up: Fraction of the guide's steps over which the divergence from the prior comes into
            force, in [0, 1).
        weights: Of the rows, shape (N,), not negative; None means all alike. They are divided by
            their mean; a row of weight 2 counts in the loss, of rows held out too, as if it were
            there twice, and one of weight 0 is left out. The standardisation and ``marginal``'s
            density ignore them.
        size: Number of rows in the whole data, where ``x`` gives batches. Beside ``weights``, the
            number of rows that they count as together, which only a prior minds: None takes those
            of a weight above 0, and ``weights.sum()`` lets one of weight 2 count as two. Else None.
        validation: What is held out to choose the weights: a fraction of the rows (no more than
            100,000 of them), of which copies of one another stay together, a pair ``(x, y)``, a
            triple with weights, or None for nothing, when the last weights are kept.
        patience: Hundredths of ``max_steps`` without improvement that end the fit; None runs all
            steps. Needs held-out rows.
        seed: Source of the rows held out, the initial weights of the head and of an
            :class:`~pyralloy.networks.MLP`, the order of batches, noise and dropout. Parameters
            without gradient (``requires_grad_(False)``) stay as they are.
        learning_rate: Peak of the schedule.
        schedule: Gives, of a step counted from 0 and the number of steps, the fraction of the
            learning rate: :func:`~pyralloy.inference.schedules.one_cycle`, ``cosine`` or
            ``constant`` of the same room, or a function of your own.
        x_noise: Standard deviation of Normal noise that is added to the inputs of each step, in
            standard deviations of each input; 0 adds none. Held-out rows, predictions and the
            curvature of a Laplace approximation have none. It keeps the density smooth in x, which
            pays where it is so on that scale and rows are few for it: try 0.05, by
            cross-validation. It does harm where y depends on x in steps or sharply, as in many
            tables. A guide is trained with it too, on a likelihood that is averaged over the noise,
            which is not quite Bayes'.
        clip: Longest that the gradient of the loss may be, in nats a row per unit of the weights;
            a longer one is shortened to it, and ``history.clipped`` counts them. None leaves all
            as they are.
        batch_size: Rows a step; all of them, where there are no more. None takes a sixteenth of the
            training rows, within 16 and 128: the noise of small batches keeps a small data set from
            being learnt by heart.
        max_steps: Steps of the schedule.
        compile: How a step is run. False runs it as it stands at first and then, once that pays, as
            a captured graph of the same operations, to the same bits. True compiles that graph at
            the start, by torch's compiler, which takes seconds (some 20 the first time, a few when
            its cache on disk holds the graph); a step then takes less than half the time in
            batches of up to some hundred rows, and half to four fifths in large ones. ``"auto"``
            compiles where the steps that are left repay it; it decides by the clock, so that the
            last bits of two such fits may differ.
        stretch: Whether, in the end, the widths of all components are multiplied by one number,
            about the best on the held-out rows, a standard error on the wide side: networks of many
            weights and few rows are too sure. It must be worth a nat over all of these. Weights are
            then chosen by the density as it will be. Of a guide it is the pool of draws that is
            stretched, beside the weights: the posterior stays as it is.
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
            train on; a y without spread, or farther than 1e9 robust spreads from the others; an
            argument out of range; a checkpoint that is damaged, or of another fit; a prior without
            a guide or a guide without a prior; a guide that is not pathwise.
        FileNotFoundError: No checkpoint to resume from, or no folder to write it to.
        Diverged: The loss is no longer finite, however often the rate is halved (a
            ``FloatingPointError``); the model holds the best weights before.

    References:
        Rothfuss, J., et al. (2019). Noise regularization for conditional density estimation.
        arXiv:1907.08982. Kucukelbir, A., et al. (2017). Automatic differentiation variational
        inference. JMLR 18. arXiv:1603.00788. Wenzel, F., et al. (2020). How good is the Bayes
        posterior in deep neural networks really? ICML. arXiv:2002.02405

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
    require_precision(model)
    how = Approximation.checked(guide, start=start, temperature=temperature, warm_up=warm_up)
    plan = planned(
        validation=validation,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_steps=max_steps,
        patience=patience,
        schedule=schedule,
        stretch=stretch,
        x_noise=x_noise,
        clip=clip,
        compile=compile,
        seed=seed,
        progress=progress,
        callback=callback,
    )
    if batch_size is not None and y is None:
        raise ValueError(f"batch_size={batch_size} goes with y: batches have a size of their own.")
    files = checked_files(checkpoint, checkpoint_every, resume)
    with interrupts() as stop:
        model.to(device)
        plain = model if guide is None else model.without_prior()
        # Not named, so that nothing keeps the rows in their own units once they are standardised.
        ready = prepare(
            plain,
            gather(model, x, y, weights, size=size, validation=validation, seed=plan.seed),
            plan,
            files,
            initialise=initialise,
        )
        if guide is None:
            fitted = fit_weights(model, ready, stop, begun=initialise)
        else:
            fitted = fit_guide(model, plain, ready, stop, how=how)
    if fitted.interrupted:
        warnings.warn(
            f"the fit was interrupted at step {fitted.history.step[-1]} of {plan.max_steps}; the "
            f"model holds the weights of step {fitted.best_step}.",
            stacklevel=2,
        )
    for said in fitted.diagnostics:
        warnings.warn(said, FitWarning, stacklevel=2)
    return fitted
