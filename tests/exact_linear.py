"""Linear regression with known noise and a Normal prior: its posterior is exact, so are refits."""

import numpy as np
import torch
from pyro import distributions as dist
from scipy.stats import norm

import pyralloy as pa

NOISE, PRIOR = 0.7, 2.0


def problem(rows=60, seed=0):
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(rows), rng.standard_normal((rows, 2))])
    y = x @ np.array([0.5, 1.0, -1.0]) + NOISE * rng.standard_normal(rows)
    return x, y


def posterior(x, y):
    precision = x.T @ x / NOISE**2 + np.eye(x.shape[1]) / PRIOR**2
    cov = np.linalg.inv(precision)
    return cov @ x.T @ y / NOISE**2, cov


def draw(x, y, chains=2, draws=2000, seed=1):
    """Give independent draws of the weights, (chain, draw, F)."""
    mean, cov = posterior(x, y)
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal(mean, cov, (chains, draws))


def densities(weights, x):
    """Give, for a slice of rows, the density of every draw: batch shape (S, N')."""
    flat = torch.from_numpy(weights.reshape(-1, weights.shape[-1]))

    def of(rows):
        loc = flat @ torch.from_numpy(x[rows]).T  # (S, N')
        one = torch.ones_like(loc[..., None])
        return pa.Mixture(dist.Categorical(one), dist.Normal(loc[..., None], NOISE))

    return of


def left_out(x, y):
    """Give the exact PIT and log density of each row under the posterior without it."""
    pit, log_density = np.empty(len(y)), np.empty(len(y))
    for i in range(len(y)):
        keep = np.arange(len(y)) != i
        mean, cov = posterior(x[keep], y[keep])
        spread = np.sqrt(NOISE**2 + x[i] @ cov @ x[i])
        pit[i] = norm.cdf(y[i], x[i] @ mean, spread)
        log_density[i] = norm.logpdf(y[i], x[i] @ mean, spread)
    return pit, log_density
