"""Entropy, divergence, reduction and temperature, each against what it must equal."""

import math

import pytest
import scipy.stats
import torch
from pyro import distributions as dist

import pyralloy as pa
from pyralloy.families import VonMises

F64 = torch.float64


def mixture(rows=20, count=6, seed=0, dims=None, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, count) if dims is None else (rows, count, dims)
    loc = 3 * torch.randn(shape, generator=generator, dtype=F64)
    decades = spread * (torch.rand(shape, generator=generator, dtype=F64) - 0.5)
    logits = torch.randn(rows, count, generator=generator, dtype=F64)
    components = dist.Normal(loc, 10.0**decades)
    return pa.Mixture(
        dist.Categorical(logits=logits), components if dims is None else components.to_event(1)
    )


# -- entropy and divergence ----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_entropy_of_one_normal_is_its_closed_form(scale):
    m = pa.Mixture(dist.Categorical(torch.ones(1)), dist.Normal(torch.zeros(1, dtype=F64), scale))
    assert abs(float(m.entropy()) - 0.5 * math.log(2 * math.pi * math.e * scale**2)) < 1e-10


def test_entropy_of_parts_far_apart_is_that_of_the_choice_and_of_the_parts():
    weights = torch.tensor([0.2, 0.8], dtype=F64)
    scale = torch.tensor([1e-3, 10.0], dtype=F64)
    m = pa.Mixture(
        dist.Categorical(weights), dist.Normal(torch.tensor([-1e4, 1e4]).double(), scale)
    )
    own = 0.5 * torch.log(2 * math.pi * math.e * scale**2)
    assert abs(float(m.entropy() - (weights * (own - weights.log())).sum())) < 1e-9


@pytest.mark.parametrize(
    ("component", "exact"),
    [
        (dist.Gamma, scipy.stats.gamma(0.3, scale=1 / 2.0)),
        (dist.Weibull, scipy.stats.weibull_min(2.0, scale=0.3)),
        (dist.StudentT, scipy.stats.t(1.5, 0.0, 1.0)),
        (dist.Laplace, scipy.stats.laplace(0.3, 2.0)),
        (dist.LogNormal, scipy.stats.lognorm(2.0, scale=math.exp(0.3))),
        (dist.Poisson, scipy.stats.poisson(0.5)),
        (dist.Poisson, scipy.stats.poisson(3000.0)),
        (VonMises, scipy.stats.vonmises(0.01)),
    ],
)
def test_entropy_of_one_component_is_that_of_scipy(component, exact):
    one = torch.ones(1, dtype=F64)
    values = {
        dist.Gamma: (0.3, 2.0), dist.Weibull: (0.3, 2.0), dist.StudentT: (1.5,),
        dist.Laplace: (0.3, 2.0), dist.LogNormal: (0.3, 2.0), VonMises: (0.0, 0.01),
        dist.Poisson: (exact.mean(),),
    }[component]  # fmt: skip
    m = pa.Mixture(dist.Categorical(one), component(*(v * one for v in values)))
    assert abs(float(m.entropy()) - float(exact.entropy())) < 1e-8


def test_entropy_of_a_mixture_of_counts_is_its_sum():
    m = pa.Mixture(
        dist.Categorical(torch.tensor([[0.3, 0.7], [0.0, 1.0]], dtype=F64)),
        dist.Poisson(torch.tensor([[2.0, 50.0], [1e6, 3.0]], dtype=F64)),
    )
    log_p = m.log_prob(torch.arange(400, dtype=F64)[:, None])
    assert torch.allclose(m.entropy(), -(log_p.exp() * log_p).sum(0), atol=1e-10)


def test_entropy_is_the_mean_of_minus_the_log_density():
    m = mixture()
    drawn = m.sample((20_000,), generator=torch.Generator().manual_seed(0))
    surprise = -m.log_prob(drawn)
    error = surprise.std(0) / 20_000**0.5
    assert bool(((surprise.mean(0) - m.entropy()).abs() < 5 * error).all())


def test_what_lies_beyond_the_last_quantile_of_one_is_seen_beside_a_far_one():
    w = torch.tensor([1 - 2e-6, 1e-6, 1e-6], dtype=F64)
    loc, scale = torch.tensor([[0.0, 5.9, 1e6], [1.0, 0.0126, 1.0]], dtype=F64)
    m = pa.Mixture(dist.Categorical(w), dist.Normal(loc, scale))
    near = pa.Mixture(dist.Categorical(w[:2]), dist.Normal(loc[:2], scale[:2]))
    whole, alone = 1 - 1e-6, 0.5 * math.log(2 * math.pi * math.e)
    choice = -whole * math.log(whole) - 1e-6 * math.log(1e-6)
    expected = whole * float(near.entropy()) + 1e-6 * alone + choice
    assert float(m.entropy()) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("far", "scale"), [(1e6, 1e-3), (1e9, 1e-3), (1e12, 1.0), (-1e12, 1e-3)])
def test_entropy_and_crps_do_not_depend_on_where_y_is(far, scale):
    near, there = (
        pa.Mixture(dist.Categorical(torch.ones(1100)), dist.Normal(loc, scale))
        for loc in (torch.zeros(1100, dtype=F64), torch.full((1100,), far, dtype=F64))
    )
    assert float(there.entropy() - near.entropy()) == pytest.approx(0.0, abs=1e-12)
    score = float(near.crps(torch.tensor(0.0)))
    assert float(there.crps(torch.tensor(far, dtype=F64))) == pytest.approx(score, rel=1e-9)


def test_a_row_without_numbers_has_no_answers_and_spoils_no_other():
    for family in ("laplace", "gamma", "truncated_normal", "normal", "logistic", "poisson"):
        kind = pa.families.FAMILIES[family]
        made = kind.from_raw(list(torch.zeros(kind.outputs, 2, 3, dtype=F64)), 1.0)
        whole = pa.Mixture(dist.Categorical(torch.ones(2, 3)), made)[0]
        values = [v.clone() for v in kind.values(made)]
        values[0][1, 2] = math.nan
        m = pa.Mixture(dist.Categorical(torch.ones(2, 3)), kind.build(values), validate_args=False)
        answers = (
            m.highest_density_region(0.9).intervals,
            m.modes()[0],
            m.mass_above(-torch.ones(2)),
        )
        assert all(v[1].isnan().all() and v[0].isfinite().any() for v in answers)
        assert m.entropy().isnan().tolist() == [False, True]
        assert float(m.entropy()[0]) == pytest.approx(float(whole.entropy()), abs=1e-12)


def test_entropy_moves_with_units_and_not_with_dead_components():
    m = mixture()
    assert torch.allclose(m.affine(7.0, -50.0).entropy(), m.entropy() + math.log(50.0), atol=1e-9)
    dead = pa.Mixture.pool([m, m.affine(1e9, 1e3)], weights=[1.0, 0.0])
    assert torch.allclose(dead.entropy(), m.entropy(), atol=1e-9)
    assert m.to(torch.float32).entropy().dtype == torch.float32


def test_entropy_of_a_pool_is_the_sum_of_its_parts():
    members = pa.Mixture(
        dist.Categorical(logits=torch.zeros(3, 5, 2, dtype=F64)),
        dist.Normal(torch.arange(30, dtype=F64).reshape(3, 5, 2), torch.ones(3, 5, 2, dtype=F64)),
    )
    parts = members.entropy_decomposition([1.0, 2.0, 1.0])
    assert parts.total.shape == (5,)
    assert torch.allclose(parts.total, parts.within + parts.between)
    assert bool((parts.between > 0).all())
    assert bool((parts.between < math.log(3)).all())
    twins = pa.Mixture.pool([members[0], members[0]])
    assert torch.allclose(twins.entropy(), members[0].entropy(), atol=1e-10)
    same = members[:1].expand((3, 5)).entropy_decomposition()
    assert torch.allclose(same.between, torch.zeros(5, dtype=F64), atol=1e-10)


def test_divergence_between_normals_is_its_closed_form():
    one = pa.Mixture(dist.Categorical(torch.ones(1)), dist.Normal(torch.zeros(1, dtype=F64), 1.0))
    other = one.affine(0.5, 2.0)
    exact = math.log(2.0) + (1 + 0.25) / 8 - 0.5
    found = one.kl_to(other, 100_000, generator=torch.Generator().manual_seed(0))
    assert abs(float(found.value) - exact) < 5 * float(found.error)
    assert float(found.error) < 0.01
    assert float(one.kl_to(one, 10).value) == 0.0


# -- reduction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [None, 3])
@pytest.mark.parametrize("kept", [1, 3, 6])
def test_a_reduction_keeps_mean_and_variance(dims, kept):
    m = mixture(dims=dims)
    fewer, bound = m.reduction(kept)
    assert fewer.num_components == m.reduce(kept).num_components == kept
    assert torch.allclose(fewer.mean, m.mean, atol=1e-10)
    assert torch.allclose(fewer.variance, m.variance, rtol=1e-10)
    assert bound.shape == m.batch_shape and bool((bound >= 0).all())
    assert kept < 6 or torch.allclose(fewer.log_prob(m.mean), m.log_prob(m.mean))


def test_the_bound_is_above_the_divergence():
    m = mixture(rows=50, spread=1.0)
    for kept in (1, 2, 4):
        fewer, bound = m.reduction(kept)
        found = m.kl_to(fewer, 4000, generator=torch.Generator().manual_seed(0))
        assert bool((found.value - 4 * found.error < bound).all())


def test_twins_are_merged_first_and_for_nothing():
    m = mixture()
    doubled = pa.Mixture.pool([m, m])
    fewer, bound = doubled.reduction(6)
    y = m.sample((50,), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fewer.log_prob(y), m.log_prob(y), atol=1e-9)
    assert bool((bound < 1e-9).all())


def test_the_cheapest_pair_is_merged():
    """Against Runnalls' bound written out for every pair of three."""
    loc = torch.tensor([0.0, 1.0, 10.0], dtype=F64)
    m = pa.Mixture(dist.Categorical(torch.ones(3, dtype=F64)), dist.Normal(loc, 1.0))
    fewer, bound = m.reduction(2)
    assert torch.allclose(fewer.components.loc.sort().values, torch.tensor([0.5, 10.0]).double())
    assert abs(float(bound) - 0.5 * (2 / 3) * math.log(1.25)) < 1e-12


# -- temperature ---------------------------------------------------------------------------------


def test_a_temperature_of_one_changes_nothing_and_zero_is_the_limit_of_certainty():
    m = mixture()
    y = m.mean
    assert torch.allclose(m.tempered().log_prob(y), m.log_prob(y))
    cold = m.tempered(weight=1e-3, scale=1e-6)
    best = m.weights.argmax(-1, keepdim=True)
    assert torch.allclose(cold.mean, m.components.loc.gather(-1, best)[:, 0])
    assert torch.allclose(m.tempered(scale=3.0).components.scale, 3.0 * m.components.scale)
    assert torch.allclose(m.tempered(scale=3.0).components.loc, m.components.loc)
    joint = mixture(dims=2).tempered(weight=2.0, scale=0.5)
    assert joint.event_shape == (2,)


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda m: m.reduce(0), ValueError, "components=0"),
        (lambda m: m.reduce(7), ValueError, "components=7"),
        (lambda m: m.reduce(2.0), TypeError, "components=2.0"),
        (lambda m: m.tempered(weight=0.0), ValueError, "weight=0.0"),
        (lambda m: m.tempered(scale=-1.0), ValueError, "scale=-1.0"),
        (lambda m: m.kl_to(m, 1), ValueError, "draws=1"),
        (lambda m: m.kl_to(m[:3]), ValueError, "other has batch"),
        (lambda _m: mixture(dims=2).entropy(), ValueError, "entropy"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, error, name):
    with pytest.raises(error, match=name):
        call(mixture())
