"""Batches: which rows a step sees, as a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["BatchSource", "Batches", "Noisy", "Stream"]

#: Rows gathered at once: a shuffled copy of so many is the most that is held.
BLOCK = 65_536


class BatchSource(Protocol):
    """Where the loop takes its batches from."""

    def at(self, step: int) -> tuple[Tensor, ...]:
        """Give the batch of a step, counted from 0."""
        ...


class Batches:
    """An endless stream of shuffled rows, cut into batches of one size.

    Every row is used equally often, and the batch of a step depends on the seed and the step
    alone, so that a fit can be resumed at any of them. Rows are gathered a block at a time, which
    needs little memory beside the data; a batch is a slice of a block.

    Args:
        tensors: Of equal length N, on the device where training runs.
        size: Rows a batch; N or more means all rows, unshuffled.
        seed: Where the order comes from.
        index: Which rows to draw from, without repeats; None draws from all.

    Example:
        >>> batches = Batches((torch.arange(5),), size=2, seed=0)
        >>> drawn = torch.cat([batches.at(step)[0] for step in range(5)])
        >>> drawn.bincount().tolist()
        [2, 2, 2, 2, 2]
    """

    def __init__(
        self, tensors: tuple[Tensor, ...], size: int, seed: int, index: Tensor | None = None
    ) -> None:
        self._tensors, self._seed, self._index = tensors, seed, index
        self._rows = len(tensors[0] if index is None else index)
        self.size = min(size, self._rows)
        self._steps = max(1, min(BLOCK, self._rows) // self.size)  # of a block
        self._block: tuple[int, tuple[Tensor, ...]] = (-1, ())
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def at(self, step: int) -> tuple[Tensor, ...]:
        """Give the batch of a step."""
        if self.size == self._rows:
            if self._index is not None:
                self._tensors = tuple(t.index_select(0, self._index) for t in self._tensors)
                self._index = None
            return self._tensors
        number, within = divmod(step, self._steps)
        if self._block[0] != number:
            self._block = (number, self._gather(number * self._steps * self.size))
        start = within * self.size
        return tuple(t[start : start + self.size] for t in self._block[1])

    def _gather(self, start: int) -> tuple[Tensor, ...]:
        """Gather a block of rows that begins at a place in the endless stream."""
        stop, pieces = start + self._steps * self.size, []
        while start < stop:
            epoch, first = divmod(start, self._rows)
            last = min(self._rows, first + stop - start)
            pieces.append(self._epoch(epoch)[first:last])
            start += last - first
        index = torch.cat(pieces).to(self._tensors[0].device)
        index = index if self._index is None else self._index[index]
        self._block = (-1, ())  # the old block need not stay while the new one is made
        return tuple(t.index_select(0, index) for t in self._tensors)

    def _epoch(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self._seed, epoch))
            short = torch.int32 if self._rows < 2**31 else torch.int64
            self._order = (epoch, torch.randperm(self._rows, generator=generator, dtype=short))
        return self._order[1]


class Stream:
    """The batches of something that can be iterated again and again, in the order it gives them.

    A loader may take its order from torch's default generator, whose state at the beginning of an
    epoch is kept, so that a resumed fit sees the rest of the epoch in the same order.

    Args:
        batches: Each iteration gives the batches of one epoch.
        prepare: Turns one of them into what a step takes.
        count: How many batches one iteration gives.

    Example:
        >>> stream = Stream([[1.0], [2.0], [3.0]], lambda b: (torch.tensor(b),), 3)
        >>> [float(stream.at(step)[0]) for step in (0, 1, 2, 3, 1)]
        [1.0, 2.0, 3.0, 1.0, 2.0]
    """

    def __init__(
        self, batches: Iterable[Any], prepare: Callable[[Any], tuple[Tensor, ...]], count: int
    ) -> None:
        self._batches, self._prepare, self._count = batches, prepare, count
        self._place, self._iterator = -1, iter(())  # of the batch that comes next
        self._origin = torch.get_rng_state()  # when the epoch began

    def at(self, step: int) -> tuple[Tensor, ...]:
        """Give the batch of a step; steps in order cost no search."""
        epoch, within = divmod(step, self._count)
        if within == 0:
            self._origin = torch.get_rng_state()
            self._iterator: Iterator[Any] = iter(self._batches)
        elif self._place != step:
            self._search(epoch, within)
        batch = self._next(epoch, within)
        self._place = step + 1
        return self._prepare(batch)

    def state(self) -> dict[str, Tensor]:
        """Give the state of torch's generator when the epoch began."""
        return {"origin": self._origin}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`, within the same epoch."""
        self._origin, self._place = state["origin"], -1

    def _search(self, epoch: int, within: int) -> None:
        now = torch.get_rng_state()
        torch.set_rng_state(self._origin)
        self._iterator = iter(self._batches)
        for skipped in range(within):
            self._next(epoch, skipped)
        torch.set_rng_state(now)

    def _next(self, epoch: int, within: int) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"x ended after {within} batches in iteration {epoch + 1} and the first gave "
                f"{self._count}: every iteration must give as many."
            ) from None


class Noisy:
    """Batches whose inputs have Normal noise, drawn anew at each step.

    As the batch of a step, its noise depends on the seed and the step alone, on one kind of device
    and in one dtype.

    Args:
        batches: Their first tensors are the inputs.
        deviation: Of the noise, in the units of the inputs.
        seed: Where the noise comes from.

    Example:
        >>> noisy = Noisy(Batches((torch.zeros(4, 2), torch.ones(4)), size=4, seed=0), 0.1, seed=0)
        >>> x, y = noisy.at(7)
        >>> bool((x != 0.0).all()), y.tolist(), torch.equal(x, noisy.at(7)[0])
        (True, [1.0, 1.0, 1.0, 1.0], True)
    """

    def __init__(self, batches: BatchSource, deviation: float, seed: int) -> None:
        self._batches, self._deviation = batches, deviation
        self._seed = _mix(seed, -1)  # apart from that of any epoch's order

    def at(self, step: int) -> tuple[Tensor, ...]:
        """Give the batch of a step."""
        x, *others = self._batches.at(step)
        generator = torch.Generator(x.device).manual_seed(_mix(self._seed, step))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return torch.add(x, noise, alpha=self._deviation), *others


def _mix(seed: int, number: int) -> int:
    """Join seed and number into one 63-bit seed (splitmix64), far from its neighbours' streams."""
    z = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1
