"""Random mixtures whose scales span four decades, and quadrature fine enough for them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import distributions as dist
from torch import Tensor

from pyralloy.mixture import Mixture

F32, F64 = torch.float32, torch.float64
EPS64 = torch.finfo(F64).eps

SEEDS = st.integers(0, 2**31)
COUNTS = st.integers(1, 20)
BATCHES = st.sampled_from([(), (3,), (2, 3)])
DTYPES = st.sampled_from([F32, F64])
any_mixture = given(seed=SEEDS, count=COUNTS, batch=BATCHES, dtype=DTYPES)
wide_mixture = given(seed=SEEDS, count=COUNTS, batch=BATCHES)


def uniform(shape, seed, low=0.0, high=1.0):
    source = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=source, dtype=F64)


def random_mixture(seed, count, batch, dtype=F64, event=()):
    source = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(*batch, count, generator=source, dtype=F64)
    loc = 30.0 * torch.randn(*batch, count, *event, generator=source, dtype=F64)
    scale = 10.0 ** uniform((*batch, count, *event), seed + 1, -2.0, 2.0)
    component = dist.Normal(loc.to(dtype), scale.to(dtype))
    if event:
        component = component.to_event(len(event))
    return Mixture(dist.Categorical(logits=logits.to(dtype)), component)


def normals(weights, loc, scale):
    """Make one float64 mixture; a weight of 0 is exactly that."""
    logits = torch.tensor(weights, dtype=F64).log()
    component = dist.Normal(torch.tensor(loc, dtype=F64), torch.tensor(scale, dtype=F64))
    return Mixture(dist.Categorical(logits=logits), component)


def panels(m: Mixture, *extra: Tensor) -> tuple[Tensor, Tensor]:
    """Place Gauss-Legendre nodes (G, ...) between edges one scale apart around every component."""
    loc, scale = m.components.mean.to(F64), m.components.stddev.to(F64)
    steps = torch.linspace(-12.0, 12.0, 25, dtype=F64)
    edges = (loc[..., None] + scale[..., None] * steps).flatten(-2)  # (..., 25 K)
    edges = torch.cat([edges, *(e.to(F64)[..., None] for e in extra)], -1).sort(-1).values
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(10))
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
    y = (middle[..., None] + half[..., None] * nodes).flatten(-2).movedim(-1, 0)
    return y, (half[..., None] * weights).flatten(-2).movedim(-1, 0)


def assert_close(actual, expected, tolerance):
    """Compare with a tolerance that may differ from element to element."""
    error = (torch.as_tensor(actual).to(F64) - torch.as_tensor(expected).to(F64)).abs()
    worst = (error / torch.as_tensor(tolerance)).max()
    assert worst <= 1.0, f"off by {float(worst):.3g} times the tolerance"
