"""Diagnostics: what is wrong with data or a fit, said in words, and what helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyralloy.families import SCALE_FLOOR
from pyralloy.families.contract import scale_bounds
from pyralloy.inference.fit import Fit
from pyralloy.inference.rows import Rows, copies, without_copies
from pyralloy.initialise import place_marginal
from pyralloy.marginal import marginal_density
from pyralloy.model import MDN
from pyralloy.networks import evaluating
from pyralloy.numerics import spaced
from pyralloy.scaling import INPUT_LIMIT

__all__ = ["FitWarning", "settled"]

#: Rows that are looked at: enough to see a share of one in a hundred.
MOST_ROWS = 2_000

#: Rows that marginal and model are compared on: their difference is then known to 0.01 nats.
MOST_COMPARED = 10_000

#: Rows that stand for all, where these have weights, so that no sum over all needs room.
MOST_WEIGHED = 1_000_000

#: Training rows that held-out rows are looked for among.
MOST_MATCHED = 200_000

#: Rows of an evaluation at once.
CHUNK = 4096

#: Columns of x up to which all pairs are compared.
MOST_COLUMNS = 500

#: Steps below which a fit is a trial run, and nothing is expected of what it learnt.
TRIAL = 50

#: A guess at the standard deviation of the difference of two log densities at a row, worth so many
#: rows: of one or two held-out rows alone no deviation can be told.
GUESS, WORTH = 1.0, 2.0

#: Held-out rows below which weights that outnumber the training rows are not chosen by them. Of 56
#: fits of 4,000 weights to 5 ... 30 rows all but two seemed to gain there, and six in truth.
LEAST = 5

#: Standard errors that a gain has to be. The rule of Breiman et al. says one; but weights that were
#: chosen on the same rows gain more than that where there is nothing, 12 times in 354 wild data
#: sets, and more than this once. A higher bar would take a weak signal, or few rows, for none.
SURE = 1.5

#: Nats by which one row can speak for a density.
MOST_GAIN = 20.0


#: Correlation short of one, and spreads from the rest, that no measurement has.
SAME, ABSURD = 1e-7, 1e8

#: Spreads beyond which a y is spoken of.
FAR = 100.0

#: Standard deviations of y beyond which an interval is so wide that components learn badly in it.
WIDE = 50.0

#: Of y: rows below which nothing is said; distinct values a row; share of one value.
FEW, DISTINCT, SHARE = 40, 0.05, 0.05

#: Share of held-out rows that are copies; weight of a component that is dead; share of the density
#: in components at the floor.
LEAK, DEAD, NARROW = 0.05, 1e-4, 0.3


class FitWarning(UserWarning):
    """Data or a fit are likely not what was meant; the text says what helps."""


class Verdict(NamedTuple):
    """How much better one density is than another, in nats a row, and its standard error."""

    gain: float
    error: float

    @property
    def better(self) -> bool:
        """Whether it is better beyond chance."""
        return self.gain > SURE * self.error


def settled(
    fit: Fit,
    trained: Rows,
    held_out: Rows | None,
    *,
    returns: Sequence[Sequence[int]],
    complete: bool,
) -> Fit:
    """Give a fit whose model is no worse than a density that ignores x, with what is wrong with it.

    Where the weights are not better than the marginal density beyond chance on the held-out rows
    (by one and a half standard errors of the paired difference, rows by their weights), nor than
    the density without x that the head can express, the head is given the latter: the simplest of
    those that cannot be told apart, as Breiman et al. choose a tree. A fit that a callback or
    Ctrl-C ended, one from weights of the user's, or a trial run of less than 50 steps keeps its
    weights, whatever they are.

    Args:
        fit: As the loop left it.
        trained: Standardised rows that were trained on.
        held_out: Standardised rows that were held out, or None.
        returns: Steps from which each run went back because something was not finite.
        complete: Whether the fit began anew and ended by itself.

    Returns:
        The fit, with ``diagnostics``.

    References:
        Breiman, L., Friedman, J. H., Olshen, R. A., & Stone, C. J. (1984). Classification and
        Regression Trees. Wadsworth. doi:10.1201/9781315139470. Kish, L. (1965). Survey Sampling.
        Wiley.
    """
    found = [*_of_inputs(trained.x), *_of_targets(fit.model, trained.y)]
    if held_out is not None:
        found += _of_leaks(trained, held_out)
    found += [
        f"at {len(steps)} steps (the first {steps[0]}) a loss or a weight was not finite: "
        f"the fit went on from finite weights at 1/{2 ** len(steps)} of the learning rate; "
        "lower learning_rate, or look for outliers."
        for steps in returns
        if steps
    ]
    if complete and fit.history.step[-1] >= TRIAL:
        fit, said = _against_marginal(fit, trained, held_out)
        found += said or _of_components(fit.model, trained)
    return replace(fit, diagnostics=tuple(found))


# -- the marginal ---------------------------------------------------------------------------------


def _against_marginal(fit: Fit, trained: Rows, held_out: Rows | None) -> tuple[Fit, list[str]]:
    """Give the fit, of the marginal density if that is not clearly worse, and what to say of it."""
    model, support = fit.model, fit.model.head.family.support
    reference = trained if held_out is None else held_out
    blind = held_out is not None and len(held_out.y) < LEAST and _freedom(model, trained) > 0
    reference = without_copies(reference.spaced(MOST_COMPARED))
    learnt, shares = _scores(model, reference), _shares(reference)
    y = _by_weight(trained)
    marginal = marginal_density(spaced(y, MOST_COMPARED), circular=support.circular)
    kernels = _in_chunks(marginal.log_prob, reference.y, chunk=CHUNK // 16)
    against = _verdict(learnt, kernels, shares)
    if against.better and not blind:
        return fit, []
    gain = f"held-out gain {against.gain:.3f} +- {against.error:.3f} nats a row"
    worse = f"the model is not better than the density of y that ignores x ({gain})"
    remedy = "x may say nothing of y; try more rows, fewer or better columns, or other settings."
    if blind:
        worse = f"{len(reference.y)} held-out rows cannot tell what {len(trained.y)} rows taught"
        remedy = (
            "hold out more, take a network of fewer weights than rows, or keep the last ones by "
            "validation=None."
        )
    if support.circular:
        return fit, [f"{worse}: {remedy}"]
    state = {name: v.clone() for name, v in model.head.state_dict().items()}
    place_marginal(model.head, y)
    still = _scores(model, reference)
    beyond = _verdict(kernels, still, shares).better  # what the head's components can express
    if beyond and _verdict(learnt, still, shares).better and not blind:
        model.head.load_state_dict(state)
        if against.gain > 0:  # by chance, maybe, but better than all that the head knows
            return fit, []
        few = f"{model.head.components} components without x"
        return fit, [f"{worse}, though than any of {few}: take more, or another family."]
    fit = _restarted(fit, model.y_scaling.log_jacobian - float(shares @ still))
    return fit, [f"{worse}: the model now is the density of y that ignores x; {remedy}"]


def _shares(rows: Rows) -> Tensor:
    """Give how much each row counts, (N,), float64, of sum 1."""
    weights = rows.weights
    if weights is None:
        weights = torch.ones(len(rows.y), device=rows.y.device)
    weights = weights.to(torch.float64)
    return weights / weights.sum()


def _by_weight(rows: Rows) -> Tensor:
    """Give y, each as often as its weight says: of many rows some, and the least and greatest."""
    if rows.weights is None:
        return rows.y
    _, y, weights = rows.spaced(MOST_WEIGHED).tensors()
    total = weights.cumsum(0, dtype=torch.float64)
    places = (torch.arange(len(y), device=total.device) + 0.5) / len(y) * total[-1]
    found = y[torch.searchsorted(total, places).clamp_max(len(y) - 1)]
    if len(y) < len(rows.y) and y.ndim == 1:
        found = torch.cat([found, rows.y[torch.stack([rows.y.argmin(), rows.y.argmax()])]])
    return found


def _restarted(fit: Fit, nll: float) -> Fit:
    """Give the fit as one whose best weights are those of step 0."""
    row = fit.history[:1].copy()
    for name in row.dtype.names or ():
        row[name] = 0
    row["train"], row["validation"] = (math.nan, nll) if _held_out(fit) else (nll, math.nan)
    return replace(fit, history=np.concatenate([row, fit.history]).view(np.recarray), best_step=0)


def _freedom(model: MDN, trained: Rows) -> int:
    """Count the weights beyond one a row."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - len(trained.y)


def _held_out(fit: Fit) -> bool:
    return not bool(np.isnan(fit.history.validation).all())


def _verdict(ours: Tensor, theirs: Tensor, shares: Tensor) -> Verdict:
    """Compare log densities of the same rows, of which each counts by its share.

    Rows of unequal shares say as much as fewer of equal ones (Kish 1965).
    """
    # One row that theirs all but rules out says no more than that they are much worse there.
    gap = (ours - theirs).clamp_max(MOST_GAIN)
    gain, rows = float(shares @ gap), 1.0 / float(shares.square().sum())
    scatter = rows * float(shares @ (gap - gain).square())
    variance = (WORTH * GUESS**2 + scatter) / (WORTH + rows - 1)
    return Verdict(gain, math.sqrt(variance / rows))


def _scores(model: MDN, rows: Rows) -> Tensor:
    """Give the log densities of standardised rows, (N,), float64."""
    with evaluating(model):
        return _in_chunks(lambda z, t: model.network(z).log_prob(t), rows.x, rows.y)


def _in_chunks(log_prob: Callable[..., Tensor], *tensors: Tensor, chunk: int = CHUNK) -> Tensor:
    parts = zip(*(t.split(chunk) for t in tensors), strict=True)
    return torch.cat([log_prob(*part).to(torch.float64) for part in parts])


# -- the data -------------------------------------------------------------------------------------


def _of_inputs(x: Tensor) -> list[str]:
    """Name columns that are constant, or the same as another; and values squeezed to nothing."""
    if x.ndim != 2:
        return []
    found, x = [], spaced(x, MOST_ROWS)
    flat = x.amax(0) == x.amin(0)
    if bool(flat.any()):
        found.append(f"{_columns(flat)} of x {_is(flat)} constant: leave it out, it says nothing.")
    far = (x.abs() > INPUT_LIMIT + math.log1p(ABSURD)).any(0)
    if bool(far.any()):
        found.append(
            f"{_columns(far)} of x hold values beyond {ABSURD:.0e} spreads from the rest, and were "
            "squeezed: drop those rows, or replace what stands for a missing value."
        )
    kept = (~flat).nonzero()[:, 0]
    if 2 <= len(kept) <= MOST_COLUMNS and len(x) > 2:
        z = x[:, kept].to(torch.float64)
        z = (z - z.mean(0)) / z.std(0, correction=0).clamp_min(1e-300)
        same = (z.mT @ z / len(z)).abs().triu(1) > 1 - SAME
        if bool(same.any()):
            i, j = (int(kept[k]) for k in same.nonzero()[0])
            found.append(
                f"columns {i} and {j} of x are the same but for shift and scale"
                f"{_more(int(same.sum()) - 1)}: leave one of them out."
            )
    return found


def _of_targets(model: MDN, y: Tensor) -> list[str]:
    """Say where y has values far out, or such that many rows share: no density is bounded there."""
    support = model.head.family.support
    if y.ndim > 1 or support.integer or support.circular:
        return []
    away = y.abs()
    if support.shifts and float(away.amax()) > FAR:
        count, farthest = int((away > FAR).sum()), float(away.amax())
        what = f"{count} of {len(y)} y lie beyond {FAR:g} spreads, the farthest at {farthest:.2g}"
        return [f"{what}: drop mistakes; for heavy tails try family='student_t', or logarithms."]
    width, spread = support.high - support.low, float(y.std()) if len(y) >= FEW else math.inf
    if WIDE * spread < width < math.inf:
        what = f"y may lie from {support.low:g} to {support.high:g}, which is {width / spread:.0f}"
        ends = f"all of it lies between {float(y.amin()):.4g} and {float(y.amax()):.4g}"
        return [f"{what} of its deviations, and {ends}: give the family ends nearer to y."]
    return _of_few_values(model, y) if len(y) >= FEW else []


def _of_few_values(model: MDN, y: Tensor) -> list[str]:
    y = spaced(y, MOST_ROWS)
    values, counts = y.unique(return_counts=True)
    floor = SCALE_FLOOR * float(y.std())
    unbounded = "the density has no upper bound there, so that NLL says little: compare by CRPS, or"
    if len(values) <= DISTINCT * len(y) and float(values.diff().median()) > 3 * floor:
        what = f"y has only {len(values)} distinct values in {len(y)} rows"
        return [f"{what}; {unbounded} take a family of counts ('poisson') or a classifier."]
    share = float(counts.amax()) / len(y)
    if share >= SHARE:
        value = values[counts.argmax()].to(torch.float64)
        value = float(value * model.y_scaling.scale + model.y_scaling.shift)
        what = f"{share:.0%} of the rows have y = {value:.6g}"
        return [f"{what}; {unbounded} model whether y has that value by a classifier of its own."]
    return []


def _of_leaks(trained: Rows, held_out: Rows) -> list[str]:
    """Say where held-out rows are copies of rows that were trained on."""
    held = Rows(held_out.x, held_out.y).spaced(MOST_ROWS)
    # Of very many training rows some are compared, and stand for the others.
    step = math.ceil(len(trained.y) / MOST_MATCHED)
    some = Rows(trained.x[::step], trained.y[::step])
    both = Rows(torch.cat([held.x, some.x]), torch.cat([held.y, some.y]))
    sets = copies(both)
    if sets is None:
        return []
    leaked = step * int(torch.isin(sets[: len(held.y)], sets[len(held.y) :]).sum())
    leaked = min(leaked, len(held.y))
    if leaked < max(2, LEAK * len(held.y)):
        return []
    what = f"{leaked} of {len(held.y)} held-out rows are copies of rows that were trained on"
    return [f"{what}: their score is too good, and chooses weights that know rows by heart."]


# -- the components -------------------------------------------------------------------------------


@torch.no_grad()
def _of_components(model: MDN, trained: Rows) -> list[str]:
    """Say where most components died, or most of the density is as narrow as it may be."""
    if model.head.components < 2:
        return []
    with evaluating(model):
        density = model.network(spaced(trained.x, MOST_ROWS))
    found, weights = [], density.mixture_distribution.probs
    alive = int((weights.amax(0) > DEAD).sum())
    if alive == 1:
        found.append(
            f"{weights.shape[-1] - 1} of {weights.shape[-1]} components died, their weights below "
            f"{DEAD:g} at every row: take fewer, lower learning_rate, or look for outliers."
        )
    scale = getattr(density.component_distribution, "scale", None)
    if scale is not None and scale.shape == weights.shape and model.head.family.support.shifts:
        floor = math.exp(scale_bounds(model.head.spread)[0])
        narrow = float((weights * (scale < 1.5 * floor)).sum(-1).mean())
        if narrow > NARROW:
            found.append(
                f"{narrow:.0%} of the density is in components at the floor of scales, 1/500 of "
                "y's spread: y is nearly a function of x, or takes few values; compare by CRPS, "
                "and give the head a smaller spread if the scales are real."
            )
    return found


def _columns(which: Tensor) -> str:
    places = which.nonzero()[:, 0].tolist()
    named = ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
    return f"column{'s' * (len(places) > 1)} {named}"


def _is(which: Tensor) -> str:
    return "are" if int(which.sum()) > 1 else "is"


def _more(count: int) -> str:
    return f" (and {count} more pairs)" if count else ""
