"""Random components of every family, over eight decades of scale, and SciPy's of the same."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import settings
from random_mixtures import F64, uniform

from pyralloy.families import FAMILIES, map_parameters, wrap

# What each raw output is: a location, the log of a size in y's units, a log of a pure number, or
# a coordinate of a vector.
RAW = {
    "normal": "ls", "student_t": "dls", "laplace": "ls", "logistic": "ls", "log_normal": "sd",
    "gamma": "sd", "weibull": "sd", "beta": "bb", "truncated_normal": "ds", "poisson": "s",
    "negative_binomial": "sb", "von_mises": "vvd",
}  # fmt: skip
CONTINUOUS = [name for name in RAW if not FAMILIES[name].support.integer]
COUNTS = [name for name in RAW if FAMILIES[name].support.integer]
CIRCULAR = [name for name in RAW if FAMILIES[name].support.circular]
LINEAR = [name for name in CONTINUOUS if name not in CIRCULAR]
BOUNDED = [name for name in LINEAR if math.isfinite(FAMILIES[name].support.high)]
POSITIVE = [n for n in LINEAR if FAMILIES[n].support.low == 0 and n not in BOUNDED]
SHIFTED = [name for name in RAW if FAMILIES[name].support.shifts]

# torch's incomplete gamma function errs by up to 4e-10 where its concentration is above 20.
ROUNDING = {"gamma": 1e-9, "poisson": 1e-9}

every = pytest.mark.parametrize("name", RAW)
continuous = pytest.mark.parametrize("name", CONTINUOUS)
linear = pytest.mark.parametrize("name", LINEAR)
counts = pytest.mark.parametrize("name", COUNTS)
some = settings(max_examples=3)


def random_raw(name, seed, batch):
    """Give raw outputs in float64 and a spread that runs over eight decades."""
    source = torch.Generator().manual_seed(seed)
    decades = (-1.0, 2.0) if name in COUNTS else (-4.0, 4.0)
    spread = 1.0 if name in BOUNDED + CIRCULAR else 10 ** float(uniform((), seed, *decades))

    def one(kind):
        draw = torch.randn(batch, generator=source, dtype=F64)
        kinds = {
            "l": 10 * spread * draw,
            "s": math.log(spread) + draw,
            "d": 1.5 * draw - 1,
            "v": draw,
        }
        return kinds.get(kind, 2.0 + 2.0 * draw)

    return torch.stack([one(kind) for kind in RAW[name]], -1), spread


def random_component(name, seed, batch, dtype=F64):
    family = FAMILIES[name]
    raw, spread = random_raw(name, seed, batch)
    component = family.from_raw(raw.unbind(-1), spread)
    if name in BOUNDED:  # given intervals: of eight decades of width, and anywhere
        width = torch.tensor(10 ** float(uniform((), seed, -4, 4)), dtype=F64)
        component = family.affine(component, width * (uniform((), seed + 1) - 0.5) * 10, width)
    return cast(component, dtype)


def cast(component, dtype):
    return map_parameters(component, lambda p: p.to(dtype), 0)


def size(name, component):
    """Give a width of the component that exists whatever its tails."""
    if name == "student_t":
        return component.scale
    return component.stddev


LEVELS = torch.tensor([10.0**-k for k in range(12, 1, -1)] + [0.1, 0.25], dtype=F64)
LEVELS = torch.cat([LEVELS, torch.tensor([0.5], dtype=F64), 1 - LEVELS.flip(0)])
NODES = [torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(24)]


def at(levels, batch):
    return levels.reshape(-1, *(1,) * len(batch)).expand(-1, *batch)


def coordinates(name, component):
    """Give a coordinate in which no density is singular, as a function, its inverse and a slope."""
    if name in BOUNDED:
        low, width = component.low, component.high - component.low
        return (
            lambda y: torch.logit((y - low) / width),
            lambda w: low + width * w.sigmoid(),
            lambda w: width * w.sigmoid() * (-w).sigmoid(),
        )
    if name in POSITIVE:
        return torch.log, torch.exp, torch.exp
    if name in CIRCULAR:
        return lambda y: y, lambda w: w, torch.ones_like
    loc, scale = component.loc, component.scale
    return (
        lambda y: torch.asinh((y - loc) / scale),
        lambda w: loc + scale * w.sinh(),
        lambda w: scale * w.cosh(),
    )


def edges_of(name, component):
    """Give quantiles, and on a circle places throughout each component, sorted."""
    batch = component.batch_shape
    edges = FAMILIES[name].icdf(component, at(LEVELS, batch))
    if name in CIRCULAR:
        units = at(torch.linspace(-10.0, 10.0, 41, dtype=F64), batch)
        places = wrap(component.loc + units * component.concentration.rsqrt().clamp_max(0.3))
        ends = at(torch.tensor([-math.pi, math.pi], dtype=F64), batch)
        edges = torch.cat([edges, places, ends]).sort(0).values
    return edges


def frozen(name, c):
    """Give scipy's distribution of the same parameters."""
    p = {k: getattr(c, k).numpy() for k in FAMILIES[name].parameters}
    s = scipy.stats
    if name == "truncated_normal":
        a, b = (p["low"] - p["loc"]) / p["scale"], (p["high"] - p["loc"]) / p["scale"]
        return s.truncnorm(a, b, loc=p["loc"], scale=p["scale"])
    if name == "beta":
        ends = {"loc": p["low"], "scale": p["high"] - p["low"]}
        return s.beta(p["concentration1"], p["concentration0"], **ends)
    return {
        "normal": lambda: s.norm(p["loc"], p["scale"]),
        "student_t": lambda: s.t(p["df"], p["loc"], p["scale"]),
        "laplace": lambda: s.laplace(p["loc"], p["scale"]),
        "logistic": lambda: s.logistic(p["loc"], p["scale"]),
        "log_normal": lambda: s.lognorm(p["scale"], scale=np.exp(p["loc"])),
        "gamma": lambda: s.gamma(p["concentration"], scale=1 / p["rate"]),
        "weibull": lambda: s.weibull_min(p["concentration"], scale=p["scale"]),
        "poisson": lambda: s.poisson(p["rate"]),
        "negative_binomial": lambda: s.nbinom(p["total_count"], 1 - p["probs"]),
        "von_mises": lambda: s.vonmises(p["concentration"], loc=p["loc"]),
    }[name]()
