"""Trunks: networks from inputs to features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from pyralloy.checks import integer
from pyralloy.numerics import spaced

__all__ = ["ACTIVATIONS", "MLP", "PiecewiseLinear", "evaluating"]

#: Activations by the name that opens them at the door.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


#: Rows whose quantiles are taken; more would not move them by much.
MOST_ROWS = 100_000


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


class PiecewiseLinear(nn.Module):
    r"""Encode each input by how far it lies through each of the bins between its quantiles.

    .. math:: e_b(x) = \min\Bigl(\tfrac12, \max\Bigl(-\tfrac12,
              \frac{x - (q_{b-1} + q_b) / 2}{q_b - q_{b-1}}\Bigr)\Bigr), \qquad b = 1 \dots B

    Any piecewise linear function of an input, with bends at its quantiles q, is linear in its
    encoding: a network then learns the steps and the sharp bends that tables are full of, where
    inputs by themselves ask for large weights. The inputs themselves stay beside their encoding,
    which is constant beyond the data. Bins of no width, of an input with many equal values, are
    zero throughout.

    Args:
        in_features: Number of inputs F.
        bins: Number of bins B an input.

    Attributes:
        out_features: F (1 + B).
        middle, rate: Of the bins their middles, and one over their widths, buffers (F, B); those of
            a standard Normal until :meth:`fit`.

    Raises:
        TypeError, ValueError: A size that is no integer, or below 1.

    References:
        Gorishniy, Y., Rubachev, I., & Babenko, A. (2022). On embeddings for numerical features in
        tabular deep learning. NeurIPS. arXiv:2203.05556

    Example:
        >>> encode = PiecewiseLinear(1, bins=2).fit(torch.tensor([[0.0], [1.0], [3.0]]))
        >>> encode(torch.tensor([[0.5], [3.0], [9.0]])).tolist()
        [[0.5, 0.0, -0.5], [3.0, 0.5, 0.5], [9.0, 0.5, 0.5]]
    """

    middle: Tensor
    rate: Tensor

    def __init__(self, in_features: int, bins: int = 16) -> None:
        super().__init__()
        self.in_features, self.bins = integer("in_features", in_features), integer("bins", bins)
        self.out_features = in_features * (1 + bins)
        levels = torch.linspace(0.0, 1.0, bins + 1).clamp(1e-2, 1 - 1e-2)
        edges = torch.special.ndtri(levels).expand(in_features, -1)  # (F, B + 1)
        self.register_buffer("middle", (edges[:, 1:] + edges[:, :-1]) / 2)
        self.register_buffer("rate", 1.0 / edges.diff())

    @torch.no_grad()
    def fit(self, x: Tensor) -> Self:
        """Put the bins between quantiles of the columns of ``x`` (N, F), as numerous as they are.

        Of more than 100,000 rows, so many evenly spaced ones are looked at.
        """
        ordered = spaced(x, MOST_ROWS).sort(0).values
        places = torch.linspace(0, len(ordered) - 1, self.bins + 1).round().long()
        edges = ordered[places.to(x.device)].T  # (F, B + 1)
        width = edges.diff()
        # Of edges that differ by rounding alone no number lies between.
        least = 8 * torch.finfo(x.dtype).eps * edges.abs().amax(-1, keepdim=True)
        self.middle.copy_((edges[:, 1:] + edges[:, :-1]) / 2)
        self.rate.copy_(torch.where(width > least, 1.0 / width, 0.0))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., F) to itself and its encoding, (..., F + F B)."""
        bins = ((x[..., None] - self.middle) * self.rate).clamp(-0.5, 0.5)  # (..., F, B)
        return torch.cat([x, bins.flatten(-2)], -1)

    def extra_repr(self) -> str:
        """Describe the encoding in ``print(model)``."""
        return f"in_features={self.in_features}, bins={self.bins}"


class MLP(nn.Module):
    """Stack linear layers, each followed by an activation.

    Args:
        in_features: Number of inputs F, at least 1.
        hidden: Width of each layer; empty for none, when the features are the inputs.
        activation: Makes one activation, for instance ``nn.SiLU``.
        bins: Bins B of the :class:`PiecewiseLinear` encoding that the inputs go through first, for
            tables of unlike columns; 0 takes the inputs as they are.

    Attributes:
        encoding: The :class:`PiecewiseLinear`, whose bins a fit sets; None where ``bins`` is 0.
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
        *,
        bins: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise TypeError(f"hidden={hidden!r}: give a sequence of layer widths, as (64, 64).")
        encoded = integer("in_features", in_features)
        self.encoding = PiecewiseLinear(in_features, bins) if integer("bins", bins, 0) else None
        if self.encoding is not None:
            encoded = self.encoding.out_features
        sizes = [encoded, *(integer("hidden", h) for h in hidden)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        self.layers = nn.Sequential(*layers)
        self.in_features = in_features
        self.out_features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (N, F) to features (N, H)."""
        return self.layers(self.encoded(x))

    def encoded(self, x: Tensor) -> Tensor:
        """Give what the first layer is given of ``x``, (N, F) or (N, F + F B)."""
        return x if self.encoding is None else self.encoding(x)
