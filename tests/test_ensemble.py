"""Ensembles: members trained side by side are the members trained alone, pooled exactly."""

import contextlib
import itertools
import math

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from torch import nn

import pyralloy as pa
from pyralloy.inference import program
from pyralloy.inference.batches import Batches
from pyralloy.inference.crew import gather_crew
from pyralloy.inference.ensemble import side_by_side
from pyralloy.inference.interrupts import Stop
from pyralloy.inference.lanes import Lanes
from pyralloy.inference.objective import pyro_runtime
from pyralloy.inference.products import Products
from pyralloy.inference.rows import Rows, folds
from pyralloy.inference.runs import fit_weights
from pyralloy.inference.training import Plan

F32, F64 = torch.float32, torch.float64
PROBLEM = pa.datasets.inverse_sinusoid(400, seed=0)
HELD = pa.datasets.inverse_sinusoid(100, seed=1)


def make_model(seed, prior=None, dtype=F32):
    trunk = pa.networks.MLP(1, hidden=(16,))
    return pa.MDN(trunk, pa.MixtureHead(16, components=5), prior=prior).to(dtype)


def run(make=make_model, **options):
    options = {"members": 3, "max_steps": 60, "progress": False} | options
    return pa.ensemble(make, PROBLEM.x, PROBLEM.y, **options)


def seeds_of(count, seed=0):
    """Give the seeds that an ensemble's members are made with."""
    seen = []

    def make(given):
        seen.append(given)
        return make_model(given)

    run(make, members=count, seed=seed, max_steps=1)
    return seen


def assert_same_but_narrower(found, alone, within=1e-8):
    """Compare weights: in company the logs of all widths are less by one number."""
    for name, weight in alone.items():
        gap = (found[name] - weight).detach()
        if name == "head.outputs.bias":
            gap = gap.view(3, -1)  # logits, locations, logs of widths
            assert -1.0 <= float(gap[2, 0]) < -1e-4
            gap = gap - gap[2, 0] * torch.tensor([[0.0], [0.0], [1.0]])
        assert float(gap.abs().max()) < within


@pytest.mark.parametrize("own", [{}, {"clip": 0.1}, {"x_noise": 0.1}])
def test_a_member_has_the_weights_it_would_have_alone(own):
    """In float64, where rounding does not grow to the size of a step."""
    options = {"validation": (HELD.x, HELD.y), "max_steps": 100, "batch_size": 32, **own}
    together = run(lambda seed: make_model(seed, dtype=F64), **options)
    drawn = together.weights()
    for number, seed in enumerate(seeds_of(3)):
        model = make_model(seed, dtype=F64)
        alone = pa.fit(model, PROBLEM.x, PROBLEM.y, seed=seed, progress=False, **options)
        assert_same_but_narrower({n: v[number] for n, v in drawn.items()}, alone.model.weights())


@pytest.mark.slow
def test_in_single_precision_members_stay_close_for_a_hundred_steps():
    # A member is stretched as part of the pool, and alone as it is.
    options = {"validation": (HELD.x, HELD.y), "max_steps": 100, "batch_size": 32, "stretch": False}
    together = run(**options)
    gaps = []
    for number, seed in enumerate(seeds_of(3)):
        alone = pa.fit(make_model(seed), PROBLEM.x, PROBLEM.y, seed=seed, progress=False, **options)
        for name, weight in alone.model.weights().items():
            gaps.append(float((together.weights()[name][number] - weight.detach()).abs().max()))
    assert max(gaps) < 1e-4


def make_bent(seed):
    """Give a network whose units bend at rows, where a last bit says on which side a row is."""
    trunk = pa.networks.MLP(1, hidden=(100,), activation=nn.ReLU)
    return pa.MDN(trunk, pa.MixtureHead(100, components=20))


@pytest.mark.parametrize("batch_size", [32, 250])
def test_units_that_bend_at_rows_are_those_of_a_member_alone(batch_size):
    options = {"validation": None, "max_steps": 100, "batch_size": batch_size}
    together = run(make_bent, **options).weights()
    for number, seed in enumerate(seeds_of(3)):
        alone = pa.fit(make_bent(seed), PROBLEM.x, PROBLEM.y, seed=seed, progress=False, **options)
        for name, weight in alone.model.weights().items():
            assert float((together[name][number] - weight.detach()).abs().max()) < 1e-4


@pytest.mark.parametrize("features", [1, 3])
def test_layers_of_lanes_have_the_gradients_that_vmap_gives(features):
    torch.manual_seed(0)
    sizes = (4, 30, features), (4, 8, features), (4, 8), (4, 6, 8), (4, 6, 1)
    inputs = [torch.randn(size, dtype=F64, requires_grad=True) for size in sizes]

    def loss(x, first, bias, second, constant):
        features = nn.functional.linear(x, first, bias).tanh()
        return torch.addmm(constant, second, features.T).sigmoid().log().sum()

    def gradients(context):
        with context:
            losses = torch.vmap(loss)(*inputs)
        return losses, *torch.autograd.grad(losses.sum(), inputs)

    pairs = zip(gradients(Products()), gradients(contextlib.nullcontext()), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_what_lanes_share_has_the_gradient_of_all():
    weight = torch.randn(3, 2, dtype=F64, requires_grad=True)
    bias = torch.zeros(3, dtype=F64, requires_grad=True)
    x = torch.randn(4, 5, 2, dtype=F64)
    with Products():
        found = torch.vmap(lambda one: nn.functional.linear(one, weight, bias))(x)
    assert torch.allclose(found, nn.functional.linear(x, weight, bias))
    (slope,) = torch.autograd.grad(found.square().sum(), weight)
    (expected,) = torch.autograd.grad(nn.functional.linear(x, weight).square().sum(), weight)
    assert torch.allclose(slope, expected)


def test_layers_that_lanes_share_or_hold_lanes_of_their_own_are_left_right():
    torch.manual_seed(0)
    fixed = [torch.randn(size, dtype=F64) for size in ((6, 4), (5, 4), (5,), (5, 1))]

    def shared(x, weight, bias):
        rows, *layer, constant = fixed
        features = nn.functional.linear(rows, *layer).sigmoid()
        gate = torch.sigmoid(torch.addmm(constant, layer[0], rows.T)).view(-1)
        return features.sum() * x.sum() + gate.sum() * weight.sum() + bias.sum()

    def nested(x, weight, bias):
        def one(rows):
            return torch.sigmoid(nn.functional.linear(rows, weight, bias))

        return torch.vmap(one)(x).sum()

    inputs = [torch.randn(size, dtype=F64) for size in ((3, 2, 6, 4), (3, 5, 4), (3, 5))]
    for function in (shared, nested):
        slopes = torch.func.grad(lambda *v, f=function: torch.vmap(f)(*v).sum(), (0, 1, 2))
        expected = slopes(*inputs)
        with Products():
            found = slopes(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_captured_lanes_are_those_as_they_stand_to_the_bit(monkeypatch):
    def weights(price):
        monkeypatch.setattr(program._PROCESS, "captured", True)
        monkeypatch.setattr(program, "CAPTURE", price)
        return run(make_bent, max_steps=30, clip=0.5).weights()

    captured, eager = weights(0.0), weights(math.inf)
    assert all(torch.equal(captured[name], eager[name]) for name in eager)


def test_lanes_take_the_same_step_whatever_is_beside_them():
    plan = Plan(learning_rate=0.01, batch_size=20, max_steps=5, every=1)
    x = torch.randn(2, 20, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(2, 20, dtype=F64, generator=torch.Generator().manual_seed(1))
    with pyro_runtime():
        torch.manual_seed(0)
        one, two = make_model(0, dtype=F64), make_model(1, dtype=F64)
        start = {n: p.detach().clone() for n, p in one.named_parameters()}
        pair = Lanes([one, two], 100, plan)
        again = make_model(0, dtype=F64)
        again.load_state_dict({**again.state_dict(), **start})
        single = Lanes([again], 100, plan)
        for _ in range(5):
            pair.step((x, y), 0.01)
            single.step((x[:1], y[:1]), 0.01)
        assert torch.allclose(pair.weights[:1], single.weights, atol=1e-13)
        scores = pair.scores(pair.weights, Rows(x[0], y[0]))
        pair.end(pair.weights)
    assert torch.allclose(scores[0], one.network(x[0]).log_prob(y[0]), atol=1e-12)


def test_the_pool_is_the_mean_of_the_members():
    fit = run()
    members, pool = fit.densities(PROBLEM.x), fit.density(PROBLEM.x)
    assert members.batch_shape == (3, 400) and pool.num_components == 15
    mean = members.log_prob(PROBLEM.y).logsumexp(0) - math.log(3)
    assert torch.allclose(pool.log_prob(PROBLEM.y), mean, atol=1e-9)
    parts = fit.entropy(PROBLEM.x[:20])
    assert torch.allclose(parts.total, parts.within + parts.between, atol=1e-6)
    assert bool((parts.between > 0).all())


def test_a_file_keeps_the_members_and_a_tree_shows_them(tmp_path):
    fit = run()
    fit.save(tmp_path / "fit.safetensors")
    again = pa.load(tmp_path / "fit.safetensors")
    assert torch.equal(again.density(PROBLEM.x).mean, fit.density(PROBLEM.x).mean)
    tree = fit.to_arviz(HELD.x, HELD.y, draws=20)
    assert tree["mixture"]["loc"].sizes["member"] == 3
    assert not {"posterior", "log_likelihood"} & set(tree.children)
    with pytest.raises(TypeError, match="or an ensemble"):
        pytest.importorskip("arviz_stats").loo(tree)


def test_the_same_seed_gives_the_same_ensemble_bit_for_bit():
    torch.manual_seed(1)
    first = run(seed=3).weights()
    torch.manual_seed(2)
    again, other = run(seed=3).weights(), run(seed=4).weights()
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_members_differ_and_together_beat_their_mean():
    fit = run(max_steps=400)
    fresh = pa.datasets.inverse_sinusoid(5000, seed=9)
    each = -fit.densities(fresh.x).log_prob(fresh.y).mean(1)
    pool = -fit.density(fresh.x).log_prob(fresh.y).mean()
    assert float(pool) < float(each.mean()) - 1e-3
    assert (
        math.isclose(fit.best_nll, fit.history.validation[-1], rel_tol=1e-12)
        and fit.best_step == 400
    )
    assert bool((np.diff(fit.history.seconds) >= 0).all())


def test_nothing_held_out_keeps_the_last_weights():
    fit = run(validation=None)
    assert bool(np.isnan(fit.history.validation).all())
    assert fit.weights()["head.outputs.bias"].shape == (3, 15)


def test_every_row_is_held_out_by_one_member_and_fitted_by_the_others():
    rows = Rows(PROBLEM.x[:50], PROBLEM.y[:50])
    parts = list(itertools.islice(folds(rows, 0.2, torch.Generator().manual_seed(0)), 10))
    held = torch.stack([out for _, out in parts]).long()
    for first in (0, 5):  # twice through all rows, in orders of their own
        assert torch.equal(held[first : first + 5].flatten().sort().values, torch.arange(50))
    assert not torch.equal(held[0].sort().values, held[5].sort().values)
    for kept, out in parts:
        assert torch.equal(torch.cat([kept, out.long()]).sort().values, torch.arange(50))


def test_a_member_that_holds_out_rows_has_the_weights_it_would_have_alone():
    """Each is trained on what it keeps, and its weights are chosen by what it holds out."""
    plan = Plan(learning_rate=0.01, batch_size=32, max_steps=100, every=5, progress=False)
    crews = []
    for _ in range(2):
        models = [make_model(seed, dtype=F64) for seed in range(3)]
        crews.append(gather_crew(models, [4, 5, 6], (PROBLEM.x, PROBLEM.y, None), plan, 0.2))
    drawn = side_by_side(crews[0], Stop()).weights()
    for number, member in enumerate(crews[1]):
        alone = fit_weights(member.model, member.own, Stop())
        assert len(member.own.held_out.y) == 80 and len(member.own.rows.y) == 320
        assert_same_but_narrower({n: v[number] for n, v in drawn.items()}, alone.model.weights())


def test_batches_of_some_rows_use_each_of_them_equally_often():
    index = torch.tensor([1, 5, 7])
    everyone = Batches((torch.arange(9),), 9, 0, index)
    assert everyone.at(0)[0].tolist() == everyone.at(1)[0].tolist() == [1, 5, 7]
    some = Batches((torch.arange(9),), 2, 0, index)
    drawn = torch.cat([some.at(step)[0] for step in range(3)])
    assert drawn.bincount()[index].tolist() == [2, 2, 2] and len(drawn) == 6


def test_running_statistics_are_refused():
    def make(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trunk = nn.Sequential(nn.Linear(1, 16), nn.BatchNorm1d(16), nn.SiLU())
            return pa.MDN(trunk, pa.MixtureHead(16, components=5))

    with pytest.raises(ValueError, match="running statistics"):
        run(make)


def test_members_of_a_guide_are_posteriors_whose_mixture_is_drawn():
    def make(seed):
        return make_model(seed, prior=dist.Normal(0.0, 1.0))

    fit = run(make, members=2, guide=AutoNormal, max_steps=40)
    drawn = fit.weights(10)
    assert all(w.shape[0] == 10 for w in drawn.values())
    assert fit.density(PROBLEM.x[:3], draws=10).num_components == 50
    points = run(make, members=2, guide=AutoDelta, max_steps=40)
    assert points.density(PROBLEM.x[:3]).num_components == 10
    tree = points.to_arviz(HELD.x, HELD.y, draws=20)  # two values of the weights are no posterior
    assert tree["mixture"]["loc"].sizes["member"] == 2 and "posterior" not in tree.children


@pytest.mark.parametrize("guide", [AutoNormal, AutoLaplaceApproximation, AutoDelta])
@pytest.mark.parametrize("own", [{}, {"temperature": 0.2, "warm_up": 0.5, "start": 10}])
def test_a_member_is_the_posterior_it_would_have_alone(guide, own):
    def make(seed):
        return make_model(seed, prior=dist.Normal(0.0, 1.0), dtype=F64)

    options = {"guide": guide, "validation": None, "max_steps": 40, **own}
    together = run(make, members=2, **options)
    assert together.temperature == own.get("temperature", 1.0)
    count = 1 if guide is AutoDelta else 2000
    drawn = together.weights(2 * count)  # those of each member together
    for number, seed in enumerate(seeds_of(2)):
        alone = pa.fit(make(seed), PROBLEM.x, PROBLEM.y, seed=seed, progress=False, **options)
        expected = {n: w.detach()[None] for n, w in alone.model.weights().items()}
        expected |= alone.weights(count)
        for name, weights in drawn.items():
            found = weights.unflatten(0, (2, -1))[number]
            gap = (found.mean(0) - expected[name].mean(0)).abs()
            spread = found.std(0, correction=0)
            assert torch.all(gap <= 6.0 * spread * (2 / count) ** 0.5 + 1e-9)
            if count > 1:
                torch.testing.assert_close(spread, expected[name].std(0), rtol=0.15, atol=1e-9)


def test_curvature_about_members_that_held_rows_out_is_tempered():
    def make(seed):
        return make_model(seed, prior=pa.priors.LastLayer(dist.Normal(0.0, 1.0)))

    warm, cold = (
        run(make, guide=AutoLaplaceApproximation, temperature=t, stretch=False) for t in (1.0, 0.05)
    )
    assert (warm.temperature, cold.temperature) == (1.0, 0.05)
    wide, narrow = (
        fit.weights(6000)["head.outputs.weight"].unflatten(0, (3, -1)) for fit in (warm, cold)
    )
    spreads, narrower = wide.std(1), narrow.std(1)
    assert float((wide.mean(1) - narrow.mean(1)).abs().max()) < 6.0 * float(spreads.max()) / 40.0
    assert float((narrower / spreads).max()) < 1.1
    assert float((narrower / spreads).min()) < 0.8


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (make_model, {"members": 1}, ValueError, "members=1"),
        (lambda seed: nn.Linear(1, 1), {}, TypeError, "make_model gives Linear"),
        (
            lambda seed: pa.MDN(
                pa.networks.MLP(1, (8 + seed % 2,)), pa.MixtureHead(8 + seed % 2, 3)
            ),
            {"members": 9},
            ValueError,
            "different parts",
        ),
        (make_model, {"validation": 2.0}, ValueError, "validation=2.0"),
        (
            lambda seed: pa.MDN(
                pa.networks.MLP(1, (8,), nn.Tanh if seed % 2 else nn.SiLU), pa.MixtureHead(8, 3)
            ),
            {"members": 9},
            ValueError,
            "different parts",
        ),
        (make_model, {"guide": AutoNormal}, ValueError, "no prior"),
        (make_model, {"temperature": 0.5}, ValueError, "go with a guide"),
        (make_model, {"warm_up": 1.5}, ValueError, r"warm_up=1\.5"),
        (make_model, {"start": -1}, ValueError, "start=-1"),
        (
            lambda seed: make_model(seed, prior=dist.Normal(0.0, 1.0)),
            {"guide": AutoLaplaceApproximation, "start": 3},
            ValueError,
            "start=3, .* one run only",
        ),
        (make_model, {"compile": "yes"}, ValueError, "compile='yes'"),
        (make_model, {"stretch": "no"}, ValueError, "stretch='no'"),
        (make_model, {"schedule": lambda _step, _steps: -1.0}, ValueError, "schedule gave -1.0"),
        (make_model, {"schedule": "cosine"}, TypeError, "schedule='cosine'"),
        (lambda seed: make_model(seed, dtype=torch.float16), {}, TypeError, "half precision"),
    ],
)
def test_bad_input_is_named(make, options, error, message):
    with pytest.raises(error, match=message):
        run(make, **options)


def test_one_model_given_twice_is_refused():
    model = make_model(0)
    with pytest.raises(ValueError, match="twice"):
        run(lambda seed: model)


def test_batches_in_place_of_rows_are_refused():
    rows = torch.utils.data.TensorDataset(PROBLEM.x, PROBLEM.y)
    with pytest.raises(ValueError, match="y=None: members hold out rows"):
        pa.ensemble(make_model, torch.utils.data.DataLoader(rows, 50), None, size=400)


class Waves(nn.Module):
    """Random waves of x, which are not trained."""

    def __init__(self, seed, *, trainable):
        super().__init__()
        rates = 2.0 * torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        if trainable:
            self.rates = nn.Parameter(rates, requires_grad=False)
        else:
            self.register_buffer("rates", rates)

    def forward(self, x):
        return torch.cat([(x @ self.rates).sin(), (x @ self.rates).cos()], -1)


@pytest.mark.parametrize("trainable", [True, False])
def test_what_is_not_trained_is_common_to_all_members_or_refused(trainable):
    def make(seed):
        return pa.MDN(Waves(seed, trainable=trainable), pa.MixtureHead(32, 5))

    with pytest.raises(ValueError, match=r"'trunk.rates', which is not trained, differs"):
        run(make)
    fit = run(lambda _seed: make(0), max_steps=200)
    each = fit.densities(HELD.x).log_prob(HELD.y).mean(-1)
    marginal = -fit.marginal
    assert bool((each > marginal + 0.5).all())


def test_layers_that_only_some_members_train_are_refused():
    def make(seed):
        model = make_model(seed)
        next(model.trunk.parameters()).requires_grad_(seed % 2 == 0)
        return model

    with pytest.raises(ValueError, match="different parts"):
        run(make, members=9)


def test_a_pool_has_all_its_members_however_few_draws_are_asked_for():
    fit = run()
    assert fit.density(HELD.x[:2], draws=1).num_components == 15
    assert torch.equal(fit.density(HELD.x[:2], draws=1).mean, fit.density(HELD.x[:2]).mean)


def test_the_score_is_that_of_the_members_as_they_are_given():
    fit = run(max_steps=200)
    seeds = seeds_of(3)
    models = [make_model(seed) for seed in seeds]
    options = {"validation": 0.1, "max_steps": 200, "learning_rate": 0.015}
    plan = Plan(**{k: options[k] for k in ("max_steps", "learning_rate")}, batch_size=0, every=2)
    crew = gather_crew(models, seeds, (PROBLEM.x, PROBLEM.y, None), plan, 0.1)
    scores = []
    for member, density in zip(crew, fit.densities(PROBLEM.x), strict=True):
        scores.append(-float(density.log_prob(PROBLEM.y)[member.out].mean()))
    assert fit.best_nll == pytest.approx(np.mean(scores), abs=1e-5)
