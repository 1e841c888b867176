"""Distances and gradients of every family of components, and what only some families do."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import distributions as dist
from random_components import (
    BOUNDED,
    CIRCULAR,
    COUNTS,
    LEVELS,
    POSITIVE,
    RAW,
    SHIFTED,
    at,
    continuous,
    counts,
    every,
    frozen,
    linear,
    random_component,
    random_raw,
    size,
    some,
)
from random_mixtures import BATCHES, F32, F64, SEEDS, assert_close, uniform

from pyralloy.families import (
    FAMILIES,
    BetaFamily,
    Family,
    TruncatedNormalFamily,
    build,
    family_of,
    map_parameters,
)
from pyralloy.mixture import Mixture

# -- distances ------------------------------------------------------------------------------------


def crps_of_scoringrules(name, c, y):
    if name in COUNTS:  # its formulas overflow at large means: the sum that they stand for
        k = np.arange(6000).reshape(-1, *(1,) * y.ndim)
        return ((frozen(name, c).cdf(k) - (k >= y)) ** 2).sum(0)
    p = {k: getattr(c, k).numpy() for k in FAMILIES[name].parameters}
    sr = scoringrules
    return {
        "normal": lambda: sr.crps_normal(y, p["loc"], p["scale"]),
        "student_t": lambda: sr.crps_t(y, p["df"], p["loc"], p["scale"]),
        "laplace": lambda: sr.crps_laplace(y, p["loc"], p["scale"]),
        "logistic": lambda: sr.crps_logistic(y, p["loc"], p["scale"]),
        "log_normal": lambda: sr.crps_lognormal(y, p["loc"], p["scale"]),
        "gamma": lambda: sr.crps_gamma(y, p["concentration"], p["rate"]),
        "beta": lambda: sr.crps_beta(
            y, p["concentration1"], p["concentration0"], p["low"], p["high"]
        ),
        "truncated_normal": lambda: sr.crps_gtcnormal(y, p["loc"], p["scale"], p["low"], p["high"]),
    }[name]()


@pytest.mark.parametrize("name", [n for n in RAW if n not in ("weibull", *CIRCULAR)])
@some
@given(seed=SEEDS, batch=BATCHES)
def test_crps_of_one_component_is_that_of_scoringrules(name, seed, batch):
    family, component = FAMILIES[name], random_component(name, seed, batch)
    y = family.icdf(component, at(torch.tensor([0.01, 0.4, 0.95], dtype=F64), batch))
    own = family.dispersion(torch.ones(*batch, 1, dtype=F64),
                            map_parameters(component, lambda p: p[..., None], 0))  # fmt: skip
    expected = crps_of_scoringrules(name, component, y.numpy())
    scale = size(name, component)
    assert_close(family.distance(component, y) - own, expected,
                 3e-8 * scale + 1e-14 * component.mean.abs())  # fmt: skip


@linear
@some
@given(seed=SEEDS, batch=BATCHES)
def test_distance_is_its_integral(name, seed, batch):
    family, component = FAMILIES[name], random_component(name, seed, batch)
    scale = size(name, component)
    inner = family.icdf(component, at(torch.tensor([1e-4, 0.3, 0.8], dtype=F64), batch))
    y = torch.cat([inner, (component.mean + 30 * scale)[None], (component.mean - 30 * scale)[None]])
    tolerance = 2e-8 if name != "student_t" else 1e-3  # the integral ends before its tails do
    rounding = 1e-14 * (y.abs() + component.mean.abs())
    assert_close(family.distance(component, y), Family.distance(family, component, y),
                 tolerance * scale + rounding)  # fmt: skip


@some
@given(seed=SEEDS, count=st.integers(1, 8), batch=BATCHES)
def test_quadrature_of_a_dispersion_gives_the_closed_form_of_normals(seed, count, batch):
    family, component = FAMILIES["normal"], random_component("normal", seed, (*batch, count))
    weights = torch.softmax(2 * uniform((*batch, count), seed, -1, 1), -1)
    closed, tolerance = family.dispersion(weights, component), 1e-9 * component.scale.amax(-1)
    assert_close(Family.dispersion(family, weights, component), closed, tolerance)


@some
@given(seed=SEEDS, count=st.integers(1, 6))
def test_dispersion_of_laplaces_is_the_sum_over_pairs(seed, count):
    family, component = FAMILIES["laplace"], random_component("laplace", seed, (count,))
    weights = torch.softmax(uniform((count,), seed, -2, 2), -1)
    loc, b = component.loc, component.scale
    gap = (loc[:, None] - loc).abs()
    p, q = b[:, None], b + torch.eye(count, dtype=F64) * b  # the diagonal is filled in below
    pairs = gap + (p**3 * (-gap / p).exp() - q**3 * (-gap / q).exp()) / (p**2 - q**2)
    pairs = torch.where(torch.eye(count, dtype=torch.bool), 1.5 * b, pairs)
    expected = (weights[:, None] * weights * pairs).sum() / 2
    assert_close(family.dispersion(weights, component), expected, 1e-7 * b.amax())


@every
@some
@given(seed=SEEDS)
def test_dispersion_is_half_the_mean_distance_between_draws(name, seed):
    family, component = FAMILIES[name], random_component(name, seed, (3,))
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    levels = (torch.arange(4000, dtype=F64) + 0.5) / 4000  # stratified: hardly any noise
    y = family.icdf(component, levels[:, None].expand(-1, 3))  # (4000, 3)
    each = (weights * family.distance(component, y[..., None])).sum(-1).mean(0)
    expected = (weights * each).sum() / 2
    tolerance = 0.06 if name == "student_t" else 4e-3
    assert_close(family.dispersion(weights, component), expected, tolerance * expected)


@every
def test_a_component_of_no_weight_does_not_count(name):
    family, component = FAMILIES[name], random_component(name, 3, (3,))
    weights = torch.tensor([0.4, 0.6, 0.0], dtype=F64)
    fewer = map_parameters(component, lambda p: p[:2], 0)
    assert_close(family.dispersion(weights, component), family.dispersion(weights[:2], fewer),
                 1e-10 * size(name, fewer).amax())  # fmt: skip
    made = Mixture(dist.Categorical(logits=weights.log()), component)
    plain = Mixture(dist.Categorical(logits=weights[:2].log()), fewer)
    y = family.icdf(fewer, torch.tensor([0.3, 0.7], dtype=F64))
    assert_close(made.log_prob(y), plain.log_prob(y), 1e-12)
    assert_close(made.crps(y), plain.crps(y), 1e-9 * size(name, fewer).amax())


@linear
def test_a_dispersion_takes_weights_of_another_dtype(name):
    family, component = FAMILIES[name], random_component(name, 4, (3,))
    weights = torch.tensor([0.2, 0.5, 0.3])
    wide = family.dispersion(weights.to(F64), component)
    assert_close(family.dispersion(weights, component), wide, 1e-6 * size(name, component).amax())


# -- gradients ------------------------------------------------------------------------------------


@continuous
@pytest.mark.parametrize("law", ["log_prob", "cdf", "distance"])
def test_gradients_are_those_of_finite_differences(name, law):
    family, component = FAMILIES[name], random_component(name, 11, (3,))
    scale = size(name, component)
    y = family.icdf(component, torch.tensor([0.1, 0.55, 0.9], dtype=F64))
    if name in BOUNDED:  # in units of order one, where the step of the check is small
        component = FAMILIES[name].from_raw(random_raw(name, 11, (3,))[0].unbind(-1), 1.0)
        y = family.icdf(component, torch.tensor([0.1, 0.55, 0.9], dtype=F64))
    elif name in POSITIVE:
        unit = 1 / component.mean
        component, y = family.affine(component, torch.zeros_like(y), unit), y * unit
    elif name not in CIRCULAR:
        y = (y - component.loc) / scale
        component = family.affine(component, -component.loc / scale, 1 / scale)

    def function(at, *values):
        made = build(family, list(values), 0)
        return made.log_prob(at) if law == "log_prob" else getattr(family, law)(made, at)

    leaves = [y, *(getattr(component, p) for p in family.parameters)]
    leaves = tuple(v.detach().clone().requires_grad_() for v in leaves)
    assert torch.autograd.gradcheck(function, leaves, atol=2e-6, rtol=1e-5)


@continuous
def test_gradients_of_a_dispersion_are_those_of_finite_differences(name):
    family = FAMILIES[name]
    raw = 0.5 * torch.randn(3, family.outputs, generator=torch.Generator().manual_seed(2)).to(F64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)

    def function(raw, weights):
        return family.dispersion(weights / weights.sum(), family.from_raw(raw.unbind(-1), 1.0))

    leaves = (raw.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(function, leaves, atol=1e-6, rtol=1e-5, fast_mode=True)


@every
@pytest.mark.parametrize("dtype", [F32, F64])
def test_no_gradient_is_nan_at_the_mean_far_away_or_without_weight(name, dtype):
    family = FAMILIES[name]
    raw, spread = random_raw(name, 5, (3,))
    raw = raw.to(dtype).requires_grad_()
    logits = torch.tensor([0.0, -math.inf, 0.3], dtype=dtype, requires_grad=True)
    component = family.from_raw(raw.unbind(-1), spread)
    made = Mixture(dist.Categorical(logits=logits), component)
    centre = component.mean.detach()
    far = centre + 1e4 * size(name, component).detach()
    points = [centre, centre / 2, far] + ([2 * centre - far] if name in SHIFTED else [])
    y = torch.cat([v.round() if name in COUNTS else v for v in points])
    if name in BOUNDED:
        y = y.clamp(0.01, 0.99)
    for law in (made.log_prob, made.cdf, made.crps):
        value = law(y)
        assert bool(value.isfinite().all())
        for gradient in torch.autograd.grad(
            value.sum(), (raw, logits), allow_unused=True, retain_graph=True
        ):
            assert gradient is None or bool(gradient.isfinite().all())


# -- what only some families do -------------------------------------------------------------------


@counts
@some
@given(seed=SEEDS, batch=BATCHES)
def test_quantiles_of_counts_are_the_least_integers_that_reach_the_level(name, seed, batch):
    family, component = FAMILIES[name], random_component(name, seed, batch)
    u = at(LEVELS, batch)
    k = family.icdf(component, u)
    assert torch.equal(k, k.floor()) and bool((k >= 0).all())
    assert bool((family.cdf(component, k) >= u - 1e-15).all())
    assert bool((family.cdf(component, k - 1) < u + 1e-15).all())
    assert torch.equal(family.cdf(component, k + 0.7), family.cdf(component, k))
    for level in (0.0, 0.25, 0.5):
        y = family.icdf(component, torch.tensor(0.6, dtype=F64).expand(batch)) + level
        grid = torch.arange(5000, dtype=F64).reshape(-1, *(1,) * len(batch))
        mass = component.log_prob(grid).exp()
        assert_close(mass.sum(0), 1.0, 1e-6)
        exact = (mass * (grid - y).abs()).sum(0)
        assert_close(family.distance(component, y), exact, 1e-3 * exact + 1e-9)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
@pytest.mark.parametrize("kind", [BetaFamily, TruncatedNormalFamily])
def test_intervals_that_are_none_are_refused(kind, ends):
    with pytest.raises(ValueError, match=r"^low=.*high="):
        kind(*ends)


@pytest.mark.parametrize("kind", [BetaFamily, TruncatedNormalFamily])
def test_a_given_interval_is_the_mapped_unit_interval(kind):
    here, unit = kind(-2.0, 6.0), kind()
    raw = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).to(F64)
    if kind is TruncatedNormalFamily:
        raw_unit = torch.stack([raw[:, 0], raw[:, 1] - math.log(8.0)], -1)
        mine, mapped = here.from_raw(raw.unbind(-1), 8.0), unit.from_raw(raw_unit.unbind(-1), 1.0)
    else:
        mine, mapped = here.from_raw(raw.unbind(-1), 8.0), unit.from_raw(raw.unbind(-1), 1.0)
    two, eight = torch.tensor(-2.0).to(F64), torch.tensor(8.0).to(F64)
    mapped = unit.affine(mapped, two, eight)
    y = torch.linspace(-1.9, 5.9, 5, dtype=F64)
    assert_close(mine.log_prob(y), mapped.log_prob(y), 1e-9)
    assert family_of(mine) is FAMILIES[here.name]
    assert (here.support.low, here.support.high) == (-2.0, 6.0)


def test_a_support_says_how_y_may_be_standardised():
    facts = {name: (f.support.shifts, f.support.scales) for name, f in FAMILIES.items()}
    assert facts["normal"] == facts["student_t"] == (True, True)
    assert facts["gamma"] == facts["weibull"] == facts["log_normal"] == (False, True)
    assert facts["beta"] == facts["poisson"] == facts["von_mises"] == (False, False)


def test_the_table_is_complete():
    assert set(RAW) == set(FAMILIES)
    for name, family in FAMILIES.items():
        assert family.name == name and family.outputs == len(RAW[name])
        assert family_of(random_component(name, 0, (2,))) is family
