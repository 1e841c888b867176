"""Pools and joins of the densities that draws of the weights give."""

from __future__ import annotations

import torch
from pyro import distributions as dist

from pyralloy.families import kind_of
from pyralloy.mixture import Mixture

__all__ = ["joined", "pooled"]

#: Components that are merged at once, and those that a merge in between keeps at least.
MERGED, KEPT = 160, 20


def pooled(each: Mixture, reduce: int | None) -> Mixture:
    """Pool draws (S, N); few at a time where components are merged, of which the cost is cubic."""
    if reduce is None:
        return Mixture.pool(each, dim=0)
    members, sizes = [each[s] for s in range(each.batch_shape[0])], [1] * each.batch_shape[0]
    while len(members) > 1 or members[0].num_components > reduce:
        group = max(2, MERGED // members[0].num_components)
        last, kept, counts = len(members) <= group, [], []
        for start in range(0, len(members), group):
            part = sizes[start : start + group]
            pooled = Mixture.pool(members[start : start + group], weights=part)
            wanted = reduce if last else max(2 * reduce, KEPT)  # the last merge sees all of them
            kept.append(pooled.reduce(min(wanted, pooled.num_components)))
            counts.append(sum(part))
        members, sizes = kept, counts
    return members[0]


def joined(parts: list[Mixture], dim: int = 0) -> Mixture:
    """Join densities along a batch dimension."""
    if len(parts) == 1:
        return parts[0]
    kind = kind_of(parts[0].components)
    columns = zip(*(kind.values(m.components) for m in parts), strict=True)
    components = kind.build([torch.cat(values, dim) for values in columns])
    logits = torch.cat([m.logits for m in parts], dim)
    return Mixture(
        dist.Categorical(logits=logits, validate_args=False), components, validate_args=False
    )
