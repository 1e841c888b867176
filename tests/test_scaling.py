"""Standardising is undone exactly: the same density, in y's units, Jacobian included."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import distributions as dist
from random_mixtures import F32, F64, assert_close, random_mixture

from pyralloy.heads import MixtureHead
from pyralloy.initialise import place_components
from pyralloy.mixture import Mixture
from pyralloy.scaling import Standardizer


def values(shape, shift, scale, dtype=F64, seed=0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return (shift + scale * drawn).to(dtype)


@given(
    shift=st.floats(-1e6, 1e6),
    power=st.integers(-6, 6),
    columns=st.sampled_from([(), (1,), (4,)]),
)
def test_standardised_columns_have_mean_zero_and_deviation_one(shift, power, columns):
    scale = 10.0**power
    data = values((300, *columns), shift, scale)
    z = Standardizer().fit(data)
    standard = z(data, F64)
    rounding = 1e-14 * abs(shift) / scale
    assert_close(standard.mean(0), 0.0, 1e-13 + rounding)
    assert_close(standard.square().mean(0), 1.0, 1e-13 + 10 * rounding)
    assert z.shift.shape == z.scale.shape == columns
    assert_close(z.shift + z.scale * standard, data, 1e-15 * (data.abs() + 10 * scale))


@given(
    shift=st.floats(-1e4, 1e4),
    power=st.integers(-4, 4),
    event=st.sampled_from([(), (3,)]),
    dtype=st.sampled_from([F32, F64]),
)
def test_undone_densities_carry_the_jacobian(shift, power, event, dtype):
    """The NLL in y's units is that of the standardised y plus the log of the scale."""
    y = values((50, *event), shift, 10.0**power)
    scaling = Standardizer().fit(y)
    density = random_mixture(0, 4, (50,), dtype, event)
    undone = scaling.undo(density)
    assert undone.dtype == F64 and undone.batch_shape == (50,)
    standard = scaling(y, F64)
    expected = density.to(F64).log_prob(standard) - scaling.log_jacobian
    rounding = 1e-15 * float(y.abs().max()) / float(scaling.scale.min()) / 1e-4
    assert_close(undone.log_prob(y), expected, 1e-9 + rounding)
    by_hand = sum(math.log(s) for s in scaling.scale.reshape(-1).tolist())
    assert scaling.log_jacobian == pytest.approx(by_hand, abs=1e-12)


def test_a_known_density_is_recovered():
    y = torch.tensor([1.0, 5.0], dtype=F64)  # mean 3, deviation 2
    scaling = Standardizer().fit(y)
    standard = Mixture(dist.Categorical(torch.ones(1)), dist.Normal(torch.zeros(1), 1.0))
    undone = scaling.undo(standard)
    at = torch.tensor([-2.0, 3.0, 9.0], dtype=F64)
    assert torch.allclose(undone.log_prob(at), dist.Normal(at.new_tensor(3.0), 2.0).log_prob(at))
    assert float(undone.quantile(0.5)) == pytest.approx(3.0, abs=1e-12)


def test_before_a_fit_it_is_the_identity():
    scaling, density = Standardizer(), random_mixture(0, 3, (5,))
    y = values((5,), 0.0, 1.0)
    assert torch.equal(scaling(y, F64), y)
    assert torch.equal(scaling.undo(density).log_prob(y), density.log_prob(y))
    assert scaling.log_jacobian == 0.0


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -3.3e7, 1e-200, 7e200])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_a_constant_column_is_centred_and_keeps_its_scale(constant, rows):
    data = values((rows, 3), 0.0, 1.0)
    data[:, 1] = constant
    scaling = Standardizer().fit(data)
    assert float(scaling.scale[1]) == pytest.approx(1.0, rel=1e-12)
    standard = scaling(data, F64)[:, 1]
    assert float(standard.abs().max()) <= 1e-12 * max(1.0, abs(constant))
    assert bool((scaling.scale > 0).all() & scaling.scale.isfinite().all())


def test_a_column_constant_but_for_rounding_is_constant():
    data = torch.tensor([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2], dtype=F64)
    assert float(Standardizer().fit(data).scale) == pytest.approx(1.0, rel=1e-12)
    apart = Standardizer().fit(torch.tensor([1.0, 1.0 + 1e-9], dtype=F64))
    assert float(apart.scale) == pytest.approx(5e-10, rel=1e-6)


def test_float32_data_far_from_zero_keep_their_spread():
    data = values((4000,), 1e8, 100.0, F32)
    scaling = Standardizer().fit(data)
    wide = data.to(F64)
    assert float(scaling.shift) == pytest.approx(float(wide.mean()), rel=1e-14)
    assert float(scaling.scale) == pytest.approx(float(wide.std(correction=0)), rel=1e-9)
    standard = scaling(data, F32)
    assert standard.dtype == F32
    assert_close(standard, (wide - wide.mean()) / wide.std(correction=0), 1e-6)
    density = Mixture(dist.Categorical(torch.ones(1)), dist.Normal(torch.zeros(1), 1.0))
    undone = scaling.undo(density)
    assert undone.dtype == F64
    assert float(undone.log_prob(wide).mean()) == pytest.approx(
        -0.5 - 0.5 * math.log(2 * math.pi) - float(scaling.scale.log()), abs=1e-5
    )


@pytest.mark.parametrize("size", [1e-160, 1e-30, 1e30, 1e200])
def test_columns_of_any_size_are_standardised(size):
    data = values((100,), 0.0, 1.0) * size
    assert_close(Standardizer().fit(data)(data, F64).std(correction=0), 1.0, 1e-12)


def test_what_was_fitted_travels_with_the_state_and_is_left_by_a_change_of_dtype():
    scaling = Standardizer().fit(values((100, 2), 1e8, 1.0))
    assert set(scaling.state_dict()) == {"shift", "scale", "limit"}
    assert not list(scaling.parameters())
    data = values((10, 2), 1e8, 1.0)
    before = scaling(data, F32)
    assert torch.equal(scaling.float()(data, F32), before)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2])
@pytest.mark.parametrize("size", [1e4, 1e6, 1e30, 1e200])
def test_outliers_leave_the_standardisation_of_the_others_as_it_is(share, size):
    data = values((2000, 2), 3.0, 1e-3)
    spoiled = data.clone()
    spoiled[1 : 1 + int(2000 * share), 0] = -size
    clean = Standardizer().fit(data[1 + int(2000 * share) :])
    robust = Standardizer().fit(spoiled)
    others = data[1 + int(2000 * share) :]
    assert_close(robust(others, F64)[:, 0], clean(others, F64)[:, 0], 0.01)
    plain = Standardizer().fit(data)
    assert torch.equal(robust.scale[1], plain.scale[1])
    assert bool(robust.scale.isfinite().all() & robust.shift.isfinite().all())


@pytest.mark.parametrize("draw", ["normal", "uniform", "exponential", "bimodal", "skewed"])
def test_ordinary_columns_are_standardised_by_mean_and_deviation(draw):
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(5000, generator=generator, dtype=F64)
    data = {
        "normal": torch.special.ndtri(u),
        "uniform": u,
        "exponential": -u.log(),
        "bimodal": torch.special.ndtri(u) + 10.0 * (torch.arange(5000) % 2),
        "skewed": (0.5 * torch.special.ndtri(u)).exp(),
    }[draw]
    scaling = Standardizer().fit(data)
    assert float(scaling.shift) == pytest.approx(float(data.mean()), abs=1e-13)
    assert float(scaling.scale) == pytest.approx(float(data.std(correction=0)), rel=1e-13)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_a_value_that_most_rows_share_leaves_the_spread_of_the_rest(share):
    data = values((1000,), 0.0, 1.0)
    data[: int(1000 * share)] = 0.25
    data[-1] = 1e6
    scaling = Standardizer().fit(data)
    assert 0.05 < float(scaling.scale) < 2.0


def test_a_cauchy_column_gets_a_scale_near_its_bulk():
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    scaling = Standardizer().fit(torch.tan(math.pi * (u - 0.5)))
    assert 1.0 < float(scaling.scale) < 6.0  # quartiles at -1 and 1, the farthest near 1e5


@given(size=st.floats(0.0, 300.0), sign=st.sampled_from([-1.0, 1.0]))
def test_inputs_beyond_the_limit_are_squeezed_in_order(size, sign):
    scaling = Standardizer().fit(values((100,), 0.0, 1.0), limit=20.0)
    at = sign * torch.tensor([10.0**size, 2 * 10.0**size], dtype=F64)
    near, far = (sign * scaling(at, F64)).tolist()
    assert near < far < 800.0
    plain = sign * (at - scaling.shift) / scaling.scale
    if float(plain[1]) < 20.0:
        assert [near, far] == plain.tolist()
    both = scaling(sign * torch.tensor([1e200, 1.7e308], dtype=F64), torch.float32)
    assert bool(both.isfinite().all())


def test_the_squeeze_travels_with_the_state_and_blocks_change_nothing():
    data = values((700, 3), 1.0, 2.0)
    data[5] = 1e9
    one = Standardizer().fit(data, limit=20.0)
    other = Standardizer()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(data, F32), one(data, F32))
    assert float(other.limit) == 20.0
    whole, moments = one(data, F32), (one.shift, one.scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyralloy.scaling.BLOCK", 100)
        blocks = Standardizer().fit(data, limit=20.0)
        assert torch.equal(one(data, F32), whole)
    assert_close(blocks.shift, moments[0], 1e-14)
    assert_close(blocks.scale, moments[1], 1e-14)


def test_values_far_out_raise_the_ceiling_of_scales_and_the_state_keeps_it():
    y = values((500,), 0.0, 1.0, F32)
    y[3], y[4] = 1e6, 1.5e6
    head, plain = MixtureHead(4, 10), MixtureHead(4, 10)
    place_components(head, y, torch.Generator().manual_seed(0))
    place_components(plain, y[5:], torch.Generator().manual_seed(0))
    assert float(plain.octaves) == 0 and float(head.octaves) >= math.log2(1e6 / 20)
    for parameter in (*head.parameters(), *plain.parameters()):
        parameter.requires_grad_(False)
    density = head(torch.zeros(1, 4))
    assert -float(density.log_prob(y[5:]).mean()) < 1.6
    assert float(density.log_prob(torch.tensor([1.2e6]))) > -40.0
    loaded = MixtureHead(4, 10)
    loaded.load_state_dict(head.state_dict())
    loaded.requires_grad_(False)
    assert torch.equal(loaded(torch.zeros(1, 4)).log_prob(y[:1]), density.log_prob(y[:1]))
