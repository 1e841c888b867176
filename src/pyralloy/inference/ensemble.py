"""Ensembles: members trained side by side, pooled into one exact mixture."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from pyralloy.checks import integer
from pyralloy.inference.batches import BatchSource
from pyralloy.inference.crew import Member, gather_crew, held_out, make_members, plain
from pyralloy.inference.diagnostics import FitWarning, settled
from pyralloy.inference.fit import Fit
from pyralloy.inference.interrupts import Stop, interrupts
from pyralloy.inference.lanes import Lanes
from pyralloy.inference.posterior import Members, Point, Posterior, Several
from pyralloy.inference.ready import mean_nll
from pyralloy.inference.rows import Rows, weighted_mean
from pyralloy.inference.runs import (
    fit_guide,
    fit_weights,
    require_precision,
    running,
)
from pyralloy.inference.schedules import Schedule, one_cycle
from pyralloy.inference.stretch import POOLED, narrow, stretch_pools
from pyralloy.inference.stretch import stretch as stretch_widths
from pyralloy.inference.training import Plan, Trace, bar_of, planned, show
from pyralloy.inference.variational import (
    Approximation,
    curved,
    needs_no_run,
    require_guide,
)
from pyralloy.mixture import Mixture
from pyralloy.model import MDN
from pyralloy.seeds import another

__all__ = ["ensemble"]


def ensemble(
    make_model: Callable[[int], MDN],
    x: Any,
    y: Any,
    *,
    members: int = 5,
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
    stretch: bool = True,
    x_noise: float = 0.0,
    clip: float | None = None,
    batch_size: int | None = None,
    max_steps: int = 1500,
    compile: bool | Literal["auto"] = False,  # noqa: A002 - as torch spells it
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Fit:
    r"""Train members that differ by their start and the rows they hold out, and pool them.

    .. math:: p(y \mid x) = \frac{1}{M} \sum_{m} p(y \mid x, w_m)

    Each member holds out a fraction of the rows of its own, as in cross-validation, and keeps the
    weights that are best on them: at a tenth, no row is lost to all. They are trained side by side,
    as one leading dimension, which costs a fraction of training one after the other; each comes to
    the weights it would have alone, to rounding, but for one number on all widths, by which the
    pool is made as wide as it should be. Members of a ``guide`` are trained one by one, but for
    those of a Laplace approximation where rows are held out or inputs have noise.

    Args:
        make_model: Gives the model of a seed, of the same parts each time:
            ``lambda seed: pa.MDN(trunk(seed), head)``. :class:`~pyralloy.networks.MLP` trunks and
            heads are drawn anew from the seed, whatever weights they come with.
        x: Inputs in their own units, shape (N, F), or (N,).
        y: Targets in their own units, shape (N,), or (N, D).
        members: How many, M, at least 2.
        guide: As in :func:`pyralloy.fit`, for models with a prior: each member then is a posterior
            of its own, and the ensemble their mixture.
        start: As in :func:`pyralloy.fit`, with a ``guide``; and so are ``temperature`` and
            ``warm_up``.
        temperature: Of each member's posterior.
        warm_up: Of each member's guide.
        weights: Of the rows, as in :func:`pyralloy.fit`.
        size: Number of rows that the weights count as together, as in :func:`pyralloy.fit`.
        validation: Fraction of the rows that each member holds out, others than the members before
            it until no such fraction is left; a pair ``(x, y)``, which all are scored on; or None,
            which keeps the last weights.
        patience: As in :func:`pyralloy.fit`, of each member: training ends with that of the last.
        seed: Source of the rows held out and of the members' seeds.
        learning_rate: Peak of the schedule.
        schedule: As in :func:`pyralloy.fit`.
        stretch: As in :func:`pyralloy.fit`, of each member (with a ``guide``, of all together), on
            the wide side by the error of their mean only; then the widths of all members are
            multiplied by one number, at most 1, for what their pool adds to them.
        x_noise: As in :func:`pyralloy.fit`; each member draws its own.
        clip: As in :func:`pyralloy.fit`, of each member.
        batch_size: Rows a step of each member.
        max_steps: Steps of the schedule.
        compile: As in :func:`pyralloy.fit`, of the step of all members.
        progress: Whether to show a bar.
        device: Where to train; None stays where the models are.

    Returns:
        A :class:`~pyralloy.Fit`, whose ``density`` is the exact pool of M K components, and whose
        ``densities`` are the members'. ``model`` is the first member's. ``history`` holds means
        over members, with a ``guide`` what the first saw. The last row's ``validation`` is that of
        the weights kept: of their pool, on a pair; of each member on the rows it held out, where
        the pool has no score of its own.

    Raises:
        TypeError: ``make_model`` does not give an ``MDN``.
        ValueError: As for :func:`pyralloy.fit`; fewer than two members; batches in place of rows;
            models that differ in their parts, or in what is not trained; a prior without a guide or
            a guide without a prior.

    References:
        Lakshminarayanan, B., Pritzel, A., & Blundell, C. (2017). Simple and scalable predictive
        uncertainty estimation using deep ensembles. NeurIPS. arXiv:1612.01474

    Example:
        >>> import pyralloy as pa
        >>> problem = pa.datasets.inverse_sinusoid(300, seed=0)
        >>> def make_model(seed):
        ...     return pa.MDN(pa.networks.MLP(1, hidden=(16,)), pa.MixtureHead(16, components=5))
        >>> fit = ensemble(
        ...     make_model, problem.x, problem.y, members=3, max_steps=60, progress=False
        ... )
        >>> fit.density(problem.x[:2]).num_components, fit.densities(problem.x[:2]).batch_shape
        (15, torch.Size([3, 2]))
    """
    count = integer("members", members, 2)
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
    )
    if y is None:
        raise ValueError(
            "y=None: members hold out rows of their own, so give the rows themselves, as x and y, "
            "in place of batches; or fit models one by one and pool them with Mixture.pool."
        )
    seeds = [another(plan.seed, m) % 2**31 for m in range(count)]
    models = make_members(make_model, seeds)
    with interrupts() as stop:
        for model in models:
            model.to(device)
            require_guide(model, guide)
            require_precision(model)
        crew = gather_crew(models, seeds, (x, y, weights), plan, validation, size=size)
        if guide is None:
            fitted = side_by_side(crew, stop)
        elif needs_no_run(how, crew[0].ready, holding=crew[0].holding):
            fitted = _curved(crew, stop, how)
        else:
            fitted = _one_by_one(crew, stop, how)
    if fitted.interrupted:
        warnings.warn(
            f"the ensemble was interrupted at step {fitted.history.step[-1]} of {plan.max_steps}; "
            "each member holds the best of its weights until then.",
            stacklevel=2,
        )
    for said in fitted.diagnostics:
        warnings.warn(said, FitWarning, stacklevel=2)
    return fitted


# -- side by side ---------------------------------------------------------------------------------


def side_by_side(crew: list[Member], stop: Stop, *, widths: bool = True) -> Fit:
    """Train by maximum likelihood, all members in one step, pool them, and mend their widths."""
    ready, models = crew[0].ready, [member.model for member in crew]
    plan = ready.plan
    with running(models[0], plan):
        lanes = Lanes(models, ready.size, plan)
        course = _Course(lanes, plan, held_out(crew))
        try:
            course.run([member.batches() for member in crew], stop)
        finally:
            lanes.end(course.kept)
            for model in models:
                model.eval()
    interrupted, last = stop.requested, course.trace.rows[-1][0]
    apart = len(crew) if ready.held_out is None else 1  # members of different held-out rows
    broken, each, evaluations, outs = course.broken(), [], [], []
    for lane, (member, step) in enumerate(zip(crew, course.best_step, strict=True)):
        own = member.own
        if lane in broken and not (interrupted and step > 0):
            # What stops a lane stops none of the others: it goes through the loop, which recovers.
            member.restart()
            each.append(fit_weights(member.model, own, stop, members=apart))
        else:
            if plan.stretch and widths:
                stretch_widths(member.model, own.held_out, apart)
            fit = Fit(member.model, course.trace.history(), plan.baseline, int(step))
            each.append(settled(fit, own.rows, own.held_out, returns=[], complete=not interrupted))
        evaluations.append(own.evaluation(member.model))
        outs += [] if own.held_out is None else [own.held_out]
    if plan.stretch and widths and outs and all(one.best_step > 0 for one in each):
        narrow(models, outs, torch.Generator(outs[0].y.device).manual_seed(plan.seed))
    said = tuple(dict.fromkeys(text for one in each for text in one.diagnostics))
    posterior = _members(models)
    history = course.trace.history()
    whole = Fit(models[0], history, plan.baseline, last, interrupted, said, posterior=posterior)
    if ready.held_out is not None:

        def pooled(z: Tensor, t: Tensor) -> Tensor:
            return Mixture.pool([model.network(z) for model in models]).log_prob(t)

        history.validation[-1] = plan.offset + mean_nll(pooled, ready.held_out)
    else:
        own_losses = [evaluate() for evaluate in evaluations if evaluate is not None]
        if own_losses:
            history.validation[-1] = plan.offset + sum(own_losses) / len(own_losses)
    return whole


class _Course:
    """Lanes on their way: what was seen of each, and its best weights."""

    def __init__(self, lanes: Lanes, plan: Plan, held_out: Rows | None) -> None:
        self.lanes, self._plan, self._held_out = lanes, plan, held_out
        self.kept = lanes.weights.clone()  # (M, P)
        self.best = torch.full((len(self.kept),), math.inf, dtype=torch.float64)
        self.best_step = torch.zeros(len(self.kept), dtype=torch.int64)
        self.done = torch.zeros(len(self.kept), dtype=torch.bool)  # what patience has ended
        self.trace = Trace()

    def run(self, batches: list[BatchSource], stop: Stop) -> None:
        """Train all lanes to the end, or until it is asked to stop."""
        plan, begun = self._plan, time.perf_counter()
        total, counted = torch.zeros_like(self.best), 0
        with bar_of(plan, "ensemble") as bar:
            for step in range(1, plan.max_steps + 1):
                parts = zip(*(b.at(step - 1) for b in batches), strict=True)
                batch = tuple(torch.stack(part) for part in parts)
                losses = self.lanes.step(batch, plan.rate(step))
                total, counted = total + losses.cpu(), counted + 1
                if not (plan.looks_at(step) or stop.requested):
                    continue
                held_out = self._look(step)
                means = total / counted
                loss = float(means[means.isfinite()].mean()) + plan.offset
                self.trace.rows.append((step, loss, held_out, time.perf_counter() - begun, 0))
                total, counted = torch.zeros_like(self.best), 0
                show(bar, (step, loss, held_out), plan)
                if stop.requested or bool(self.done.all()):
                    break

    def _look(self, step: int) -> float:
        """Keep the weights of each lane that are its best, and give the mean held-out loss."""
        held, average = self._held_out, self.lanes.average
        finite = average.isfinite().all(-1).cpu()
        if held is None:
            losses, better = torch.full_like(self.best, math.nan), finite
        else:
            scores = self.lanes.scores(average, held).to(torch.float64)
            losses = -weighted_mean(scores, held.weights).cpu()
            if self._plan.stretch:
                losses = losses - self.lanes.gains(average, held).cpu()
            better = finite & (losses < self.best) & ~self.done
        self.kept[better] = average[better]
        self.best[better], self.best_step[better] = losses[better], step
        if self._plan.patience is not None:
            self.done |= step - self.best_step >= self._plan.patience * self._plan.every
        known = losses[losses.isfinite()]
        return float(known.mean()) + self._plan.offset if len(known) else math.nan

    def broken(self) -> list[int]:
        """Name the lanes that never had finite weights, or lost them."""
        lost = ~self.lanes.weights.isfinite().all(-1).cpu()
        return (lost | (self.best_step == 0)).nonzero()[:, 0].tolist()


def _members(models: list[MDN]) -> Members:
    values = [model.weights() for model in models]
    return Members({n: torch.stack([v[n].detach() for v in values]) for n in values[0]})


# -- one by one -----------------------------------------------------------------------------------


def _one_by_one(crew: list[Member], stop: Stop, how: Approximation) -> Fit:
    each, outs = [], []
    for member in crew:
        own = member.own
        each.append(fit_guide(member.model, plain(member.model), own, stop, how=how, alone=False))
        if own.held_out is not None and own.plan.stretch:
            outs.append(own.held_out)
        if stop.requested:
            break
    _stretch_all([one.model for one in each], [one.posterior for one in each], outs)
    said = tuple(dict.fromkeys(text for one in each for text in one.diagnostics))
    if any(one.posterior is not None for one in each):
        posterior = Several([(one.posterior, one.model.weights()) for one in each])
    else:
        posterior = _members([one.model for one in each])
    return replace(
        each[0],
        interrupted=stop.requested,
        diagnostics=said,
        posterior=posterior,
        guide=None,
    )


def _curved(crew: list[Member], stop: Stop, how: Approximation) -> Fit:
    """Train side by side, and take the curvature about each member."""
    whole = side_by_side([replace(m, model=plain(m.model)) for m in crew], stop, widths=False)
    if whole.interrupted:
        return replace(whole, model=crew[0].model)
    models, outs = [member.model for member in crew], []
    posteriors: list[Posterior | None] = []
    for member in crew:
        own = member.own
        with running(member.model, own.plan):
            posteriors.append(curved(member.model, how, own)[1])
        if own.held_out is not None and own.plan.stretch:
            outs.append(own.held_out)
    _stretch_all(models, posteriors, outs)
    several = Several([(p, m.weights()) for p, m in zip(posteriors, models, strict=True)])
    return replace(whole, model=models[0], posterior=several, temperature=how.temperature)


def _stretch_all(
    models: list[MDN], posteriors: list[Posterior | None], held_out: list[Rows]
) -> None:
    """Stretch all draws of all members by one number, and make them narrower for their pool."""
    if not held_out:
        return
    drawn = [
        (posterior or Point(model.weights())).draw(POOLED, torch.Generator().manual_seed(number))
        for number, (model, posterior) in enumerate(zip(models, posteriors, strict=True))
    ]
    points = all(posterior is None for posterior in posteriors)
    drawn = [{n: w[:1] for n, w in draws.items()} for draws in drawn] if points else drawn
    stretch_pools(models, drawn, held_out)
    narrow(models, held_out, torch.Generator(held_out[0].y.device).manual_seed(0), drawn)
