"""The density of y that ignores x: what every model must beat."""

from __future__ import annotations

import math

import torch
from pyro import distributions as dist
from torch import Tensor

from pyralloy.families import VonMises, wrap
from pyralloy.mixture import Mixture

__all__ = ["bandwidth", "condensed", "marginal_density"]

#: Kernels of the estimate; more would change its log density in the third digit.
MOST_KERNELS = 1_000

#: Widths of a kernel between a lone value and the next.
LONE = 20.0

#: Normals that stand for a smooth density; more would follow its noise.
MOST_RUNS = 30


def marginal_density(y: Tensor, *, circular: bool = False) -> Mixture:
    r"""Estimate the marginal density of y by Normal kernels.

    The bandwidth in each dimension is Silverman's robust rule,
    :math:`0.9 \min(s, \mathrm{IQR} / 1.34)\, N^{-1 / (D + 4)}`.

    Args:
        y: Observations, shape (N,) or (N, D), at least two of them distinct.
        circular: Whether they are angles in radians; the kernels then are von Mises, of
            concentration one over the bandwidth squared.

    Returns:
        A ``Mixture`` of batch shape (), with a component for each row (for 1,000 evenly spaced
        rows in the order of y, or for D > 1 in the order given, where there are more).

    References:
        Silverman, B. W. (1986). Density Estimation for Statistics and Data Analysis. Chapman &
        Hall. doi:10.1201/9781315140919

    Example:
        >>> density = marginal_density(torch.tensor([0.0, 1.0, 5.0]))
        >>> density.num_components, round(float(density.mean), 4)
        (3, 2.0)
    """
    y = y.to(torch.float64)
    # The spread of angles is measured on a circle that is cut opposite their mean.
    middle_angle = torch.atan2(y.sin().mean(0), y.cos().mean(0))
    y = wrap(y - middle_angle) if circular else y
    rows, ordered = y.shape[0], y.sort(0).values
    width = bandwidth(ordered)
    count = min(rows, MOST_KERNELS)
    index = ((torch.arange(count, device=y.device) + 0.5) * (rows / count)).long()
    places = (ordered if y.ndim == 1 else y)[index]
    if circular:
        kernels = VonMises(wrap(places + middle_angle), width.reciprocal().square())
    else:
        kernels = dist.Normal(places, width)
    weights = torch.full((count,), -math.log(count), dtype=y.dtype, device=y.device)
    return Mixture(dist.Categorical(logits=weights), kernels.to_event(y.ndim - 1))


def condensed(y: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Condense the marginal density of y to a few Normals, in one pass and without iteration.

    The rows, in order, are cut into runs; each run's kernels become the Normal of their mean and
    variance. A cut is made where it most improves the likelihood of the rows, each under the Normal
    of its run, :math:`\sum_b n_b \log (n_b / \sigma_b)`: rows far out so get Normals of their own.
    Where no cut improves it any more, those that narrow the runs most go on towards the kernels
    themselves, to half as many or a quarter if a component more does not gain a nat.

    Args:
        y: Observations, shape (N,), at least two of them distinct.
        count: Normals K wanted.

    Returns:
        Means, standard deviations and weights, each of shape (K,), float64, in the order of y.
        Where fewer are enough, the heaviest come in several copies.

    Example:
        >>> y = torch.cat([torch.linspace(0.0, 3.0, 7), torch.tensor([1e6])])
        >>> [v.round(decimals=3).tolist() for v in condensed(y, 2)[::2]]
        [[1.5, 1000000.0], [0.875, 0.125]]
    """
    ordered = y.to(torch.float64).sort().values
    width = bandwidth(ordered)
    runs = few = _cut([ordered], count, width, entropy=True)
    least, finer = _likelihood(ordered, few, width), min(count, MOST_RUNS)
    while finer > len(few):
        many = _cut(few, finer, width, entropy=False)
        if _likelihood(ordered, many, width) - least > len(many) - len(few):
            runs = many
            break
        finer = finer // 2
    copies = [1] * len(runs)
    for _ in range(count - len(runs)):
        copies[max(range(len(runs)), key=lambda i: len(runs[i]) / copies[i])] += 1
    repeats = torch.tensor(copies, device=y.device)
    loc, scale, weight = _normals(runs, width)
    scale = torch.maximum(scale, _tails(loc, scale, [bool(r[0] == r[-1]) for r in runs]))
    loc, scale, weight = (v.repeat_interleave(repeats) for v in (loc, scale, weight / repeats))
    return loc, scale, weight


def _tails(loc: Tensor, scale: Tensor, single: list[bool]) -> Tensor:
    """Give what scales must be at least: of lone values far apart, half the gap to the next one.

    Several of them are a heavy tail, of which the next rows will lie between and beyond; one is
    taken for a value that may come again.
    """
    least = torch.zeros_like(scale)
    if len(loc) < 3:
        return least
    gap = loc.diff()
    gap = torch.minimum(torch.cat([gap[:1], gap]), torch.cat([gap, gap[-1:]]))
    lone = torch.tensor(single, device=loc.device) & (gap > LONE * scale)
    return torch.where(lone, gap / 2, least) if int(lone.sum()) > 1 else least


def _cut(runs: list[Tensor], count: int, width: Tensor, *, entropy: bool) -> list[Tensor]:
    """Cut runs in two, the one that gains most first, until there are ``count`` or none gains."""
    runs, cuts = list(runs), [_best_cut(run, width, entropy=entropy) for run in runs]
    while len(runs) < count:
        best = max(range(len(runs)), key=lambda i: cuts[i][0])
        gain, place = cuts[best]
        if gain <= 0:
            break
        halves = [runs[best][:place], runs[best][place:]]
        runs[best : best + 1] = halves
        cuts[best : best + 1] = [_best_cut(half, width, entropy=entropy) for half in halves]
    return runs


def _normals(runs: list[Tensor], width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give the means, deviations and weights of runs of kernels."""
    loc = torch.stack([run.mean() for run in runs])
    variance = torch.stack([run.var(correction=0) for run in runs]) + width.square()
    size = torch.tensor([len(run) for run in runs], dtype=loc.dtype, device=loc.device)
    return loc, variance.sqrt(), size / size.sum()


def _likelihood(y: Tensor, runs: list[Tensor], width: Tensor) -> float:
    """Give the log likelihood of rows under the mixture of runs, in nats."""
    loc, scale, weight = _normals(runs, width)
    density = Mixture(dist.Categorical(probs=weight), dist.Normal(loc, scale))
    return float(density.log_prob(y).sum())


def _best_cut(run: Tensor, width: Tensor, *, entropy: bool) -> tuple[float, int]:
    """Find where to cut a run in two, and the nats that it gains."""
    rows = len(run)
    if rows < 2 or bool(run[0] == run[-1]):
        return -math.inf, 0
    # Each side is summed from its own end, or rows far out would take the digits of the others.
    left, right = (_running(v, width, entropy=entropy) for v in (run, run.flip(0)))
    gains = left[-1] - left[:-1] - right[:-1].flip(0)
    # A cut between equal values would be one between nothing.
    gains = torch.where(run[1:] > run[:-1], gains, -math.inf)
    best = int(gains.argmax())
    return float(gains[best]), best + 1


def _running(run: Tensor, width: Tensor, *, entropy: bool) -> Tensor:
    """Give the cost in nats of the first 1, 2 ... rows of a run as one Normal.

    ``entropy`` is whether to count what it costs to tell the runs apart.
    """
    count = torch.arange(1, len(run) + 1, dtype=run.dtype, device=run.device)
    away = run - run[0]
    mean = away.cumsum(0) / count
    variance = (away.square().cumsum(0) / count - mean.square()).clamp_min(0.0)
    cost = 0.5 * (variance + width.square()).log()
    return count * (cost - count.log() if entropy else cost)


def bandwidth(ordered: Tensor) -> Tensor:
    """Give Silverman's robust bandwidth of rows in order (N,) or (N, D), by dimension."""
    rows, dims = ordered.shape[0], 1 if ordered.ndim == 1 else ordered.shape[1]
    middle = ordered[round(0.75 * (rows - 1))] - ordered[round(0.25 * (rows - 1))]
    deviation = ordered.std(0)
    spread = torch.where(middle > 0, torch.minimum(deviation, middle / 1.34), deviation)
    width = 0.9 * spread * rows ** (-1.0 / (dims + 4))
    return width.clamp_min(1e-6 * deviation.clamp_min(torch.finfo(ordered.dtype).tiny))
