"""Ready: a fit whose rows are standardised and whose weights have their start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyralloy.families.contract import Support
from pyralloy.inference.batches import Batches, BatchSource
from pyralloy.inference.checkpoint import Files, Rider, Saving, layout
from pyralloy.inference.data import Data, Reading
from pyralloy.inference.rows import Rows, standardised
from pyralloy.inference.stretch import foreseen
from pyralloy.inference.training import Plan
from pyralloy.initialise import place_components, redraw, spread_kinks
from pyralloy.marginal import marginal_density
from pyralloy.model import MDN
from pyralloy.networks import MLP
from pyralloy.numerics import spaced
from pyralloy.scaling import INPUT_LIMIT

__all__ = ["Ready", "baseline", "mean_nll", "prepare", "start_weights"]

#: Rows of an evaluation at once.
CHUNK = 4096

#: Rows that the marginal density is made of and scored on: more would move it by 0.003 nats.
MOST_SCORED = 100_000


@dataclass(frozen=True)
class Ready:
    """A fit that can begin.

    Attributes:
        rows: To train on, standardised; drawn from the batches, where these are read.
        held_out: To choose the weights by, standardised, or None.
        plan: How to train.
        size: Rows that the whole data counts as.
        reading: The batches, where rows do not stay in memory.
        files: Where its state goes, and comes from.
        identity: What another fit must share to go on from its state.
        riders: What rides along in its state beside what the loop and the batches have.
    """

    rows: Rows
    held_out: Rows | None
    plan: Plan
    size: float
    reading: Reading | None
    files: Files
    identity: dict[str, Any]
    riders: Mapping[str, Rider] = field(default_factory=dict)

    def batches(self, model: MDN) -> tuple[BatchSource, Saving]:
        """Give minibatches from the first on, and where the state of their fit goes."""
        # A schedule is a function, which only a file has to be asked about beforehand.
        identity = self.identity | self.plan.identity() if self.files.used else {}
        saving = replace(self.files.saving(identity), riders=self.riders)
        if self.reading is None:
            batches = Batches(self.rows.tensors(), self.plan.batch_size, self.plan.seed)
            return self.plan.noisy(batches), saving
        stream = self.reading.batches(model)
        saving = replace(saving, riders={"batches": stream, **self.riders})
        return self.plan.noisy(stream), saving

    def evaluation(self, model: MDN) -> Callable[[], float] | None:
        """Make the held-out loss: of standardised rows, through the plain network."""
        rows = self.held_out
        if rows is None:
            return None
        return lambda: mean_nll(lambda z, t: model.network(z).log_prob(t), rows)

    def choice(self, model: MDN) -> Callable[[], float] | None:
        """Make what the weights are chosen by: the held-out loss, of the density once stretched."""
        rows, evaluate = self.held_out, self.evaluation(model)
        if rows is None or evaluate is None or not (self.plan.stretch and model.head.stretches):
            return evaluate

        @torch.no_grad()
        def loss() -> float:
            def log_prob(x: Tensor, y: Tensor, stretch: Tensor) -> Tensor:
                return model.network(x, stretch=stretch).log_prob(y)

            return evaluate() - foreseen(log_prob, rows)

        return loss


def prepare(model: MDN, data: Data, plan: Plan, files: Files, *, initialise: bool) -> Ready:
    """Standardise, start the weights, and give what the loop needs."""
    identity = data.identity() if files.used else {}
    rows, held_out, owned = data.rows, data.held_out, data.owned
    size, reading, generator = data.size, data.reading, data.generator
    del data  # nothing keeps the rows in their own units once they are standardised
    support = model.head.family.support
    model.x_scaling.fit(rows.x, limit=INPUT_LIMIT)
    model.y_scaling.fit(rows.y, support)
    plan = replace(
        plan,
        batch_size=plan.batch_size or min(max(len(rows.y) // 16, 16), 128),
        offset=model.y_scaling.log_jacobian,
        baseline=baseline(rows.y, rows if held_out is None else held_out, support),
    )
    held_out = None if held_out is None else standardised(model, held_out)
    rows = standardised(model, rows, reuse=owned)
    if initialise:
        start_weights(model, rows.x, rows.y, generator)
    _require_one_density_a_row(model, rows.x)
    identity |= layout(model) if files.used else {}
    return Ready(rows, held_out, plan, size, reading, files, identity)


def start_weights(model: MDN, z: Tensor, t: Tensor, generator: torch.Generator) -> None:
    """Draw first weights from standardised rows; those of a trunk not our own stay."""
    redraw(model.head, generator)
    if isinstance(model.trunk, MLP):
        if model.trunk.encoding is not None:
            model.trunk.encoding.fit(z)
        redraw(model.trunk, generator)
        spread_kinks(model.trunk, z, generator)
    place_components(model.head, t, generator)


def _require_one_density_a_row(model: MDN, z: Tensor) -> None:
    """Run the network once, so that a trunk of the wrong shape fails before any work is done."""
    with torch.no_grad():
        shape = model.eval().network(z[:2]).batch_shape
    if shape != (2,):
        raise ValueError(
            f"trunk gives densities of batch shape {tuple(shape)} for 2 rows of x: it must map "
            "x (N, ...) to features (N, H)."
        )


def baseline(y: Tensor, rows: Rows, support: Support) -> float:
    """Score the density of ``y`` that ignores x on rows; on evenly spaced ones where many."""
    marginal = marginal_density(spaced(y, MOST_SCORED), circular=support.circular)
    some = rows.spaced(MOST_SCORED)
    # A kernel a row of y: fewer rows at once hold as many numbers as those of a model.
    return mean_nll(lambda _, y: marginal.log_prob(y), some, CHUNK // 16)


@torch.no_grad()
def mean_nll(log_prob: Callable[[Tensor, Tensor], Tensor], rows: Rows, chunk: int = CHUNK) -> float:
    """Average minus ``log_prob`` over rows, in chunks, by their weights."""
    total, weight = 0.0, 0.0
    for x, y, *w in zip(*(t.split(chunk) for t in rows.tensors()), strict=True):
        found = log_prob(x, y)
        total += float((found * w[0] if w else found).sum(dtype=torch.float64))
        weight += float(w[0].sum(dtype=torch.float64)) if w else len(found)
    return -total / weight
