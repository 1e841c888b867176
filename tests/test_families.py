"""The laws of every family of components: a table of families times a table of laws."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_components import (
    BOUNDED,
    CIRCULAR,
    COUNTS,
    LEVELS,
    LINEAR,
    NODES,
    POSITIVE,
    RAW,
    ROUNDING,
    SHIFTED,
    at,
    cast,
    continuous,
    coordinates,
    edges_of,
    every,
    frozen,
    linear,
    random_component,
    size,
    some,
)
from random_mixtures import BATCHES, DTYPES, F32, F64, SEEDS, assert_close, uniform

from pyralloy.families import (
    FAMILIES,
    BetaFamily,
    Support,
    TruncatedNormalFamily,
    build,
    family_of,
)

# -- the density, its cdf and its quantile function -----------------------------------------------


@continuous
@some
@given(seed=SEEDS, batch=BATCHES)
def test_cdf_is_the_integral_of_the_density_which_is_one_in_all(name, seed, batch):
    family, component = FAMILIES[name], random_component(name, seed, batch)
    forth, back, slope = coordinates(name, component)
    if name in BOUNDED:  # the density itself, on the unit interval, where ends keep their digits
        width = component.high - component.low
        component = family.affine(component, -component.low / width, 1 / width)
        component = build(
            family,
            [
                *(getattr(component, p) for p in family.parameters[:2]),
                torch.zeros(batch).to(F64),
                torch.ones(batch).to(F64),
            ],
            0,
        )
        forth, back, slope = coordinates(name, component)
    edges = edges_of(name, component)
    if name in BOUNDED:
        edges = edges[edges.reshape(len(edges), -1).amax(1) < 1 - 1e-9]
    w = forth(edges)
    half, middle = w.diff(dim=0) / 2, (w[1:] + w[:-1]) / 2
    mass = sum(
        weight * half * component.log_prob(back(middle + half * node)).exp()
        * slope(middle + half * node)
        for node, weight in zip(*NODES, strict=True)
    )  # fmt: skip
    cdf = family.cdf(component, edges)
    exact = ROUNDING.get(name, 2e-11)
    assert_close(mass.cumsum(0), cdf[1:] - cdf[0], exact)
    assert_close(mass.sum(0) + cdf[0] + 1 - cdf[-1], 1.0, exact)
    assert bool((cdf[0] < 1e-11).all()) and bool((cdf[-1] > 0.2).all())


@continuous
@some
@given(seed=SEEDS, batch=BATCHES, dtype=DTYPES)
def test_icdf_inverts_cdf_to_the_precision_of_the_dtype(name, seed, batch, dtype):
    family, component = FAMILIES[name], random_component(name, seed, batch, dtype)
    wide, eps = cast(component, F64), torch.finfo(dtype).eps
    u = at(LEVELS[::3].to(dtype), batch)
    u = torch.where(u < 1, u, 0.5)
    y = family.icdf(component, u)
    assert y.dtype == dtype and y.shape == u.shape
    y, u = y.to(F64), u.to(F64)
    # A unit in the last place of z, of y, of the interval's ends, and of an exponent.
    nudge = 16 * eps * (y.abs() + (y - wide.mean).abs() + size(name, wide))
    if name in BOUNDED:
        nudge = nudge + 16 * eps * (wide.low.abs() + wide.high.abs())
    if name in POSITIVE:
        nudge = nudge + 16 * eps * y * (y / wide.mean).clamp_min(1e-300).log().abs()
    slack = 64 * eps * u
    low, high, *_ = family.support if name in CIRCULAR else Support()
    assert bool((family.cdf(wide, (y - nudge).clamp_min(low)) <= u + slack).all())
    assert bool((family.cdf(wide, (y + nudge).clamp_max(high)) >= u - slack).all())


@every
@some
@given(seed=SEEDS, batch=BATCHES)
def test_float32_answers_are_those_of_its_parameters(name, seed, batch):
    family, component = FAMILIES[name], random_component(name, seed, batch, F32)
    wide, eps = cast(component, F64), torch.finfo(F32).eps
    y = torch.stack([family.draw(component, torch.Generator().manual_seed(i)) for i in range(8)])
    low = getattr(wide, "low", None)
    if low is not None:  # draws within a rounding of an end say nothing of the formulas
        share = (y.to(F64) - low) / (wide.high - low)
        y = torch.where((share > 0.05) & (share < 0.95), y, ((wide.low + wide.high) / 2).to(F32))
    there = y.to(F64)
    # How much the log density and the cdf move when y or a parameter moves by one rounding.
    moved = there.abs() + wide.mean.abs() + (0 if low is None else low.abs() + wide.high.abs())
    shift = moved / size(name, wide)
    if name in ("gamma", "weibull", "log_normal"):
        shift = shift.square()  # their terms are as large as the concentration, 1 / ratio**2
    if name in COUNTS:
        shift = 100 * (1 + there + wide.mean)
    bound = eps * (64 + 64 * shift * (1 + (there - wide.mean).abs() / size(name, wide)))
    assert_close(component.log_prob(y), wide.log_prob(there), bound)
    assert_close(family.cdf(component, y), family.cdf(wide, there), bound)
    assert_close(family.distance(component, y), family.distance(wide, there),
                 bound * (moved + size(name, wide)))  # fmt: skip


def slope_of_log_prob(component, y):
    y = y.clone().requires_grad_()
    return torch.autograd.grad(component.log_prob(y).sum(), y)[0]


@pytest.mark.parametrize("name", LINEAR + COUNTS)  # angles: in tests/test_circular.py
@some
@given(seed=SEEDS, batch=BATCHES)
def test_density_cdf_quantile_and_moments_are_those_of_scipy(name, seed, batch):
    family, component = FAMILIES[name], random_component(name, seed, batch)
    other = frozen(name, component)
    u = torch.tensor([1e-9, 1e-3, 0.2, 0.5, 0.9, 0.9999], dtype=F64)
    y = family.icdf(component, at(u, batch))
    scale = size(name, component)
    # How far y moves by a rounding, and how much scipy's density then moves.
    loss = 1e-15 * (y.abs() + component.mean.abs() + scale)
    expected = other.ppf(at(u, batch).numpy())
    exact = other.pmf if name in COUNTS else other.pdf
    density = torch.from_numpy(np.asarray(exact(y.numpy())))
    inside = density.isfinite()  # at a rounded end a Beta may be infinite
    exact = ROUNDING.get(name, 1e-12)
    assert_close(y, expected, 10 * exact * (scale + (y - component.mean).abs()) + 100 * loss)
    ratio = component.log_prob(y).exp()[inside] / density[inside]
    moves = 1 / scale  # by how much of itself, at least, and near an end of a Beta by more
    if name == "beta":
        moves = torch.maximum(moves, slope_of_log_prob(component, y).abs())
    assert_close(ratio, 1.0, (1e-11 + 100 * loss * moves)[inside])
    density = torch.where(inside, density, 0.0)
    assert_close(family.cdf(component, y), other.cdf(y.numpy()), exact + 10 * loss * density)
    assert_close(component.mean, other.mean(), 1e-10 * (scale + component.mean.abs()))
    if name != "student_t":
        assert_close(component.variance / torch.as_tensor(other.var()), 1.0, 1e-6)


@every
@some
@given(seed=SEEDS, batch=BATCHES, dtype=DTYPES)
def test_draws_have_a_uniform_pit_and_the_generators_word(name, seed, batch, dtype):
    family, component = FAMILIES[name], random_component(name, seed, batch, dtype)
    many, wide = component.expand((1000, *batch)), cast(component, F64)
    before = torch.random.get_rng_state()
    y = family.draw(many, torch.Generator().manual_seed(seed))
    assert torch.equal(y, family.draw(many, torch.Generator().manual_seed(seed)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert y.dtype == dtype and y.shape == (1000, *batch)
    y = y.to(F64)
    pit = family.cdf(wide, y)
    if name in COUNTS:  # spread over the step of the cdf
        below = family.cdf(wide, y - 1)
        pit = below + (pit - below) * uniform(pit.shape, seed + 1)
    grid = at((torch.arange(1000, dtype=F64) + 0.5) / 1000, batch)
    worst = (pit.sort(0).values - grid).abs().amax(0) * math.sqrt(1000)
    # 2.5 is passed by chance once in 130,000. Rounding adds steps where y has few digits.
    steps = torch.finfo(dtype).eps * wide.mean.abs() / size(name, wide) * math.sqrt(1000)
    assert bool((worst < 2.5 + steps).all())


# -- affine maps ----------------------------------------------------------------------------------


@linear
@some
@given(seed=SEEDS, batch=BATCHES, power=st.floats(-4, 4), sign=st.sampled_from([-1.0, 1.0]))
def test_affine_moves_the_density_and_is_undone(name, seed, batch, power, sign):
    family, component = FAMILIES[name], random_component(name, seed, batch)
    positive = name in POSITIVE
    scale = torch.tensor((1.0 if positive else sign) * 10.0**power, dtype=F64)
    shift = torch.zeros(batch, dtype=F64) if positive else 3 * component.mean
    moved = family.affine(component, shift, scale)
    u = at(torch.tensor([0.01, 0.3, 0.6, 0.97], dtype=F64), batch)
    y = family.icdf(component, u)
    there = shift + scale * y
    loss = 1e-14 * (shift.abs() / scale.abs() + y.abs() + component.mean.abs())
    if name in BOUNDED:
        loss = loss + 1e-14 * (component.low.abs() + component.high.abs())
    slope = y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(component.log_prob(slope).sum(), slope)
    rounding = 1e-10 + 10 * loss * (slope.abs() + 1 / size(name, component))
    assert_close(moved.log_prob(there), component.log_prob(y) - scale.abs().log(), rounding)
    assert_close(family.cdf(moved, there), u if scale > 0 else 1 - u, rounding)
    assert_close(family.distance(moved, there) / scale.abs(), family.distance(component, y),
                 10 * loss + 1e-10 * size(name, component))  # fmt: skip
    back = family.affine(moved, -shift / scale, 1 / scale)
    for parameter in family.parameters:
        before, after = getattr(component, parameter), getattr(back, parameter)
        assert_close(after, before, 1e-11 * (before.abs() + 1) + 10 * loss)


@every
def test_maps_that_leave_the_family_are_refused_with_a_remedy(name):
    family, component = FAMILIES[name], random_component(name, 0, (2,))
    one, two = torch.ones((), dtype=F64), torch.full((), 2.0, dtype=F64)
    if name in COUNTS:
        with pytest.raises(TypeError, match=f"{name}.*transform y"):
            family.affine(component, 0 * one, two)
    if name in POSITIVE:
        for shift, scale in ((one, two), (0 * one, -one)):
            with pytest.raises(TypeError, match=f"{name}.*shift 0"):
                family.affine(component, shift, scale)
    if name in CIRCULAR:
        with pytest.raises(TypeError, match=f"{name}.*1 or -1"):
            family.affine(component, one, two)
    if name in SHIFTED or name in BOUNDED:
        assert family_of(family.affine(component, one, -two)) is family


# -- raw outputs ----------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4])
def test_no_raw_output_overflows_a_parameter_that_has_bounds(name, dtype, spread):
    family = FAMILIES[name]
    values = torch.tensor([-1e30, -50.0, 0.0, 50.0, 1e30], dtype=dtype)
    raw = torch.cartesian_prod(*[values] * family.outputs).reshape(-1, family.outputs)
    raw.requires_grad_()
    component = family.from_raw(raw.unbind(-1), spread)
    for parameter in family.parameters:
        assert bool(getattr(component, parameter).isfinite().all())
        if parameter in ("scale", "concentration", "rate", "df", "concentration1", "total_count"):
            assert name == "log_normal" or bool((getattr(component, parameter) > 0).all())
    total = sum(getattr(component, parameter).sum() for parameter in family.parameters)
    (gradient,) = torch.autograd.grad(total, raw)
    assert bool(gradient.isfinite().all())


PLACES = {
    "poisson": (torch.tensor([0.5, 3.0, 40.0]), torch.tensor([0.5, 3.0, 40.0]).sqrt()),
    "negative_binomial": (torch.tensor([0.5, 3.0, 40.0]), torch.tensor([1.5, 2.5, 20.0])),
    "von_mises": (torch.tensor([-3.0, 0.0, 1.5]), torch.tensor([0.02, 0.7, 2.0])),
    "beta": (torch.tensor([0.1, 0.4, 0.9]), torch.tensor([0.05, 0.2, 0.1])),
} | {name: (torch.tensor([0.6, 1.0, 7.0]), torch.tensor([0.1, 0.7, 2.0])) for name in POSITIVE}
ANYWHERE = (torch.tensor([-5.0, 0.0, 7.0]), torch.tensor([0.1, 1.0, 9.0]))


@pytest.mark.parametrize("name", [n for n in RAW if n != "truncated_normal"])
def test_to_raw_places_components_by_mean_and_deviation(name):
    family = FAMILIES[name]
    loc, scale = (v.to(F64) for v in PLACES.get(name, ANYWHERE))
    raw = family.to_raw(loc, scale, 2.0)
    assert raw.shape == (3, family.outputs)
    component = family.from_raw(raw.unbind(-1), 2.0)
    assert_close(component.mean, loc, 1e-8 * (1 + loc.abs()))
    assert_close(component.stddev, scale, 1e-7 * scale)


def test_to_raw_places_the_mode_and_width_of_a_truncated_normal():
    family = TruncatedNormalFamily(-3.0, 5.0)
    loc, scale = torch.tensor([-2.9, 0.0, 4.0]).to(F64), torch.tensor([0.1, 1.0, 9.0]).to(F64)
    component = family.from_raw(family.to_raw(loc, scale, 2.0).unbind(-1), 2.0)
    assert_close(component.loc, loc, 1e-10)
    assert_close(component.scale, scale, 1e-8 * scale)


def test_an_interval_around_even_values_holds_their_ends_and_little_more():
    n = 100
    y = torch.rand(2000, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    families = [BetaFamily.around(each) for each in y]
    low, high = (torch.tensor([getattr(f.support, e) for f in families]) for e in ("low", "high"))
    assert int((low > 0).sum() + (high < 1).sum()) <= 3  # of 4,000, where 0.4 are due
    beyond = torch.cat([-low, high - 1]).mean()  # ten gaps of about 1 / n, but for the last
    assert 8 / n < float(beyond) < 10 / n
    assert families[0].support == BetaFamily.around(y[0].numpy()).support
    assert repr(TruncatedNormalFamily.around([0, 10], margin=0.5)).endswith("(-5.0, 15.0)")


@pytest.mark.parametrize(
    ("y", "margin", "message"),
    [
        ([3.0, 3.0], None, "two different values"),
        ([3.0], None, "two different values"),
        ([[1.0, 2.0]], None, "shape"),
        ([1.0, math.nan], None, "y"),
        ([1.0, 2.0], 0.0, "margin=0"),
        ([1.0, 2.0], math.inf, "margin=inf"),
    ],
)
def test_an_interval_around_nothing_is_refused(y, margin, message):
    with pytest.raises(ValueError, match=message):
        TruncatedNormalFamily.around(y, margin)


@every
def test_places_out_of_reach_move_to_the_nearest_end(name):
    family = FAMILIES[name]
    loc = torch.tensor([-1e9, 0.0, 0.3, 1e9], dtype=F64)
    for scale in (1e-12, 1e12):
        component = family.from_raw(
            family.to_raw(loc, torch.full_like(loc, scale), 1.0).unbind(-1), 1.0
        )
        assert all(bool(getattr(component, p).isfinite().all()) for p in family.parameters)
        inside = component.mean[2]
        slack = 0.2 if name == "truncated_normal" else 1e-9  # its mean is not its mode
        assert_close(inside, loc[2], slack)


# -- all laws again, on more batches -----------------------------------------------------------

LAWS = [
    test_cdf_is_the_integral_of_the_density_which_is_one_in_all,
    test_icdf_inverts_cdf_to_the_precision_of_the_dtype,
    test_float32_answers_are_those_of_its_parameters,
    test_density_cdf_quantile_and_moments_are_those_of_scipy,
    test_draws_have_a_uniform_pit_and_the_generators_word,
    test_affine_moves_the_density_and_is_undone,
]


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@every
def test_laws_hold_for_twenty_batches_more(name, law):
    (mark,) = (m for m in law.pytestmark if m.name == "parametrize")
    if name not in mark.args[1]:
        pytest.skip(f"{name} is of another kind")
    inner = law.hypothesis.inner_test
    choices = {"batch": (2, 3), "dtype": F32, "power": 1.5, "sign": -1.0}
    used = {k: v for k, v in choices.items() if k in inspect.signature(inner).parameters}
    for seed in range(100, 120):
        inner(name, seed=seed, **used)
