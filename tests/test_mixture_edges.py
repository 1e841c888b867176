"""What a mixture does far out in its tails, between far components, and when asked nonsense."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from pyro import distributions as dist
from random_mixtures import F32, F64, normals, random_mixture

from pyralloy.mixture import Mixture

# -- tails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_million_scales_out_everything_is_finite_or_exact(dtype):
    m = normals([0.3, 0.7], [-1.0, 2.0], [0.5, 1.5]).to(dtype)
    y = torch.tensor([-1e6, 1e6], dtype=dtype, requires_grad=True)
    assert m.cdf(y).tolist() == [0.0, 1.0]
    assert bool(m.log_prob(y).isfinite().all())
    assert torch.allclose(m.crps(y), y.detach().abs(), rtol=1e-5)
    for result in (m.log_prob(y), m.cdf(y), m.crps(y)):
        assert bool(torch.autograd.grad(result.sum(), y)[0].isfinite().all())


def test_the_lower_tail_keeps_its_digits():
    m = normals([1e-3, 0.999], [0.0, 5.0], [1.0, 0.1])
    y = torch.tensor([-20.0, -8.0, -3.0], dtype=F64)
    expected = 1e-3 * torch.from_numpy(scipy.special.ndtr(y.numpy()))
    assert torch.allclose(m.cdf(y), expected, rtol=1e-12, atol=0)


def test_extreme_levels_are_reached():
    one = normals([1.0], [3.0], [2.0])
    two = normals([0.5, 0.5], [3.0, 3.0], [2.0, 2e-3])
    for level, rtol in ((1e-12, 1e-12), (1 - 1e-12, 1e-15)):
        exact = 3.0 + 2.0 * scipy.special.ndtri(level)
        assert float(one.quantile(level)) == pytest.approx(exact, rel=1e-13)
        y = two.quantile(level)
        assert float(two.cdf(y)) == pytest.approx(level, rel=rtol)
    low, high = two.quantile([2e-12 / 2, 1 - 1e-12])
    assert float(low) == pytest.approx(3.0 + 2.0 * scipy.special.ndtri(2e-12), rel=1e-12)
    assert float(high) == pytest.approx(6.0 - float(low), rel=1e-4)


def test_needles_far_apart_are_told_apart():
    m = normals([0.2, 0.3, 0.5], [-1e4, 0.0, 1e4], [1e-3, 1e-3, 1e-3])
    levels = torch.tensor([0.1, 0.2 - 1e-9, 0.2 + 1e-9, 0.35, 0.5 - 1e-9, 0.5 + 1e-9, 0.75])
    y = m.quantile(levels.to(F64))
    assert torch.allclose(m.cdf(y), levels.to(F64), atol=1e-8)
    levels = [0.1, 0.2 * (1 - 1e-9), 0.2 * (1 + 1e-6), 0.35, 0.5 + 1e-6, 0.75]
    assert torch.allclose(
        m.quantile(levels).round(), torch.tensor([-1e4, -1e4, 0, 0, 1e4, 1e4], dtype=F64)
    )
    middle = float(m.quantile(0.2))  # the cdf is flat there: any point between will do
    assert -1e4 <= middle <= 0.0
    lower, upper = m.interval(0.9)
    assert float(lower) == pytest.approx(-1e4 - 1e-3 * 0.6744897502, abs=1e-7)
    assert float(upper) == pytest.approx(1e4 + 1e-3 * 1.2815515655, abs=1e-7)
    y = torch.tensor([0.0, 5e3], dtype=F64)
    points, w = torch.tensor([-1e4, 0.0, 1e4], dtype=F64), m.weights
    spread = (w[:, None] * w * (points[:, None] - points).abs()).sum() / 2
    expected = (w * (points - y[:, None]).abs()).sum(-1) - spread
    assert torch.allclose(m.crps(y), expected, atol=1e-3)


def test_a_weight_of_zero_is_as_if_absent():
    m = normals([0.0, 0.4, 0.6], [-1e3, 0.0, 2.0], [1e-2, 1.0, 0.5])
    without = normals([0.4, 0.6], [0.0, 2.0], [1.0, 0.5])
    y = torch.tensor([-1e3, -1.0, 0.5, 3.0], dtype=F64)
    for name in ("log_prob", "cdf", "crps"):
        assert torch.allclose(getattr(m, name)(y), getattr(without, name)(y), rtol=1e-13, atol=0)
    levels = [1e-9, 0.4, 0.999]
    assert torch.allclose(m.quantile(levels), without.quantile(levels), rtol=1e-12)
    assert torch.allclose(m.mean, without.mean)
    assert float(m.sample((5000,), generator=torch.Generator().manual_seed(0)).min()) > -10
    pooled = Mixture.pool([m, without.affine(100.0, 1.0)], weights=[1.0, 0.0])
    assert torch.allclose(pooled.log_prob(y), without.log_prob(y), rtol=1e-13)
    assert torch.allclose(pooled.quantile(levels), without.quantile(levels), rtol=1e-12)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_levels_of_zero_and_one_are_the_ends_of_the_support(dtype):
    m = random_mixture(0, 5, (3,), dtype)
    u = torch.tensor([[0.0], [1.0]], dtype=dtype)
    ends = torch.tensor([[-math.inf], [math.inf]], dtype=dtype)
    assert torch.equal(m.icdf(u), ends.expand(2, 3))


# -- errors ---------------------------------------------------------------------------------------

SCALAR = random_mixture(0, 3, (4,))
VECTOR = random_mixture(0, 3, (4,), event=(2,))
SINGLE = normals([0.5, 0.5], [0.0, 1.0], [1.0, 1.0])
NAN = math.nan


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: SCALAR.quantile(0.0), "levels"),
        (lambda: SCALAR.quantile(1.0), "levels"),
        (lambda: SCALAR.quantile([0.5, 1.5]), "levels"),
        (lambda: SCALAR.quantile(-0.1), "levels"),
        (lambda: SCALAR.quantile(NAN), "levels"),
        (lambda: SCALAR.quantile([[0.1, 0.2]]), "levels"),
        (lambda: SCALAR.log_prob(torch.zeros(4, 1)), "y"),
        (lambda: SCALAR.cdf(torch.zeros(4, 1)), "y"),
        (lambda: SCALAR.crps(torch.zeros(4, 1)), "y"),
        (lambda: SCALAR.icdf(torch.tensor(1.1)), "u"),
        (lambda: SCALAR.icdf(torch.tensor([0.1, 0.2, NAN, 0.3])), "u"),
        (lambda: SCALAR.icdf(torch.full((3,), 0.5)), "u"),
        (lambda: SCALAR.interval(1.0), "level"),
        (lambda: SCALAR.interval(0.0), "level"),
        (lambda: SCALAR.interval(NAN), "level"),
        (lambda: SCALAR.cdf(torch.zeros(3)), "y"),
        (lambda: SCALAR.crps(torch.zeros(4, 3)), "y"),
        (lambda: SCALAR.affine(0.0, 0.0), "scale=.*nonzero"),
        (lambda: SCALAR.affine(0.0, NAN), "scale=.*finite"),
        (lambda: SCALAR.affine(0.0, math.inf), "scale=.*finite"),
        (lambda: SCALAR.affine(NAN, 1.0), "shift=.*finite"),
        (lambda: SCALAR.affine(torch.zeros(3), 1.0), "shift"),
        (lambda: Mixture.pool([]), "many"),
        (lambda: Mixture.pool([SCALAR, SINGLE]), "many"),
        (lambda: Mixture.pool([SCALAR, VECTOR]), "many"),
        (lambda: Mixture.pool([SCALAR, SCALAR], [2.0, -1.0]), "weights"),
        (lambda: Mixture.pool([SCALAR, SCALAR], [0.0, 0.0]), "weights"),
        (lambda: Mixture.pool([SCALAR, SCALAR], [1.0, NAN]), "weights"),
        (lambda: Mixture.pool([SCALAR, SCALAR], [1.0]), "weights"),
        (lambda: Mixture.pool(SCALAR, [1.0, 1.0, 1.0]), "weights"),
        (lambda: Mixture.pool(SCALAR, dim=1), "dim"),
        (lambda: Mixture.pool(SCALAR, dim=-2), "dim"),
        (lambda: Mixture.pool(SINGLE), "dim"),
        (lambda: VECTOR.marginal(2), "dims"),
        (lambda: VECTOR.marginal([]), "dims"),
        (lambda: VECTOR.marginal([0, -3]), "dims"),
        (lambda: SCALAR.marginal(0), "marginal"),
        (lambda: VECTOR.quantile(0.5), "icdf|quantile"),
        (lambda: VECTOR.icdf(torch.tensor(0.5)), "icdf"),
        (lambda: VECTOR.cdf(torch.zeros(4)), "cdf"),
        (lambda: VECTOR.crps(torch.zeros(4)), "crps"),
    ],
)
def test_errors_name_the_argument(call, name):
    with pytest.raises(ValueError, match=rf"\b({name})\b"):
        call()


def positive(rows):
    shape = (rows, 2)
    return Mixture(dist.Categorical(torch.ones(shape)), dist.Gamma(torch.full(shape, 2.0), 1.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Mixture(dist.Categorical(torch.zeros(3, 0), validate_args=False),
                         dist.Normal(torch.zeros(3, 0), 1.0)), "at least one component"),
        (lambda: Mixture(dist.Categorical(torch.ones(1)), dist.MultivariateStudentT(
            torch.tensor([3.0]), torch.zeros(1, 2), torch.diag(torch.tensor([1.0, -2.0]))[None])),
         "scale_tril has -2 on its diagonal.*cholesky"),
        (lambda: Mixture(dist.Categorical(torch.ones(1)), dist.MultivariateNormal(
            torch.zeros(1, 2), scale_tril=torch.zeros(1, 2, 2), validate_args=False)),
         "scale_tril has 0 on its diagonal.*cholesky"),
        (lambda: positive(3).log_prob(torch.tensor([1.0, -2.0, -3.0])),
         r"y holds -2.0 at \(1,\).*support"),
        (lambda: VECTOR.log_prob(torch.zeros(4, 3)), r"y has shape \(4, 3\).*give \(4, 2\)"),
        (lambda: VECTOR.log_prob(torch.zeros(5, 2)), r"y has shape \(5, 2\).*give \(4, 2\)"),
        (lambda: SCALAR.mass_above(torch.zeros(4, 1)), "log_density has shape"),
        (lambda: VECTOR.mass_above(torch.zeros(4)), "mass_above is defined for a scalar"),
    ],
)  # fmt: skip
def test_errors_name_value_rule_and_remedy(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("rows", [5, (0, 0), (slice(None), None)])
def test_rows_out_of_range_are_refused(rows):
    with pytest.raises(IndexError):
        SCALAR[rows]
    with pytest.raises(IndexError, match="batch_shape"):
        SINGLE[rows]


def test_a_missing_y_gives_a_missing_score_and_spoils_no_other():
    y = torch.tensor([0.0, NAN, 1.0, 2.0], dtype=F64)
    for name in ("cdf", "crps"):
        assert getattr(SCALAR, name)(y).isnan().tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="value"):
        SCALAR.log_prob(y)


def test_parts_that_disagree_are_refused():
    with pytest.raises(ValueError, match="component"):
        Mixture(dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(2), 1.0))
    with pytest.raises(ValueError, match="batch"):
        Mixture(dist.Categorical(torch.ones(5, 2)), dist.Normal(torch.zeros(4, 2), 1.0))
    unknown = Mixture(dist.Categorical(torch.ones(2)), dist.Gumbel(torch.ones(2), 1.0))
    with pytest.raises(TypeError, match="Gumbel"):
        unknown.cdf(torch.tensor(1.0))


def test_arrays_are_taken_as_tensors_are():
    rows, mask = np.array([0, 2]), np.array([True, False, True, False])
    for index in (rows, mask, rows.tolist()):
        assert torch.equal(SCALAR[index].mean, SCALAR.mean[[0, 2]])
    y = np.linspace(-1.0, 1.0, 4)
    assert torch.equal(SCALAR.log_prob(y), SCALAR.log_prob(torch.from_numpy(y)))
    assert torch.equal(SCALAR.crps(y), SCALAR.crps(torch.from_numpy(y)))
    assert SCALAR.quantile([0.1, 0.4, 0.5, 0.9]).shape == (4, 4)


def test_heavy_tails_without_a_mean_are_tempered_about_their_location():
    loc, scale = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 0.5])
    heavy = Mixture(dist.Categorical(torch.ones(2)), dist.StudentT(1.0, loc, scale))
    cooler = heavy.tempered(scale=0.5)
    assert torch.equal(cooler.components.loc, loc)
    assert torch.equal(cooler.components.scale, 0.5 * scale)
