"""The loop: steps, validation, early stop, checkpoints, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyralloy.checks import integer, not_negative, positive
from pyralloy.inference.batches import BatchSource, Noisy
from pyralloy.inference.checkpoint import Generators, Place, Rider, Saving
from pyralloy.inference.engine import Engine
from pyralloy.inference.interrupts import Stop
from pyralloy.inference.recovery import Diverged, Recovery
from pyralloy.inference.schedules import Schedule, one_cycle

__all__ = [
    "Callback",
    "Diverged",
    "Plan",
    "Trace",
    "bar_of",
    "ended_by_itself",
    "planned",
    "show",
    "train",
]

#: How often the first tenth of all steps is evaluated, against the others: of few rows, a large
#: network has learnt what there is to learn within a few dozen steps, and then goes on to noise.
EARLY = 3

#: What of a plan another fit must share to end with the same weights, beside the schedule.
SHARED = ("learning_rate", "batch_size", "max_steps", "every", "patience", "clip", "compile")
SHARED += ("stretch", "x_noise", "seed")

#: Most noise on the inputs, in standard deviations of theirs: far less drowns them.
MOST_NOISE = 100.0

#: Called at each evaluation as ``callback(step, metrics)``; a true answer ends the fit.
Callback = Callable[[int, Mapping[str, float]], Any]


@dataclass(frozen=True)
class Plan:
    """How to train: what the loop reads and never changes.

    Attributes:
        learning_rate: Peak of the schedule.
        batch_size: Rows a step.
        max_steps: Steps of the whole schedule.
        every: Steps between evaluations; a third of them in the first tenth.
        patience: Evaluations without improvement that end the fit; None never ends it.
        choosing: Whether held-out rows choose the weights; if not, the last ones are kept.
        schedule: Fraction of the learning rate, of a step and the number of steps.
        stretch: Whether components are stretched to the held-out rows when all is done.
        x_noise: Standard deviation of the noise on standardised inputs, drawn anew at each step.
        clip: Longest that a gradient may be; None leaves it as it is.
        compile: Whether a step is compiled: True, False or ``"auto"``.
        seed: Where the order of the batches comes from, and the noise on their inputs.
        offset: Nats to add to a loss of standardised y, to have it in y's units.
        baseline: The marginal's negative log density, to show beside the model's.
        progress: Whether to show a progress bar.
        callback: Called at each evaluation.
    """

    learning_rate: float
    batch_size: int
    max_steps: int
    every: int
    patience: int | None = None
    choosing: bool = True
    schedule: Schedule = one_cycle
    stretch: bool = True
    x_noise: float = 0.0
    clip: float | None = None
    compile: bool | Literal["auto"] = False
    seed: int = 0
    offset: float = 0.0
    baseline: float = math.nan
    progress: bool = True
    callback: Callback | None = None

    def looks_at(self, step: int) -> bool:
        """Say whether the weights after a step are evaluated."""
        every = self.every if step > 10 * self.every else max(1, self.every // EARLY)
        return step % every == 0 or step == self.max_steps

    def rate(self, step: int) -> float:
        """Give the learning rate of a step, from 1 on.

        Raises:
            ValueError: The schedule gave what is no fraction.
        """
        share = self.schedule(step - 1, self.max_steps)
        if not 0.0 <= share < math.inf:
            raise ValueError(
                f"schedule gave {share!r} for step {step - 1} of {self.max_steps}: it must give a "
                "finite fraction of learning_rate, 0 or more."
            )
        return self.learning_rate * share

    def noisy(self, batches: BatchSource) -> BatchSource:
        """Put noise on the inputs of batches, if there is to be any."""
        return Noisy(batches, self.x_noise, self.seed) if self.x_noise > 0.0 else batches

    def identity(self) -> dict[str, Any]:
        """Give what another fit must share to end with the same weights.

        A schedule is a function, which has no name to trust: it is known by some of its values.
        """
        places = sorted({round(i * (self.max_steps - 1) / 16) for i in range(17)})
        schedule = [float(self.schedule(place, self.max_steps)) for place in places]
        return {name: getattr(self, name) for name in SHARED} | {"schedule": schedule}


def planned(
    *,
    validation: Any,
    learning_rate: float,
    batch_size: int | None,
    max_steps: int,
    patience: int | None,
    schedule: Schedule,
    stretch: bool,
    compile: bool | Literal["auto"],  # noqa: A002 - as torch spells it
    seed: int,
    progress: bool,
    x_noise: float = 0.0,
    clip: float | None = None,
    callback: Callback | None = None,
) -> Plan:
    """Check how a caller wants to train, and plan it.

    Raises:
        TypeError, ValueError: An argument of the wrong type or out of range.
    """
    if compile is not True and compile is not False and compile != "auto":
        raise ValueError(f'compile={compile!r}: give True, False or "auto".')
    if stretch not in (True, False):
        raise ValueError(f"stretch={stretch!r}: give True or False.")
    if not callable(schedule):
        raise TypeError(
            f"schedule={schedule!r}: give a function of a step and the number of steps, as those "
            "of pyralloy.inference.schedules."
        )
    steps = integer("max_steps", max_steps)
    plan = Plan(
        learning_rate=positive("learning_rate", learning_rate),
        batch_size=0 if batch_size is None else integer("batch_size", batch_size),
        max_steps=steps,
        every=max(1, steps // 100),
        patience=None if patience is None else integer("patience", patience),
        schedule=schedule,
        stretch=bool(stretch),
        x_noise=not_negative("x_noise", x_noise, MOST_NOISE),
        clip=None if clip is None else positive("clip", clip),
        compile=compile,
        seed=integer("seed", seed, 0),
        progress=progress,
        callback=callback,
    )
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience} needs held-out rows: set validation too.")
    return plan


@dataclass
class Trace:
    """What the loop saw: the history, the best step, interrupts, returns to finite weights."""

    rows: list[tuple[int, float, float, float, int]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    interrupted: bool = False
    returns: list[int] = field(default_factory=list)
    total: float = 0.0  # of the losses since the last row
    counted: int = 0
    clipped: int = 0  # steps, until the last row
    elapsed: float = 0.0  # seconds, before this process

    def history(self) -> np.recarray:
        """Give the rows as a record array: step, train, validation, seconds, clipped."""
        reals = ((n, np.float64) for n in ("train", "validation", "seconds"))
        kinds = [("step", np.int64), *reals, ("clipped", np.int64)]
        return np.array(self.rows, dtype=kinds).view(np.recarray)

    def correct(self, validation: float) -> None:
        """Put another held-out loss where the best weights were seen: they have changed since."""
        place = next(i for i, row in enumerate(self.rows) if row[0] == self.best_step)
        step, train, _, seconds, clipped = self.rows[place]
        self.rows[place] = (step, train, validation, seconds, clipped)

    def state(self) -> dict[str, Tensor]:
        """Give the rows and the numbers, in float64."""
        numbers = [self.best_step, self.best_loss, self.total, self.counted, self.clipped]
        rows = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, 5)
        return {
            "rows": rows,
            "numbers": torch.tensor([*numbers, self.elapsed], dtype=torch.float64),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self.rows = [(int(s), t, v, e, int(c)) for s, t, v, e, c in state["rows"].tolist()]
        step, self.best_loss, self.total, counted, clipped, self.elapsed = state["numbers"].tolist()
        self.best_step, self.counted, self.clipped = int(step), int(counted), int(clipped)


def train(
    engine: Engine,
    batches: BatchSource,
    plan: Plan,
    evaluate: Callable[[], float] | None = None,
    *,
    stop: Stop | None = None,
    saving: Saving | None = None,
) -> Trace:
    """Minimise a loss on minibatches, and leave the best weights in place.

    What is evaluated and kept is a running average of the weights over the last few dozen steps,
    which has less of the minibatches' noise than the weights of any one step.

    Args:
        engine: Takes the steps, on the parameters that are trained in place.
        batches: Where the minibatches come from.
        plan: How long, how fast, how often to evaluate.
        evaluate: Gives the held-out loss; None keeps the last weights instead of the best.
        stop: Read between steps: whether to end.
        saving: What to write while training, and what to begin from.

    Returns:
        The :class:`Trace`. Where it was stopped, the weights are the best (or last) so far.

    Raises:
        Diverged: The loss or the weights are no longer finite, however often
            :class:`~pyralloy.inference.recovery.Recovery` goes back to half the rate.
    """
    stop, saving = stop or Stop(), saving or Saving()
    with bar_of(plan, "fit") as bar, engine.parameters.ending_with_kept():
        run = _Run(engine, plan, evaluate, saving, bar)
        step, finished = run.begin()
        while not finished:
            step += 1
            finite = run.step(step, batches.at(step - 1))
            stopping, planned = stop.requested, plan.looks_at(step)
            if finite and planned:
                finite = run.look(step)
                finished = finite and run.ended(step)
            finished = finished or step == plan.max_steps
            # Written before what only a stopped fit does, which a resumed one must not see.
            run.save(Place(step, finished), now=finished or stopping)
            if stopping and finite and (planned or run.look(step)):
                break
        if not run.trace.rows:  # too few steps to go back as often as it may
            raise run.recovery.error()
    run.trace.interrupted, run.trace.returns = stop.requested, run.recovery.steps
    return run.trace


def ended_by_itself(trace: Trace, plan: Plan) -> bool:
    """Say whether all steps were taken or patience ended, and neither a callback nor Ctrl-C did."""
    last = trace.rows[-1][0]
    patient = plan.patience is not None and last - trace.best_step >= plan.patience * plan.every
    return not trace.interrupted and (last == plan.max_steps or patient)


class _Run:
    """One fit under way."""

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        evaluate: Callable[[], float] | None,
        saving: Saving,
        bar: tqdm[Any] | None,
    ) -> None:
        self.trace, self._engine, self._plan, self._evaluate = Trace(), engine, plan, evaluate
        self._saving, self._bar, self._start = saving, bar, time.perf_counter()
        generators = Generators(engine.parameters.vector.device)
        self.recovery = Recovery(engine, noisy=plan.x_noise > 0.0)
        self._riders: dict[str, Rider] = {
            "engine": engine,
            "weights": engine.parameters,
            "recovery": self.recovery,
            "trace": self.trace,
            "generators": generators,
            **saving.riders,
        }

    def begin(self) -> Place:
        """Put a saved state in place, if there is one, and say where the fit stands."""
        if self._saving.resume is None:
            return Place()
        place = self._saving.resume(self._riders)
        self._start -= self.trace.elapsed
        return place

    def save(self, place: Place, *, now: bool) -> None:
        """Write a checkpoint, if one is asked for and it is time."""
        checkpoint = self._saving.checkpoint
        if checkpoint is not None and (now or checkpoint.due(place.step)):
            self.trace.elapsed = time.perf_counter() - self._start
            checkpoint.write(place, self._riders)

    def step(self, step: int, batch: tuple[Tensor, ...]) -> bool:
        """Take one step of the optimiser, and say whether its loss was finite."""
        trace = self.trace
        loss = float(self._engine.step(batch, self.recovery.factor * self._plan.rate(step)))
        if not self.recovery.accepts("loss", loss, step, batch):
            return False
        trace.total, trace.counted = trace.total + loss, trace.counted + 1
        return True

    def look(self, step: int) -> bool:
        """Evaluate the averaged weights, keep them if they are the best, and note it all down.

        Returns:
            Whether all was finite; if not, nothing is noted.
        """
        plan, trace, engine = self._plan, self.trace, self._engine
        if not self.recovery.accepts("sum of the weights", float(engine.average.sum()), step):
            return False
        held_out = math.nan
        if self._evaluate is not None:
            with engine.parameters.holding(engine.average):
                held_out = self._evaluate()
            if not self.recovery.accepts("held-out loss", held_out, step):
                return False
        self.recovery.note(step)
        if self._evaluate is None or not plan.choosing or held_out < trace.best_loss:
            trace.best_loss, trace.best_step = held_out, step
            engine.parameters.keep(engine.average)
        losses = (trace.total / trace.counted + plan.offset, held_out + plan.offset)
        clipped, seconds = int(engine.clipped), time.perf_counter() - self._start
        trace.rows.append((step, *losses, seconds, clipped - trace.clipped))
        trace.total, trace.counted, trace.clipped = 0.0, 0, clipped
        show(self._bar, (step, *losses), plan)
        return True

    def ended(self, step: int) -> bool:
        """Ask the callback, which sees the averaged weights, and patience."""
        plan, trace = self._plan, self.trace
        if plan.callback is not None:
            _, loss, validation, seconds, clipped = trace.rows[-1]
            metrics = {"train": loss, "validation": validation, "seconds": seconds}
            metrics["clipped"] = float(clipped)
            with self._engine.parameters.holding(self._engine.average):
                if plan.callback(step, metrics):
                    return True
        return plan.patience is not None and step - trace.best_step >= plan.patience * plan.every


@contextmanager
def bar_of(plan: Plan, name: str) -> Iterator[tqdm[Any] | None]:
    """Show a progress bar, if one is asked for."""
    if not plan.progress:
        yield None
        return
    with tqdm(total=plan.max_steps, desc=name, unit="step", mininterval=0.2) as bar:
        yield bar


def show(bar: tqdm[Any] | None, row: tuple[int, float, float], plan: Plan) -> None:
    """Put a row's step, loss and held-out loss on the bar, if there is one."""
    if bar is None:
        return
    step, loss, held_out = row
    name, value = ("train", loss) if math.isnan(held_out) else ("held-out", held_out)
    bar.set_postfix_str(f"{name} NLL {value:.3f}, marginal {plan.baseline:.3f}", refresh=False)
    bar.update(step - bar.n)
