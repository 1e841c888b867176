"""The objective: Pyro's ELBO of a model and a guide, and its gradient on one flat vector."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyralloy.model import local_parameters
from pyralloy.networks import evaluating

__all__ = ["FlatParameters", "Objective", "empty_guide"]

#: Pyro's runtime is one global stack, so fits in several threads take turns.
LOCK = threading.RLock()


def empty_guide(*_args: Any, **_kwargs: Any) -> None:
    """Guide without latent variables: the ELBO then is the log likelihood."""


@contextmanager
def pyro_runtime() -> Iterator[None]:
    """Hold Pyro's runtime for a fit: parameters stay in their modules, checks stay off.

    The global parameter store is neither read nor written, so two models whose parameters have the
    same names never meet. Data was checked at the door, so distributions are not validated again.
    """
    with (
        LOCK,
        local_parameters(),
        pyro.validation_enabled(False),
    ):
        yield


class FlatParameters:
    """The trainable parameters of a module as views of one vector.

    An optimiser then takes one step on one tensor, however many layers there are; and a copy of
    the vector is a copy of the model.

    Args:
        module: Its parameters are moved into the vector; they stay its own, of the same values.

    Attributes:
        module: As given.
        vector: All parameters, shape (P,).
        gradient: Their gradients, shape (P,), filled by ``backward``.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("model has no trainable parameters: there is nothing to fit.")
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.gradient = torch.zeros_like(self.vector)
        sizes = [p.numel() for p in parameters]
        for p, value, slope in zip(
            parameters, self.vector.split(sizes), self.gradient.split(sizes), strict=True
        ):
            p.data = value.view_as(p)
            p.grad = slope.view_as(p)  # backward adds in place to a gradient that exists
        self.module, self._parameters = module, parameters
        self._kept, self._kept_buffers = self.vector.clone(), [b.clone() for b in module.buffers()]

    def keep(self, values: Tensor) -> None:
        """Note weights to end with, shape (P,), and the module's buffers as they are now."""
        self._kept.copy_(values)
        self._kept_buffers = [b.clone() for b in self.module.buffers()]

    def state(self) -> dict[str, Tensor]:
        """Give what was kept, and the module's buffers; the vector is the optimiser's to give."""
        names = [name for name, _ in self.module.named_buffers()]
        kept = zip(names, self._kept_buffers, strict=True)
        own = {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}
        return {"kept": self._kept, **own, **{f"kept_buffer.{name}": b for name, b in kept}}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @contextmanager
    def ending_with_kept(self) -> Iterator[None]:
        """Put into the module what was kept, whatever ends the training."""
        self.keep(self.vector)
        try:
            yield
        finally:
            self.vector.copy_(self._kept)
            for buffer, kept in zip(self.module.buffers(), self._kept_buffers, strict=True):
                buffer.copy_(kept)

    @contextmanager
    def holding(self, values: Tensor) -> Iterator[None]:
        """Let the module be looked at with other values, shape (P,): no gradients, no dropout."""
        own = self.vector.clone()
        self.vector.copy_(values)
        try:
            with evaluating(self.module):
                yield
        finally:
            self.vector.copy_(own)

    def release(self) -> None:
        """Give each parameter a tensor of its own again, and drop the gradients."""
        for p in self._parameters:
            p.data = p.data.clone()
            p.grad = None


class Objective:
    """Evaluate minus the ELBO a row, and its gradient, on a minibatch.

    Args:
        model: Pyro model, called as ``model(x, y, size=size, standard=True)``, with the weights of
            the rows after ``y`` where there are any.
        guide: Pyro guide of the same arguments.
        size: Rows in the whole training set, to which minibatches are scaled.
    """

    def __init__(self, model: nn.Module, guide: Callable[..., Any], size: int) -> None:
        # Pyro calls a guide of any kind, whatever its annotation says.
        self._elbo = Trace_ELBO()(model, guide)  # pyright: ignore[reportArgumentType]
        self._size = size

    def backward(self, *batch: Tensor) -> Tensor:
        """Add the gradient to the parameters' ``grad`` and give the loss, a scalar tensor."""
        loss = self._elbo(*batch, size=self._size, standard=True) / self._size
        loss.backward()
        return loss.detach()
