"""Whitening: a potential of weights that no longer differ in scale, captured as one graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyralloy.inference.graphs import simplify
from pyralloy.inference.matrices import quicken
from pyralloy.inference.potential import Potential

__all__ = ["Captured", "Whitened"]


class Whitened:
    r"""A potential as a function of u, where :math:`w = m + s u`, number by number.

    Weights of a network differ in scale by factors of hundreds, as much as the data say of them; u
    hardly do, and a step that suits one of them suits all. The full curvature at m would also tell
    how they depend on each other, but only there: away from the one most probable place, where
    chains spend their time, it misleads, and steps are less than half as long.

    Attributes:
        potential: The function of w.
        centre: m, shape (P,).
        sizes: s, shape (P,).
    """

    def __init__(self, potential: Potential) -> None:
        self.potential, self.centre = potential, potential.start
        self.sizes = torch.ones_like(self.centre)

    def aim(self, vector: Tensor) -> None:
        """Put the centre there, in place."""
        self.centre.copy_(vector)
        self.sizes.copy_(self.potential.sizes(vector))

    def weights(self, u: Tensor, centre: Tensor, sizes: Tensor) -> Tensor:
        """Give w, shape (P,)."""
        return centre + sizes * u

    def __call__(self, u: Tensor, centre: Tensor, sizes: Tensor) -> Tensor:
        """Evaluate at u, shape (P,)."""
        return self.potential(self.weights(u, centre, sizes))


class Captured:
    """A whitened potential and its gradient as one graph, which autograd takes for a function.

    Args:
        whitened: The function.
        hasten: Whether to compile the graph too, which takes some seconds and then saves two thirds
            of each evaluation's time; where there is no compiler, it runs as captured.

    Attributes:
        whitened: As given.
        calls: How often it was evaluated.
    """

    def __init__(self, whitened: Whitened, *, hasten: bool) -> None:
        def both(u: Tensor, centre: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
            u = u.detach().requires_grad_()
            energy = whitened(u, centre, sizes)
            (gradient,) = torch.autograd.grad(energy, u)
            return energy.detach(), gradient

        self.whitened, self.calls = whitened, 0
        origin = torch.zeros_like(whitened.centre)
        arguments = (origin, whitened.centre, whitened.sizes)
        graph = simplify(make_fx(both)(*arguments), arguments)
        self._graph: Callable[..., tuple[Tensor, Tensor]] = graph
        if hasten:
            quicken(graph, arguments)
            self._graph = _compiled(graph, arguments)

    def aim(self, vector: Tensor) -> None:
        """Whiten about a vector of weights (P,)."""
        self.whitened.aim(vector)

    def __call__(self, values: dict[str, Tensor]) -> Tensor:
        """Evaluate at the one site ``"u"``, as Pyro's kernels ask."""
        self.calls += 1
        return _Known.apply(values["u"], self)

    def evaluate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Give energy and gradient."""
        with torch.no_grad():
            return self._graph(u, self.whitened.centre, self.whitened.sizes)


def _compiled(graph: Callable[..., Any], arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
    try:
        compiled = torch.compile(graph, fullgraph=True, dynamic=False)
        with torch.no_grad():
            compiled(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever a compiler lacks, the graph runs as it is
        warnings.warn(
            f"the potential runs uncompiled, at a third of the speed: {error}", stacklevel=4
        )
        return graph
    return compiled


class _Known(torch.autograd.Function):
    """A function whose gradient comes with its value."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: Captured) -> Tensor:
        """Evaluate both, and keep the gradient."""
        energy, gradient = slope.evaluate(u.detach())
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Give the gradient that was kept."""
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None
