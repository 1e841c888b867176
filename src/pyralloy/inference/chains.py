"""Chains: what Markov chain Monte Carlo says of itself."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Chains"]


class Chains(NamedTuple):
    """What the chains say of themselves.

    Weights themselves may be exchanged or turned in sign without any change of the density, so
    chains are compared by what they predict: the log density of y at training rows.

    Attributes:
        r_hat: Split R-hat of the log density at up to 100 training rows: near 1 where chains agree.
        ess: Effective sample size of the same.
        divergences: Number of divergent draws a chain: where the sampler could not follow.
        acceptance: Mean acceptance probability a chain.
        step_size: Of the integrator, a chain.
        gradients: Evaluations of the gradient, in all.

    References:
        Gelman, A., et al. (2013). Bayesian Data Analysis, 3rd ed., ch. 11. CRC Press.
    """

    r_hat: Tensor
    ess: Tensor
    divergences: tuple[int, ...]
    acceptance: tuple[float, ...]
    step_size: tuple[float, ...]
    gradients: int
