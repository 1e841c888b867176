"""The loop: batches, schedule, validation, early stop, interrupts, progress."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyralloy.inference.engine import Engine
from pyralloy.inference.recovery import Diverged, Recovery

__all__ = ["Batches", "Diverged", "Plan", "Trace", "ended_by_itself", "one_cycle", "train"]

#: Called at each evaluation as ``callback(step, metrics)``; a true answer ends the fit.
Callback = Callable[[int, Mapping[str, float]], Any]


@dataclass(frozen=True)
class Plan:
    """How to train: what the loop reads and never changes.

    Attributes:
        learning_rate: Peak of the schedule.
        batch_size: Rows a step.
        max_steps: Steps of the whole schedule.
        every: Steps between evaluations.
        patience: Evaluations without improvement that end the fit; None never ends it.
        seed: Where the order of the batches comes from.
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
    seed: int = 0
    offset: float = 0.0
    baseline: float = math.nan
    progress: bool = True
    callback: Callback | None = None


@dataclass
class Trace:
    """What the loop saw: the history, the best step, interrupts, returns to finite weights."""

    rows: list[tuple[int, float, float, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    interrupted: bool = False
    returns: list[int] = field(default_factory=list)

    def history(self) -> np.recarray:
        """Give the rows as a record array of step, train, validation and seconds."""
        kinds = [("step", np.int64), *((n, np.float64) for n in ("train", "validation", "seconds"))]
        return np.array(self.rows, dtype=kinds).view(np.recarray)


class Batches:
    """An endless stream of shuffled rows, cut into batches of one size.

    Every row is used equally often, and the batch of a step depends on the seed and the step
    alone, so that a fit can be resumed at any of them. Rows are gathered once an epoch; a batch is
    a slice.

    Args:
        tensors: Of equal length N, on the device where training runs.
        size: Rows a batch; N or more means all rows, unshuffled.
        seed: Where the order comes from.

    Example:
        >>> batches = Batches((torch.arange(5),), size=2, seed=0)
        >>> drawn = torch.cat([batches.at(step)[0] for step in range(5)])
        >>> drawn.bincount().tolist()
        [2, 2, 2, 2, 2]
    """

    def __init__(self, tensors: tuple[Tensor, ...], size: int, seed: int) -> None:
        self._tensors, self._seed = tensors, seed
        self._rows = tensors[0].shape[0]
        self.size = min(size, self._rows)
        self._epochs: dict[int, tuple[Tensor, ...]] = {}

    def at(self, step: int) -> tuple[Tensor, ...]:
        """Give the batch of a step."""
        if self.size == self._rows:
            return self._tensors
        epoch, start = divmod(step * self.size, self._rows)
        stop = start + self.size
        block = self._epoch(epoch)
        if stop <= self._rows:
            return tuple(t[start:stop] for t in block)
        rest = self._epoch(epoch + 1)
        return tuple(
            torch.cat([a[start:], b[: stop - self._rows]]) for a, b in zip(block, rest, strict=True)
        )

    def _epoch(self, epoch: int) -> tuple[Tensor, ...]:
        if epoch not in self._epochs:
            self._epochs = {e: b for e, b in self._epochs.items() if e == epoch - 1}
            generator = torch.Generator().manual_seed(_mix(self._seed, epoch))
            order = torch.randperm(self._rows, generator=generator).to(self._tensors[0].device)
            self._epochs[epoch] = tuple(t[order] for t in self._tensors)
        return self._epochs[epoch]


def one_cycle(step: int, steps: int, *, warmup: float = 0.1) -> float:
    """Give the learning rate of a step as a fraction of the peak: a cosine up, a cosine down.

    Args:
        step: From 0.
        steps: Of the whole cycle.
        warmup: Fraction of the steps that climb, from 1/25 of the peak.

    References:
        Smith, L. N., & Topin, N. (2019). Super-convergence. doi:10.1117/12.2520589

    Example:
        >>> [round(one_cycle(s, 101), 3) for s in (0, 10, 100)]
        [0.04, 1.0, 0.0]
    """
    done = step / max(1, steps - 1)
    if done < warmup:
        return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * done / warmup))
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def train(
    engine: Engine,
    batches: Batches,
    plan: Plan,
    evaluate: Callable[[], float] | None = None,
) -> Trace:
    """Minimise a loss on minibatches, and leave the best weights in place.

    What is evaluated and kept is a running average of the weights over the last few dozen steps,
    which has less of the minibatches' noise than the weights of any one step.

    Args:
        engine: Takes the steps, on the parameters that are trained in place.
        batches: The stream of minibatches.
        plan: How long, how fast, how often to evaluate.
        evaluate: Gives the held-out loss; None keeps the last weights instead of the best.

    Returns:
        The :class:`Trace`. Where Ctrl-C ended it, the weights are the best (or last) so far.

    Raises:
        Diverged: The loss or the weights are no longer finite, however often
            :class:`~pyralloy.inference.recovery.Recovery` goes back to half the rate.
    """
    parameters, average, trace = engine.parameters, engine.average, Trace()
    recovery = Recovery(engine)
    trace.returns = recovery.steps
    start, total, counted = time.perf_counter(), 0.0, 0
    with _interrupts() as stop, _bar(plan) as bar, parameters.ending_with_kept():
        for step in range(1, plan.max_steps + 1):
            rate = recovery.factor * plan.learning_rate * one_cycle(step - 1, plan.max_steps)
            batch = batches.at(step - 1)
            loss = float(engine.step(batch, rate))
            if not recovery.accepts("loss", loss, step, batch):
                continue
            total, counted = total + loss, counted + 1
            if step % plan.every and step < plan.max_steps and not stop.requested:
                continue
            if not recovery.accepts("sum of the weights", float(average.sum()), step):
                continue
            with parameters.holding(average):
                held_out = math.nan if evaluate is None else evaluate()
            if evaluate is not None and not recovery.accepts("held-out loss", held_out, step):
                continue
            recovery.note(step)
            if evaluate is None or held_out < trace.best_loss:
                trace.best_loss, trace.best_step = held_out, step
                parameters.keep(average)
            row = (step, total / counted + plan.offset, held_out + plan.offset)
            trace.rows.append((*row, time.perf_counter() - start))
            total, counted = 0.0, 0
            _show(bar, row, plan)
            trace.interrupted = stop.requested
            if stop.requested or _finished(trace, plan, engine):
                break
        if not trace.rows:  # too few steps to go back as often as it may
            raise recovery.error()
    return trace


def ended_by_itself(trace: Trace, plan: Plan) -> bool:
    """Say whether all steps were taken or patience ended, and neither a callback nor Ctrl-C did."""
    last = trace.rows[-1][0]
    patient = plan.patience is not None and last - trace.best_step >= plan.patience * plan.every
    return not trace.interrupted and (last == plan.max_steps or patient)


def _finished(trace: Trace, plan: Plan, engine: Engine) -> bool:
    """Ask the callback, which sees the averaged weights, and patience."""
    step = trace.rows[-1][0]
    if plan.callback is not None:
        with engine.parameters.holding(engine.average):
            if plan.callback(step, _metrics(trace)):
                return True
    return plan.patience is not None and step - trace.best_step >= plan.patience * plan.every


def _metrics(trace: Trace) -> dict[str, float]:
    _, loss, validation, seconds = trace.rows[-1]
    return {"train": loss, "validation": validation, "seconds": seconds}


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _interrupts() -> Iterator[_Stop]:
    """Turn the first Ctrl-C into a flag read between steps; the second one is Python's own.

    An exception raised inside a step would leave the optimiser half applied and Pyro's stack dirty.
    """
    stop = _Stop()
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    # Where someone else handles or ignores the signal, it is theirs.
    if not in_main or before is not signal.default_int_handler:
        yield stop
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(plan: Plan) -> Iterator[tqdm[Any] | None]:
    if not plan.progress:
        yield None
        return
    with tqdm(total=plan.max_steps, desc="fit", unit="step", mininterval=0.2) as bar:
        yield bar


def _show(bar: tqdm[Any] | None, row: tuple[int, float, float], plan: Plan) -> None:
    if bar is None:
        return
    step, loss, held_out = row
    name, value = ("train", loss) if math.isnan(held_out) else ("held-out", held_out)
    bar.set_postfix_str(f"{name} NLL {value:.3f}, marginal {plan.baseline:.3f}", refresh=False)
    bar.update(step - bar.n)


def _mix(seed: int, epoch: int) -> int:
    """Join seed and epoch into one 63-bit seed (splitmix64), far from its neighbours' streams."""
    z = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1
