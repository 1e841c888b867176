"""Rows: what a fit is given, checked at the door, split, and standardised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyralloy.checks import as_values, paired, positive
from pyralloy.families import Family, IntervalFamily, VectorFamily
from pyralloy.model import MDN
from pyralloy.networks import MLP
from pyralloy.numerics import spaced
from pyralloy.scaling import BLOCK, bulk

__all__ = [
    "Rows",
    "checked",
    "copies",
    "folds",
    "require_reach",
    "require_spread",
    "require_support",
    "split",
    "standardised",
    "weighted_alike",
    "weighted_mean",
    "without_copies",
]

#: Robust spreads from the median beyond which a y is refused: float32 holds seven digits, and one
#: component has to tell such a row from the others.
REACH = 1e9

#: Share of rows that are copies, from which on copies are held out together; fewer change little.
COPIES = 0.05

#: Rows from which on a sample of 100,000 says first whether there are copies at all.
MANY_ROWS = 1_000_000
#: Most rows that a fraction holds out: more would cost time and hardly sharpen the choice.
MOST_HELD_OUT = 100_000

#: Rows that are standardised at once.
CHUNK = 65_536


class Rows(NamedTuple):
    """Inputs and targets of the same observations, and how much each row counts."""

    x: Tensor
    y: Tensor
    weights: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Give what there is: x, y, and weights where rows have them."""
        return (self.x, self.y) if self.weights is None else (self.x, self.y, self.weights)

    def spaced(self, most: int, dim: int = 0) -> Rows:
        """Give evenly spaced rows, at most so many, as views; ``dim`` is theirs."""
        return Rows(*(spaced(t, most, dim) for t in self.tensors()))

    def at(self, index: Tensor) -> Rows:
        """Give some of the rows, as copies."""
        return Rows(*(t.index_select(0, index) for t in self.tensors()))


def checked(model: MDN, x: Any, y: Any, weights: Any = None) -> Rows:
    """Check inputs and targets against each other and the model, and put them on its device."""
    device = next(model.parameters()).device
    x, y = as_values("x", x, device=device), as_values("y", y, device=device)
    x = x[:, None] if x.ndim == 1 else x
    paired(x, y)
    targets = model.head.targets
    wanted = (len(x),) if targets is None else (len(x), targets)
    if y.shape != wanted:
        raise ValueError(
            f"y has shape {tuple(y.shape)} and the head, with targets={targets}, needs {wanted}: "
            "reshape y, or make the head with targets=None for (N,) and targets=D for (N, D)."
        )
    require_support(y, model.head.family)
    trunk = model.trunk
    if isinstance(trunk, MLP) and x.shape[1:] != (trunk.in_features,):
        raise ValueError(
            f"x has {tuple(x.shape[1:])} features a row and the trunk takes {trunk.in_features}: "
            "make it with in_features=x.shape[1]."
        )
    return Rows(x, y, None if weights is None else _weights(weights, y))


def split(
    rows: Rows,
    validation: float | tuple[Any, ...] | None,
    model: MDN,
    generator: torch.Generator,
) -> tuple[Rows, Rows | None]:
    """Give the rows to train on and those held out.

    Rows that are copies of one another, where one row in twenty is one, are held out together or
    not at all: a held-out copy of a training row would reward learning by heart.
    """
    if validation is None:
        return rows, None
    if isinstance(validation, tuple | list):
        if len(validation) not in (2, 3):
            raise ValueError(f"validation has {len(validation)} parts: give the pair (x, y).")
        held_out = weighted_alike(checked(model, *validation))
        if held_out.x.shape[1:] != rows.x.shape[1:]:
            raise ValueError(
                f"validation x has {tuple(held_out.x.shape[1:])} features a row and x "
                f"{tuple(rows.x.shape[1:])}: give the same columns."
            )
        return rows, held_out
    kept, out = next(iter(folds(rows, validation, generator)))
    return rows.at(kept), rows.at(out)


def folds(
    rows: Rows, validation: float, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give, again and again, which rows to train on and which to hold out: sorted, and not.

    What is held out goes through the rows, in a random order, until all had their turn; then the
    order is drawn anew. Copies stay together, as :func:`split` says.
    """
    fraction, count = positive("validation", validation, 1.0), len(rows.x)
    held = min(max(1, round(fraction * count)), MOST_HELD_OUT)
    if count - held < 2:
        raise ValueError(
            f"validation={validation!r} of {count} rows leaves {max(0, count - held)} to train on: "
            "at least 2 are needed; give more rows, a smaller fraction, or validation=None."
        )
    short = torch.int32 if count < 2**31 else torch.int64  # half the memory
    sets = copies(rows)
    while True:
        shuffled = torch.randperm(count, generator=generator, dtype=short).to(rows.x.device)
        for start in range(0, held * max(1, count // held), held):
            order, cut = _together(sets, shuffled.roll(-start) if start else shuffled, held)
            out, kept = (
                order[:cut].clone(),
                torch.ones(count, dtype=torch.bool, device=order.device),
            )
            kept[out.long()] = False
            del order
            yield kept.nonzero()[:, 0].to(short), out


def _weights(weights: Any, y: Tensor) -> Tensor:
    """Check weights, and give them in their own dtype."""
    weights = as_values("weights", weights, device=y.device)
    if weights.shape != y.shape[:1]:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)} and there are {len(y)} rows: give one "
            "number a row."
        )
    if bool((weights < 0).any()):
        raise ValueError(f"weights holds {float(weights.min()):g}: give numbers of 0 or more.")
    return weights


def weighted_alike(rows: Rows) -> Rows:
    """Divide weights by their mean, and leave rows of weight zero out."""
    if rows.weights is None:
        return rows
    largest = rows.weights.max()
    if not bool(largest > 0):
        raise ValueError("weights are all zero: give some rows a weight above 0.")
    weights = rows.weights / largest  # so that their sum cannot overflow
    if bool((weights == 0).any()):
        counted = weights.nonzero()[:, 0]
        rows, weights = rows.at(counted), weights[counted]
    mean = weights.mean(dtype=torch.float64).to(weights.dtype)
    return rows._replace(weights=weights.div_(mean))


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average over the last dimension, (..., N) to (...), by weights that broadcast with it."""
    if weights is None:
        return values.mean(-1)
    return (values * weights).sum(-1) / weights.expand_as(values).sum(-1)


def copies(rows: Rows) -> Tensor | None:
    """Number sets of rows that are copies: of the same x and, wherever that x is, the same y.

    Rows of a discrete x share it by chance, but then not y as well.

    Returns:
        The number of each row's set, shape (N,); None if less than one row in twenty is a copy.
    """
    count = len(rows.y)
    if count > MANY_ROWS:
        generator = torch.Generator().manual_seed(0)
        some = torch.randint(count, (100_000,), generator=generator).unique().to(rows.x.device)
        if len(_fingerprints(rows.x[some]).unique()) == len(some):
            return None
    _, x, size = _fingerprints(rows.x).unique(return_inverse=True, return_counts=True)
    if len(size) > (1 - COPIES) * count:
        return None
    y = _fingerprints(rows.y)
    least, most = (
        torch.empty_like(size).scatter_reduce(0, x, y, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    same = (least == most)[x]
    sets = torch.where(same, x, len(size) + torch.arange(count, device=x.device))
    return sets if len(sets.unique()) <= (1 - COPIES) * count else None


def without_copies(rows: Rows) -> Rows:
    """Give rows of which none repeats another: one of the weight of all, for it is one evidence.

    Weights are then of mean one, in float64.
    """
    sets = copies(rows)
    if sets is None:
        return rows
    numbers = sets.unique(return_inverse=True)[1]
    count, place = int(numbers.max()) + 1, torch.arange(len(sets), device=sets.device)
    first = torch.full_like(place, len(sets)).scatter_reduce(0, numbers, place, "amin")[:count]
    weights = torch.ones_like(rows.y[:, 0] if rows.y.ndim > 1 else rows.y)
    weights = (weights if rows.weights is None else rows.weights).to(torch.float64)
    total = torch.zeros(count, dtype=torch.float64, device=sets.device)
    total.index_add_(0, numbers, weights)
    return Rows(rows.x[first], rows.y[first], total / total.mean())


def _together(sets: Tensor | None, order: Tensor, held: int) -> tuple[Tensor, int]:
    """Put sets of copies together in the order, and the number held out where two sets meet."""
    if sets is None:
        return order, held
    count = len(order)
    numbers = sets[order].unique(return_inverse=True)[1]
    place = torch.arange(count, device=order.device)
    first = torch.full_like(place, count).scatter_reduce(0, numbers, place, "amin")[numbers]
    together = first.argsort(stable=True)
    ends = (first[together].diff() > 0).nonzero()[:, 0] + 1  # rows before each next set
    ends = ends[ends <= count - 2]
    if len(ends) == 0:
        return order, held
    return order[together], int(ends[(ends - held).abs().argmin()])


def _fingerprints(values: Tensor) -> Tensor:
    """Hash each row of numbers (N, ...) into an integer of 64 bits, (N,)."""
    width = max(1, values[0].numel())
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(2**62, (width,), generator=generator).to(values.device) * 2 + 1
    parts = []
    for block in values.split(max(1, BLOCK // width)):
        # Zero added, so that the two zeros are one.
        bits = (block.reshape(len(block), -1).to(torch.float64) + 0.0).view(torch.int64)
        parts.append((((bits ^ (bits >> 32)) * odd) ^ (bits >> 17)).sum(-1))
    return torch.cat(parts)


def require_support(y: Tensor, family: Family | VectorFamily) -> None:
    """Check that every y is where components of the family have a density."""
    low, high, integer, circular = family.support
    if circular:
        _require_angles(y, family)
        return
    outside = (y < low) | (y > high)
    if integer:
        outside |= y != y.round()
    else:
        outside |= (y == low) | (y == high)
    if bool(outside.any()):
        kind = "integers" if integer else "numbers strictly"
        ours = isinstance(family, IntervalFamily) and (low, high) != (0.0, 1.0)
        wider = "give a wider interval, " if ours else ""
        first = int(outside.reshape(len(y), -1).any(-1).nonzero()[0])
        raise ValueError(
            f"y holds {y[first].tolist()} at row {first}: components of family {family.name!r} "
            f"are for {kind} between {low:.12g} and {high:.12g}; {wider}choose another family or "
            "transform y."
        )


def _require_angles(y: Tensor, family: Family | VectorFamily) -> None:
    outside = y.abs() > 1.001 * 2 * math.pi
    if bool(outside.any()):
        first = int(outside.reshape(len(y), -1).any(-1).nonzero()[0])
        raise ValueError(
            f"y holds {y[first].tolist()} at row {first}: components of family {family.name!r} are "
            "for angles in radians, between -2 pi and 2 pi; np.deg2rad(y) turns degrees into them, "
            "and 2 * np.pi * hour / 24 hours."
        )


def require_spread(y: Tensor) -> None:
    """Check that there are two rows of ``y`` to train on, and no column that is constant."""
    if len(y) < 2:
        raise ValueError(f"y has {len(y)} row: at least 2 are needed to train on.")
    flat = (y.amax(0) == y.amin(0)).reshape(-1)
    if bool(flat.any()):
        where = "y" if y.ndim == 1 else f"column {int(flat.nonzero()[0])} of y"
        raise ValueError(
            f"{where} is constant in the rows to train on: its density would be a point mass; "
            "leave it out, or check that the right column was taken."
        )


def require_reach(trained: Tensor, held_out: Tensor | None, family: Family | VectorFamily) -> None:
    """Check that no y is so far from the others that it can only be a mark or a mistake.

    Farther inputs than that are let in: they are squeezed (see :class:`~pyralloy.scaling
    .Standardizer`), since nothing has to be predicted of them.
    """
    if not family.support.scales or family.support.circular:
        return
    most = bulk(trained)
    for name, y in (("y", trained), ("y of validation", held_out)):
        if y is None:
            continue
        parts = [most.farness(part) > REACH for part in y.split(CHUNK)]  # float64 for a moment
        far = torch.cat(parts).reshape(len(y), -1).any(-1)
        if bool(far.any()):
            first = int(far.nonzero()[0])
            away = float(most.farness(y[first]).max())
            raise ValueError(
                f"{name} holds {y[first].tolist()}, {away:.0e} spreads from "
                f"the median, and {int(far.sum())} such rows of {len(y)}: at most {REACH:g} is "
                "taken; drop those rows, or replace what stands for a missing value."
            )


def standardised(model: MDN, rows: Rows, *, reuse: bool = False) -> Rows:
    """Standardise rows as the model's scalings say, in the dtype of its weights.

    Args:
        model: Whose scalings were fitted.
        rows: In their own units.
        reuse: Whether ``rows`` are no longer needed, and their memory may hold the result.
    """
    dtype = next(model.parameters()).dtype
    given = ((rows.x, model.x_scaling), (rows.y, model.y_scaling))
    with torch.no_grad():
        made: list[Tensor] = []
        for values, scaling in given:
            into = _room(values, dtype, reuse=reuse)
            # In parts: no copy of all rows in float64, and each part is read before its place is
            # written to.
            for there, part in zip(into.split(CHUNK), values.split(CHUNK), strict=True):
                there.copy_(scaling(part, dtype))
            made.append(into)
    x, y = made
    return Rows(x, y, None if rows.weights is None else rows.weights.to(dtype))


def _room(values: Tensor, dtype: torch.dtype, *, reuse: bool) -> Tensor:
    """Give room for as many numbers: in the memory of ``values``, from its start, where it can."""
    if not (reuse and values.is_contiguous() and values.element_size() >= dtype.itemsize):
        return torch.empty_like(values, dtype=dtype)
    return values.view(-1).view(dtype)[: values.numel()].view(values.shape)
