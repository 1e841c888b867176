"""The piecewise linear encoding spans what it says, whatever the columns, and goes with the fit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyralloy as pa
from pyralloy.networks import MLP, PiecewiseLinear

F64 = torch.float64


def column(rows=500, seed=0):
    return torch.randn(rows, 1, dtype=F64, generator=torch.Generator().manual_seed(seed))


@given(bins=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_piecewise_linear_function_with_bends_at_quantiles_is_linear_in_the_encoding(bins, seed):
    x = column(seed=seed)
    encode = PiecewiseLinear(1, bins).double().fit(x)
    knots = np.quantile(x.numpy(), np.linspace(0, 1, bins + 1), method="nearest")
    heights = np.random.default_rng(seed).normal(size=bins + 1)
    y = torch.from_numpy(np.interp(x[:, 0].numpy(), knots, heights))
    design = torch.cat([torch.ones_like(x), encode(x)], 1)
    # Least squares of minimum norm: the inputs themselves are a sum of their encoding.
    weights = torch.linalg.lstsq(design, y[:, None], driver="gelsd").solution
    assert float((design @ weights - y[:, None]).abs().max()) < 1e-7


def test_beyond_the_data_only_the_input_itself_goes_on():
    x = column()
    encode = PiecewiseLinear(1, 8).double().fit(x)
    low, high = x.min().reshape(1, 1), x.max().reshape(1, 1)
    for edge, step in ((low, -1.0), (high, 1.0)):
        near, far = encode(edge)[0], encode(edge + 100 * step)[0]
        assert torch.equal(near[1:], far[1:]) and float(far[0] - near[0]) == pytest.approx(
            100 * step
        )


@pytest.mark.parametrize("values", [[3.0], [0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]])
def test_of_few_distinct_values_each_gap_is_one_bin(values):
    """Levels that are an edge are told apart wholly, and what has no width says nothing."""
    x = torch.tensor(values, dtype=F64).repeat(40)[:, None]
    encoded = PiecewiseLinear(1, 7).double().fit(x)(x)
    assert bool(encoded.isfinite().all())
    told = encoded[:, 1:].unique(dim=0)
    assert len(told) == len(set(values))
    used = encoded[:, 1:].abs().amax(0) > 0
    assert int(used.sum()) == len(set(values)) - 1


def test_edges_that_differ_by_rounding_make_no_bin():
    x = (1e6 + 1e-10 * torch.arange(50, dtype=F64))[:, None]
    assert float(PiecewiseLinear(1, 4).double().fit(x).rate.max()) == 0.0


def test_before_a_fit_the_bins_are_those_of_a_standard_normal():
    encode, x = PiecewiseLinear(1, 4), column(100_000).float()
    assert torch.allclose(encode.middle[0, 1:3], encode.fit(x).middle[0, 1:3], atol=0.02)


def problem(rows=300):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, 2, generator=generator) * 10
    return x, (x[:, 0] > 5).float() + 0.1 * torch.randn(rows, generator=generator)


def fitted(seed=0):
    x, y = problem()
    model = pa.MDN(MLP(2, (16,), bins=6), pa.MixtureHead(16, 3))
    return x, pa.fit(model, x, y, max_steps=60, seed=seed, progress=False)


def test_a_fit_sets_the_bins_and_a_file_keeps_them(tmp_path):
    x, fit = fitted()
    rate = fit.model.trunk.encoding.rate
    assert rate.shape == (2, 6) and float(rate.min()) > 1.0  # uniform: 16 spreads / 6 bins are less
    fit.save(tmp_path / "fit.safetensors")
    again = pa.load(tmp_path / "fit.safetensors")
    assert torch.equal(again.density(x).mean, fit.density(x).mean)


def test_weights_that_go_on_keep_their_bins():
    x, y = problem()
    _, fit = fitted()
    before = fit.model.trunk.encoding.middle.clone()
    pa.fit(fit.model, x[:50], y[:50], initialise=False, max_steps=2, progress=False)
    assert torch.equal(fit.model.trunk.encoding.middle, before)


@pytest.mark.parametrize(("bins", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_bad_bins_are_named(bins, error):
    with pytest.raises(error, match="bins"):
        MLP(2, bins=bins)
