"""Data: what a fit trains on, as rows in memory or as batches that are read again and again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyralloy.archive import digest
from pyralloy.checks import integer, positive
from pyralloy.inference.batches import Stream
from pyralloy.inference.objective import LOCK
from pyralloy.inference.rows import (
    Rows,
    checked,
    require_reach,
    require_spread,
    split,
    standardised,
    weighted_alike,
)
from pyralloy.model import MDN
from pyralloy.seeds import seeded

__all__ = ["Data", "Reading", "gather"]

#: Rows drawn from batches for the standardisation and the start; all, where there are no more.
MOST_DRAWN = 100_000


@dataclass(frozen=True)
class Reading:
    """Batches that were read through once.

    Attributes:
        source: Gives them, each time it is iterated.
        size: Rows in the whole data.
        count: Batches an iteration.
        weight: Mean of the rows' weights.
        bounds: Least and largest of every column of x and y, by name.
    """

    source: Iterable[Any]
    size: int
    count: int
    weight: float
    bounds: dict[str, Tensor]

    def batches(self, model: MDN) -> Stream:
        """Give the batches as a step takes them."""

        def prepare(batch: Any) -> tuple[Tensor, ...]:
            rows = standardised(model, _parted(model, batch))
            if rows.weights is None:
                return rows.x, rows.y
            return rows.x, rows.y, rows.weights / self.weight

        return Stream(self.source, prepare, self.count)


@dataclass(frozen=True)
class Data:
    """What a fit trains on.

    Attributes:
        rows: To train on; or drawn from the batches, where there is a ``reading``.
        held_out: To choose the weights by.
        given: The rows as they came, with what was held out by hand: what a digest is of.
        reading: The batches, where rows do not stay in memory.
        generator: Source of randomness, which the split has used.
        owned: Whether ``rows`` are copies, of which nobody else knows.
        fraction: Of the rows that was held out, if it was a fraction.
        worth: How many rows one of weight 1 counts as, where a prior stands beside them.
    """

    rows: Rows
    held_out: Rows | None
    given: tuple[Rows, ...]
    reading: Reading | None
    generator: torch.Generator
    owned: bool
    fraction: float | None
    worth: float = 1.0

    @property
    def size(self) -> int | float:
        """Number of rows that the data counts as."""
        if self.reading is not None:
            return self.reading.size
        count = len(self.rows.y)
        return count if self.worth == 1.0 else count * self.worth

    def identity(self) -> dict[str, Any]:
        """Name the data by digests."""
        named = {
            f"{i}.{j}": tensor
            for i, rows in enumerate(self.given)
            for j, tensor in enumerate(rows.tensors())
        }
        if self.reading is not None:
            named |= self.reading.bounds
        rows = len(self.given[0].y) if self.reading is None else self.size
        data = f"{rows} rows of SHA-256 {digest(named)[:16]}"
        found = {"data": data, "validation": self.fraction}
        return found if self.worth == 1.0 else found | {"size": self.size}


def gather(
    model: MDN,
    x: Any,
    y: Any,
    weights: Any,
    *,
    size: float | None,
    validation: float | tuple[Any, ...] | None,
    seed: int,
) -> Data:
    """Check what a fit is given, and split it.

    Raises:
        TypeError: Batches that can be read only once; an argument of the wrong type.
        ValueError: See :func:`pyralloy.fit`.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    pair = isinstance(validation, tuple | list)
    reading, worth = None, 1.0
    if y is None:
        # A loader that shuffles draws from torch's default generator, which is put back.
        with LOCK, seeded(seed):
            rows, reading = _read_through(model, x, size, generator)
        if weights is not None:
            raise ValueError("weights goes with y: give batches of (x, y, weights) instead.")
        if validation is not None and not pair:
            raise ValueError(
                f"validation={validation!r} of batches cannot be held out: give a pair (x, y), or "
                "None."
            )
    else:
        rows = weighted_alike(checked(model, x, y, weights))
        worth = _worth(size, rows)
    kept, held_out = split(rows, validation, model, generator)
    require_spread(kept.y)
    require_reach(kept.y, None if held_out is None else held_out.y, model.head.family)
    given = (rows, held_out) if pair and held_out is not None else (rows,)
    owned = kept.x is not rows.x
    if reading is not None:
        given = given[1:]
    fraction = None if pair or validation is None else float(validation)
    return Data(kept, held_out, given, reading, generator, owned, fraction, worth)


def _worth(size: float | None, rows: Rows) -> float:
    """Say how many rows one of weight 1 counts as."""
    if size is None:
        return 1.0
    if rows.weights is None:
        raise ValueError(
            f"size={size!r} goes with batches in place of x and y, or with weights: leave it out."
        )
    return positive("size", size) / len(rows.y)


def _read_through(
    model: MDN, source: Any, size: Any, generator: torch.Generator
) -> tuple[Rows, Reading]:
    """Check every batch, and draw rows from all of them alike."""
    if size is None:
        raise ValueError("y is missing: give it; or size, if x gives batches of (x, y).")
    if not isinstance(source, Iterable) or isinstance(source, Iterator | Tensor | str | dict):
        raise TypeError(
            f"x is a {type(source).__name__}, and without y it must give batches of (x, y) each "
            "time it is iterated: a list or a DataLoader does, a generator only once."
        )
    size, draw = integer("size", size), _Draw(generator)
    seen, count, weight, bounds = 0, 0, 0.0, {}
    for batch in source:
        rows = _parted(model, batch)
        draw.add(rows)
        for name, values in (("x", rows.x), ("y", rows.y)):
            low, high = f"{name}.low", f"{name}.high"
            bounds[low] = torch.minimum(bounds.get(low, values[0]), values.amin(0))
            bounds[high] = torch.maximum(bounds.get(high, values[0]), values.amax(0))
        weight += len(rows.y) if rows.weights is None else float(rows.weights.sum())
        seen, count = seen + len(rows.y), count + 1
        if seen >= size:
            break
    if not count:
        raise ValueError("x gives no batches: give at least one of (x, y).")
    if not 0.0 < weight < math.inf:
        raise ValueError(f"weights add up to {weight:g}: give some rows a weight above 0.")
    return draw.rows(), Reading(source, size, count, weight / seen, bounds)


def _parted(model: MDN, batch: Any) -> Rows:
    """Check one batch."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(
            f"x gave a {type(batch).__name__} as a batch: each must be (x, y) or (x, y, weights)."
        )
    return checked(model, *batch)


class _Draw:
    """Rows drawn from batches, each row alike: those with the largest of random keys."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator, self._least, self._waiting = generator, 0.0, 0
        self._parts: list[tuple[Tensor, Rows]] = []

    def add(self, rows: Rows) -> None:
        """Draw from the rows of a batch."""
        if self._parts:
            first = self._parts[0][1]
            if len(first.tensors()) != len(rows.tensors()) or first.x.shape[1:] != rows.x.shape[1:]:
                raise ValueError(
                    f"x gave batches of {len(first.tensors())} and {len(rows.tensors())} parts, of "
                    f"{tuple(first.x.shape[1:])} and {tuple(rows.x.shape[1:])} features: all must "
                    "be alike."
                )
        keys = torch.rand(len(rows.y), generator=self._generator, dtype=torch.float64)
        kept = (keys >= self._least).nonzero()[:, 0]
        self._parts.append((keys[kept], rows.at(kept.to(rows.y.device))))
        self._waiting += len(kept)
        if self._waiting > MOST_DRAWN:
            self._merge()

    def rows(self) -> Rows:
        """Give the rows drawn, in the order in which they came where all were."""
        self._merge()
        return self._parts[0][1]

    def _merge(self) -> None:
        keys = torch.cat([keys for keys, _ in self._parts])
        columns = zip(*(rows.tensors() for _, rows in self._parts), strict=True)
        rows = Rows(*(torch.cat(column) for column in columns))
        if len(keys) > MOST_DRAWN:
            keys, index = keys.topk(MOST_DRAWN)
            rows, self._least = rows.at(index.to(rows.y.device)), float(keys[-1])
        self._parts, self._waiting = [(keys, rows)], 0
