"""Slopes of log densities: of components of any family, and of mixtures of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributions as td

from pyralloy.checks import broadcast_shapes
from pyralloy.families import family_of
from pyralloy.families.normal_interval import mass_between
from pyralloy.families.truncated_normal import TruncatedNormal

__all__ = ["Ready", "Slopes", "ready"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Slopes(NamedTuple):
    """A log density with its first and second derivative in y, all of one shape."""

    value: Tensor
    first: Tensor
    second: Tensor


@singledispatch
def log_slopes(component: Any, y: Tensor) -> Slopes:
    """Differentiate the log densities of components at ``y``, broadcastable, for any family."""
    with torch.enable_grad():
        shape = broadcast_shapes(y.shape, component.batch_shape)
        y = y.detach().expand(shape).clone().requires_grad_()
        value = component.log_prob(y)
        (first,) = torch.autograd.grad(value.sum(), y, create_graph=True)
        second = None
        if first.requires_grad:
            (second,) = torch.autograd.grad(first.sum(), y, allow_unused=True)
    first, second = first.detach(), torch.zeros_like(y) if second is None else second.detach()
    inside = component.support.check(y.detach()) & first.isfinite() & second.isfinite()
    return Slopes(
        torch.where(inside, value.detach(), -math.inf),
        torch.where(inside, first, 0.0),
        torch.where(inside, second, 0.0),
    )


@log_slopes.register
def _(component: td.VonMises, y: Tensor) -> Slopes:
    gap, rate = y - component.loc, component.concentration
    return Slopes(component.log_prob(y), -rate * gap.sin(), -rate * gap.cos())


class Ready(NamedTuple):
    """What evaluates mixtures of one kind of component, again and again.

    Attributes:
        slopes: ``(values, y, dim) -> Slopes``, the components along ``dim``.
        cdf: ``(weights, values, y) -> cdf`` (Q,), of weights and values (Q, K) and points (Q, 1).
        values: What both are given of the components, (M, K) each.
    """

    slopes: Callable[[list[Tensor], Tensor, int], Slopes]
    cdf: Callable[[Tensor, list[Tensor], Tensor], Tensor]
    values: list[Tensor]


@singledispatch
def ready(component: Any, log_weights: Tensor) -> Ready:
    """Give what evaluates mixtures of components (M, K)."""
    family = family_of(component)

    def mixed(values: list[Tensor], y: Tensor, dim: int) -> Slopes:
        parts = log_slopes(family.build(values[1:]), y)
        terms, top = _shares(parts.value.add_(values[0]), dim)
        return _mix(terms, top, parts, dim)

    def cdf(weights: Tensor, values: list[Tensor], y: Tensor) -> Tensor:
        return (weights * family.cdf(family.build(values[1:]), y)).sum(-1)

    return Ready(mixed, cdf, [log_weights, *family.values(component)])


@ready.register
def _(component: td.Normal, log_weights: Tensor) -> Ready:
    rate = component.scale.reciprocal()
    height = log_weights + (rate.log() - _LOG_SQRT_2PI)
    return Ready(_mixed_normals, _cdf_of_normals, [height, component.loc, rate])


@ready.register
def _(component: TruncatedNormal, log_weights: Tensor) -> Ready:
    rate, mass = component.scale.reciprocal(), component.mass
    height = log_weights + (rate.log() - _LOG_SQRT_2PI - mass.log())
    between = [component.low, component.high, component.ends[0], mass]
    values = [height, component.loc, rate, *between]
    return Ready(_mixed_between, _cdf_between, [v.to(log_weights.dtype) for v in values])


def _mixed_normals(values: list[Tensor], y: Tensor, dim: int) -> Slopes:
    """Mix Normals of which the logs are taken already: there are as many as points are asked."""
    height, loc, rate = values
    z = (loc - y).mul_(rate)
    terms, top = _shares(torch.addcmul(height, z, z, value=-0.5), dim)
    return _mix(terms, top, Slopes(z, z.mul_(rate), -rate.square()), dim)


def _cdf_of_normals(weights: Tensor, values: list[Tensor], y: Tensor) -> Tensor:
    """Mix cdfs to the precision of numbers near one, which takes half the time of small ones."""
    _, loc, rate = values
    terms = (y - loc).mul_(rate).mul_(math.sqrt(0.5)).erf_().add_(1.0)
    return 0.5 * terms.mul_(weights).sum(-1)


def _mixed_between(values: list[Tensor], y: Tensor, dim: int) -> Slopes:
    """Mix truncated normals likewise."""
    height, loc, rate, low, high, _, _ = values
    outside = (y < low) | (y > high)
    z = (loc - y).mul_(rate)
    log_terms = torch.addcmul(height, z, z, value=-0.5).masked_fill_(outside, -math.inf)
    terms, top = _shares(log_terms, dim)
    first = z.mul_(rate).masked_fill_(outside, 0.0)
    second = torch.where(outside, 0.0, -rate.square())
    return _mix(terms, top, Slopes(z, first, second), dim)


def _cdf_between(weights: Tensor, values: list[Tensor], y: Tensor) -> Tensor:
    """Mix cdfs of truncated normals, which keep the digits of masses far out."""
    _, loc, rate, low, high, alpha, mass = values
    z = (torch.minimum(torch.maximum(y, low), high) - loc) * rate
    return (mass_between(alpha, z) / mass).clamp_(max=1.0).mul_(weights).sum(-1)


def _shares(terms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Give ``exp(terms - top)``, in place, and ``top``, the largest along ``dim``."""
    top = terms.amax(dim)
    # Not below exp(-600): subnormal numbers are slow.
    least = top.clamp_min(torch.finfo(top.dtype).min).unsqueeze(dim)
    return terms.sub_(least).clamp_min_(-600.0).exp_(), top


def _mix(terms: Tensor, top: Tensor, parts: Slopes, dim: int) -> Slopes:
    """Combine components, which lie along ``dim``, by their shares into the mixture."""
    total = terms.sum(dim)
    first = terms * parts.first
    mean = first.sum(dim) / total
    second = first.mul_(parts.first).addcmul_(terms, parts.second).sum(dim) / total
    return Slopes(top + total.log(), mean, second - mean.square())
