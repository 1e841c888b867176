"""Every family can be fitted, in y's own units, and finds the density that made the data."""

import math

import pytest
import torch
from pyro import distributions as dist

import pyralloy as pa
from pyralloy.families import FAMILIES, TruncatedFamily

COUNT = 2000


def made(family, generator):
    """Give x, y and the exact mean negative log density of data from the family."""
    x = torch.rand(COUNT, 1, generator=generator, dtype=torch.float64)
    slope = 1.0 + x[:, 0]
    conditional = {
        "normal": lambda: dist.Normal(30.0 * slope, 5.0),
        "student_t": lambda: dist.StudentT(4.0, 30.0 * slope, 5.0),
        "laplace": lambda: dist.Laplace(30.0 * slope, 5.0),
        "logistic": lambda: dist.Normal(30.0 * slope, 5.0),
        "log_normal": lambda: dist.LogNormal(slope, 0.5),
        "gamma": lambda: dist.Gamma(5.0 * torch.ones_like(slope), 0.05 / slope),
        "weibull": lambda: dist.Weibull(50.0 * slope, 2.0 * torch.ones_like(slope)),
        "beta": lambda: dist.Beta(2.0 * slope, 3.0 * torch.ones_like(slope)),
        "truncated_normal": lambda: dist.Beta(2.0 * slope, 3.0 * torch.ones_like(slope)),
        "poisson": lambda: dist.Poisson(6.0 * slope),
        "von_mises": lambda: dist.VonMises(3.0 * slope, 5.0 * torch.ones_like(slope)),
        "negative_binomial": lambda: dist.NegativeBinomial(3.0 * slope, torch.tensor(0.6)),
    }[family]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = conditional.sample()
    return x, y.double(), -float(conditional.log_prob(y).mean())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_fit_comes_near_the_density_that_made_the_data(family):
    x, y, exact = made(family, torch.Generator().manual_seed(1))
    trunk = pa.networks.MLP(1, hidden=(16,))
    model = pa.MDN(trunk, pa.MixtureHead(16, components=2, family=family))
    fit = pa.fit(model, x, y, max_steps=300, progress=False)
    density = fit.density(x)
    nll = -float(density.log_prob(y).mean())
    assert abs(nll - exact) < 0.05
    held = density.cdf(y)
    if not FAMILIES[family].support.integer:
        ranks = held.sort().values
        uniform = (torch.arange(COUNT) + 0.5) / COUNT
        assert float((ranks - uniform).abs().max()) < 0.06
    assert bool(density[:5].crps(y[:5]).isfinite().all())
    median = density[:50].quantile(0.5)
    assert bool((density[:50].cdf(median) >= 0.5 - 1e-9).all())


@pytest.mark.parametrize(
    ("family", "bad"),
    [("gamma", 0.0), ("log_normal", -1.0), ("beta", 1.0), ("poisson", 1.5), ("poisson", -1.0)],
)
def test_targets_outside_the_support_are_refused_by_row(family, bad):
    y = torch.full((40,), 0.5 if family == "beta" else 3.0)
    y[::2] += 0.25 if family == "beta" else 1.0
    y[7] = bad
    model = pa.MDN(pa.networks.MLP(1, hidden=(4,)), pa.MixtureHead(4, 2, family=family))
    with pytest.raises(ValueError, match=rf"y holds {bad} at row 7.*{family}"):
        pa.fit(model, torch.arange(40.0), y, max_steps=5, progress=False)


def test_quantiles_of_counts_are_the_least_integers_that_reach_the_level():
    rate = torch.tensor([[0.3, 4.0], [30.0, 31.0]], dtype=torch.float64)
    m = pa.Mixture(dist.Categorical(torch.tensor([[0.4, 0.6]] * 2).double()), dist.Poisson(rate))
    for level in (0.01, 0.1, 0.31, 0.5, 0.9, 0.999):
        y = m.quantile(level)
        assert torch.equal(y, y.round())
        assert bool((m.cdf(y) >= level).all())
        assert bool(((m.cdf(y - 1) < level) | (y == 0)).all())


def test_math_of_a_positive_family_follows_its_units():
    x, y, _ = made("gamma", torch.Generator().manual_seed(1))
    nll = []
    for unit in (1.0, 1000.0):
        model = pa.MDN(pa.networks.MLP(1, hidden=(8,)), pa.MixtureHead(8, 2, family="gamma"))
        nll.append(pa.fit(model, x, y * unit, max_steps=60, progress=False).best_nll)
    assert math.isclose(nll[1] - nll[0], math.log(1000.0), abs_tol=1e-3)


@pytest.mark.parametrize("ends", [(5.0, math.inf), (-math.inf, 5.0), (-5.0, 5.0)])
def test_ends_that_are_given_stay_where_they_are(ends):
    """In y's own units: a y that was divided by its spread would have others."""
    low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 1, generator=generator, dtype=torch.float64)
    y = 3.0 * x[:, 0] * torch.randn(400, generator=generator, dtype=torch.float64).abs()
    y = low + 0.01 + y if math.isfinite(ends[0]) else high - 0.01 - y
    y = y.minimum(high - 0.01)
    family = TruncatedFamily(FAMILIES["normal"], *ends)
    head = pa.MixtureHead(8, 3, family=family, spread=float(y.std()))
    fit = pa.fit(pa.MDN(pa.networks.MLP(1, (8,)), head), x, y, max_steps=60, progress=False)
    density = fit.density(x[:5])
    assert float(density.cdf(low).abs().max()) == 0.0
    assert float((density.cdf(high) - 1.0).abs().max()) < 1e-12
