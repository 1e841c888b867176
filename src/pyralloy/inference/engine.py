"""The engine: one step of training, from a batch to new weights and their running average."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyralloy.inference.clipping import clip_norm
from pyralloy.inference.objective import FlatParameters, Objective

__all__ = ["Adam", "Engine"]

#: Decay of the running average of the weights, a step; at the start it is shorter.
AVERAGING = 0.98


class Adam:
    """Adam on one vector (Kingma & Ba 2015), without torch's optimiser classes.

    Their constructor imports torch's compiler, which takes longer than a small fit does.

    References:
        Kingma, D. P., & Ba, J. (2015). Adam: a method for stochastic optimization. ICLR.
        arXiv:1412.6980
    """

    def __init__(self, vector: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self._vector, self._betas, self.steps = vector, betas, 0
        self.mean, self.square = torch.zeros_like(vector), torch.zeros_like(vector)

    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """Move the vector, in place, and set the gradient to zero."""
        self.steps += 1
        first, second = self._betas
        self.mean.lerp_(gradient, 1.0 - first)
        self.square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        correction = math.sqrt(1.0 - second**self.steps)
        spread = self.square.sqrt().div_(correction).add_(1e-8)
        self._vector.addcdiv_(self.mean, spread, value=-learning_rate / (1.0 - first**self.steps))
        gradient.zero_()


class Engine:
    """Take steps of Adam on minibatches, and keep a running average of the weights.

    Args:
        objective: The loss, and its gradient.
        parameters: What is trained, in place.
        clip: Longest that a gradient may be; None leaves it as it is.

    Attributes:
        parameters: As given.
        clipped: How many steps had a gradient that was longer, a scalar tensor.
        average: The running average of the weights, shape (P,).
    """

    def __init__(
        self, objective: Objective, parameters: FlatParameters, clip: float | None = None
    ) -> None:
        self.parameters, self.average = parameters, parameters.vector.clone()
        self.clipped = torch.zeros((), dtype=torch.int64, device=parameters.vector.device)
        self._clip = clip
        self._objective, self._adam = objective, Adam(parameters.vector)

    def step(self, batch: tuple[Tensor, ...], learning_rate: float) -> Tensor:
        """Take one step and give the loss before it, a scalar tensor."""
        loss = self._objective.backward(*batch)
        if self._clip is not None:
            shorter, bit = clip_norm(self.parameters.gradient, self._clip)
            self.parameters.gradient.copy_(shorter)
            self.clipped.add_(bit)
        self._adam.step(self.parameters.gradient, learning_rate)
        share = max(1.0 - AVERAGING, 9.0 / (9.0 + self._adam.steps))
        self.average.lerp_(self.parameters.vector, share)
        return loss

    def state(self) -> dict[str, Tensor]:
        """Give what a resumed fit needs, as tensors that live on: weights, moments, the count."""
        return {
            "weights": self.parameters.vector,
            "average": self.average,
            "clipped": self.clipped,
            "mean": self._adam.mean,
            "square": self._adam.square,
            "steps": torch.tensor(self._adam.steps),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self._adam.steps = int(state["steps"])
        for name, tensor in self.state().items():
            if name != "steps":
                tensor.copy_(state[name])
