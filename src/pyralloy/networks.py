"""Trunks: networks from inputs to features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyralloy.checks import integer

__all__ = ["ACTIVATIONS", "MLP", "evaluating"]

#: Activations by the name that opens them at the door.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch dropout and its like off for a while, and gradients; every layer's mode comes back."""
    modes = [(m, m.training) for m in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class MLP(nn.Module):
    """Stack linear layers, each followed by an activation.

    Args:
        in_features: Number of inputs F, at least 1.
        hidden: Width of each layer; empty for none, when the features are the inputs.
        activation: Makes one activation, for instance ``nn.SiLU``.

    Attributes:
        out_features: Width H of the features, what a head needs to know.

    Raises:
        TypeError: A size that is no integer, or ``hidden`` that is no sequence.
        ValueError: A size below 1.

    Example:
        >>> MLP(3, hidden=(64, 64))(torch.zeros(5, 3)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise TypeError(f"hidden={hidden!r}: give a sequence of layer widths, as (64, 64).")
        sizes = [integer("in_features", in_features), *(integer("hidden", h) for h in hidden)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        self.layers = nn.Sequential(*layers)
        self.in_features = in_features
        self.out_features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (N, F) to features (N, H)."""
        return self.layers(x)
