"""The engine: one step of training, from a batch to new weights and their running average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pyralloy.inference.clipping import clip_norm
from pyralloy.inference.objective import FlatParameters, Objective
from pyralloy.inference.program import Program
from pyralloy.seeds import apart

__all__ = ["Engine", "adam", "rates_of"]

#: Decay of the running average of the weights, a step; at the start it is shorter.
AVERAGING = 0.98
#: Decays of Adam's two moments, and what keeps a step finite where there is no gradient.
MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8
#: Rows of a batch that are taken at once: what they need still fits in a processor's cache.
PART = 8192
#: How far a captured step may be from Pyro's own, relative to the size of the gradient.
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9}


def adam(vector: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, rates: Tensor) -> None:
    """Take a step of Adam on one vector, in place, as operations that a graph can hold.

    Args:
        vector: What is trained, shape (P,), or (M, P) for M of them.
        mean: Running mean of the gradients, likewise.
        square: Running mean of their squares.
        gradient: At ``vector``; overwritten.
        rates: The first two of :func:`rates_of`.

    References:
        Kingma, D. P., & Ba, J. (2015). Adam: a method for stochastic optimization. ICLR.
        arXiv:1412.6980
    """
    bias, least = rates.unbind()
    mean.lerp_(gradient, 1.0 - MEAN_DECAY)
    square.mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1.0 - SQUARE_DECAY)
    # Into the gradient, which is used up: memory of that size is slow to come by.
    # By its reciprocal: a root by itself is torch's slowest operation where some numbers are zero.
    spread = torch.rsqrt(square, out=gradient).mul_(bias).reciprocal_().add_(least)
    vector.addcdiv_(mean, spread, value=-1.0)


def rates_of(step: int, learning_rate: float, like: Tensor) -> Tensor:
    r"""Give what a step needs beside the gradient, shape (3,).

    By two numbers :func:`adam` goes: of the rate :math:`\eta`, over the bias of the mean, and the
    root b of the square's bias they are :math:`\eta b` and :math:`\epsilon / \eta`. The third is
    the share of the new weights in their running average.

    Args:
        step: Counted from 1.
        learning_rate: Of this step.
        like: A tensor of the dtype and device to use.
    """
    rate = learning_rate / (1.0 - MEAN_DECAY**step)
    bias = rate * math.sqrt(1.0 - SQUARE_DECAY**step)
    # Infinite where nothing is to move: the product of no rate and no gradient is no number.
    still = bias < torch.finfo(like.dtype).tiny
    bias, least = (1.0, math.inf) if still else (bias, EPSILON / rate)
    share = max(1.0 - AVERAGING, 9.0 / (9.0 + step))
    return torch.tensor([bias, least, share], dtype=like.dtype, device=like.device)


class Engine:
    """Take steps of Adam on minibatches, and keep a running average of the weights.

    A step is one function of tensors, from weights and batch to new weights, which a
    :class:`~pyralloy.inference.program.Program` runs: as it stands, captured as one graph, or
    compiled. A batch of more than 8,192 rows is taken in parts, each with a draw of its own from
    the guide, whose gradients are averaged.

    Args:
        objective: The loss.
        parameters: What is trained, in place.
        clip: Longest that a gradient may be; None leaves it as it is.
        compiling: Whether to compile the step: True, False, or ``"auto"`` for where that pays.
        steps: How many steps are planned.

    Attributes:
        parameters: As given.
        clipped: How many steps had a gradient that was longer, a scalar tensor.
        steps: How many were taken.
        average: The running average of the weights, shape (P,).
    """

    def __init__(
        self,
        objective: Objective,
        parameters: FlatParameters,
        clip: float | None = None,
        *,
        compiling: bool | Literal["auto"] = False,
        steps: int = 0,
    ) -> None:
        vector = parameters.vector
        self.parameters, self.average = parameters, vector.clone()
        self.clipped = torch.zeros((), dtype=torch.int64, device=vector.device)
        self._mean, self._square = torch.zeros_like(vector), torch.zeros_like(vector)
        self._total = torch.zeros_like(vector)
        self._objective, self._clip, self.steps, self._planned = objective, clip, 0, steps
        self._names = parameters.names_in(objective.module)
        plan: dict[str, Any] = {"compiling": compiling, "aside": self._aside}
        whole, part = (
            partial(self._agrees, 6, 1.0 - MEAN_DECAY, clip),
            partial(self._agrees, 3, 1.0, None),
        )
        self._whole = Program(self._advance, agrees=whole, **plan)
        self._part = Program(self._accumulate, agrees=part, **plan)

    def step(self, batch: tuple[Tensor, ...], learning_rate: float) -> Tensor:
        """Take one step and give the loss before it, a scalar tensor."""
        self.steps += 1
        rates = rates_of(self.steps, learning_rate, self.parameters.vector)
        rows = len(batch[0])
        with torch.no_grad():
            if rows <= PART:
                self._whole.left = self._planned - self.steps
                return self._whole(*self._tensors(), rates, *batch)
            losses = []
            self._total.zero_()
            self._part.left = (self._planned - self.steps) * -(-rows // PART)
            for part in zip(*(t.split(PART) for t in batch), strict=True):
                share = torch.tensor(len(part[0]) / rows).to(self._total)
                losses.append(self._part(self.parameters.vector, self._total, share, *part))
            self._move(self._tensors(), rates, self._total)
            return torch.stack(losses).sum()

    def state(self) -> dict[str, Tensor]:
        """Give what a resumed fit needs, as tensors that live on: weights, moments, the count."""
        return {
            "weights": self.parameters.vector,
            "average": self.average,
            "clipped": self.clipped,
            "mean": self._mean,
            "square": self._square,
            "steps": torch.tensor(self.steps),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self.steps = int(state["steps"])
        for name, tensor in self.state().items():
            if name != "steps":
                tensor.copy_(state[name])

    # -- functions of tensors, which may be captured ----------------------------------------------

    def loss_and_gradient(self, vector: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the loss, a scalar, and its gradient (P,) at ``vector``, with fresh noise."""
        with torch.enable_grad():
            leaf = vector.detach().requires_grad_()
            values = dict(zip(self._names, self.parameters.split(leaf), strict=True))
            loss = self._objective.loss(values, *batch)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    def _advance(self, *tensors: Tensor) -> Tensor:
        state, (rates, *batch) = tensors[:5], tensors[5:]
        loss, gradient = self.loss_and_gradient(state[0], *batch)
        self._move(state, rates, gradient)
        return loss

    def _accumulate(self, vector: Tensor, total: Tensor, share: Tensor, *part: Tensor) -> Tensor:
        loss, gradient = self.loss_and_gradient(vector, *part)
        total.add_(gradient * share)
        return loss * share

    def _move(self, state: tuple[Tensor, ...], rates: Tensor, gradient: Tensor) -> None:
        vector, mean, square, average, clipped = state
        if self._clip is not None:
            gradient, bit = clip_norm(gradient, self._clip)
            clipped.add_(bit)
        adam(vector, mean, square, gradient, rates[:2])
        average.lerp_(vector, rates[2])

    # -- what they are given ----------------------------------------------------------------------

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.parameters.vector, self._mean, self._square, self.average, self.clipped

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let something run without a trace: generators and buffers come back to what they were."""
        device, module = self.parameters.vector.device, self.parameters.module
        buffers = [(b, b.clone()) for b in module.buffers()]
        with apart(device):
            yield
        for buffer, before in buffers:
            buffer.copy_(before)

    def _agrees(
        self,
        batch_at: int,
        factor: float,
        clip: float | None,
        run: Callable[..., Tensor],
        tensors: tuple[Tensor, ...],
    ) -> bool:
        """Say whether loss and gradient of a call are those of Pyro's own ``Trace_ELBO``.

        Args:
            batch_at: Where the batch begins among the tensors. The second of them, from zero, ends
                as ``factor`` times the gradient where the third is one.
            factor: As said.
            clip: Longest that the gradient may be.
            run: What is called.
            tensors: What with.
        """
        own = [t.clone() for t in tensors[:batch_at]]
        own[1].zero_()
        own[2].fill_(1.0)
        with self._aside():
            loss = run(*own, *tensors[batch_at:])
        with self._aside(), torch.enable_grad():
            expected = self._objective.stock_loss(*tensors[batch_at:])
            gradient, expected = self.parameters.gradient(expected), expected.detach()
        if clip is not None:
            gradient, _ = clip_norm(gradient, clip)
        near = AGREEMENT[gradient.dtype]
        gap = float((own[1] / factor - gradient).norm())
        same = abs(float(loss) - float(expected)) <= near * (1.0 + abs(float(expected)))
        finite = math.isfinite(float(expected)) and bool(gradient.isfinite().all())
        return not finite or (same and gap <= near * (1e-6 + float(gradient.norm())))
