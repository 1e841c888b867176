"""The potential: minus the log joint density of data and weights, a function of one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.func import grad, vmap

from pyralloy.inference.curvature import AT_ONCE, gauss_newton
from pyralloy.inference.posterior import Site, unpack
from pyralloy.model import MDN

__all__ = ["Potential"]

#: Iterations of L-BFGS, and the gradient at which it is done.
ITERATIONS, FLAT = 500, 1e-6


class Potential:
    r"""Evaluate :math:`-\tfrac1T \sum_n c_n \log p(y_n \mid x_n, w) - \log p(w)` of all rows.

    Weights and scales lie in one vector of real numbers, mapped to their supports with the
    Jacobian. Nothing of Pyro's runtime is needed, so that it can be captured as one graph.

    Args:
        model: With a prior, and at the weights from which to start.
        z: Standardised inputs, shape (N, F).
        t: Standardised targets, shape (N,) or (N, D).
        temperature: T.
        counts: How often each row counts, c, shape (N,); None means once.

    Attributes:
        sites: What the numbers are, in order: scales first.
        start: The numbers of the weights that the model has, shape (P,); scales are those of their
            weights.
        hierarchical: Whether there are scales, and so no most probable weights.
    """

    def __init__(
        self,
        model: MDN,
        z: Tensor,
        t: Tensor,
        temperature: float = 1.0,
        *,
        counts: Tensor | None = None,
    ) -> None:
        if model.prior is None:
            raise ValueError("model has no prior: give MDN(..., prior=priors.FanIn()), for one.")
        self._model, self._prior, self._rows = model, model.prior, (z, t)
        self._temperature, self._counts = temperature, counts
        self._weights = {n: w.detach() for n, w in model.weights().items()}
        scales = _start_of_scales(self._prior, self._weights)
        made = self._prior.scales(self._weights)
        given = self._prior.distributions(self._weights, scales)
        values = scales | {n: self._weights[n].detach() for n in given}
        self.sites, numbers = [], []
        for name, distribution in (made | given).items():
            number = biject_to(distribution.support).inv(values[name])
            self.sites.append(Site(name, number.shape, distribution.support))
            numbers.append(number.reshape(-1))
        self.start = torch.cat(numbers).detach()
        self._given, self.hierarchical = list(given), bool(made)

    def __call__(self, vector: Tensor) -> Tensor:
        """Evaluate at a vector (P,), with gradients; a scalar in nats."""
        return self.likelihood(vector) / self._temperature + self.prior(vector)

    def likelihood(self, vector: Tensor) -> Tensor:
        """Evaluate minus the log likelihood of all rows."""
        values = unpack(self.sites, vector)
        z, t = self._rows
        found = self._model.network(z, {n: values[n] for n in self._given}).log_prob(t)
        return -(found if self._counts is None else found * self._counts).sum()

    def prior(self, vector: Tensor) -> Tensor:
        """Evaluate minus the log prior density, with the Jacobian of the map from real numbers."""
        values = unpack(self.sites, vector)
        scales = self._prior.scales(self._weights)
        given = self._prior.distributions(self._weights, {n: values[n] for n in scales})
        total, at = vector.new_zeros(()), 0
        for name, distribution in (scales | given).items():
            total = total + distribution.log_prob(values[name]).sum()
        for name, shape, support in self.sites:
            number, at = vector[at : at + shape.numel()].reshape(shape), at + shape.numel()
            if name in scales:  # weights lie on the real line, and the map is the identity
                total = total + biject_to(support).log_abs_det_jacobian(number, values[name]).sum()
        return -total

    def precision(self, vector: Tensor) -> Tensor:
        """Give one over the variance of each number under the prior, given the scales, shape (P,).

        The numbers of the scales themselves, logarithms mostly, are given a variance of one.

        Raises:
            ValueError: A variance that is infinite.
        """
        values = unpack(self.sites, vector)
        scales = self._prior.scales(self._weights)
        given = self._prior.distributions(self._weights, {n: values[n] for n in scales})
        variance = torch.cat(
            [
                given[s.name].variance.reshape(-1)
                if s.name in given
                else vector.new_ones(s.shape.numel())
                for s in self.sites
            ]
        )
        if not bool(variance.isfinite().all()):
            raise ValueError(
                "prior has an infinite variance: a Laplace approximation needs a finite one, for "
                "instance of dist.StudentT with more than 2 degrees of freedom."
            )
        return 1.0 / variance.to(self.start)

    def minimise(self, vector: Tensor) -> Tensor:
        """Descend by L-BFGS to a minimum near ``vector``, shape (P,)."""
        point = vector.detach().clone().requires_grad_()
        descent = torch.optim.LBFGS(
            [point],
            max_iter=ITERATIONS,
            tolerance_grad=FLAT,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> Tensor:
            loss = self(point)
            (point.grad,) = torch.autograd.grad(loss, point)  # no gradient for other weights
            return loss.detach()

        descent.step(evaluate)
        return point.detach() if bool(point.isfinite().all()) else vector

    def sizes(self, vector: Tensor) -> Tensor:
        r"""Estimate how far each number may go from ``vector`` by itself, shape (P,).

        .. math:: s_j = \Bigl(\lambda_j + \tfrac1T \sum_n c_n
                  (\partial_j \log p(y_n \mid x_n, w))^2\Bigr)^{-1/2}

        where :math:`\lambda` is the curvature of the prior: the diagonal of the empirical Fisher
        information. Unlike that of the Hessian it is never negative, and it tells how much data
        says of a weight even where, as at most places on the way of a chain, it is not the most
        probable one.

        Raises:
            ValueError: As :meth:`precision`.
        """
        point, (z, t) = vector.detach(), self._rows

        def likelihood(vector: Tensor, z: Tensor, t: Tensor) -> Tensor:
            values = unpack(self.sites, vector)
            density = self._model.network(z[None], {n: values[n] for n in self._given})
            return density.log_prob(t[None]).sum()

        each = vmap(grad(likelihood), in_dims=(None, 0, 0))
        told, rows = 0.0, max(1, AT_ONCE // len(point))
        for part in zip(*(v.split(rows) for v in (z, t, self._times())), strict=True):
            told = told + part[2].to(point) @ each(point, *part[:2]).square()
        prior = torch.maximum(self.precision(point), self._curvature_of_scales(point))
        return (prior + told / self._temperature).rsqrt()

    def _times(self) -> Tensor:
        """Give how often each row counts, shape (N,)."""
        z, _ = self._rows
        return z.new_ones(len(z)) if self._counts is None else self._counts

    def _curvature_of_scales(self, vector: Tensor) -> Tensor:
        """Give the curvature of the prior in the scales' numbers, and zero of the weights."""
        point = vector.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.prior(point), point, create_graph=True)
        found = torch.zeros_like(vector)
        count = sum(s.shape.numel() for s in self.sites if s.name not in self._given)
        for place in range(count):  # scales come first
            (row,) = torch.autograd.grad(slope[place], point, retain_graph=True)
            found[place] = row[place]
        return found

    def root_covariance(self, vector: Tensor) -> Tensor:
        r"""Give a root A of the covariance of the Laplace approximation.

        .. math:: A A^T = \bigl(\mathrm{diag}(\lambda) + G / T\bigr)^{-1}

        where :math:`\lambda` is one over the variance of each number under the prior and G the
        curvature of the rows, :func:`~pyralloy.inference.curvature.gauss_newton`. Unlike the
        Hessian of a network that was stopped early, it is never negative: data never widens a
        Normal prior.

        Args:
            vector: Where to expand, shape (P,).

        Returns:
            Shape (P, P), triangular.

        Raises:
            ValueError: As :meth:`precision`.

        References:
            Daxberger, E., et al. (2021). Laplace redux - effortless Bayesian deep learning.
            NeurIPS. arXiv:2106.14806
        """
        point, (z, t) = vector.detach(), self._rows
        root = self.precision(point).to(torch.float64).rsqrt()
        counts = self._times() / self._temperature
        told = gauss_newton(self._model, self.sites, point, z, t, counts)
        told.mul_(root).mul_(root[:, None]).diagonal().add_(1.0)  # no eigenvalue is below 1
        factor = torch.linalg.cholesky(told)
        one = torch.eye(len(root)).to(factor)
        made = root[:, None] * torch.linalg.solve_triangular(factor.mT, one, upper=True)
        return made.to(vector.dtype)


def _start_of_scales(prior: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Start each scale where its prior meets the size of the weights that it scales."""
    scales = prior.scales(weights)
    ones = {n: torch.ones(d.shape(), **_like(weights)) for n, d in scales.items()}
    given = prior.distributions(weights, ones)
    found = dict(ones)
    for name in scales:
        changed = prior.distributions(weights, ones | {name: 2.0 * ones[name]})
        sizes = [
            (weights[n].detach() / d.stddev).square().mean()
            for n, d in given.items()
            if not torch.equal(d.stddev, changed[n].stddev)
        ]
        if sizes:
            found[name] = ones[name] * torch.stack(sizes).mean().sqrt().clamp(1e-2, 1e2)
    return found


def _like(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    first = next(iter(weights.values()))
    return {"dtype": first.dtype, "device": first.device}
