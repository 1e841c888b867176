"""Guides: a posterior of the weights by variational inference, from where a first fit ended."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation
from pyro.infer.autoguide.initialization import init_to_value
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyralloy.checks import integer, not_negative, positive
from pyralloy.inference.engine import Engine
from pyralloy.inference.interrupts import Stop
from pyralloy.inference.objective import FlatParameters, Objective
from pyralloy.inference.posterior import Gaussian, Point, Posterior, posterior_of
from pyralloy.inference.potential import Potential
from pyralloy.inference.ready import Ready, mean_nll
from pyralloy.inference.rows import Rows
from pyralloy.inference.stretch import foreseen
from pyralloy.inference.training import Plan, Trace, train
from pyralloy.model import MDN

__all__ = [
    "Approximation",
    "Guided",
    "approximate",
    "curved",
    "needs_no_run",
    "pooled_nll",
    "require_guide",
]

#: Draws of the weights that are pooled for the held-out loss, the same at each evaluation.
DRAWS = 10
#: Standard deviation with which a guide starts, where its class lets it be chosen.
FIRST_SCALE = 0.01
#: Weight of the divergence from the prior at the first step of a warm-up: not 0, which would leave
#: the guide's spread without any force but the likelihood's.
FIRST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Approximation:
    """How to approximate the posterior.

    Attributes:
        guide: A guide, or what makes one from the model.
        temperature: T of a posterior in which the likelihood is raised to the power 1 / T.
        warm_up: Fraction of the steps over which the divergence from the prior comes into force.
        start: Steps of maximum likelihood before; None takes half of all.
    """

    guide: Any
    temperature: float = 1.0
    warm_up: float = 0.0
    start: int | None = None

    @classmethod
    def checked(
        cls, guide: Any, *, start: int | None, temperature: float, warm_up: float
    ) -> Approximation:
        """Check the terms of a ``guide``, or that without one they are as they come.

        Raises:
            TypeError: Not numbers.
            ValueError: Out of range, or terms without a guide.
        """
        how = cls(
            guide,
            positive("temperature", temperature),
            _fraction("warm_up", warm_up),
            None if start is None else integer("start", start, 0),
        )
        if guide is None and how != cls(None):
            raise ValueError(
                f"start={how.start}, temperature={how.temperature:g} and warm_up={how.warm_up:g} "
                "go with a guide, and guide is None: give one, or not these."
            )
        return how


class Guided(NamedTuple):
    """What came of it: the loop's trace, the guide, and the posterior, None for a point."""

    trace: Trace
    guide: Any
    posterior: Posterior | None


def _fraction(name: str, value: float) -> float:
    fraction = not_negative(name, value)
    if fraction >= 1.0:
        raise ValueError(f"{name}={value!r}: give a fraction of the steps, from 0 to below 1.")
    return fraction


def require_guide(model: MDN, guide: Any) -> None:
    """Check that a model and a guide go together, before any work is done.

    Raises:
        TypeError: ``guide`` is neither a module nor makes one.
        ValueError: One without the other, or a prior that the guide cannot serve.
    """
    if guide is None:
        if model.prior is not None:
            raise ValueError(
                "model has a prior and guide is None: give guide=AutoDelta for the most probable "
                "weights, AutoNormal for a spread about them, or make the model with prior=None "
                "for maximum likelihood."
            )
        return
    if model.prior is None:
        raise ValueError(
            f"guide={guide!r} and the model has no prior: give MDN(..., prior=priors.FanIn()), for "
            "one, or guide=None for maximum likelihood."
        )
    if not callable(guide):
        raise TypeError(
            f"guide={guide!r}: give a class of pyro.infer.autoguide, a function that makes a guide "
            "from the model, or a guide that is a module."
        )
    kind = _kind(guide)
    if issubclass(kind, AutoDelta | AutoLaplaceApproximation) and model.prior.scales(
        model.weights()
    ):
        raise ValueError(
            f"guide={guide!r} looks for the most probable weights, and a prior with scales of its "
            "own has none: its density grows without bound as scale and weights go to zero. Take "
            "AutoNormal, pyralloy.nuts, or priors.FanIn."
        )


def approximate(model: MDN, how: Approximation, ready: Ready, stop: Stop) -> Guided:
    """Train a guide on standardised rows, from the weights that the model has.

    The model's weights that have a prior are left as they are while the guide is trained, and set
    to the centre of the posterior afterwards; those without are trained beside the guide. Runs
    inside Pyro's runtime, with torch's generator seeded.

    Raises:
        TypeError: The guide is no module.
        ValueError: The guide is not pathwise, or leaves out a site.
        Diverged: The loss is no longer finite.
    """
    rows, held_out, plan = ready.rows, ready.held_out, ready.plan
    potential, guide = _begun(model, how, ready)
    names = [site.name for site in potential.sites]
    some = {"size": ready.size, "standard": True}
    guide.train()
    weight = torch.tensor(1.0, device=rows.x.device)
    programs = [_Weighted(p, weight) if _weighs(how) else p for p in (model, guide)]
    known = partial(posterior_of, guide, names, partial(guide, *_few(rows), **some))
    with _held(model, names):
        parameters = FlatParameters(nn.ModuleList([model, guide]))
        try:
            objective = Objective(programs[0], programs[1], ready.size)
            engine = _Warming(objective, parameters, weight, how, plan)
            evaluate = None if held_out is None else pooled_nll(model, known, held_out, plan)
            batches, saving = ready.batches(model)
            # The first fit was stopped by the held-out rows, so that they would choose the guide's
            # first steps, when it has hardly a spread: a point again, and not a posterior.
            plan = replace(plan, choosing=plan.patience is not None or _is_point(guide))
            trace = train(engine, batches, plan, evaluate, stop=stop, saving=saving)
        finally:
            parameters.release()
            guide.eval()
    posterior = known()
    if isinstance(guide, AutoLaplaceApproximation):
        vector = potential.minimise(guide.loc.detach())
        posterior = Gaussian(potential.sites, vector, factor=potential.root_covariance(vector))
    _take(model, posterior.centre())
    return Guided(trace, guide, None if isinstance(posterior, Point) else posterior)


def needs_no_run(how: Approximation, ready: Ready, *, holding: bool) -> bool:
    """Say whether a guide is only the curvature about weights that are not the most probable ones.

    Such are those that held-out rows choose, and those that noise on the inputs has kept smooth: to
    go from there to the most probable weights of the rows as they are would undo it.

    Args:
        how: Names the guide.
        ready: What is trained on.
        holding: Whether rows are held out.

    Raises:
        ValueError: Such a guide, and rows that do not stay in memory, or terms of a second run.
    """
    if not issubclass(_kind(how.guide), AutoLaplaceApproximation):
        return False
    if ready.reading is not None:
        raise ValueError(
            f"guide={how.guide!r} needs the curvature of all rows at once: give x and y as they "
            "are, or take AutoNormal or AutoLowRankMultivariateNormal."
        )
    if not (holding or ready.plan.x_noise > 0.0):
        return False
    if how.start is not None or how.warm_up > 0.0:
        raise ValueError(
            f"start={how.start}, warm_up={how.warm_up:g} with guide={how.guide!r}, which has one "
            "run only, of all steps, where rows are held out or inputs have noise: leave them out, "
            "or give validation=None and no x_noise."
        )
    return True


def curved(model: MDN, how: Approximation, ready: Ready) -> tuple[Any, Gaussian]:
    """Make a Laplace approximation about the weights that the model has, and its guide.

    Runs inside Pyro's runtime.
    """
    potential, guide = _begun(model, how, ready)
    guide.eval()
    factor = potential.root_covariance(potential.start)
    return guide, Gaussian(potential.sites, potential.start, factor=factor)


def _begun(model: MDN, how: Approximation, ready: Ready) -> tuple[Potential, Any]:
    """Give the potential of the rows, and the guide at its start."""
    rows = ready.rows
    potential = Potential(model, rows.x, rows.y, how.temperature, counts=_counts(ready))
    guide = _made(how.guide, model, potential)
    with torch.no_grad():  # a lazy guide makes its parameters at the first call
        traced = poutine.trace(guide).get_trace(*_few(rows), size=ready.size, standard=True)
    _require_pathwise(traced, [site.name for site in potential.sites])
    return potential, guide


def _made(guide: Any, model: MDN, potential: Potential) -> Any:
    """Make a guide that starts at the model's weights, as far as its class allows that."""
    if isinstance(guide, nn.Module):
        return guide
    start = Point.of(potential.sites, potential.start).draw(1, torch.Generator())
    values = {n: v[0] for n, v in start.items()}
    options = {"init_loc_fn": init_to_value(values=values), "init_scale": FIRST_SCALE}
    taken = inspect.signature(guide).parameters
    made = guide(model, **{n: v for n, v in options.items() if n in taken})
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"guide={guide!r} gives {type(made).__name__}: it must give a module, as those of "
            "pyro.infer.autoguide are; a PyroModule holds parameters of a guide of one's own."
        )
    return made


def _counts(ready: Ready) -> Tensor | None:
    """Say how often each row counts, as the objective has it, shape (N,)."""
    weights = ready.rows.weights
    return None if weights is None else weights * (ready.size / len(weights))


def _is_point(guide: Any) -> bool:
    return isinstance(guide, AutoDelta | AutoLaplaceApproximation)


def _few(rows: Rows) -> tuple[Tensor, Tensor]:
    return rows.x[:2], rows.y[:2]


def _require_pathwise(traced: Any, names: list[str]) -> None:
    sites = {n: s for n, s in traced.nodes.items() if s["type"] == "sample"}
    for name, site in sites.items():
        if not site["is_observed"] and not getattr(site["fn"], "has_rsample", False):
            raise ValueError(
                f"guide samples {name!r} from {site['fn']}, which has no rsample: gradients here "
                "are pathwise only; take a reparameterised distribution, or run Pyro's SVI itself."
            )
    missing = [n for n in names if n not in sites]
    if missing:
        raise ValueError(
            f"guide leaves out {missing}: it must sample each weight that has a prior, by its name."
        )


def _kind(guide: Any) -> type:
    """Give the class of a guide, or of what a factory makes."""
    kind = guide.func if isinstance(guide, partial) else guide
    return kind if isinstance(kind, type) else type(kind)


@contextmanager
def _held(model: MDN, names: list[str]) -> Iterator[None]:
    """Keep weights that have a prior out of the training: the guide stands for them."""
    held = [w for n, w in model.weights().items() if n in names and w.requires_grad]
    try:
        for w in held:
            w.requires_grad = False
        yield
    finally:
        for w in held:
            w.requires_grad = True


@torch.no_grad()
def _take(model: MDN, centre: dict[str, Tensor] | None) -> None:
    for name, weight in model.weights().items():
        if centre is not None and name in centre:
            weight.copy_(centre[name])


def pooled_nll(
    model: MDN, known: Callable[[], Posterior], rows: Rows, plan: Plan
) -> Callable[[], float]:
    """Make the held-out loss: of the pool of a few draws, the same noise each time, once stretched.

    Without that, the step with the best widths would be chosen, and not that with the best places.
    """
    stretches = plan.stretch and model.head.stretches

    @torch.no_grad()
    def evaluate() -> float:
        posterior = known()
        count = 1 if isinstance(posterior, Point) else DRAWS
        draws = posterior.draw(count, torch.Generator().manual_seed(plan.seed))

        def pooled(x: Tensor, y: Tensor, stretch: Tensor | None = None) -> Tensor:
            each = [
                model.network(x, {n: w[s] for n, w in draws.items()}, stretch=stretch).log_prob(y)
                for s in range(count)
            ]
            return torch.stack(each).to(torch.float64).logsumexp(0) - math.log(count)

        return mean_nll(pooled, rows) - (foreseen(pooled, rows) if stretches else 0.0)

    return evaluate


# -- the weight of the divergence -----------------------------------------------------------------


def _weighs(how: Approximation) -> bool:
    return how.temperature != 1.0 or how.warm_up > 0.0


class _LatentScale(Messenger):
    """Scale the log densities of all sites but the observed ones."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.scale


class _Weighted(nn.Module):
    """A model or a guide whose weights count with a weight that changes from step to step."""

    def __init__(self, program: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.program, self._weight = program, weight

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _LatentScale(self._weight):
            return self.program(*args, **kwargs)


class _Warming(Engine):
    """An engine under which the divergence from the prior comes into force step by step."""

    def __init__(
        self,
        objective: Objective,
        parameters: FlatParameters,
        weight: Tensor,
        how: Approximation,
        plan: Plan,
    ) -> None:
        super().__init__(
            objective, parameters, plan.clip, compiling=plan.compile, steps=plan.max_steps
        )
        self._weight, self._how, self._warming = weight, how, how.warm_up * plan.max_steps

    def step(self, batch: tuple[Tensor, ...], learning_rate: float) -> Tensor:
        """Take one step under the weight that is its turn."""
        done = self.steps
        share = 1.0 if done >= self._warming else max(FIRST_WEIGHT, done / self._warming)
        self._weight.fill_(self._how.temperature * share)
        return super().step(batch, learning_rate)
