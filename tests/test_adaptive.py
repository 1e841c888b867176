"""Adaptive quadrature: integrals known in closed form, and what pieces may not hide."""

import math

import pytest
import torch
from pyro import distributions as dist

import pyralloy as pa
from pyralloy.adaptive import coarsest, integrate
from pyralloy.families import FAMILIES
from pyralloy.families.contract import Family

F64 = torch.float64


def line(*cuts):
    return torch.tensor([cuts], dtype=F64)


def integral(function, cuts, bumps=None, **asked):
    """Integrate; without bumps, from a single piece."""
    return integrate(function, cuts, bumps or (cuts[:, :0], cuts[:, :0]), **asked)


def counted(function):
    """Give the function, and a list whose sum is the number of points it was asked at."""
    points = []

    def asked(rows, y):
        points.append(y.numel())
        return function(rows, y)

    return asked, points


def bell(y, scale=1.0):
    return torch.exp(-0.5 * (y / scale).square()) / (scale * math.sqrt(2 * math.pi))


# -- the rule ------------------------------------------------------------------------------------


def test_rows_have_integrals_of_their_own():
    cuts = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, math.pi], [-3.0, -1.0, 5.0]], dtype=F64)

    def function(rows, y):
        powers = torch.stack([y.exp(), y.sin(), y.square()])
        return powers[rows, torch.arange(len(rows))]

    exact = torch.tensor([math.e**2 - 1.0, 2.0, (125.0 + 27.0) / 3.0], dtype=F64)
    found = integral(function, cuts, relative=1e-9)
    assert torch.allclose(found, exact, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("place", [0.1, 0.45, 0.77])
def test_a_kink_and_a_step_are_closed_in_upon(place):
    kink = integral(lambda _, y: (y - place).abs(), line(0.0, 1.0), absolute=1e-12)
    step = integral(lambda _, y: (y > place).to(F64), line(0.0, 1.0), absolute=1e-12)
    assert float(kink) == pytest.approx((place**2 + (1 - place) ** 2) / 2, abs=1e-11)
    assert float(step) == pytest.approx(1 - place, abs=1e-11)


@pytest.mark.parametrize("power", [-0.7, -0.5, 0.5])
def test_a_pole_at_zero_is_closed_in_upon(power):
    found = integral(lambda _, y: y.pow(power), line(0.0, 1.0), absolute=1e-12)
    assert float(found) == pytest.approx(1 / (1 + power), abs=1e-9)


def test_what_lies_between_all_nodes_of_a_wide_piece_is_found_where_it_is_named():
    scale, at = 1e-6, 0.123
    cuts = line(-1e3, at - 6 * scale, at, at + 6 * scale, 1e3)
    needle = lambda _, y: bell(y - at, scale)  # noqa: E731
    assert float(integral(needle, line(-1e3, 1e3), absolute=1e-11)) < 1e-9  # hidden
    bumps = cuts[:, 1:3], cuts[:, 2:4]
    assert float(integral(needle, cuts, bumps, absolute=1e-11)) == pytest.approx(1.0)
    # However many other cuts there are.
    many = torch.cat([cuts, torch.linspace(-900, 900, 997, dtype=F64)[None]], -1).sort(-1).values
    assert float(integral(needle, many, bumps, absolute=1e-11)) == pytest.approx(1.0)


def test_many_cuts_cost_little_where_the_function_is_smooth():
    function, points = counted(lambda _, y: bell(y))
    cuts = torch.linspace(-9.0, 9.0, 20_001, dtype=F64)[None]
    assert float(integral(function, cuts, absolute=1e-11)) == pytest.approx(1.0, abs=1e-13)
    assert sum(points) <= 100 * 15


def test_rounding_of_far_places_is_not_taken_for_roughness():
    function, points = counted(lambda _, y: bell(y - 1e12, 1e-2))
    cuts = line(1e12 - 0.1, 1e12, 1e12 + 0.1)
    assert float(integral(function, cuts, absolute=1e-11)) == pytest.approx(1.0, abs=0.05)
    assert sum(points) <= 1000 * 15


def test_gradients_are_those_of_finite_differences():
    scale = torch.tensor([0.3, 2.0], dtype=F64, requires_grad=True)
    cuts = line(0.0, 0.5, 4.0).expand(2, 3).contiguous()

    def function(scale):
        return integral(lambda rows, y: torch.tanh(y / scale[rows, None]), cuts, absolute=1e-12)

    assert torch.autograd.gradcheck(function, (scale,))


def test_no_rows_have_no_integrals():
    found = integral(lambda _, y: y, torch.zeros(0, 3, dtype=F64), absolute=1e-9)
    assert found.shape == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_the_coarsest_cuts_are_those_that_a_walk_from_left_to_right_takes(seed):
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, 40, (4, 30), generator=generator).sort(-1).values.to(F64)
    ends = torch.randint(0, 30, (2, 4, 7), generator=generator).sort(0).values
    lower, upper = (cuts.gather(1, end) for end in ends)
    picked = coarsest(cuts, lower, upper)
    for row in range(4):
        bumps = [(a, b) for a, b in zip(lower[row], upper[row], strict=True) if a < b]
        walk, here = [0], 0
        while here < 29:
            after = here + 1
            while after < 29 and not any(
                cuts[row, here] <= a and b <= cuts[row, after + 1] for a, b in bumps
            ):
                after += 1
            here = after
            walk.append(here)
        values = cuts[row, picked[row]].unique()  # of equal cuts any may be taken
        assert values.tolist() == cuts[row, walk].unique().tolist()


# -- pools of many components --------------------------------------------------------------------


def member(name, rows=4, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    family = FAMILIES[name]
    raw = torch.randn(family.outputs, rows, count, generator=generator).to(F64)
    logits = torch.randn(rows, count, generator=generator).to(F64)
    return pa.Mixture(dist.Categorical(logits=logits), family.from_raw(list(raw), 1.0))


CONTINUOUS = ["normal", "student_t", "laplace", "logistic", "log_normal", "gamma", "weibull"]
BOUNDED = ["beta", "truncated_normal"]


@pytest.mark.parametrize("name", CONTINUOUS + BOUNDED)
def test_a_pool_of_a_hundred_that_are_alike_is_as_one(name):
    one = member(name)
    pool = pa.Mixture.pool([one] * 100)
    y = one.quantile(0.7)
    assert torch.allclose(pool.entropy(), one.entropy(), rtol=0.0, atol=2e-9)
    assert torch.allclose(pool.crps(y), one.crps(y), rtol=0.0, atol=2e-8 * float(one.stddev.max()))


def needles(family, count, seed):
    """Far apart, as narrow as 1e-3 and as wide as 1, some of hardly any weight."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    scale = 10.0 ** (-3 * torch.rand(count, generator=generator, dtype=F64))
    loc = 80.0 * (order - count / 2).to(F64)
    logits = 6 * torch.randn(count, generator=generator, dtype=F64)
    return pa.Mixture(dist.Categorical(logits=logits), family(loc, scale))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("family", "own"),
    [
        (dist.Normal, lambda scale: 0.5 * torch.log(2 * math.pi * math.e * scale**2)),
        (dist.Laplace, lambda scale: 1 + torch.log(2 * scale)),
    ],
)
def test_no_needle_among_many_is_overlooked_by_the_entropy(family, own, seed):
    m = needles(family, 100, seed)
    exact = (m.weights * (own(m.components.scale) - m.weights.log())).sum()
    assert float(m.entropy() - exact) == pytest.approx(0.0, abs=2e-9)


@pytest.mark.parametrize("seed", range(5))
def test_no_needle_among_many_is_overlooked_by_the_dispersion(seed):
    m = needles(dist.Normal, 300, seed)
    family = FAMILIES["normal"]
    closed = family.dispersion(m.weights, m.components)
    found = Family.dispersion(family, m.weights, m.components)
    assert float(found / closed) == pytest.approx(1.0, abs=2e-8)


@pytest.mark.parametrize("seed", range(5))
def test_thousands_of_normals_are_scored_as_their_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    loc, scale, logits = (torch.randn(3, 1, 1100, generator=generator)).to(F64).unbind()
    components = dist.Normal(3 * loc, scale.exp())
    m = pa.Mixture(dist.Categorical(logits=logits), components)
    w, (mu, sd) = m.weights[0], (components.loc[0], components.scale[0])
    apart = dist.Normal(mu[:, None] - mu, (sd[:, None] ** 2 + sd**2).sqrt())
    far = apart.loc * (2 * apart.cdf(torch.zeros_like(apart.loc)) - 1) * -1
    far = far + 2 * apart.scale * bell(apart.loc / apart.scale)
    expected = 0.5 * (w[:, None] * w * far).sum()
    found = FAMILIES["normal"].dispersion(m.weights, m.components)
    assert float(found[0] / expected) == pytest.approx(1.0, abs=1e-8)
