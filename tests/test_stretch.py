"""Stretching finds the width that held-out rows ask for, in every family that has one."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import pyralloy as pa
from pyralloy.families import FAMILIES
from pyralloy.inference.rows import Rows, weighted_alike
from pyralloy.inference.stretch import (
    BEFORE,
    TRIED,
    gain,
    narrow,
    stretch,
    stretch_pools,
    tried,
)
from pyralloy.networks import MLP

F64 = torch.float64
WIDE = [name for name, family in FAMILIES.items() if family.widths]


def make_model(targets=None, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = MLP(2, (8,))
        model = pa.MDN(trunk, pa.MixtureHead(8, 3, targets, **options)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model.eval()


def inputs(rows, seed=0):
    return torch.randn(rows, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


def drawn(model, rows, seed=0):
    x = inputs(rows, seed)
    with torch.no_grad():
        y = model.network(x).sample(generator=torch.Generator().manual_seed(seed + 1))
    return Rows(x, y)


def mean_nll(model, rows):
    with torch.no_grad():
        return -float(model.network(rows.x).log_prob(rows.y).mean())


@pytest.mark.parametrize("off", [-0.7, 0.4])
@pytest.mark.parametrize("options", [{"family": f} for f in WIDE])
def test_a_width_that_is_wrong_by_a_factor_is_found(options, off):
    model = make_model(**options)
    model.head.stretch(-1.5)  # far from ceilings, and narrow on an interval
    rows = drawn(model, 4000)
    truth = mean_nll(model, rows)
    model.head.stretch(off)
    assert mean_nll(model, rows) > truth + 1e-3
    assert stretch(model, rows) == pytest.approx(-off, abs=0.1)
    # A standard error away from the best, which is half a nat in all.
    assert mean_nll(model, rows) < truth + 0.6 / len(rows.y)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_of_a_vector_all_dimensions_are_stretched_alike(covariance):
    model = make_model(2, covariance=covariance)
    before = model.network(inputs(5)).covariance_matrix
    rows = drawn(model, 4000)
    model.head.stretch(0.5)
    grown = (model.network(inputs(5)).covariance_matrix / before).detach()
    # Centres do not move, and the ceiling is soft.
    assert 1.2 < float(grown.diagonal(dim1=-2, dim2=-1).min())
    assert float(grown.diagonal(dim1=-2, dim2=-1).max()) < math.e
    assert stretch(model, rows) == pytest.approx(-0.5, abs=0.1)


def test_it_is_where_the_derivative_is_zero():
    model = make_model()
    rows = drawn(make_model(seed=3), 50)
    model.head.stretch(1.0)
    assert stretch(model, rows) != 0.0
    best = mean_nll(model, rows)
    for amount in (0.3, -0.3):
        model.head.stretch(amount)
        assert mean_nll(model, rows) > best - 1e-3
        model.head.stretch(-amount)


def test_widths_that_are_right_are_mostly_left_as_they_are():
    kept = 0
    for seed in range(40):
        model = make_model(seed=seed)
        rows = drawn(model, 100, seed)
        kept += stretch(model, rows) == 0.0
    # Chance gives one parameter more than a nat in 16 of 100.
    assert 28 <= kept < 40


def test_members_share_the_nat_that_a_stretch_must_be_worth():
    moved = {1: 0, 10: 0}
    for members in moved:
        for seed in range(20):
            model = make_model(seed=seed)
            moved[members] += stretch(model, drawn(model, 100, seed), members) != 0.0
    assert moved[10] > moved[1] + 4


def test_few_rows_move_little_and_none_nothing():
    model = make_model()
    one = Rows(torch.zeros(1, 2, dtype=F64), torch.full((1,), 50.0, dtype=F64))
    assert 0.0 < stretch(model, one) <= 2.0
    quiet = drawn(model, 1)
    assert abs(stretch(make_model(), quiet)) < 0.5
    assert stretch(model, None) == 0.0
    counts = make_model(family="poisson")
    assert stretch(counts, drawn(counts, 50)) == 0.0


def test_members_stand_on_the_wide_side_by_the_error_of_their_mean(monkeypatch):
    rows, amounts = drawn(make_model(seed=3), 60), []
    for errors, members in ((0.0, 1), (1.0, 1), (1.0, 4)):
        monkeypatch.setattr("pyralloy.inference.stretch.ERRORS", errors)
        amounts.append(stretch(make_model(), rows, members))
    likeliest, alone, among_four = amounts
    assert alone > likeliest + 0.01
    assert among_four - likeliest == pytest.approx((alone - likeliest) / 2, rel=1e-6)


def too_wide(rows):
    """Draw rows that scatter more than the plain model says."""
    model = make_model()
    model.head.stretch(0.5)
    return drawn(model, rows)


def test_weights_count_rows():
    rows = too_wide(120)
    twice = Rows(*(torch.cat([t, t[:40]]) for t in (rows.x, rows.y)))
    weights = torch.ones(120, dtype=F64)
    weights[:40] = 2.0
    weighted = weighted_alike(Rows(rows.x, rows.y, weights))
    found = [stretch(make_model(), r) for r in (twice, weighted)]
    assert found[0] == pytest.approx(found[1], abs=1e-9) and found[0] != 0.0


def test_copies_say_no_more_than_one_of_them():
    rows = too_wide(120)
    often = Rows(*(torch.cat([t] * 5) for t in (rows.x, rows.y)))
    found = [stretch(make_model(), r) for r in (rows, often)]
    assert found[0] == pytest.approx(found[1], abs=1e-9) and found[0] != 0.0


def test_a_fit_is_scored_as_it_is_given_and_no_worse_than_unstretched():
    problem = pa.datasets.inverse_sinusoid(60, seed=0)
    held = pa.datasets.inverse_sinusoid(500, seed=1)
    scores = []
    for on in (True, False):
        model = pa.MDN(MLP(1, (64,)), pa.MixtureHead(64, 8))
        fit = pa.fit(
            model,
            problem.x,
            problem.y,
            validation=(held.x, held.y),
            max_steps=300,
            stretch=on,
            learning_rate=0.05,
            progress=False,
        )
        scores.append(fit.best_nll)
        mine = -float(fit.density(held.x).log_prob(held.y).mean())
        assert fit.best_nll == pytest.approx(mine, abs=1e-5)
    assert scores[0] < scores[1] - 1e-3
    assert np.isfinite(scores).all()


def test_the_gain_is_that_of_the_best_factor_tried():
    model, rows = make_model(), drawn(make_model(seed=3), 40)
    weights = torch.rand(40, dtype=F64, generator=torch.Generator().manual_seed(0)) + 0.5
    with torch.no_grad():
        found = model.network(rows.x, stretch=tried(rows.y)).log_prob(rows.y)  # (G, N)
    losses = []
    for amount in TRIED:
        model.head.stretch(amount)
        with torch.no_grad():
            each = -model.network(rows.x).log_prob(rows.y)
        model.head.stretch(-amount)
        losses.append(float((each * weights).sum() / weights.sum()))
        losses[-1] += (amount / BEFORE) ** 2 / (2 * 40)
    expected = losses[0] - min(losses)
    assert TRIED[0] == 0.0 and expected > 1e-3
    assert float(gain(found, weights)) == pytest.approx(expected, abs=1e-9)
    several = gain(torch.stack([found, found]), torch.stack([weights, torch.ones(40)]))
    assert float(several[0]) == pytest.approx(expected, abs=1e-9)
    assert float(several[1]) == pytest.approx(float(gain(found)), abs=1e-9)


def test_a_pool_of_calibrated_members_is_calibrated():
    """Members that know their error, sqrt(s2 + t2), in a pool of variance s2 + t2 / M."""
    noise, error, members = 1.0, 0.15, 8
    places = error * torch.linspace(-1.5, 1.5, members, dtype=F64)
    between = float(places.var())
    models = []
    for place in places:
        model = make_model()
        model.head = pa.MixtureHead(8, 1).double()
        with torch.no_grad():
            model.head.outputs.weight.zero_()
            width = torch.tensor([math.sqrt(noise + between)], dtype=F64)
            raw = model.head.family.to_raw(place[None], width, 1.0)
            model.head.outputs.bias.copy_(torch.cat([torch.zeros(1, dtype=F64), raw[0]]))
        models.append(model)
    rows = Rows(inputs(256), torch.zeros(256, dtype=F64))
    factor = math.exp(narrow(models, [rows] * members, torch.Generator().manual_seed(0)))
    assert factor < 0.99
    own = models[0].network(rows.x[:1]).variance.detach()
    variance = float(own) + float(places.var(unbiased=False))
    assert variance == pytest.approx(noise + between / members, rel=5e-3)
    assert narrow(models[:1], [rows], torch.Generator()) == 0.0


def test_an_unsure_trunk_stays_as_it_was():
    """Modes, gradients and weights other than the widths' are left alone."""
    model = pa.MDN(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5)), pa.MixtureHead(8, 3)).double()
    model.head.stretch(1.0)  # far from what the rows ask for
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    stretch(model, drawn(make_model(), 100))
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["head.outputs.bias"] and model.trunk[1].training
    raw = (model.head.outputs.bias - before["head.outputs.bias"]).detach().view(3, 3)
    assert float(raw[:2].abs().max()) == 0.0 and float(raw[2].std()) < 1e-12


def test_disagreement_counts_where_the_rows_do():
    trunk = nn.Linear(2, 2).double()
    with torch.no_grad():
        trunk.weight.copy_(torch.eye(2))
        trunk.bias.zero_()
    models = []
    for sign in (-1.0, 1.0):  # they agree where the first input is 0, and nowhere else
        model = pa.MDN(trunk, pa.MixtureHead(2, 1)).double().eval()
        with torch.no_grad():
            model.head.outputs.bias.zero_()
            model.head.outputs.weight.zero_()
            model.head.outputs.weight[1, 0] = sign
        models.append(model)
    x = torch.zeros(100, 2, dtype=F64)
    x[:50, 0] = 1.0
    y, amounts = torch.zeros(100, dtype=F64), []
    for weights in (torch.ones(100), (x[:, 0] == 0).double(), (x[:, 0] == 1).double()):
        rows = Rows(x, y, weights.double().clamp_min(1e-12))
        amount = narrow(models, [rows] * 2, torch.Generator().manual_seed(0))
        amounts.append(amount)
        for model in models:
            model.head.stretch(-amount)
    assert amounts[1] == pytest.approx(0.0, abs=1e-9)
    half, whole = (math.log1p(-amounts[i]) for i in (0, 2))  # twice the disagreement
    assert whole == pytest.approx(2 * half, rel=0.02) and half > 0.05


# -- pools of draws -------------------------------------------------------------------------------


def draws_about(model, spread, count=20):
    """Draw the head's biases, of which half are those of widths and logits."""
    generator = torch.Generator().manual_seed(5)
    bias = model.head.outputs.bias.detach()
    noise = spread * torch.randn(count, len(bias), generator=generator, dtype=F64)
    return {"head.outputs.bias": bias + noise}


def pooled_nll(model, draws, rows):
    with torch.no_grad():
        bias = draws["head.outputs.bias"]
        each = [model.network(rows.x, {"head.outputs.bias": b}) for b in bias]
        return -float(pa.Mixture.pool(each).log_prob(rows.y).mean())


@pytest.mark.parametrize("off", [-0.6, 0.4])
def test_a_pool_is_as_wide_as_its_rows_ask_for(off):
    model = make_model()
    draws, rows = draws_about(model, 0.3), drawn(make_model(), 1000)
    stretch_pools([model], [draws], [rows])
    best, found = pooled_nll(model, draws, rows), float(model.head.wider)
    assert found < -0.01  # what draws disagree by comes on top of the width of each
    bias = model.head.outputs.bias.clone()
    model.head.stretch_beside(off)
    assert pooled_nll(model, draws, rows) > best + 1e-3
    assert stretch_pools([model], [draws], [rows]) == pytest.approx(-off, abs=0.1)
    assert torch.equal(model.head.outputs.bias, bias)


def test_without_draws_it_is_the_stretch_of_the_model():
    rows = drawn(make_model(seed=3), 60)
    one, other = make_model(), make_model()
    amount = stretch(one, rows)
    assert stretch_pools([other], [{}], [rows]) == pytest.approx(amount, abs=1e-9)
    x = inputs(9)
    assert torch.allclose(one.network(x).stddev, other.network(x).stddev)
    assert stretch_pools([make_model(family="poisson")], [{}], [rows]) == 0.0
    assert stretch_pools([other], [], []) == 0.0


def test_what_lies_beside_the_weights_is_kept_with_them_and_begun_anew():
    model, again = make_model(), make_model()
    model.head.stretch_beside(0.7)
    x = inputs(9)
    assert not torch.allclose(model.network(x).stddev, again.network(x).stddev)
    again.load_state_dict(model.state_dict())
    assert torch.equal(model.network(x).stddev, again.network(x).stddev)
    again.head.place(torch.zeros(3), torch.ones(3))
    assert float(again.head.wider) == 0.0


def test_members_that_are_pools_are_narrowed_beside_their_weights():
    models = [make_model(seed=s) for s in range(3)]
    rows = [drawn(make_model(seed=9), 60, seed=s) for s in range(3)]
    draws = [draws_about(model, 0.05, 4) for model in models]
    amount = narrow(models, rows, torch.Generator().manual_seed(0), draws)
    assert amount < -0.01
    assert [float(m.head.wider) for m in models] == pytest.approx([amount] * 3)
    points = [{n: w[:1] for n, w in draw.items()} for draw in draws]
    near = narrow([make_model(seed=s) for s in range(3)], rows, torch.Generator().manual_seed(0))
    fresh = [make_model(seed=s) for s in range(3)]
    found = narrow(fresh, rows, torch.Generator().manual_seed(0), points)
    assert found == pytest.approx(near, rel=0.2)
