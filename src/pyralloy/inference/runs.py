"""Runs: rows that are ready, trained by maximum likelihood, and then a guide of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pyralloy.inference.diagnostics import settled
from pyralloy.inference.engine import Engine
from pyralloy.inference.fit import Fit
from pyralloy.inference.interrupts import Stop
from pyralloy.inference.objective import FlatParameters, Objective, empty_guide, pyro_runtime
from pyralloy.inference.posterior import Point
from pyralloy.inference.ready import Ready
from pyralloy.inference.stretch import POOLED, stretch_pools
from pyralloy.inference.stretch import stretch as stretch_widths
from pyralloy.inference.training import Plan, Trace, ended_by_itself, train
from pyralloy.inference.variational import (
    Approximation,
    Guided,
    approximate,
    curved,
    needs_no_run,
    pooled_nll,
)
from pyralloy.model import MDN
from pyralloy.seeds import seeded

__all__ = ["fit_guide", "fit_weights", "require_precision", "running"]


def require_precision(model: MDN) -> None:
    """Refuse a model in half precision, in which losses overflow."""
    if next(model.parameters()).dtype not in (torch.float32, torch.float64):
        raise TypeError("model is in half precision: train it in float32, by model.float().")


def _first_plan(plan: Plan, start: int | None) -> Plan | None:
    """Plan the run before that of a guide; None for no run."""
    steps = plan.max_steps // 2 if start is None else start
    every = max(1, steps // 100)
    if steps == 0:
        return None
    return replace(plan, max_steps=steps, every=every, callback=None)


@contextmanager
def running(model: MDN, plan: Plan) -> Iterator[None]:
    """Hold Pyro's runtime, and torch's generator, whose state comes back, at the plan's seed."""
    device = next(model.parameters()).device
    with (
        pyro_runtime(),
        seeded(plan.seed, device),  # for dropout, and for draws from a guide
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        model.train()
        try:
            yield
        finally:
            model.eval()


def fit_weights(
    model: MDN, ready: Ready, stop: Stop, *, begun: bool = True, members: int = 1
) -> Fit:
    """Train by maximum likelihood, and stretch the components to the held-out rows."""
    trace = _trained(model, ready, stop)
    evaluate, held = ready.evaluation(model), ready.held_out
    if ready.plan.stretch and evaluate is not None and stretch_widths(model, held, members):
        trace.correct(evaluate() + ready.plan.offset)
    return _concluded(model, ready, trace, complete=begun and ended_by_itself(trace, ready.plan))


def _trained(model: MDN, ready: Ready, stop: Stop) -> Trace:
    """Train through Pyro's ELBO with an empty guide."""
    plan, (batches, saving) = ready.plan, ready.batches(model)
    with running(model, plan):
        parameters = FlatParameters(model)
        try:
            objective = Objective(model, empty_guide, ready.size)
            engine = Engine(
                objective, parameters, plan.clip, compiling=plan.compile, steps=plan.max_steps
            )
            choice = ready.choice(model)
            return train(engine, batches, plan, choice, stop=stop, saving=saving)
        finally:
            parameters.release()


def _concluded(
    model: MDN, ready: Ready, trace: Trace, before: Sequence[int] = (), *, complete: bool = False
) -> Fit:
    """Make the fit, and say what is wrong with it."""
    fitted = Fit(model, trace.history(), ready.plan.baseline, trace.best_step, trace.interrupted)
    returns = (list(before), trace.returns)
    return settled(fitted, ready.rows, ready.held_out, returns=returns, complete=complete)


def fit_guide(
    model: MDN,
    plain: MDN,
    ready: Ready,
    stop: Stop,
    *,
    how: Approximation,
    alone: bool = True,
) -> Fit:
    """Train the network alone, then a guide of its weights; stretch what stands alone."""
    first = _first_plan(ready.plan, how.start)
    whose = f"guide {getattr(how.guide, '__name__', type(how.guide).__name__)}"
    terms = [how.temperature, how.warm_up, 0 if first is None else first.max_steps]
    ready = replace(ready, identity=ready.identity | {"guide": whose, "terms": terms})
    if needs_no_run(how, ready, holding=ready.held_out is not None):
        ready = replace(ready, identity=ready.identity | {"run": "guide"})
        trace = _trained(plain, ready, stop)
        if trace.interrupted:
            return _concluded(model, ready, trace)
        with running(model, ready.plan):
            guided = Guided(trace, *curved(model, how, ready))
        return _guided(model, ready, guided, how, alone=alone)
    before = Returns()
    if first is not None and ready.files.run() != "guide":
        begun = replace(ready, plan=first, identity=ready.identity | {"run": "first"})
        trace = _trained(plain, begun, stop)
        before.steps = trace.returns
        if trace.interrupted:
            return _concluded(model, begun, trace)
        ready = replace(ready, files=ready.files._replace(resume=None))
    identity = ready.identity | {"run": "guide"}
    ready = replace(ready, identity=identity, riders={"before": before})
    with running(model, ready.plan):
        guided = approximate(model, how, ready, stop)
    return _guided(model, ready, guided, how, before.steps, alone=alone)


def _guided(
    model: MDN,
    ready: Ready,
    guided: Guided,
    how: Approximation,
    before: Sequence[int] = (),
    *,
    alone: bool,
) -> Fit:
    """Stretch the pool of a posterior that stands alone, and make the fit."""
    if alone and ready.plan.stretch and ready.held_out is not None:
        posterior = guided.posterior or Point({})  # of the model's own weights
        drawn = posterior.draw(POOLED, torch.Generator().manual_seed(ready.plan.seed))
        if stretch_pools([model], [drawn], [ready.held_out]):
            plain_plan = replace(ready.plan, stretch=False)
            nll = pooled_nll(model, lambda: posterior, ready.held_out, plain_plan)()
            guided.trace.correct(nll + ready.plan.offset)
    fitted = _concluded(model, ready, guided.trace, before)
    return replace(
        fitted, posterior=guided.posterior, guide=guided.guide, temperature=how.temperature
    )


class Returns:
    """The steps from which the first of two runs went back; they ride along in the second."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def state(self) -> dict[str, Tensor]:
        """Give them."""
        return {"steps": torch.tensor(self.steps, dtype=torch.int64)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self.steps = state["steps"].tolist()
