"""Mixtures of counts: entropy, modes and regions by their probabilities, integer by integer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyralloy.table import CHUNK, Table

__all__ = ["integer_entropy", "integer_mass_above", "integer_modes", "integer_region"]

#: Probability that may be left out at either end.
LEFT_OUT = 1e-13


def integer_entropy(table: Table) -> Tensor:
    """Sum minus p log p over the integers, in nats, shape (M,)."""
    parts = [-torch.xlogy(p, p).sum(-1) for _, p in _probabilities(table)]
    return torch.cat(parts) if parts else table.weights.sum(-1)


def integer_modes(table: Table) -> list[Tensor]:
    """Find the integers more likely than the next on either side: of a tie, the first.

    Args:
        table: M mixtures of counts.

    Returns:
        For each part of the rows, integers and log probabilities, (M', R, 2), highest first,
        padded with NaN.
    """
    found = []
    for first, p in _probabilities(table):
        beyond = torch.full_like(p[:, :1], -1.0)
        rise = torch.cat([p, beyond], 1).diff(dim=1, prepend=beyond)  # (M', W + 1)
        # The sign of the last change before: a plateau is a mode if it is climbed and then left.
        place = torch.arange(rise.shape[1], device=p.device)
        moved = torch.where(rise != 0, place, 0).cummax(1).values
        climbed = rise.gather(1, moved) > 0
        top = climbed[:, :-1] & (rise[:, 1:] < 0) & (p > 0)
        start = moved[:, :-1].to(p)
        height = torch.where(top, p.log(), -math.inf)
        order = height.argsort(dim=-1, descending=True, stable=True)
        count = max(1, int(top.sum(-1).amax())) if len(top) else 1
        kept = order[:, :count]
        values = torch.stack([first[:, None] + start.gather(1, kept), height.gather(1, kept)], -1)
        found.append(values.masked_fill(~top.gather(1, kept)[..., None], math.nan))
    return found


def integer_mass_above(table: Table, threshold: Tensor) -> Tensor:
    """Sum the probabilities of the integers whose log probability is above thresholds (M,)."""
    held, start = [threshold.new_empty(0)], 0
    for _, p in _probabilities(table):
        t = threshold[start : start + len(p), None]
        # Equal ones differ by rounding.
        above = p.log() > t + 1e-9 * (1 + t.abs())
        held.append(
            torch.where(above, p, 0.0).sum(-1) + 0.0 * t[:, 0].nan_to_num(math.nan, 0.0, 0.0)
        )
        start += len(p)
    return torch.cat(held)


def integer_region(table: Table, level: float) -> tuple[list[Tensor], Tensor]:
    """Find the fewest integers that hold at least a probability: those most likely.

    Args:
        table: M mixtures of counts.
        level: Probability inside, in (0, 1).

    Returns:
        For each part of the rows, first and last integers of the runs, (M', R, 2), padded with
        NaN; and the log probability of the least likely integer inside, (M,).
    """
    runs, thresholds = [], [table.weights.new_empty(0)]
    for first, p in _probabilities(table):
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        short = ordered.cumsum(-1) - ordered < level  # what is held before this one
        inside = torch.zeros_like(short).scatter(1, order, short)
        least = torch.where(short, ordered, math.inf).amin(-1)
        thresholds.append(torch.where(p.sum(-1).isnan(), math.nan, least.log()))
        edges = torch.nn.functional.pad(inside.to(torch.int8), (1, 1)).diff(dim=1)
        rows, starts = (edges > 0).nonzero(as_tuple=True)
        ends = (edges < 0).nonzero(as_tuple=True)[1] - 1
        size = torch.bincount(rows, minlength=len(p))
        at = torch.arange(len(rows), device=rows.device) - (size.cumsum(0) - size)[rows]
        laid = p.new_full((len(p), max(1, int(size.amax()) if len(p) else 1), 2), math.nan)
        laid[rows, at] = first[rows, None] + torch.stack([starts, ends], -1).to(p)
        runs.append(laid)
    return runs, torch.cat(thresholds)


def _probabilities(table: Table) -> Iterator[tuple[Tensor, Tensor]]:
    """Give, part by part, the first integer (M',) and the probabilities from it on (M', W)."""
    family, live = table.family, table.weights > 0
    level = torch.full_like(table.weights, LEFT_OUT)
    first = torch.where(live, family.icdf(table.components, level), math.inf).amin(-1)
    last = torch.where(live, family.inverse_survival(table.components, level), 0.0).amax(-1)
    width = (last - first).nan_to_num(0.0).to(torch.int64) + 1
    count = table.weights.shape[1]
    # Rows of like width together would save time, but each part is laid out at its widest.
    step = max(1, CHUNK // (count * int(width.amax()))) if len(table) else 1
    for start in range(0, len(table), step):
        rows = slice(start, start + step)
        k = torch.arange(int(width[rows].amax()), device=first.device).to(first)
        y = first[rows, None] + k
        yield first[rows], table.take(rows).log_prob(y).exp()
