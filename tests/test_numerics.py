"""Soft bounds that no input escapes, and the inverse of functions that are hard to invert."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyralloy.numerics import invert_monotone, soft_between, soft_between_inverse

F32, F64 = torch.float32, torch.float64
LOW, HIGH = math.log(1e-3), math.log(1e2)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_soft_between_holds_its_bounds_whatever_comes(dtype):
    ends = torch.tensor([-1e30, -1e4, -50.0, 0.0, 50.0, 1e4, 1e30], dtype=dtype)
    raw = torch.cat([ends, torch.linspace(-40, 40, 1001, dtype=dtype)]).requires_grad_()
    value = soft_between(raw, LOW, HIGH)
    (slope,) = torch.autograd.grad(value.sum(), raw)
    value = value.detach()
    eps = torch.finfo(dtype).eps
    # torch's softplus is linear from 20 on, which moves either end by exp(-20).
    assert float(value.min()) >= LOW * (1 + 2 * eps)
    assert float(value.max()) <= HIGH + math.log1p(math.exp(LOW - HIGH)) + 8 * eps
    assert bool((slope.isfinite() & (slope >= 0) & (slope <= 1 + eps)).all())
    assert slope[[0, 6]].tolist() == [0.0, 0.0]


@given(a=st.floats(-30, 30), gap=st.floats(1e-3, 5))
def test_soft_between_is_increasing(a, gap):
    low, high = soft_between(torch.tensor([a, a + gap], dtype=F64), LOW, HIGH)
    assert high >= low if abs(a) > 15 else high > low


def test_soft_between_is_the_identity_in_the_middle():
    raw = torch.linspace(-2.0, 0.0, 21, dtype=F64)
    assert torch.allclose(soft_between(raw, LOW, HIGH), raw, atol=0.02)
    far = soft_between(raw, -40.0, 40.0)
    assert torch.allclose(far, raw, atol=1e-8)


def test_soft_between_slopes_towards_the_middle_from_both_sides():
    raw = torch.tensor([-17.0, -8.0, 6.0, 15.0], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_between(raw, LOW, HIGH).sum(), raw)
    assert bool((slope > 1e-5).all())  # where a clamp's is zero
    assert torch.autograd.gradcheck(lambda r: soft_between(r, LOW, HIGH), (raw,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 2e-4), (F64, 2e-8)])
def test_soft_between_is_undone_by_its_inverse(dtype, tolerance):
    value = torch.linspace(LOW + 0.02, HIGH - 0.02, 501, dtype=dtype)
    raw = soft_between_inverse(value, LOW, HIGH)
    assert torch.allclose(soft_between(raw, LOW, HIGH), value, atol=tolerance, rtol=0)


def test_soft_between_takes_bounds_that_are_tensors():
    low, high = torch.tensor([0.0, 10.0]), torch.tensor([5.0, 20.0])
    value = soft_between(torch.full((2,), -1e9), low, high)
    assert torch.equal(value, low)


# -- the inverse of a monotone function -----------------------------------------------------------


def invert(function, target, low, high, **options):
    target = torch.as_tensor(target, dtype=F64).reshape(-1)
    ends = (torch.full_like(target, v) for v in (low, high))
    return invert_monotone(lambda y, rows: function(y), target, *ends, **options)


@pytest.mark.parametrize(
    ("function", "inverse", "low", "high"),
    [
        (lambda y: y, lambda u: u, -1e6, 1e6),
        (lambda y: y**3, lambda u: u.sign() * u.abs() ** (1 / 3), -1e3, 1e3),
        (torch.exp, torch.log, -700.0, 700.0),
        (lambda y: torch.sigmoid(1e6 * y), lambda u: torch.logit(u) * 1e-6, -1e3, 1e3),
        (torch.sinh, torch.asinh, -50.0, 50.0),
    ],
    ids=["line", "cube", "exp", "steep", "sinh"],
)
def test_inverse_of_smooth_functions(function, inverse, low, high):
    target = torch.tensor([1e-3, 0.2, 0.5, 0.9, 0.999], dtype=F64)
    found = invert(function, target, low, high)
    expected = inverse(target)
    assert torch.allclose(found, expected, rtol=1e-14, atol=1e-15)


def test_small_targets_are_reached_to_their_own_precision():
    target = torch.tensor([1e-300, 1e-30, 1e-12], dtype=F64)
    assert torch.allclose(invert(torch.exp, target, -745.0, 5.0), target.log(), rtol=1e-13)


def test_a_jump_is_found_to_the_last_place():
    for place in (-3.7e5, -1e-9, 0.1, 12345.678):
        found = invert(lambda y, p=place: (y >= p).to(F64), 0.5, -1e6, 1e6)
        assert float(found) == pytest.approx(place, rel=4e-16, abs=1e-300)


def test_on_a_flat_stretch_any_point_of_it_will_do():
    def terrace(y):  # 0 until -1, rises to 0.5 at 0, flat until 10, rises to 1 at 11
        return 0.5 * (y + 1).clamp(0, 1) + 0.5 * (y - 10).clamp(0, 1)

    assert 0.0 <= float(invert(terrace, 0.5, -1e3, 1e3)) <= 10.0
    found = invert(terrace, [0.25, 0.5 - 1e-12, 0.5 + 1e-12, 0.75], -1e3, 1e3)
    expected = torch.tensor([-0.5, 0.0, 10.0, 10.5], dtype=F64)
    assert torch.allclose(found, expected, atol=1e-11)


def test_rows_are_told_apart_and_solved_ones_cost_nothing():
    scale = torch.tensor([1.0, 10.0, 1e-4, 1e5], dtype=F64)
    asked = []

    def function(y: Tensor, rows: Tensor) -> Tensor:
        assert y.shape == rows.shape
        asked.append(rows.tolist())
        return torch.tanh(y / scale[rows])

    target = torch.tensor([0.0, 0.3, -0.7, 0.99], dtype=F64)
    found = invert_monotone(function, target, -30 * scale, 50 * scale)
    assert torch.allclose(found, scale * torch.atanh(target), rtol=1e-12, atol=1e-15)
    lengths = [len(rows) for rows in asked]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < 4


def test_brackets_that_need_no_search():
    target = torch.tensor([0.5, 0.5, 0.5, math.nan], dtype=F64)
    low = torch.tensor([2.0, -math.inf, 0.7, 0.0], dtype=F64)
    high = torch.tensor([2.0, -math.inf, 0.9, 1.0], dtype=F64)
    found = invert_monotone(lambda y, rows: y, target, low, high)
    # A closed bracket, an infinite one, one whose lower end is past the target, and no target.
    assert found[:3].tolist() == [2.0, -math.inf, 0.7] and bool(found[3].isnan())
    above = invert_monotone(lambda y, rows: y, target[:1], low[:1] - 9, high[:1] - 8)
    assert above.tolist() == [-6.0]


def test_a_row_without_values_spoils_no_other():
    def function(y: Tensor, rows: Tensor) -> Tensor:
        return torch.where(rows == 1, math.nan, y**3)

    target = torch.tensor([0.125, 0.125, -0.008], dtype=F64)
    found = invert_monotone(function, target, *(torch.full((3,), end).to(F64) for end in (-9, 9)))
    assert torch.allclose(found[::2], torch.tensor([0.5, -0.2], dtype=F64), rtol=1e-14)


def test_arguments_are_left_as_they_were():
    target, low, high = (torch.tensor([v], dtype=F64) for v in (0.5, -1.0, 1.0))
    invert_monotone(lambda y, rows: y, target, low, high)
    assert [float(v) for v in (target, low, high)] == [0.5, -1.0, 1.0]


@pytest.mark.parametrize("function", [torch.exp, lambda y: y**9, lambda y: (y > 0.3).to(F64)])
def test_no_search_takes_much_longer_than_bisection(function):
    calls = []

    def counted(y):
        calls.append(len(y))
        return function(y)

    invert(counted, [1e-9, 0.4, 0.999], -700.0, 700.0)
    assert len(calls) <= 130
