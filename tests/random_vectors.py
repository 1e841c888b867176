"""Random mixtures of vectors, of every kind of component, and SciPy's densities of the same."""

import numpy as np
import scipy.stats
import torch
from pyro import distributions as dist
from random_mixtures import F64, uniform

from pyralloy.families import LowRankMultivariateStudentT
from pyralloy.mixture import Mixture

CORRELATED = ["full normal", "low-rank normal", "full t", "low-rank t"]
KINDS = ["diagonal normal", "diagonal t", "gammas", *CORRELATED]


def random_vectors(kind, seed, count, batch, dims, dtype=F64):
    """Give mixtures whose scales differ by dimension, over four decades, by up to 10 within one."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*batch, count, *shape, generator=source, dtype=F64)

    unit = 10.0 ** uniform((dims,), seed + 1, -2.0, 2.0)
    loc, scale = 2.0 * unit * normal(dims), unit * 10.0 ** (0.5 * normal(dims).clamp(-1, 1))
    tril = (0.7 * normal(dims, dims)).tril(-1) + torch.eye(dims, dtype=F64)
    tril, factor = scale[..., None] * tril, scale[..., None] * normal(dims, 2)
    df = 2.5 + 5.0 * normal().abs()
    components = {
        "diagonal normal": lambda c: dist.Normal(c(loc), c(scale)).to_event(1),
        "diagonal t": lambda c: dist.StudentT(c(df[..., None]), c(loc), c(scale)).to_event(1),
        "gammas": lambda c: dist.Gamma(c(2.0 + df[..., None] + 0 * loc), c(1 / scale)).to_event(1),
        "full normal": lambda c: dist.MultivariateNormal(c(loc), scale_tril=c(tril)),
        "low-rank normal": lambda c: dist.LowRankMultivariateNormal(
            c(loc), c(factor), c(scale.square())
        ),
        "full t": lambda c: dist.MultivariateStudentT(c(df), c(loc), c(tril)),
        "low-rank t": lambda c: LowRankMultivariateStudentT(
            c(df), c(loc), c(factor), c(scale.square())
        ),
    }[kind](lambda v: v.to(dtype))
    logits = normal().to(dtype)
    return Mixture(dist.Categorical(logits=logits), components)


def scipy_log_density(kind, m, y):
    """Evaluate the log density of one mixture, batch shape (), at y (P, D), by SciPy alone."""
    c, parts = m.components, []
    for k in range(m.num_components):
        if kind == "full t":
            shape = c.scale_tril[k] @ c.scale_tril[k].T
        elif kind == "low-rank t":
            shape = c.cov_factor[k] @ c.cov_factor[k].T + c.cov_diag[k].diag()
        else:
            shape = c.covariance_matrix[k]
        unit = shape.diagonal().sqrt()  # SciPy takes widely different scales for singularity
        shape, gap = shape / unit / unit[:, None], (y - c.loc[k]) / unit
        if kind.endswith(" t"):
            one = scipy.stats.multivariate_t(shape=shape, df=float(c.df[k]))
        else:
            one = scipy.stats.multivariate_normal(cov=shape)
        parts.append(np.atleast_1d(one.logpdf(gap.numpy())) - float(unit.log().sum()))
    return scipy.special.logsumexp(np.stack(parts, -1) + m.logits.numpy(), axis=-1)
