"""Lanes: networks of one shape trained side by side, as one leading dimension."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.modules.dropout import _DropoutNd

from pyralloy.inference.clipping import clip_norm
from pyralloy.inference.engine import AGREEMENT, MEAN_DECAY, adam, rates_of
from pyralloy.inference.objective import FlatParameters, Objective, empty_guide
from pyralloy.inference.products import Products
from pyralloy.inference.program import Program
from pyralloy.inference.rows import Rows
from pyralloy.inference.stretch import MOST_ROWS, gain, tried
from pyralloy.inference.training import Plan
from pyralloy.model import MDN
from pyralloy.networks import evaluating
from pyralloy.seeds import apart

__all__ = ["Lanes"]

#: Components of all lanes' densities that are evaluated at once.
AT_ONCE = 2_000_000


class Lanes:
    """Take steps of M networks of one shape at once, each on a batch of its own.

    Products of layers become batched products, and what Python does for a step is done once; each
    lane's weights are those it would have alone, to rounding. Training is by maximum likelihood.
    Runs inside Pyro's runtime.

    Args:
        models: Of equal parts; their weights are where training starts.
        size: Rows that the whole training set counts as.
        plan: How to train.

    Attributes:
        weights: Of all lanes, shape (M, P).
        average: Their running average, (M, P).
    """

    def __init__(self, models: list[MDN], size: float, plan: Plan) -> None:
        self._flats = [FlatParameters(model) for model in models]
        self.weights = torch.stack([flat.vector for flat in self._flats])
        self.average = self.weights.clone()
        self._mean, self._square = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self._model, self._plan, self._steps = models[0], plan, 0
        self._y_ndim = 1 if models[0].head.targets is None else 2
        self._objectives = [Objective(model, empty_guide, size) for model in models]
        self._names = self._flats[0].names_in(self._objectives[0].module)
        self._own_names = self._flats[0].names_in(self._model)
        self._program = Program(
            self._advance, compiling=plan.compile, aside=self._aside, agrees=self._agrees
        )

    def step(self, batch: tuple[Tensor, ...], learning_rate: float) -> Tensor:
        """Take a step of each lane, on batches (M, B, ...); give the losses before it, (M,)."""
        self._steps += 1
        self._program.left = self._plan.max_steps - self._steps
        rates = rates_of(self._steps, learning_rate, self.weights)
        with torch.no_grad():
            state = self.weights, self._mean, self._square, self.average
            return self._program(*state, rates, *batch)

    @torch.no_grad()
    def scores(self, values: Tensor, rows: Rows, stretch: Tensor | None = None) -> Tensor:
        """Evaluate log densities (M, N) of standardised rows under weights ``values`` (M, P).

        The rows are the same for all lanes, or have a leading dimension of them. With ``stretch``
        (G, 1, 1) it is of shape (M, G, N).
        """
        own = rows.y.ndim > self._y_ndim

        def one(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self._model.network(x, self.named(vector), stretch=stretch).log_prob(y)

        lanes = 0 if own else None
        every = vmap(one, in_dims=(0, lanes, lanes))
        times = 1 if stretch is None else len(stretch)
        chunk = max(1, AT_ONCE // (times * len(values) * self._model.head.components))
        parts = zip(rows.x.split(chunk, int(own)), rows.y.split(chunk, int(own)), strict=True)
        with evaluating(self._model):
            return torch.cat([every(values, x, y) for x, y in parts], -1)

    def gains(self, values: Tensor, rows: Rows) -> Tensor:
        """Give how much less each lane's loss (M,) would be, were its components stretched."""
        if not self._model.head.stretches:
            return torch.zeros(len(values), dtype=torch.float64)
        some = rows.spaced(MOST_ROWS, int(rows.y.ndim > self._y_ndim))
        return gain(self.scores(values, some, tried(values)), some.weights)

    def named(self, vectors: Tensor) -> dict[str, Tensor]:
        """Cut weights (..., P) into those of each layer, by the names the model has for them."""
        return dict(zip(self._own_names, self._flats[0].split(vectors), strict=True))

    def end(self, values: Tensor) -> None:
        """Put weights (M, P) into the models, and leave them to themselves."""
        for flat, value in zip(self._flats, values, strict=True):
            flat.vector.copy_(value)
            flat.release()

    # -- functions of tensors, which may be captured ----------------------------------------------

    def _loss(self, vector: Tensor, *batch: Tensor) -> Tensor:
        values = dict(zip(self._names, self._flats[0].split(vector), strict=True))
        return self._objectives[0].loss(values, *batch)

    def _advance(self, *tensors: Tensor) -> Tensor:
        weights, mean, square, average, rates, *batch = tensors
        with torch.enable_grad():
            leaf = weights.detach().requires_grad_()
            with Products():
                losses = vmap(self._loss, randomness="different")(leaf, *batch)
            # Lanes do not touch: the gradient of their sum is each lane's own.
            (gradients,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses))
        gradients, losses = self._clipped(gradients), losses.detach()
        adam(weights, mean, square, gradients, rates[:2])
        average.lerp_(weights, rates[2])
        return losses

    def _clipped(self, gradients: Tensor) -> Tensor:
        clip = self._plan.clip
        if clip is None:
            return gradients
        return vmap(lambda gradient: clip_norm(gradient, clip)[0])(gradients)

    # -- what a program asks ----------------------------------------------------------------------

    def _aside(self) -> AbstractContextManager[None]:
        return apart(self.weights.device)

    def _agrees(self, run: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> bool:
        """Say whether each lane's loss and gradient are those of Pyro's own ``Trace_ELBO``."""
        if any(isinstance(part, _DropoutNd) for part in self._model.modules()):
            return True  # lanes draw their noise together, and a network alone draws other noise
        state = [t.clone() for t in tensors[:4]]
        state[1].zero_()
        losses = run(*state, *tensors[4:])
        near, batch = AGREEMENT[losses.dtype], tensors[5:]
        for lane, (flat, objective) in enumerate(zip(self._flats, self._objectives, strict=True)):
            flat.vector.copy_(tensors[0][lane])
            with torch.enable_grad():
                expected = objective.stock_loss(*(t[lane] for t in batch))
                gradient = self._clipped(flat.gradient(expected)[None])[0]
            expected = float(expected.detach())
            gap = float((state[1][lane] / (1.0 - MEAN_DECAY) - gradient).norm())
            same = abs(float(losses[lane]) - expected) <= near * (1.0 + abs(expected))
            finite = bool(gradient.isfinite().all())
            if finite and not (same and gap <= near * (1e-6 + float(gradient.norm()))):
                return False
        return True
