"""The objective: Pyro's ELBO of a model and a guide as a function of one flat vector."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import functional_call

from pyralloy.model import local_parameters
from pyralloy.networks import evaluating

__all__ = ["FlatParameters", "Objective", "PathwiseELBO", "empty_guide"]

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
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("model has no trainable parameters: there is nothing to fit.")
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.module, self._parameters = module, parameters
        for p, value in zip(parameters, self.split(self.vector), strict=True):
            p.data = value
        self._kept, self._kept_buffers = self.vector.clone(), [b.clone() for b in module.buffers()]

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut vectors (..., P) into views of the parameters' shapes, in their order."""
        parts = vector.split([p.numel() for p in self._parameters], -1)
        lead = vector.shape[:-1]
        return [part.view(lead + p.shape) for part, p in zip(parts, self._parameters, strict=True)]

    def names_in(self, module: nn.Module) -> list[str]:
        """Give the names that another module, of which this one is a part, has for them."""
        names = {id(p): name for name, p in module.named_parameters()}
        return [names[id(p)] for p in self._parameters]

    def gradient(self, loss: Tensor) -> Tensor:
        """Differentiate a loss by the parameters, as one vector (P,)."""
        parts = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        whole = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(parts, self._parameters, strict=True)
        ]
        return torch.cat([g.reshape(-1) for g in whole])

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
        """Give each parameter a tensor of its own again."""
        for p in self._parameters:
            p.data = p.data.clone()


class PathwiseELBO(Trace_ELBO):
    """Pyro's ``Trace_ELBO`` for guides with pathwise gradients, as one differentiable expression.

    Value and gradients are those of ``Trace_ELBO``, which reads numbers out of tensors on its way
    and so cannot be captured as a graph.

    Args:
        num_particles: Draws from the guide that are averaged.
        analytic_kl: Whether to integrate the divergence of a site of the guide from that of the
            model where torch knows it, as ``TraceMeanField_ELBO`` does; for guides whose sites are
            independent. Elsewhere it is estimated by the draws.

    References:
        Ranganath, R., Gerrish, S., & Blei, D. M. (2014). Black box variational inference. AISTATS.
        arXiv:1401.0118. Kingma, D. P., & Welling, M. (2014). Auto-encoding variational Bayes.
        ICLR. arXiv:1312.6114
    """

    def __init__(self, num_particles: int = 1, *, analytic_kl: bool = False) -> None:
        super().__init__(num_particles=num_particles)
        self._analytic_kl = analytic_kl

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Evaluate minus the ELBO, a scalar tensor."""
        particles = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            elbo = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            particles.append(elbo + self._integrated(model_trace, guide_trace))
        return -sum(particles[1:], particles[0]) / self.num_particles

    def _integrated(self, model_trace: Any, guide_trace: Any) -> Tensor | float:
        """Give what the ELBO gains where a drawn divergence gives way to the integral."""
        gain = 0.0
        for name, site in guide_trace.nodes.items() if self._analytic_kl else ():
            other = model_trace.nodes.get(name)
            if site["type"] != "sample" or other is None or site["mask"] is not None:
                continue
            try:
                divergence = kl_divergence(site["fn"], other["fn"])
            except NotImplementedError:
                continue
            drawn = site["log_prob_sum"] - other["log_prob_sum"]
            gain = gain + drawn - (divergence * site["scale"]).sum()
        return gain


class Objective:
    """Evaluate minus the ELBO a row, as a function of the parameters and a minibatch.

    Args:
        model: Pyro model, called as ``model(x, y, size=size, standard=True)``, with the weights of
            the rows after ``y`` where there are any.
        guide: Pyro guide of the same arguments.
        size: Rows that the whole training set counts as, to which minibatches are scaled.
        elbo: How to estimate it; None takes one draw from the guide.

    Attributes:
        module: The ELBO of model and guide as a module.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: Callable[..., Any],
        size: float,
        elbo: PathwiseELBO | None = None,
    ) -> None:
        elbo = elbo or PathwiseELBO()
        # Pyro calls a guide of any kind, whatever its annotation says.
        self.module = elbo(model, guide)  # pyright: ignore[reportArgumentType]
        self._stock = Trace_ELBO(elbo.num_particles)(model, guide)  # pyright: ignore[reportArgumentType]
        self._size = size

    def loss(self, parameters: dict[str, Tensor], *batch: Tensor) -> Tensor:
        """Evaluate the loss, a scalar, of parameters by their names in :attr:`module`."""
        options = {"size": self._size, "standard": True}
        return functional_call(self.module, parameters, batch, options) / self._size

    def stock_loss(self, *batch: Tensor) -> Tensor:
        """Evaluate the loss at the modules' own parameters by Pyro's own ``Trace_ELBO``."""
        return self._stock(*batch, size=self._size, standard=True) / self._size
