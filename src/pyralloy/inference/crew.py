"""Crew: the members of an ensemble before they train, and which rows each of them holds out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyralloy.inference.batches import Batches, BatchSource
from pyralloy.inference.checkpoint import Files, layout
from pyralloy.inference.data import gather
from pyralloy.inference.ready import Ready, baseline, prepare, start_weights
from pyralloy.inference.rows import Rows, folds
from pyralloy.inference.training import Plan
from pyralloy.model import MDN

__all__ = ["Member", "gather_crew", "held_out", "make_members", "plain"]


@dataclass(frozen=True)
class Member:
    """A model, and what it is to do.

    Attributes:
        model: With its first weights.
        seed: Source of the order of its batches.
        ready: What is common to all: all rows, standardised, and how to train; rows held out by
            hand, if there are any.
        kept: Which rows to train on; None for all.
        out: Which rows it holds out; None for those of ``ready``.
    """

    model: MDN
    seed: int
    ready: Ready
    kept: Tensor | None = None
    out: Tensor | None = None

    @property
    def plan(self) -> Plan:
        """How it trains: as all do, from a seed of its own."""
        return replace(self.ready.plan, seed=self.seed)

    @property
    def own(self) -> Ready:
        """What it would be given if it were alone: copies of its rows."""
        ready = replace(self.ready, plan=self.plan)
        if (parts := self.of(ready.rows)) is None:
            return ready
        kept, out = parts
        size = ready.size * len(kept.y) / len(ready.rows.y)
        return replace(ready, rows=kept, held_out=out, size=size)

    @property
    def holding(self) -> bool:
        """Whether it holds rows out, its own or those of all."""
        return self.out is not None or self.ready.held_out is not None

    def of(self, rows: Rows) -> tuple[Rows, Rows] | None:
        """Give copies of the rows that it trains on and of those that it holds out, if it does."""
        if self.kept is None or self.out is None:
            return None
        return rows.at(self.kept), rows.at(self.out)

    def restart(self) -> None:
        """Give the model its first weights again."""
        rows = self.ready.rows
        start_weights(self.model, rows.x, rows.y, torch.Generator().manual_seed(self.seed))

    def batches(self) -> BatchSource:
        """Give its minibatches, from the rows that all share."""
        rows, plan = self.ready.rows.tensors(), self.plan
        return plan.noisy(Batches(rows, plan.batch_size, self.seed, self.kept))


def make_members(make_model: Callable[[int], MDN], seeds: Sequence[int]) -> list[MDN]:
    """Make the model of each seed, and check that they can be trained side by side.

    Raises:
        TypeError: What is made is no ``MDN``.
        ValueError: Models that share a layer, keep running statistics, or differ in their parts or
            in what is not trained.
    """
    models = []
    for seed in seeds:
        model = make_model(seed)
        if not isinstance(model, MDN):
            raise TypeError(
                f"make_model gives {type(model).__name__}: it must give a pyralloy.MDN."
            )
        models.append(model)
    if len({id(model) for model in models}) < len(models) or len(
        {id(p) for model in models for p in model.parameters()}
    ) < sum(len(list(model.parameters())) for model in models):
        raise ValueError(
            "make_model gives the same model or layer twice: make them anew each time."
        )
    kept = [name for name, _ in models[0].trunk.named_buffers() if "running_" in name]
    if kept:
        raise ValueError(
            f"the trunk keeps running statistics, {kept[0]!r} for one, and members share all that "
            "is no weight: take nn.LayerNorm in place of batch normalisation."
        )
    parts, fixed = [layout(model) for model in models], [_fixed(model) for model in models]
    if any(own != parts[0] for own in parts) or any(own.keys() != fixed[0].keys() for own in fixed):
        raise ValueError("make_model gives models of different parts: only the seed may differ.")
    for name, value in fixed[0].items():
        if not all(torch.equal(own[name], value) for own in fixed):
            raise ValueError(
                f"{name!r}, which is not trained, differs between members, and they share all that "
                "is no weight: make it alike, whatever the seed, or fit models one by one and pool "
                "them with Mixture.pool."
            )
    return models


def _fixed(model: MDN) -> dict[str, Tensor]:
    """Give what training does not change: buffers of the trunk, parameters without gradient."""
    found = {f"trunk.{n}": b for n, b in model.trunk.named_buffers()}
    found |= {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    return {n: v.nan_to_num() for n, v in found.items()}


def gather_crew(
    models: Sequence[MDN],
    seeds: Sequence[int],
    rows: tuple[Any, Any, Any],
    plan: Plan,
    validation: float | tuple[Any, ...] | None,
    *,
    size: float | None = None,
) -> list[Member]:
    """Check the rows, standardise them once, draw who holds out what, and start each member.

    Raises:
        TypeError, ValueError: As for :func:`pyralloy.fit`.
    """
    own = None if validation is None or isinstance(validation, tuple | list) else validation
    shared = validation if own is None else None
    given = gather(models[0], *rows, size=size, validation=shared, seed=plan.seed)
    parts = itertools.repeat((None, None))
    if own is not None:
        parts = folds(given.rows, own, given.generator)
    # Not owned: the rows in their own units are needed again.
    ready = prepare(plain(models[0]), replace(given, owned=False), plan, Files(), initialise=False)
    crew = [
        Member(model, seed, ready, kept, out)
        for model, seed, (kept, out) in zip(models, seeds, parts, strict=False)
    ]
    for member in crew:
        for name in ("x_scaling", "y_scaling"):
            getattr(member.model, name).load_state_dict(getattr(models[0], name).state_dict())
        member.restart()
    if own is None:
        return crew
    scores = [_baseline(member, given.rows) for member in crew]
    # Where copies stay together members have unlike numbers of rows, and their batches must not.
    least = min(len(member.kept) for member in crew if member.kept is not None)
    plan = crew[0].ready.plan
    batch = min(plan.batch_size, least)
    plan = replace(plan, baseline=sum(scores) / len(scores), batch_size=batch)
    return [replace(member, ready=replace(member.ready, plan=plan)) for member in crew]


def _baseline(member: Member, rows: Rows) -> float:
    """Score, on what a member holds out, the density of its other rows that ignores x."""
    support, own = member.model.head.family.support, member.of(rows)
    assert own is not None  # noqa: S101 - it holds rows out
    return baseline(own[0].y, own[1], support)


def plain(model: MDN) -> MDN:
    """Give the network of a model without its prior, of the same weights."""
    return model if model.prior is None else model.without_prior()


def held_out(crew: list[Member]) -> Rows | None:
    """Give the rows that score a lane: the same of all (N, ...), or of each its own (M, N, ...)."""
    outs = [member.out for member in crew if member.out is not None]
    if not outs:
        return crew[0].ready.held_out
    least = min(map(len, outs))  # where copies are held out together the numbers may differ
    rows = crew[0].ready.rows
    index = torch.cat([out[:least] for out in outs])
    return Rows(*(t.unflatten(0, (len(outs), least)) for t in rows.at(index).tensors()))
