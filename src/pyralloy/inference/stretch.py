"""Stretch: make a trained model's components as wide as held-out rows ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from pyralloy.inference.rows import Rows, weighted_mean, without_copies
from pyralloy.mixture import Mixture
from pyralloy.model import MDN, Outputs
from pyralloy.networks import evaluating
from pyralloy.numerics import invert_monotone

__all__ = ["MOST_ROWS", "POOLED", "foreseen", "gain", "narrow", "stretch", "stretch_pools", "tried"]

#: Logs of the least and the most that widths are multiplied by.
LEAST, MOST = -1.0, 2.0

#: Standard deviation of that logarithm before anything is seen, which few rows hardly move.
BEFORE = 0.5

#: Nats that a stretch must be worth, over all held-out rows: as much as one number gains by chance.
WORTH = 1.0

#: Standard errors by which the width of what is used is wider than the likeliest.
ERRORS = 1.0

#: Those among which the best is looked for while weights are chosen; 0 is one of them.
TRIED = (0.0, -0.4, -0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)

#: Held-out rows that are looked at; one number needs no more.
MOST_ROWS = 4096

#: Draws of a pool of draws, and rows that are looked at.
POOLED, MOST_POOLED = 50, 1024

#: Rows of a member at which it is compared with the pool, and draws at each.
MOST_PLACES, DRAWS = 256, 8


def tried(like: Tensor) -> Tensor:
    """Give the logs that are tried, to stretch densities by all at once: (G, 1, 1)."""
    return torch.tensor(TRIED, dtype=like.dtype, device=like.device)[:, None, None]


def gain(log_probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give the nats a row that the best of the tried factors is worth, at least 0.

    Weights of a network are to be chosen by the density that they will make in the end. Left as
    they are, the best look to come early, where a network is not yet sure of itself; what it learns
    of locations after that is worth more than its widths, which can be mended, are out.

    Args:
        log_probs: Of held-out rows, by each of the factors, shape (..., G, N).
        weights: Of the rows, shape (N,) or (..., N).

    Returns:
        Shape (...), in float64.

    References:
        Berta, E., Holzmüller, D., Jordan, M. I., & Bach, F. (2025). Rethinking early stopping:
        refine, then calibrate. arXiv:2501.19195
    """
    wide = log_probs.to(torch.float64)
    means = weighted_mean(wide, None if weights is None else weights.to(wide)[..., None, :])
    amounts = torch.tensor(TRIED).to(means)
    means = means - (amounts / BEFORE).square() / (2 * wide.shape[-1])
    return means.amax(-1) - means[..., 0]


def foreseen(log_prob: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Rows) -> float:
    """Give the :meth:`gain` of rows, of ``(x, y, logs of factors) -> log_probs`` (G, N)."""
    x, y, *weights = rows.spaced(MOST_ROWS).tensors()
    return float(gain(log_prob(x, y, tried(x)), *weights))


def stretch(model: MDN, held_out: Rows | None, members: int = 1) -> float:
    r"""Multiply the widths of all components by one number, the best on the held-out rows.

    Of a density :math:`p_a`, whose widths are :math:`e^a` times as large, a is where

    .. math:: \sum_n \log p_a(y_n \mid x_n) - \frac{a^2}{2 \tau^2}

    has its greatest value, :math:`\tau = 1/2`, and, as far as the rows say so and not the second
    term, one standard error more: they have chosen the weights as well, and a density that is too
    narrow loses more than one that is as much too wide. Of members that are pooled, each with rows
    of its own, it is the error of their mean. Networks of many weights and few rows are too sure of
    what they saw; where their best weights come early, they may also be less sure than they could
    be. Where the rows would gain less than one nat by it, of members less than their share of one,
    as Akaike asks of a parameter more, widths stay as they are.

    Args:
        model: Trained by other rows; changed in place, where its components have widths at all.
        held_out: Standardised; of more than 4,096 evenly spaced ones are looked at. Copies count
            once, as one evidence.
        members: Models that are to be pooled, this one among them, each of which held out other
            rows.

    Returns:
        The logarithm a of the number, 0 where nothing was done.

    References:
        Akaike, H. (1974). A new look at the statistical model identification. IEEE Transactions on
        Automatic Control 19. doi:10.1109/TAC.1974.1100705
        Levi, D., Gispan, L., Giladi, N., & Fetaya, E. (2022). Evaluating and calibrating
        uncertainty prediction in regression tasks. Sensors 22. doi:10.3390/s22155540
    """
    if held_out is None or not model.head.stretches:
        return 0.0
    x, y, *weights = without_copies(held_out.spaced(MOST_ROWS)).tensors()
    with evaluating(model):
        features = model.trunk(x)

        def total(amount: Tensor) -> Tensor:
            log_prob = model.head(features, amount.to(features)).log_prob(y)
            return (log_prob * weights[0] if weights else log_prob).sum(dtype=torch.float64)

        amount = _wide(total, y, members)
    model.head.stretch(amount)
    return amount


def stretch_pools(
    models: Sequence[MDN], draws: Sequence[Mapping[str, Tensor]], held_out: Sequence[Rows]
) -> float:
    """Stretch pools of draws of the weights, all by one number, as :func:`stretch` does a model.

    Draws disagree, so that a pool is wider than they are, and the best width of its components is
    not that of the centre's. The number lies beside the weights: the posterior and its guide stay
    as they are.

    Args:
        models: Changed in place.
        draws: Of each model, weights by name, shapes (S, ...); without any it stands for itself.
        held_out: Of each, rows that it did not see, standardised.

    Returns:
        The logarithm of the number, 0 where nothing was done.
    """
    if not held_out or not models[0].head.stretches:
        return 0.0
    parts: list[tuple[MDN, tuple[Tensor, ...], Tensor, list[Tensor]]] = []
    for model, drawn, rows in zip(models, draws, held_out, strict=True):
        x, y, *weights = without_copies(rows.spaced(MOST_POOLED)).tensors()
        with evaluating(model):
            network = Outputs(model)
            made = torch.stack([functional_call(network, w, (x,))[1] for w in _each(drawn)])
        parts.append((model, made.split(model.head.components, -1), y, weights))

    def total(amount: Tensor) -> Tensor:
        found = amount.new_zeros(())
        for model, made, y, weights in parts:
            each = model.head.mixture(made, amount.to(made[0])).log_prob(y).to(torch.float64)
            log_prob = each.logsumexp(0)
            found = found + (log_prob * weights[0] if weights else log_prob).sum()
        return found

    amount = _wide(total, held_out[0].y)
    for model in models:
        model.head.stretch_beside(amount)
    return amount


def _each(draws: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """List draws (S, ...) of weights one by one; no weights are the model's own."""
    count = len(next(iter(draws.values()))) if draws else 1
    return [{name: values[s] for name, values in draws.items()} for s in range(count)]


def _wide(total: Callable[[Tensor], Tensor], like: Tensor, members: int = 1) -> float:
    """Give the log of the width, where ``total`` is the log likelihood of one, shape (1,)."""

    def loss(amount: Tensor) -> Tensor:
        """Evaluate the negative logarithm of what is to be greatest, at ``amount`` (1,)."""
        return 0.5 * (amount / BEFORE).square().sum() - total(amount)

    def slope(amount: Tensor, _rows: Tensor | None = None) -> Tensor:
        with torch.enable_grad():
            leaf = amount.detach().requires_grad_()
            return torch.autograd.grad(loss(leaf), leaf)[0]

    ends = [torch.full((1,), v, dtype=torch.float64, device=like.device) for v in (LEAST, MOST)]
    low, high = (float(slope(end)) for end in ends)
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0
    if low < 0.0 < high:
        zero, finest = torch.zeros_like(ends[0]), torch.finfo(like.dtype).eps ** (2 / 3)
        # Any finer, and it is the rounding of the slope that is solved.
        amount = float(invert_monotone(slope, zero, *ends, resolution=finest))
    else:
        amount = LEAST if low >= 0.0 else MOST
    best = torch.full_like(ends[0], amount)
    if float(loss(torch.zeros_like(best)) - loss(best)) < WORTH / members:
        return 0.0
    near = best + torch.tensor([[-0.01], [0.01]]).to(best)
    curvature = max(float(slope(near[1]) - slope(near[0])) / 0.02, BEFORE**-2)
    error = ERRORS / math.sqrt(members * curvature)
    return min(amount + (1.0 - BEFORE**-2 / curvature) * error, MOST)


def narrow(
    models: Sequence[MDN],
    held_out: Sequence[Rows],
    generator: torch.Generator,
    draws: Sequence[Mapping[str, Tensor]] = (),
) -> float:
    r"""Make the components of all members narrower, by what their pool adds to them.

    Each member's widths allow for the error of its own locations. In a pool that error shows once
    more, as members disagree: its entropy exceeds theirs by the disagreement :math:`I`, the mean
    Kullback-Leibler divergence of a member from the pool, where it should be less by as much, since
    the pool's locations are better. Of Normal members the disagreement has :math:`v = e^{2 I} - 1`
    times the variance of one of them, and the variance of each should be less by twice that. So all
    widths are multiplied by :math:`e^{-v}`, which is exact where v is small, and above zero.

    At a row that one member has held out, those that were trained on it agree more than they would
    at a new row, and that one with them less: I is taken as the mean of the two.

    Args:
        models: The members; changed in place.
        held_out: Rows that each did not see, standardised; at most 256 of each are looked at.
        generator: Source of draws of y, by which I is estimated.
        draws: Of each model, weights by name, shapes (S, ...), where members are pools of them.

    Returns:
        The logarithm of what widths are multiplied by, 0 or less.
    """
    if len(models) < 2 or not models[0].head.stretches:
        return 0.0
    total = 0.0
    for lane, rows in enumerate(held_out):
        x, _, *weights = rows.spaced(MOST_PLACES).tensors()
        with torch.no_grad():
            densities = [
                Mixture.pool([model.network(x, each) for each in _each(drawn)])
                for model, drawn in zip(models, draws or [{}] * len(models), strict=True)
            ]
            pool, gaps = Mixture.pool(densities), []
            for density in densities:
                y = density.sample((DRAWS,), generator=generator)
                gap = (density.log_prob(y) - pool.log_prob(y)).mean(0)
                gaps.append(float(weighted_mean(gap, *weights)))
        held = gaps.pop(lane)
        total += (held + sum(gaps) / len(gaps)) / 2
    amount = max(-math.expm1(2.0 * max(total / len(models), 0.0)), LEAST)
    for model in models:
        (model.head.stretch_beside if draws else model.head.stretch)(amount)
    return amount
