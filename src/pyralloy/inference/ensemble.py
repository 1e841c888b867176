"""Ensembles: members trained side by side, pooled into one exact mixture."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyralloy.checks import integer, positive
from pyralloy.inference.batches import Batches
from pyralloy.inference.checkpoint import Files
from pyralloy.inference.data import Data, gather
from pyralloy.inference.diagnostics import FitWarning, settled
from pyralloy.inference.fit import Fit
from pyralloy.inference.interrupts import Stop, interrupts
from pyralloy.inference.lanes import Lanes
from pyralloy.inference.posterior import Members, Several
from pyralloy.inference.ready import Ready, prepare
from pyralloy.inference.rows import Rows
from pyralloy.inference.schedules import Schedule, one_cycle
from pyralloy.inference.svi import fit, running
from pyralloy.inference.training import Plan
from pyralloy.model import MDN

__all__ = ["ensemble"]


def ensemble(
    make_model: Callable[[int], MDN],
    x: Any,
    y: Any,
    *,
    members: int = 5,
    guide: Any = None,
    validation: float | tuple[Any, ...] | None = 0.1,
    seed: int = 0,
    learning_rate: float = 0.015,
    schedule: Schedule = one_cycle,
    clip: float | None = None,
    batch_size: int | None = None,
    max_steps: int = 1500,
    compile: bool | Literal["auto"] = False,  # noqa: A002 - as torch spells it
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Fit:
    r"""Train members that differ by their start and the order of their batches, and pool them.

    .. math:: p(y \mid x) = \frac{1}{M} \sum_{m} p(y \mid x, w_m)

    The members have the same rows, of which the same are held out; each keeps its own best weights.
    They are trained side by side, as one leading dimension, which costs a fraction of training one
    after the other; each comes to the weights it would have alone, to rounding. Members of a
    ``guide`` are trained one by one.

    Args:
        make_model: Gives the model of a seed, of the same parts each time:
            ``lambda seed: pa.MDN(trunk(seed), head)``. :class:`~pyralloy.networks.MLP` trunks and
            heads are drawn anew from the seed, whatever weights they come with.
        x: Inputs in their own units, shape (N, F), or (N,).
        y: Targets in their own units, shape (N,), or (N, D).
        members: How many, M, at least 2.
        guide: As in :func:`pyralloy.fit`, for models with a prior: each member then is a posterior
            of its own, and the ensemble their mixture.
        validation: As in :func:`pyralloy.fit`.
        seed: Source of the rows held out and of the members' seeds.
        learning_rate: Peak of the schedule.
        schedule: As in :func:`pyralloy.fit`.
        clip: As in :func:`pyralloy.fit`, of each member.
        batch_size: Rows a step of each member.
        max_steps: Steps of the schedule.
        compile: As in :func:`pyralloy.fit`, of the step of all members.
        progress: Whether to show a bar.
        device: Where to train; None stays where the models are.

    Returns:
        A :class:`~pyralloy.Fit`, whose ``density`` is the exact pool of M K components, and whose
        ``densities`` are the members'. ``model`` is the first member's. ``history`` holds means
        over members; the last row's ``validation`` is that of the pool of the weights kept.

    Raises:
        TypeError: ``make_model`` does not give an ``MDN``.
        ValueError: As for :func:`pyralloy.fit`; fewer than two members; models that differ in their
            parts; a prior without a guide or a guide without a prior.

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
    count, seed = integer("members", members, 2), integer("seed", seed, 0)
    steps = integer("max_steps", max_steps)
    plan = Plan(
        learning_rate=positive("learning_rate", learning_rate),
        batch_size=0 if batch_size is None else integer("batch_size", batch_size),
        max_steps=steps,
        every=max(1, steps // 100),
        schedule=schedule,
        clip=None if clip is None else positive("clip", clip),
        compile=compile,
        seed=seed,
        progress=progress,
    )
    seeds = [_member(seed, m) for m in range(count)]
    models = _made(make_model, seeds)
    with interrupts() as stop:
        for model in models:
            model.to(device)
        data = gather(models[0], x, y, None, size=None, validation=validation, seed=seed)
        if guide is None and all(model.prior is None for model in models):
            fitted = _side_by_side(models, seeds, data, plan, stop)
        else:
            fitted = _one_by_one(models, seeds, data, plan, stop, guide)
    if fitted.interrupted:
        warnings.warn(
            f"the ensemble was interrupted at step {fitted.history.step[-1]} of {steps}; each "
            "member holds the best of its weights until then.",
            stacklevel=2,
        )
    for said in fitted.diagnostics:
        warnings.warn(said, FitWarning, stacklevel=2)
    return fitted


def _member(seed: int, number: int) -> int:
    """Give the seed of a member, far from those of other members and other ensembles."""
    return (seed * 1_000_003 + number * 7_919 + 0x5BD1E995) % 2**31


def _made(make_model: Callable[[int], MDN], seeds: list[int]) -> list[MDN]:
    models = []
    for seed in seeds:
        model = make_model(seed)
        if not isinstance(model, MDN):
            raise TypeError(
                f"make_model gives {type(model).__name__}: it must give a pyralloy.MDN."
            )
        models.append(model)
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in models]
    if len({id(model) for model in models}) < len(models) or len(
        {id(p) for model in models for p in model.parameters()}
    ) < sum(len(shape) for shape in shapes):
        raise ValueError(
            "make_model gives the same model or layer twice: make them anew each time."
        )
    kept = [name for name, _ in models[0].trunk.named_buffers() if "running_" in name]
    if kept:
        raise ValueError(
            f"the trunk keeps running statistics, {kept[0]!r} for one, and members share all that "
            "is no weight: take nn.LayerNorm in place of batch normalisation."
        )
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("make_model gives models of different parts: only the seed may differ.")
    return models


# -- side by side ---------------------------------------------------------------------------------


def _side_by_side(models: list[MDN], seeds: list[int], data: Data, plan: Plan, stop: Stop) -> Fit:
    ready = _started(models, seeds, data, plan)
    plan, rows = ready.plan, ready.rows
    with running(models[0], plan):
        lanes = Lanes(models, ready.size, plan)
        course = _Course(lanes, ready)
        try:
            course.run([Batches(rows.tensors(), plan.batch_size, s) for s in seeds], stop)
        finally:
            lanes.end(course.kept)
            for model in models:
                model.eval()
    interrupted, last = stop.requested, course.rows[-1][0]
    each = [
        settled(
            Fit(model, course.history(), plan.baseline, int(step)),
            rows,
            ready.held_out,
            returns=[],
            complete=not interrupted and rows.weights is None,
        )
        for model, step in zip(models, course.best_step, strict=True)
    ]
    for lane in course.broken():
        # What stops a lane stops none of the others: it goes through the loop, which recovers.
        each[lane] = _alone(models[lane], seeds[lane], data, plan, None)
    said = tuple(dict.fromkeys(text for one in each for text in one.diagnostics))
    posterior = _members(models)
    history = course.history()
    whole = Fit(models[0], history, plan.baseline, last, interrupted, said, posterior=posterior)
    if data.held_out is not None:
        held = data.held_out
        history.validation[-1] = -float(_weighted(whole.density(held.x).log_prob(held.y), held))
    return whole


def _members(models: list[MDN]) -> Members:
    values = [model.weights() for model in models]
    return Members({n: torch.stack([v[n].detach() for v in values]) for n in values[0]})


def _weighted(values: Tensor, rows: Rows) -> Tensor:
    return values.mean() if rows.weights is None else (values * rows.weights).mean()


def _started(models: list[MDN], seeds: list[int], data: Data, plan: Plan) -> Ready:
    """Standardise once, and start each member from its own seed."""
    ready = None
    for model, seed in zip(models, seeds, strict=True):
        # Not owned: the rows in their own units are needed again.
        own = replace(data, generator=torch.Generator().manual_seed(seed), owned=False)
        begun = prepare(model, own, plan, Files(), initialise=True)
        ready = ready or begun
    assert ready is not None  # noqa: S101 - there are two members or more
    return ready


class _Course:
    """Lanes on their way: what was seen of each, and its best weights."""

    def __init__(self, lanes: Lanes, ready: Ready) -> None:
        self.lanes, self._ready = lanes, ready
        self.kept = lanes.weights.clone()  # (M, P)
        self.best = torch.full((len(self.kept),), math.inf, dtype=torch.float64)
        self.best_step = torch.zeros(len(self.kept), dtype=torch.int64)
        self.rows: list[tuple[int, float, float, float, int]] = []

    def run(self, batches: list[Batches], stop: Stop) -> None:
        """Train all lanes to the end, or until it is asked to stop."""
        plan, begun = self._ready.plan, time.perf_counter()
        total, counted = torch.zeros_like(self.best), 0
        with tqdm(
            total=plan.max_steps, desc="ensemble", unit="step", disable=not plan.progress
        ) as bar:
            for step in range(1, plan.max_steps + 1):
                parts = zip(*(b.at(step - 1) for b in batches), strict=True)
                rate = plan.learning_rate * plan.schedule(step - 1, plan.max_steps)
                losses = self.lanes.step(tuple(torch.stack(part) for part in parts), rate)
                total, counted = total + losses.cpu(), counted + 1
                if step % plan.every and step < plan.max_steps and not stop.requested:
                    continue
                held_out = self._look(step)
                means = total / counted
                loss = float(means[means.isfinite()].mean()) + plan.offset
                self.rows.append((step, loss, held_out, time.perf_counter() - begun, 0))
                total, counted = torch.zeros_like(self.best), 0
                name, value = ("train", loss) if math.isnan(held_out) else ("held-out", held_out)
                bar.set_postfix_str(
                    f"{name} NLL {value:.3f}, marginal {plan.baseline:.3f}", refresh=False
                )
                bar.update(step - bar.n)
                if stop.requested:
                    break

    def _look(self, step: int) -> float:
        """Keep the weights of each lane that are its best, and give the mean held-out loss."""
        held, average = self._ready.held_out, self.lanes.average
        finite = average.isfinite().all(-1).cpu()
        if held is None:
            losses, better = torch.full_like(self.best, math.nan), finite
        else:
            scores = self.lanes.scores(average, held).to(torch.float64).cpu()
            weights = 1.0 if held.weights is None else held.weights.cpu()
            losses = -(scores * weights).mean(-1)
            better = finite & (losses < self.best)
        self.kept[better] = average[better]
        self.best[better], self.best_step[better] = losses[better], step
        known = losses[losses.isfinite()]
        return float(known.mean()) + self._ready.plan.offset if len(known) else math.nan

    def broken(self) -> list[int]:
        """Name the lanes that never had finite weights, or lost them."""
        lost = ~self.lanes.weights.isfinite().all(-1).cpu()
        return (lost | (self.best_step == 0)).nonzero()[:, 0].tolist()

    def history(self) -> np.recarray:
        """Give the rows as a record array, as a fit's history."""
        reals = ((n, np.float64) for n in ("train", "validation", "seconds"))
        kinds = [("step", np.int64), *reals, ("clipped", np.int64)]
        return np.array(self.rows, dtype=kinds).view(np.recarray)


# -- one by one -----------------------------------------------------------------------------------


def _alone(model: MDN, seed: int, data: Data, plan: Plan, guide: Any) -> Fit:
    """Train one member as a fit of its own, on the rows of all."""
    held, rows = data.held_out, data.rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # said once, of all members
        return fit(
            model,
            rows.x,
            rows.y,
            guide=guide,
            validation=None if held is None else (held.x, held.y),
            seed=seed,
            learning_rate=plan.learning_rate,
            schedule=plan.schedule,
            clip=plan.clip,
            batch_size=plan.batch_size or None,
            max_steps=plan.max_steps,
            compile=plan.compile,
            progress=plan.progress,
        )


def _one_by_one(
    models: list[MDN], seeds: list[int], data: Data, plan: Plan, stop: Stop, guide: Any
) -> Fit:
    each = []
    for model, seed in zip(models, seeds, strict=True):
        each.append(_alone(model, seed, data, plan, guide))
        if each[-1].interrupted or stop.requested:
            break
    first, interrupted = each[0], each[-1].interrupted or stop.requested
    said = tuple(dict.fromkeys(text for one in each for text in one.diagnostics))
    if any(one.posterior is not None for one in each):
        posterior = Several([(one.posterior, one.model.weights()) for one in each])
    else:
        posterior = _members([one.model for one in each])
    history = first.history
    return Fit(
        first.model,
        history,
        first.marginal,
        first.best_step,
        interrupted,
        said,
        posterior=posterior,
        temperature=first.temperature,
    )
