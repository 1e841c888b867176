"""The laws a mixture obeys, on random mixtures whose scales span four decades."""

import math

import pytest
import scoringrules
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import distributions as dist
from random_mixtures import (
    BATCHES,
    COUNTS,
    EPS64,
    F32,
    F64,
    SEEDS,
    any_mixture,
    assert_close,
    normals,
    panels,
    random_mixture,
    uniform,
    wide_mixture,
)

from pyralloy import sampling
from pyralloy.families.location_scale import NormalFamily
from pyralloy.mixture import Mixture

LEVELS = [1e-12, 1e-6, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1 - 1e-6]

# -- the density and its cdf ----------------------------------------------------------------------


@any_mixture
def test_density_integrates_to_one(seed, count, batch, dtype):
    m = random_mixture(seed, count, batch, dtype)
    y, weights = panels(m)
    assert_close((m.log_prob(y).exp() * weights).sum(0), 1.0, 64 * torch.finfo(dtype).eps + 1e-12)


@wide_mixture
def test_cdf_is_the_integral_of_the_density(seed, count, batch):
    m = random_mixture(seed, count, batch)
    end = m.quantile(float(uniform((), seed)))
    y, weights = panels(m, end)
    below = (m.log_prob(y).exp() * weights * (y < end)).sum(0)
    assert_close(m.cdf(end), below, 1e-12)


@wide_mixture
def test_moments_are_integrals(seed, count, batch):
    m = random_mixture(seed, count, batch)
    y, weights = panels(m)
    mass = m.log_prob(y).exp() * weights
    mean = (y * mass).sum(0)
    assert_close(m.mean, mean, 1e-10 * m.stddev + 1e-10)
    assert_close(m.variance, ((y - mean).square() * mass).sum(0), 1e-9 * m.variance)
    assert torch.equal(m.stddev, m.variance.sqrt())


@wide_mixture
def test_float32_answers_are_those_of_its_parameters(seed, count, batch):
    m = random_mixture(seed, count, batch, F32)
    wide = m.to(F64)
    y = m.sample((50,), generator=torch.Generator().manual_seed(seed))
    eps = torch.finfo(F32).eps
    z = (y.to(F64)[..., None] - wide.components.loc) / wide.components.scale
    terms = wide.logits + wide.components.log_prob(y.to(F64)[..., None])
    likely = torch.where(terms > terms.amax(-1, keepdim=True) - 20, z.square(), 0).amax(-1)
    assert_close(m.log_prob(y), wide.log_prob(y.to(F64)), eps * (64 + 4 * likely))
    assert_close(m.cdf(y), wide.cdf(y.to(F64)), 8 * eps)


# -- quantiles ------------------------------------------------------------------------------------


@any_mixture
def test_quantile_inverts_cdf_to_the_precision_of_the_dtype(seed, count, batch, dtype):
    """The level lies between the cdf, in float64, a few units in the last place to either side."""
    m = random_mixture(seed, count, batch, dtype)
    wide, eps = m.to(F64), torch.finfo(dtype).eps
    u = torch.tensor(LEVELS, dtype=dtype).reshape(-1, *(1,) * len(batch))
    y = m.quantile(LEVELS)
    assert y.dtype == dtype and y.shape == (len(LEVELS), *batch)
    nudge = 4 * eps * y.to(F64).abs()
    slack = 16 * eps * u.to(F64)  # relative: the lower tail keeps its digits
    assert bool((wide.cdf(y.to(F64) - nudge) <= u + slack).all())
    assert bool((wide.cdf(y.to(F64) + nudge) >= u - slack).all())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64])
def test_quantiles_of_a_hundred_thousand_mixtures_are_right_to_the_last(dtype):
    """Of each one |F(q) - u| <= 1e-9, in float32 2e-6, or what one float of y holds if more.

    A component of scale 0.01 at 30 has 1/5,000 of a scale between two floats of float32, which is
    up to 8e-5 of its mass: no float32 has its quantiles to 2e-6, however exact the method.
    """
    levels = torch.tensor([1e-6, 1e-3, 0.05, 0.31, 0.5, 0.84, 0.99, 1 - 1e-6], dtype=dtype)
    u, bound = levels.to(F64)[:, None], 2e-6 if dtype == F32 else 1e-9
    for count in range(1, 21):
        for spread in (0.3, 30.0):  # crowded, and apart
            m = random_mixture(count, count, (2500,), F64)
            components = dist.Normal(m.components.loc * spread / 30.0, m.components.scale)
            m = Mixture(dist.Categorical(logits=m.logits), components).to(dtype)
            q, wide = m.quantile(levels), m.to(F64)
            there = wide.cdf(q.to(F64))
            allowed = torch.full_like(there, bound)
            if dtype == F32:
                beside = [q.nextafter(q.new_tensor(end)).to(F64) for end in (-math.inf, math.inf)]
                allowed = torch.stack([allowed, *((wide.cdf(y) - there).abs() for y in beside)])
                allowed = allowed.amax(0)
            assert bool(((there - u).abs() <= allowed).all())


@pytest.mark.parametrize(("given_as", "dtype"), [(F32, F64), (F64, F32)])
def test_levels_of_another_dtype_give_quantiles_of_the_wider(given_as, dtype):
    m = random_mixture(3, 5, (4,), dtype)
    u = torch.tensor([0.1, 0.25, 0.5, 0.9], dtype=given_as)
    y = m.icdf(u)
    assert y.dtype == F64
    assert_close(m.to(F64).cdf(y), u.to(F64), 1e-6)


@wide_mixture
def test_cdf_inverts_quantile(seed, count, batch):
    m = random_mixture(seed, count, batch)
    y = m.sample((50,), generator=torch.Generator().manual_seed(seed))
    back = m.icdf(m.cdf(y))
    # The cdf is known to eps; where the density is low that leaves y uncertain.
    assert_close(back, y, 64 * EPS64 * (1 / m.log_prob(y).exp() + y.abs()))


@any_mixture
def test_quantile_is_monotone_and_icdf_is_its_elementwise_spelling(seed, count, batch, dtype):
    m = random_mixture(seed, count, batch, dtype)
    levels = uniform((40,), seed, 1e-4, 1 - 1e-4).sort().values.to(dtype)
    y = m.quantile(levels)
    assert bool((y.diff(dim=0) >= 0).all())
    u = levels.reshape(-1, *(1,) * len(batch)).expand(40, *batch)
    assert torch.equal(m.icdf(u), y)
    assert torch.equal(m.quantile(float(levels[7])), y[7])


@given(seed=SEEDS, count=COUNTS, batch=BATCHES, level=st.floats(0.01, 0.99))
def test_interval_holds_its_level_with_equal_tails(seed, count, batch, level):
    m = random_mixture(seed, count, batch)
    lower, upper = m.interval(level)
    assert_close(m.cdf(upper) - m.cdf(lower), torch.tensor(level, dtype=F64), 1e-9)
    assert_close(m.cdf(lower), 1 - m.cdf(upper), 1e-9)


# -- CRPS -----------------------------------------------------------------------------------------


def crps_points(m, seed):
    near = m.sample((4,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([near, torch.stack([m.mean + 30 * m.stddev, m.mean - 30 * m.stddev])])


@any_mixture
def test_crps_is_its_integral(seed, count, batch, dtype):
    m = random_mixture(seed, count, batch, dtype)
    wide = m.to(F64)
    for y in crps_points(m, seed):
        t, weights = panels(wide, y)
        integral = ((wide.cdf(t) - (t >= y).to(F64)).square() * weights).sum(0)
        rounding = 1e-10 * wide.stddev + torch.finfo(dtype).eps * integral
        assert_close(m.crps(y), integral, rounding)


@wide_mixture
def test_crps_is_that_of_scoringrules(seed, count, batch):
    m = random_mixture(seed, count, batch)
    y = crps_points(m, seed)
    shape = (*y.shape, count)
    parts = (v.expand(shape).numpy() for v in (m.components.loc, m.components.scale, m.weights))
    assert_close(m.crps(y), scoringrules.crps_mixnorm(y.numpy(), *parts), 1e-9 * m.stddev)


# -- affine maps, pools, parts --------------------------------------------------------------------


@given(
    seed=SEEDS, count=COUNTS, batch=BATCHES, shift=st.floats(-100, 100), size=st.floats(0.01, 100),
    sign=st.sampled_from([-1.0, 1.0]), event=st.sampled_from([(), (2,)]),
)  # fmt: skip
def test_affine_moves_the_density_and_is_undone(seed, count, batch, shift, size, sign, event):
    m = random_mixture(seed, count, batch, event=event)
    scale = sign * size
    moved = m.affine(shift, scale)
    y = m.sample((20,), generator=torch.Generator().manual_seed(seed))
    there = shift + scale * y
    jacobian = math.prod(event) * math.log(size)
    rounding = 1e-15 * (abs(shift) + size * y.abs().amax()) / (size * 0.01)
    assert_close(moved.log_prob(there), m.log_prob(y) - jacobian, 1e-9 + 40 * rounding)
    back = moved.affine(-shift / scale, 1 / scale)
    assert_close(back.components.mean, m.components.mean, 1e-11 * (1 + abs(shift / scale)))
    assert_close(back.components.stddev, m.components.stddev, 1e-12 * m.components.stddev)
    assert torch.equal(back.weights, m.weights)
    if not event:
        flipped = m.quantile(0.7 if sign < 0 else 0.3)
        assert_close(moved.quantile(0.3), shift + scale * flipped, 1e-9 * moved.stddev)
        assert_close(moved.crps(there), size * m.crps(y), 1e-9 * moved.stddev)


def test_affine_takes_one_shift_and_scale_a_row():
    m = random_mixture(0, 4, (3,))
    shift, scale = torch.tensor([1.0, 2.0, 3.0]).to(F64), torch.tensor([-1.0, 2.0, 0.5]).to(F64)
    rows = [m[i].affine(float(shift[i]), float(scale[i])).mean for i in range(3)]
    assert torch.equal(m.affine(shift, scale).mean, torch.stack(rows))


@given(seed=SEEDS, batch=BATCHES, event=st.sampled_from([(), (2,)]), members=st.integers(1, 5))
def test_pool_averages_densities(seed, batch, event, members):
    many = [random_mixture(seed + 2 * i, 1 + 3 * i, batch, event=event) for i in range(members)]
    pooled = Mixture.pool(many)
    assert pooled.num_components == sum(m.num_components for m in many)
    y = torch.cat([m.sample((5,), generator=torch.Generator().manual_seed(seed)) for m in many])
    each = torch.stack([m.log_prob(y) for m in many])
    assert_close(pooled.log_prob(y), each.logsumexp(0) - math.log(members), 1e-10)
    weights = torch.arange(members, dtype=F64) + 0.5
    expected = (each + (weights / weights.sum()).log()[:, *(None,) * (each.ndim - 1)]).logsumexp(0)
    assert_close(Mixture.pool(many, weights=weights.tolist()).log_prob(y), expected, 1e-10)


@wide_mixture
def test_pool_of_one_is_its_member(seed, count, batch):
    m = random_mixture(seed, count, batch)
    y = m.sample((5,), generator=torch.Generator().manual_seed(seed))
    assert_close(Mixture.pool([m], weights=[7.0]).log_prob(y), m.log_prob(y), 1e-12)
    if batch:
        row = Mixture.pool(m[:1])
        assert row.batch_shape == m.batch_shape[1:]
        assert_close(row.log_prob(y[:, 0]), m.log_prob(y)[:, 0], 1e-12)


@pytest.mark.parametrize("event", [(), (2,)])
@pytest.mark.parametrize("dim", [0, 1, -1, -2])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0]])
def test_pool_of_a_batch_dimension_is_the_pool_of_its_slices(event, dim, weights):
    m = random_mixture(5, 4, (3, 3), event=event)
    slices = [m[i] if dim % 2 == 0 else m[:, i] for i in range(3)]
    one, other = Mixture.pool(m, weights, dim=dim), Mixture.pool(slices, weights)
    y = other.sample((20,), generator=torch.Generator().manual_seed(0))
    assert one.batch_shape == (3,) and one.event_shape == event
    assert_close(one.log_prob(y), other.log_prob(y), 1e-12)


@pytest.mark.parametrize("event", [(), (2,)])
@pytest.mark.parametrize(
    "rows",
    [0, -1, slice(1, 3), [2, 0], (1, slice(None)), (slice(None), 2), (..., [0, 0]), (2, 1),
     torch.tensor([True, False, True])],
    ids=str,
)  # fmt: skip
def test_indexing_is_slicing_of_results(rows, event):
    m = random_mixture(1, 4, (3, 3), event=event)
    y = m.sample(generator=torch.Generator().manual_seed(1))
    assert isinstance(m[rows], Mixture)
    where = rows if isinstance(rows, tuple) else (rows,)
    where = (*where, ...) if not any(r is ... for r in where) else where
    where = (*where, *(slice(None),) * len(event))
    assert torch.allclose(m[rows].log_prob(y[where]), m.log_prob(y)[rows], atol=0, rtol=1e-14)
    assert torch.allclose(m[rows].mean, m.mean[where], atol=0, rtol=1e-14)


@any_mixture
def test_expand_is_a_mixture_with_the_same_answers(seed, count, batch, dtype):
    m = random_mixture(seed, count, batch, dtype)
    larger = m.expand((4, *batch))
    assert type(larger) is Mixture and larger.batch_shape == (4, *batch)
    y = m.sample((4,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(larger.log_prob(y), m.log_prob(y))
    assert torch.equal(larger.cdf(y), m.cdf(y))
    assert torch.equal(larger.quantile(0.3), m.quantile(0.3).expand(4, *batch))
    assert torch.equal(larger.crps(y), m.crps(y))


@wide_mixture
def test_marginal_is_the_joint_with_the_rest_integrated_out(seed, count, batch):
    joint = random_mixture(seed, count, batch, event=(2,))
    kept, gone = joint.marginal(0), joint.marginal(1)
    y = kept.sample(generator=torch.Generator().manual_seed(seed))
    t, weights = panels(gone)
    integral = (joint.log_prob(torch.stack([y.expand(t.shape), t], -1)).exp() * weights).sum(0)
    assert_close(kept.log_prob(y).exp(), integral, 1e-10 * integral)


def test_marginal_of_several_keeps_their_order():
    joint = random_mixture(3, 5, (4,), event=(3,))
    pair = joint.marginal([2, 0])
    assert pair.event_shape == (2,)
    assert torch.equal(pair.mean, joint.mean[:, [2, 0]])
    y = torch.linspace(-40, 40, 4, dtype=F64)
    assert torch.equal(pair.marginal(1).log_prob(y), joint.marginal(0).log_prob(y))
    assert torch.equal(joint.marginal(-1).log_prob(y), joint.marginal(2).log_prob(y))


def test_what_a_row_spreads_is_the_same_to_the_bit_wherever_it_stands():
    m = random_mixture(3, 12, (1000,))
    family, weights, loc, scale = NormalFamily(), m.weights, m.components.loc, m.components.scale
    whole = family.dispersion(weights, m.components)
    for row in range(1000):
        alone = family.dispersion(weights[row], dist.Normal(loc[row], scale[row]))
        assert torch.equal(alone, whole[row])


# -- sampling -------------------------------------------------------------------------------------


@any_mixture
def test_samples_have_the_moments_and_a_uniform_pit(seed, count, batch, dtype):
    m, draws = random_mixture(seed, count, batch, dtype), 4000
    y = m.sample((draws,), generator=torch.Generator().manual_seed(seed)).to(F64)
    wide = m.to(F64)
    gap, scale = wide.components.loc - wide.mean[..., None], wide.components.scale
    fourth = (wide.weights * (gap**4 + 6 * gap.square() * scale.square() + 3 * scale**4)).sum(-1)
    assert_close(y.mean(0), wide.mean, 5 * wide.stddev / math.sqrt(draws))
    error = ((fourth - wide.variance.square()) / draws).sqrt()
    assert_close((y - wide.mean).square().mean(0), wide.variance, 5 * error)
    pit = wide.cdf(y).sort(0).values
    grid = (torch.arange(draws, dtype=F64) + 0.5) / draws
    kolmogorov = (pit - grid.reshape(-1, *(1,) * len(batch))).abs().amax(0) * math.sqrt(draws)
    assert bool((kolmogorov < 2.5).all())  # 2.5 is passed by chance once in 130,000


def test_components_are_drawn_by_their_weights_and_dimensions_together():
    loc = torch.tensor([[-10.0, 10.0], [10.0, -10.0]]).expand(3, 2, 2)
    probs = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]])
    m = Mixture(dist.Categorical(probs), dist.Normal(loc, 1.0).to_event(1))
    y = m.sample((10_000,), generator=torch.Generator().manual_seed(0))
    assert bool((y.sign().prod(-1) == -1).all())  # both dimensions from one component
    assert_close((y[..., 0] < 0).to(F64).mean(0), probs[:, 0], 0.025)


@pytest.mark.parametrize("count", [1, 4, 20, 64, 65])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_components_counted_are_those_that_a_search_finds(count, dtype, monkeypatch):
    m = random_mixture(count, count, (1000,), dtype)
    probs = m.weights.clone()
    probs[:100, : count // 2] = 0.0  # components of no weight are never drawn
    m = Mixture(dist.Categorical(probs), m.components)

    def drawn():
        return m.sample((50,), generator=torch.Generator().manual_seed(0))

    counted = drawn()
    monkeypatch.setattr(sampling, "MOST", 0)
    assert torch.equal(counted, drawn())


def test_a_generator_fixes_the_draws_and_leaves_the_global_state():
    m = random_mixture(0, 5, (3,))
    before = torch.random.get_rng_state()
    source = torch.Generator().manual_seed(7)
    first, second = m.sample((10,), generator=source), m.sample((10,), generator=source)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, m.sample((10,), generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(first, second)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one = m.sample((10,))
        torch.manual_seed(3)
        assert torch.equal(one, m.sample((10,)))
        assert not torch.equal(one, m.sample((10,)))


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log_prob", "cdf", "crps", "icdf"])
def test_gradients_are_those_of_finite_differences(name):
    m = normals([0.5, 0.3, 0.2], [-1.0, 0.5, 3.0], [0.7, 1.0, 2.0])
    at = torch.tensor([0.2, 0.45, 0.8] if name == "icdf" else [-2.0, 0.3, 4.0], dtype=F64)

    def function(logits, loc, scale, at):
        made = Mixture(dist.Categorical(logits=logits), dist.Normal(loc, scale))
        return getattr(made, name)(at)

    inputs = (m.logits, m.components.loc, m.components.scale, at)
    leaves = tuple(v.detach().clone().requires_grad_() for v in inputs)
    assert torch.autograd.gradcheck(function, leaves, atol=1e-7, rtol=1e-6)


@any_mixture
def test_gradients_are_finite_over_four_decades(seed, count, batch, dtype):
    m = random_mixture(seed, count, batch, dtype)
    leaves = [m.logits, m.components.loc, m.components.scale]
    leaves = [v.detach().clone().requires_grad_() for v in leaves]
    made = Mixture(dist.Categorical(logits=leaves[0]), dist.Normal(leaves[1], leaves[2]))
    y = crps_points(m, seed)
    for result in (made.log_prob(y), made.cdf(y), made.crps(y), made.quantile([0.05, 0.5, 0.95])):
        gradients = torch.autograd.grad(result.sum(), leaves, retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in gradients)
