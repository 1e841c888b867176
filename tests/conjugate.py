"""A network whose posterior is known: linear, one component, its scale given."""

import torch
from pyro import distributions as dist

import pyralloy as pa
from pyralloy.families.location_scale import NormalFamily
from pyralloy.inference.potential import Potential

#: Standard deviation of y about its mean, where y is standardised.
NOISE = 0.5


class KnownScale(NormalFamily):
    """Normal components of a known scale: one raw output, the location."""

    outputs = 1

    def from_raw(self, raw, spread):
        (loc,) = raw
        return dist.Normal(loc, torch.full_like(loc, NOISE * spread), validate_args=False)

    def to_raw(self, loc, scale, spread):
        return loc[..., None]


def conjugate_model(features=2, prior=None, dtype=torch.float32):
    trunk = pa.networks.MLP(features, hidden=())
    head = pa.MixtureHead(features, components=1, family=KnownScale())
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    return pa.MDN(trunk, head, prior=prior).to(dtype)


def conjugate_rows(count=200, features=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator, dtype=torch.float64)
    slopes = torch.linspace(1.0, -1.0, features, dtype=torch.float64)
    y = 3.0 + x @ slopes + torch.randn(count, generator=generator, dtype=torch.float64)
    return x, y


def exact_posterior(model, x, y, deviation=1.0):
    """Give mean (P,), covariance (P, P) and the log evidence, where x and y are standardised.

    The location is linear in the weights, so that its Jacobian is a design matrix; weights that it
    does not depend on, those of the one component's weight, keep their prior.
    """
    z, t = model.x_scaling(x, torch.float64), model.y_scaling(y, torch.float64)
    wide = conjugate_model(x.shape[1], dtype=torch.float64)
    potential = Potential(wide, z, t)
    zero = torch.zeros_like(potential.start)

    def location(vector):
        weights, at = {}, 0
        for name, shape, _ in potential.sites:
            weights[name] = vector[at : at + shape.numel()].reshape(shape)
            at += shape.numel()
        return wide.network(z, weights).components.loc[:, 0]

    design = torch.autograd.functional.jacobian(location, zero)  # (N, P)
    precision = torch.eye(len(zero)).double() / deviation**2 + design.mT @ design / NOISE**2
    covariance = precision.inverse()
    mean = covariance @ design.mT @ t / NOISE**2
    marginal = NOISE**2 * torch.eye(len(t)).double() + deviation**2 * design @ design.mT
    evidence = dist.MultivariateNormal(torch.zeros_like(t), marginal).log_prob(t)
    return mean, covariance, float(evidence)
