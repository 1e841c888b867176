"""Recovery: what happens when a loss or a weight is no longer finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyralloy.inference.engine import Engine

__all__ = ["Diverged", "Recovery"]

#: How often a fit goes back before it gives up; the rate then is a 256th.
MOST_RETURNS = 8

#: Rows of a batch that are looked at one by one, to name those that are not finite.
MOST_NAMED = 256


class Diverged(FloatingPointError):
    """A loss is no longer finite, however low the rate; the model holds the best weights before.

    Attributes:
        step: Where it last happened.
        rows: Standardised x and y of the rows whose loss or gradient is not finite at the last
            finite weights: empty where it is no single row's fault.
    """

    def __init__(self, message: str, step: int = 0, rows: tuple[Tensor, ...] = ()) -> None:
        super().__init__(message)
        self.step, self.rows = step, rows


class Recovery:
    """Go back to the last finite state and on at half the rate, at most eight times.

    The steps between are not taken again: schedule and batches go on, so that a batch that cannot
    be learnt from is passed by, and a rate that was too high is lower from then on.

    Args:
        engine: What takes the steps; its state now is the first to go back to.
        noisy: Whether the inputs of batches have noise, for the error to say so.

    Attributes:
        factor: What rates are to be multiplied by, 1 until something was not finite.
        steps: The steps from which it went back.
    """

    def __init__(self, engine: Engine, *, noisy: bool = False) -> None:
        self.factor, self.steps, self._noisy = 1.0, [], noisy
        self._engine = engine
        self._good = {name: tensor.clone() for name, tensor in self._now().items()}
        self._step = 0
        self._last = "loss", math.nan, 0
        self._batches: list[tuple[Tensor, ...]] = []

    def accepts(self, name: str, value: float, step: int, batch: tuple[Tensor, ...] = ()) -> bool:
        """Say whether a value is finite, or else go back.

        Args:
            name: What it is, for the error.
            value: A loss, or a sum of weights.
            step: Where it was met.
            batch: Rows that it comes from.

        Raises:
            Diverged: It went back as often as it may.
        """
        if batch:
            # A gradient that is not finite shows in the loss of the batch after it.
            self._batches = [*self._batches[-1:], batch]
        if math.isfinite(value):
            return True
        self._last = name, value, step
        self._engine.load({key: self._good[key] for key in self._engine.state()})
        for key, buffer in self._buffers().items():  # running statistics saw the same rows
            buffer.copy_(self._good[key])
        self.steps.append(step)
        if len(self.steps) > MOST_RETURNS:
            raise self.error()
        self.factor *= 0.5
        return False

    def note(self, step: int) -> None:
        """Take the state now, whose weights are finite, as the one to go back to."""
        state = self._now()
        if all(bool(state[name].isfinite().all()) for name in self._engine.state()):
            for name, tensor in state.items():
                self._good[name].copy_(tensor)
            self._step = step

    def state(self) -> dict[str, Tensor]:
        """Give what a resumed fit needs: the state to go back to, and the steps that failed."""
        numbers = [self.factor, float(self._step), *map(float, self.steps)]
        return self._good | {"returns": torch.tensor(numbers, dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self._good = {name: v.clone() for name, v in state.items() if name != "returns"}
        self.factor, step, *steps = state["returns"].tolist()
        self._step, self.steps = int(step), [int(s) for s in steps]

    def _buffers(self) -> dict[str, Tensor]:
        named = self._engine.parameters.module.named_buffers()
        return {f"buffer {name}": buffer for name, buffer in named}

    def _now(self) -> dict[str, Tensor]:
        return self._engine.state() | self._buffers()

    def error(self) -> Diverged:
        """Make the error that says what was not finite last, and which rows are to blame."""
        name, value, step = self._last
        rows, looked = self._rows_to_blame()
        noise, remedy = (", with noise,", "x_noise or ") if self._noisy else ("", "")
        blame = (
            f"no row by itself is the cause at the last finite weights: lower {remedy}learning_rate"
            if not rows
            else f"at the last finite weights {len(rows[0])} of the {looked} rows last seen have "
            f"no finite loss and gradient by themselves (standardised x{noise} and y of the first: "
            f"{rows[0][0].tolist()}, {rows[1][0].tolist()}): look at those rows, and at the trunk, "
            f"or lower {remedy}learning_rate"
        )
        return Diverged(
            f"the {name} became {value} at step {step}, after {len(self.steps) - 1} returns to "
            f"finite weights (at last those of step {self._step}), each to half the rate; {blame}. "
            "The model holds the best weights before.",
            step,
            rows,
        )

    def _rows_to_blame(self) -> tuple[tuple[Tensor, ...], int]:
        """Give the rows of the last batches with a loss or gradient that is not finite."""
        if not self._batches:
            return (), 0
        x, y = (torch.cat([b[i] for b in self._batches])[:MOST_NAMED] for i in (0, 1))
        engine, bad = self._engine, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for row in range(len(x)):
            one = x[row : row + 1], y[row : row + 1]
            loss, gradient = engine.loss_and_gradient(engine.parameters.vector, *one)
            bad[row] = not bool(loss.isfinite() & gradient.isfinite().all())
        return ((x[bad], y[bad]) if bool(bad.any()) else ()), len(x)
