"""The special functions against SciPy, over the range of shapes that families use."""

import numpy as np
import pytest
import scipy.special
import torch
from random_mixtures import F32, F64

from pyralloy.special import (
    betainc,
    gammainc,
    gammaincc,
    log_beta_kernel,
    stirling_error,
    student_cdf,
)


def logs(low, high, size, seed):
    return 10 ** np.random.default_rng(seed).uniform(low, high, size)


def test_betainc_is_that_of_scipy_to_ten_digits():
    a, b = logs(-1, 5, 20_000, 0), logs(-1, 5, 20_000, 1)
    mean = a / (a + b)
    width = np.sqrt(mean * (1 - mean) / (a + b + 1))
    noise = np.random.default_rng(2).normal(size=20_000)
    x = np.clip(mean + 2 * width * noise, 1e-12, 1 - 1e-12)
    ours = betainc(*(torch.from_numpy(v) for v in (a, b, x))).numpy()
    theirs = scipy.special.betainc(a, b, x)
    assert np.abs(ours - theirs).max() < 1e-10
    assert np.abs(ours / theirs - 1).max() < 1e-10  # the lower tail keeps its digits


def test_student_cdf_is_that_of_scipy_in_the_lower_tail_too():
    df, noise = logs(0.1, 2, 20_000, 0), np.random.default_rng(1).normal(size=20_000)
    z = noise * logs(-3, 1, 20_000, 2)
    ours, theirs = student_cdf(*map(torch.from_numpy, (df, z))).numpy(), scipy.special.stdtr(df, z)
    assert np.abs(ours - theirs).max() < 1e-14
    assert np.abs(ours / theirs - 1).max() < 1e-11
    assert float(student_cdf(torch.tensor(3.0), torch.tensor(-1e4, dtype=F64))) == pytest.approx(
        scipy.special.stdtr(3, -1e4), rel=1e-12
    )


def test_gamma_functions_are_those_of_scipy_and_sum_to_one():
    a = logs(-0.6, 4, 20_000, 0)
    x = np.maximum(a + 2 * np.sqrt(a) * np.random.default_rng(1).normal(size=20_000), 1e-3 * a)
    pair = [torch.from_numpy(v) for v in (a, x)]
    lower, upper = gammainc(*pair).numpy(), gammaincc(*pair).numpy()
    assert np.abs(lower - scipy.special.gammainc(a, x)).max() < 1e-9
    assert np.abs(upper - scipy.special.gammaincc(a, x)).max() < 1e-9
    assert np.abs(lower + upper - 1).max() < 1e-13


def test_stirling_error_meets_itself_where_its_formulas_change():
    a = torch.tensor([0.1, 1.0, 9.999, 10.0, 10.001, 1e3, 1e6], dtype=F64)
    wide = [scipy.special.gammaln(v) - (v - 0.5) * np.log(v) + v - 0.5 * np.log(2 * np.pi)
            for v in a.numpy()[:5]]  # fmt: skip
    assert np.allclose(stirling_error(a)[:5].numpy(), wide, rtol=0, atol=1e-14)
    assert torch.allclose(stirling_error(a)[5:], 1 / (12 * a[5:]), rtol=1e-6)


def test_the_kernel_of_a_beta_keeps_its_digits_at_large_concentrations():
    a, b = torch.tensor([1e6, 3.0], dtype=F64), torch.tensor([1e6, 5.0], dtype=F64)
    x = torch.tensor([0.5, 0.3], dtype=F64)
    # at the middle of a symmetric Beta: log(4**-a / B(a, a)), by Stirling's series
    exact = 0.5 * np.log(1e6 / (4 * np.pi)) - 1 / (8e6)
    assert float(log_beta_kernel(a, b, x, 1 - x)[0]) == pytest.approx(exact, abs=1e-12)
    small = 3 * np.log(0.3) + 5 * np.log(0.7) - scipy.special.betaln(3, 5)
    assert float(log_beta_kernel(a, b, x, 1 - x)[1]) == pytest.approx(small, abs=1e-13)


def test_ends_and_types():
    one = torch.tensor(1.5)
    assert [float(betainc(one, one, torch.tensor(v))) for v in (0.0, 1.0)] == [0.0, 1.0]
    assert betainc(one.to(F64), one.to(F64), torch.tensor(0.3)).dtype == F32
    assert float(student_cdf(one, torch.tensor(0.0))) == 0.5
    assert float(gammainc(one, torch.tensor(0.0))) == 0.0


@pytest.mark.parametrize("function", [gammainc, gammaincc])
def test_gradients_of_gamma_functions_are_those_of_differences(function):
    a = torch.tensor([0.3, 5.0, 40.0, 3e3], dtype=F64, requires_grad=True)
    x = torch.tensor([0.3, 6.0, 35.0, 3.02e3], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (a, x), atol=1e-7, rtol=1e-6)


def test_gradients_of_beta_and_student_are_those_of_differences():
    a = torch.tensor([0.3, 5.0, 40.0, 3e3], dtype=F64, requires_grad=True)
    b = torch.tensor([0.5, 700.0, 40.0, 3e3], dtype=F64, requires_grad=True)
    x = torch.tensor([0.2, 0.01, 0.55, 0.499], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(betainc, (a, b, x), atol=1e-8, rtol=1e-6)
    df = torch.tensor([1.5, 3.0, 10.0, 90.0], dtype=F64, requires_grad=True)
    z = torch.tensor([0.0, -3.0, 1e-8, 30.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(student_cdf, (df, z), atol=1e-8, rtol=1e-6)
