"""The mixture head: features in, a ``Mixture`` out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyralloy.checks import integer, positive
from pyralloy.families import (
    SCALE_CEILING,
    SCALE_FLOOR,
    Family,
    Spread,
    VectorFamily,
    find_family,
)
from pyralloy.mixture import Mixture

__all__ = ["MixtureHead"]


class MixtureHead(nn.Module):
    r"""Parameterise a mixture by a linear map of features.

    .. math:: p(y \mid h) = \sum_k w_k(h) f(y; \theta_k(h)),
              \qquad w(h) = \mathrm{softmax}(A h + a)

    Locations are free; the log of each scale lies between a soft floor and a soft ceiling, 1/500
    and 100 times ``spread``, so that no output of the network makes a density infinite or zero.
    Where some rows of y lie farther out than that, :meth:`widen` raises the ceiling to them.

    Args:
        in_features: Width H of the features.
        components: Number of components K.
        targets: None for a scalar y, else the number D of dimensions of a vector y.
        family: Kind of component: a name in :data:`pyralloy.families.FAMILIES`, for instance
            ``"normal"``, ``"student_t"``, ``"gamma"`` or ``"poisson"``, or a
            :class:`~pyralloy.families.Family`, for instance one on an interval of your own.
        covariance: Of a vector y within a component: ``"diagonal"`` for dimensions that are
            independent there (and dependent through the mixture); for Normal and Student's t also
            ``"full"``, of D (D + 1) / 2 numbers, or ``"low_rank"``, of D (1 + rank).
        rank: Number of factors of a low-rank covariance; None means 1.
        spread: Standard deviation of y in the units the head works in; 1 where y is standardised.
        constant_scale: Whether scales ignore the features. One Normal component of constant scale
            is least squares.

    Attributes:
        octaves: Power of two by which the ceiling is raised, a buffer of shape ().
        wider: Log of what all widths are multiplied by beside the weights, a buffer of shape ().

    Raises:
        TypeError: A size that is no integer, a spread that is no number.
        ValueError: A size below 1, a spread not above 0, an unknown family or covariance, or
            arguments that do not go together.

    References:
        Bishop, C. M. (1994). Mixture density networks. Aston University, NCRG/94/004.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), MixtureHead(16, components=4))
        >>> density = net(torch.zeros(5, 3))
        >>> density.batch_shape, density.num_components
        (torch.Size([5]), 4)
        >>> loss = -density.log_prob(torch.zeros(5)).mean()
    """

    octaves: Tensor
    wider: Tensor

    def __init__(
        self,
        in_features: int,
        components: int,
        targets: int | None = None,
        *,
        family: str | Family = "normal",
        covariance: str = "diagonal",
        rank: int | None = None,
        spread: float = 1.0,
        constant_scale: bool = False,
    ) -> None:
        super().__init__()
        integer("in_features", in_features)
        integer("components", components)
        if targets is not None:
            integer("targets", targets)
        self.family = find_family(family, targets, covariance, rank)
        if constant_scale and not (covariance == "diagonal" and self.family.name == "normal"):
            raise ValueError(
                f"constant_scale needs Normal components of diagonal covariance, not of "
                f"{self.family.name!r}."
            )
        self.in_features, self.components, self.targets = in_features, components, targets
        self.spread, self.constant_scale = Spread(positive("spread", spread)), constant_scale
        # How far the ceiling is raised, as a power of two: exact in any dtype, kept with the state.
        self.register_buffer("octaves", torch.zeros(()))
        self.register_buffer("wider", torch.zeros(()))
        self._wider = 0.0  # what the buffer holds, known without asking a device
        self.register_load_state_dict_post_hook(_follow_buffers)
        if isinstance(self.family, VectorFamily):
            self._dims = (targets or 1,)
            outputs = self.family.outputs_for(*self._dims)
        else:
            self._dims, outputs = (), self.family.outputs
        # The logits of all components, then each raw output of all components.
        self.outputs = nn.Linear(in_features, (1 + outputs) * components)

    def forward(self, features: Tensor, stretch: Tensor | None = None) -> Mixture:
        """Map features (..., H) to a ``Mixture`` of batch shape (...), event shape () or (D,).

        Args:
            features: What the trunk gives.
            stretch: Logs of what widths are multiplied by, between floor and ceiling, here only:
                broadcastable with (..., K); :meth:`stretch` makes it so for good.
        """
        return self.mixture(self.raw(features), stretch)

    @torch.no_grad()
    def stretch(self, amount: float) -> None:
        """Make the widths of all components exp(``amount``) times as large, wherever x is."""
        raw = self.outputs.bias.view(-1, self.components)[1:]  # (P, K)
        raw[list(self._widths)] += amount

    @torch.no_grad()
    def stretch_beside(self, amount: float) -> None:
        """Stretch as :meth:`stretch` does, whatever the weights are: draws of them as well."""
        self.wider += amount
        _follow_buffers(self)

    @property
    def stretches(self) -> bool:
        """Whether components have widths to stretch; those of a Poisson follow from its mean."""
        return bool(self._widths)

    @property
    def _widths(self) -> tuple[int, ...]:
        """Say which raw outputs are logs of a width."""
        if self.constant_scale:
            return ()
        if isinstance(self.family, VectorFamily):
            return self.family.widths_for(*self._dims)
        return self.family.widths

    def raw(self, features: Tensor) -> list[Tensor]:
        """Map features (..., H) to the logits and P raw outputs of components, (..., K) each.

        Scales that are constant are of shape (K,).
        """
        logits, *raw = self._outputs(features)
        if self.constant_scale:  # locations and log-scales take turns
            scales = self.outputs.bias.split(self.components)[2::2]  # (K,) each
            raw = itertools.chain(*zip(raw[::2], scales, strict=True))
        return [logits, *raw]

    def mixture(self, raw: Sequence[Tensor], stretch: Tensor | None = None) -> Mixture:
        """Make the density of what :meth:`raw` gives; ``stretch`` is that of :meth:`forward`."""
        logits, *raw = raw
        if self._wider or stretch is not None:
            wider = self._wider if stretch is None else self._wider + stretch
            for place in self._widths:
                raw[place] = raw[place] + wider
            logits, *raw = torch.broadcast_tensors(logits, *raw)
        component = self.family.from_raw(raw, self.spread, *self._dims)
        return Mixture(dist.Categorical(logits=logits), component)

    def _outputs(self, features: Tensor) -> list[Tensor]:
        """Map features (..., H) to all outputs, (..., K) each."""
        layer = self.outputs
        if features.ndim != 2:
            return list(layer(features).split(self.components, -1))
        # Rows lie side by side in memory: sums over components run along whole vectors of rows.
        columns = torch.addmm(layer.bias[:, None], layer.weight, features.T)  # ((1 + P) K, N)
        return [part.T for part in columns.split(self.components)]

    @torch.no_grad()
    def widen(self, reach: float) -> None:
        """Raise the ceiling of scales by the power of two at or above ``reach``; below 1, to none.

        The floor stays: it follows the bulk of y, and the ceiling its farthest rows.
        """
        self.octaves.fill_(math.ceil(math.log2(max(1.0, reach))))
        _follow_buffers(self)

    @torch.no_grad()
    def place(
        self, loc: Tensor, scale: Tensor, weights: Tensor | None = None, *, bias_only: bool = False
    ) -> None:
        """Start the components at given places, almost or wholly independent of x.

        Args:
            loc: Shape (K,) or (K, D), in the units the head works in.
            scale: Spread of each component, likewise; between the head's floor and ceiling.
            weights: Of the components, shape (K,), above 0; None for equal ones.
            bias_only: Whether the features are to count for nothing, rather than for a little.

        Raises:
            ValueError: A shape other than these, or a scale out of reach.
        """
        wanted = (self.components, *self._dims)
        for name, values in (("loc", loc), ("scale", scale)):
            if values.shape != wanted:
                raise ValueError(
                    f"{name} has shape {tuple(values.shape)}: give {wanted}, one place a component."
                )
        low, high = SCALE_FLOOR * self.spread, SCALE_CEILING * self.spread * self.spread.reach
        if self.family.support.shifts and not bool(((scale > low) & (scale < high)).all()):
            raise ValueError(
                f"scale runs from {float(scale.min()):g} to {float(scale.max()):g}: this head's "
                f"scales lie between {low:g} and {high:g}, which its spread sets."
            )
        self.stretch_beside(-self._wider)
        raw = self.family.to_raw(loc, scale, self.spread)
        self.outputs.weight.mul_(0.0 if bias_only else 0.1)
        logits, rest = self.outputs.bias.tensor_split([self.components])
        logits.copy_(torch.zeros_like(logits) if weights is None else weights.log())
        rest.copy_(raw.transpose(0, 1).flatten())  # (P, K)

    def extra_repr(self) -> str:
        """Describe the head in ``print(model)``."""
        return f"components={self.components}, targets={self.targets}, family={self.family.name}"


def _follow_buffers(head: MixtureHead, _keys: Any = None) -> None:
    """Read the ceiling and the stretch from the buffers, where a state that was loaded has them."""
    if not head.octaves.is_meta:
        head._wider = float(head.wider)
        head.spread = Spread(float(head.spread), 2.0 ** float(head.octaves))
