"""Where training starts: components spread over y, first-layer kinks spread over x."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyralloy.families import wrap
from pyralloy.families.contract import scale_bounds
from pyralloy.heads import MixtureHead
from pyralloy.marginal import bandwidth, condensed
from pyralloy.networks import MLP
from pyralloy.scaling import FENCE

__all__ = ["place_components", "place_marginal", "redraw", "spread_kinks"]

#: Rows of y that are looked at; more would not move a quantile by much.
MOST_ROWS = 10_000

#: Factor on the first layer's weights; 1 bends too slowly for a wiggly density, 4 no better than 2.
FIRST_GAIN = 2.0


@torch.no_grad()
def redraw(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of every linear layer anew, uniformly within 1 / sqrt(fan-in).

    Args:
        network: Its ``nn.Linear`` layers are changed, in place, but for parameters that are not to
            be trained.
        generator: Source of randomness, so that torch's default one is left alone.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            bound = 1.0 / math.sqrt(layer.in_features)
            for parameter in layer.parameters(recurse=False):
                if parameter.requires_grad:
                    _fill_uniform(parameter, bound, generator)


@torch.no_grad()
def spread_kinks(trunk: MLP, x: Tensor, generator: torch.Generator) -> None:
    """Let each unit of the first layer bend at a training row, and no unit bend where no data is.

    Its weights are doubled too, so that a bend is about as wide as a fraction of x's spread.

    Args:
        trunk: Changed in place.
        x: Standardised inputs, shape (N, F).
        generator: Source of randomness.
    """
    first = next((m for m in trunk.modules() if isinstance(m, nn.Linear)), None)
    if first is None or not all(p.requires_grad for p in first.parameters()):
        return
    rows = torch.randint(x.shape[0], (first.out_features,), generator=generator)
    first.weight.mul_(FIRST_GAIN)
    first.bias.copy_(-(first.weight * trunk.encoded(x[rows.to(x.device)])).sum(-1))


@torch.no_grad()
def place_components(head: MixtureHead, y: Tensor, generator: torch.Generator) -> None:
    """Spread a head's components over the marginal distribution of y.

    Where some rows lie far out, the ceiling of scales is raised to them, and of a scalar y they get
    components of their own, of their own weight.

    Args:
        head: Changed in place.
        y: Standardised targets, shape (N,) or (N, D).
        generator: Source of randomness.
    """
    farthest = float(y.abs().amax())
    head.widen(farthest / FENCE)
    # Of very many rows hardly one is drawn twice, and their order would take more memory than y.
    count = y.shape[0]
    if count > 100 * MOST_ROWS:
        rows = torch.randint(count, (MOST_ROWS,), generator=generator).to(y.device)
    else:
        rows = torch.randperm(count, generator=generator)[:MOST_ROWS].to(y.device)
    if y.ndim == 1 and head.family.support.shifts and farthest > FENCE:
        place_marginal(head, y, rows, bias_only=False)
        return
    y = y[rows]
    count = head.components
    if head.family.support.circular:
        loc, scale = _places_of_angles(y, count, generator)
    elif y.ndim == 1:
        levels = (torch.arange(count, dtype=y.dtype, device=y.device) + 0.5) / count
        loc = torch.quantile(y, levels)
        # Narrower than a kernel estimate of so few rows, components would tell single rows apart.
        scale = torch.full_like(loc, min(1.0, max(3.4 / count, 0.3 * len(y) ** -0.2)))
        if not head.family.support.shifts:
            scale = scale * y.std()  # such a y is not standardised, or only in part
    else:
        loc = _centres(y, count, generator)
        nearest = torch.cdist(y, loc).amin(-1)
        scale = (nearest.square().mean() / y.shape[-1]).sqrt().clamp(0.1, 1.0).expand(loc.shape)
    head.place(loc, scale)


@torch.no_grad()
def place_marginal(
    head: MixtureHead, y: Tensor, rows: Tensor | None = None, *, bias_only: bool = True
) -> None:
    """Make a head's density the marginal one of y, as nearly as its components can.

    Args:
        head: Changed in place; its family is not of angles.
        y: Standardised targets, shape (N,) or (N, D).
        rows: Which of them to look at; of a scalar y the least and the greatest are looked at in
            any case. None for rows evenly spaced, at most 10,000.
        bias_only: Whether the features are to count for nothing, rather than for a little.
    """
    if rows is None:
        step = math.ceil(y.shape[0] / MOST_ROWS)
        rows = torch.arange(0, y.shape[0], step, device=y.device)
    if y.ndim == 1:
        extremes = torch.stack([y.argmin(), y.argmax()])
        found = condensed(y[torch.cat([rows, extremes]).unique()], head.components)
    else:
        found = _clusters(y[rows], head.components)
    loc, scale, weights = found
    ends = (math.exp(v) for v in scale_bounds(head.spread))
    scale = scale.clamp(*(v * f for v, f in zip(ends, (1.02, 0.98), strict=True)))
    # The resolution of a location far out: what is narrower would see its rounding.
    scale = scale.clamp_min(4 * torch.finfo(y.dtype).eps * loc.abs())
    head.place(loc.to(y.dtype), scale.to(y.dtype), weights.to(y.dtype), bias_only=bias_only)


def _places_of_angles(y: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spread directions and widths (K,) or (K, D) over angles (N,) or (N, D)."""
    if y.ndim == 1:
        middle = torch.atan2(y.sin().mean(), y.cos().mean())
        levels = (torch.arange(count, dtype=y.dtype, device=y.device) + 0.5) / count
        gap = wrap(y - middle)
        loc = wrap(middle + torch.quantile(gap, levels))
        return loc, min(1.0, 3.4 / count) * gap.square().mean().sqrt().expand(loc.shape)
    # As points on circles of radius one, where near angles are near.
    points = torch.cat([y.cos(), y.sin()], -1)  # (N, 2 D)
    cosine, sine = _centres(points, count, generator).chunk(2, -1)
    loc = torch.atan2(sine, cosine)
    nearest = torch.cdist(points, torch.cat([loc.cos(), loc.sin()], -1)).amin(-1)
    scale = (nearest.square().mean() / y.shape[-1]).sqrt().clamp(0.1, 1.0)
    return loc, scale.expand(loc.shape)


def _clusters(y: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Condense rows (N, D) to Normals of diagonal covariance, one a cluster, kernels included."""
    loc = _centres(y, count, torch.Generator().manual_seed(0))
    owner = torch.cdist(y, loc).argmin(-1)
    size = torch.bincount(owner, minlength=count).to(y.dtype)
    away = torch.zeros_like(loc).index_add_(0, owner, (y - loc[owner]).square())
    variance = away / size.clamp_min(1)[:, None] + bandwidth(y.sort(0).values).square()
    return loc, variance.sqrt(), (size.clamp_min(0.1) / size.clamp_min(0.1).sum())


def _centres(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pick spread-out centres (K, D) by k-means++ and three rounds of Lloyd's algorithm."""
    chosen = [int(torch.randint(y.shape[0], (), generator=generator))]
    gap = (y - y[chosen[0]]).square().sum(-1)
    for _ in range(1, count):
        weights = gap.cpu() + torch.finfo(y.dtype).tiny
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        gap = torch.minimum(gap, (y - y[chosen[-1]]).square().sum(-1))
    centres = y[chosen]
    for _ in range(3):
        owner = torch.cdist(y, centres).argmin(-1)
        size = torch.bincount(owner, minlength=count)[:, None]
        total = torch.zeros_like(centres).index_add_(0, owner, y)
        centres = torch.where(size > 0, total / size.clamp_min(1), centres)
    return centres


def _fill_uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill from a CPU generator whatever the parameter's device, for the same numbers on each."""
    drawn = torch.empty(parameter.shape, dtype=parameter.dtype)
    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
