"""Noise on the inputs of training: what it does, when it is drawn, and what it leaves alone."""

import math

import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyralloy as pa
from pyralloy.inference.batches import Batches, Noisy, Stream

PROBLEM = pa.datasets.inverse_sinusoid(400, seed=0)
HELD = pa.datasets.inverse_sinusoid(100, seed=1)


def make_model(components=5, **options):
    return pa.MDN(pa.networks.MLP(1, hidden=(16,)), pa.MixtureHead(16, components, **options))


def run(x=PROBLEM.x, y=PROBLEM.y, **options):
    options = {"max_steps": 60, "x_noise": 0.1, "progress": False} | options
    return pa.fit(make_model(), x, y, **options)


def weights(fit):
    return torch.cat([p.detach().flatten() for p in fit.model.parameters()])


def slope_of_a_line(noise, guide=None, validation=None, members=1):
    """Give the slope of least squares on noisy inputs, as a share of that without noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 1, generator=generator, dtype=torch.float64)
    y = 3.0 * x[:, 0] + torch.randn(500, generator=generator, dtype=torch.float64)
    prior = None if guide is None else pa.priors.FanIn(100.0)

    def make(_seed):
        head = pa.MixtureHead(1, 1, constant_scale=True)
        return pa.MDN(nn.Identity(), head, prior=prior).double()

    options = {"batch_size": 450, "max_steps": 2000, "progress": False, "seed": 1}
    options |= {"guide": guide, "validation": validation, "x_noise": noise}
    if members == 1:
        fit = pa.fit(make(0), x, y, **options)
    else:
        fit = pa.ensemble(make, x, y, members=members, **options)
    centred = x - x.mean()
    slope = float((centred[:, 0] * y).mean() / centred.square().mean())
    mean = fit.density(torch.tensor([[-1.0], [1.0]], dtype=torch.float64)).mean
    return float(mean.diff() / 2) / slope


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_noise_makes_of_least_squares_a_ridge(noise):
    """Noise of deviation s penalises the square of a line's slope N s^2 times (Bishop 1995).

    The weights are an average over the last hundred steps or so, of noise of deviation s on 450
    rows each: in a fit the slope is off by one in two hundred.
    """
    assert slope_of_a_line(noise) == pytest.approx(1.0 / (1.0 + noise**2), rel=0.02)


@pytest.mark.parametrize("validation", [None, 0.1])
@pytest.mark.parametrize(
    ("guide", "members"),
    [
        (AutoDelta, 1),
        (AutoNormal, 1),
        (AutoLaplaceApproximation, 1),
        (AutoLaplaceApproximation, 2),
    ],
)
def test_no_guide_undoes_it(guide, members, validation):
    # Rows held out choose among steps: another twentieth.
    assert slope_of_a_line(1.0, guide, validation, members) == pytest.approx(0.5, rel=0.1)


def test_noise_is_normal_of_its_deviation_and_never_the_same():
    rows = torch.full((50, 3), 7.0), torch.arange(50.0), torch.ones(50)
    noisy = Noisy(Batches(rows, 50, seed=3), 0.25, seed=3)
    batches = [noisy.at(step) for step in range(400)]
    assert all(torch.equal(b[1], rows[1]) and torch.equal(b[2], rows[2]) for b in batches)
    noise = torch.stack([b[0] for b in batches]).sub(7.0).div(0.25)  # (400, 50, 3)
    assert rows[0].eq(7.0).all()  # the rows themselves stay
    count = noise.numel()
    assert abs(float(noise.mean())) < 4 / math.sqrt(count)
    assert abs(float(noise.var()) - 1.0) < 4 * math.sqrt(2 / count)
    within = float((noise.abs() < 1.0).double().mean())
    assert abs(within - 0.6827) < 4 * math.sqrt(0.6827 * 0.3173 / count)
    assert len({float(one[0, 0]) for one in noise}) == 400
    other = Noisy(Batches(rows, 50, seed=3), 0.25, seed=4).at(0)[0]
    assert not torch.equal(other, batches[0][0])


def test_noise_depends_on_seed_and_step_alone_and_keeps_the_dtype():
    rows = torch.zeros(20, 2, dtype=torch.float64), torch.zeros(20)
    forward = [Noisy(Batches(rows, 6, seed=1), 0.1, seed=1).at(step)[0] for step in range(5)]
    again = Noisy(Batches(rows, 6, seed=1), 0.1, seed=1)
    state = torch.get_rng_state()
    for step in (4, 0, 2):
        assert torch.equal(again.at(step)[0], forward[step])
    assert forward[0].dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_that_are_read_have_noise_too():
    given = torch.zeros(4, 1)
    stream = Stream([given], lambda batch: (batch, batch), 1)
    x, y = Noisy(stream, 0.1, seed=0).at(0)
    assert bool((x != 0.0).all()) and not y.any() and not given.any()
    loader = DataLoader(TensorDataset(PROBLEM.x, PROBLEM.y), batch_size=50)
    options = {"y": None, "size": 400, "validation": (HELD.x, HELD.y)}
    assert not torch.equal(
        weights(run(loader, **options)), weights(run(loader, x_noise=0.0, **options))
    )


def test_no_noise_is_the_fit_without_it_and_the_same_seed_the_same_fit():
    assert torch.equal(weights(run()), weights(run()))
    assert not torch.equal(weights(run()), weights(run(seed=1)))
    plain = run(x_noise=0.0)
    assert torch.equal(weights(plain), weights(run(x_noise=0)))
    assert not torch.equal(weights(run()), weights(plain))


def test_held_out_rows_have_none():
    fit = run(validation=(HELD.x, HELD.y), x_noise=0.5)
    found = -float(fit.density(HELD.x).log_prob(HELD.y).double().mean())
    assert fit.best_nll == pytest.approx(found, abs=1e-5)


def test_noise_leaves_less_to_learn_by_heart():
    few = pa.datasets.inverse_sinusoid(60, seed=2)
    options = {"validation": None, "max_steps": 1500}
    scores = {}
    for noise in (0.0, 0.1):
        fit = run(few.x, few.y, x_noise=noise, **options)
        rows, fresh = ((few.x, few.y), (HELD.x, HELD.y))
        scores[noise] = [-float(fit.density(x).log_prob(y).mean()) for x, y in (rows, fresh)]
    # Of the rows it has seen, and of fresh ones: by chance they differ by a few hundredths.
    assert scores[0.1][0] > scores[0.0][0] + 0.1
    assert scores[0.1][1] < scores[0.0][1] - 0.1


def test_a_regressor_passes_it_on():
    options = {"hidden": (16,), "components": 5, "max_steps": 60, "random_state": 0}
    x, y = PROBLEM.x.numpy(), PROBLEM.y.numpy()
    fits = [pa.MDNRegressor(x_noise=n, **options).fit(x, y).fit_ for n in (0.0, 0.1, 0.1)]
    assert torch.equal(weights(fits[1]), weights(fits[2]))
    assert not torch.equal(weights(fits[0]), weights(fits[1]))


def test_chains_take_rows_as_they_are_and_say_so():
    mdn = pa.MDNRegressor(x_noise=0.1, inference="nuts", hidden=(3,), components=2)
    with pytest.raises(ValueError, match=r"x_noise=0\.1 with inference='nuts'.*take x_noise=0"):
        mdn.fit(PROBLEM.x.numpy(), PROBLEM.y.numpy())


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf, 101.0, 10**400, "0.1", True, None])
def test_a_deviation_that_is_none_is_refused_before_any_work(noise):
    with pytest.raises((TypeError, ValueError), match=r"x_noise=.*give a .*number of 0 or more"):
        run(x_noise=noise)
    with pytest.raises((TypeError, ValueError), match=r"x_noise=.*give a .*number of 0 or more"):
        pa.ensemble(lambda _: make_model(), PROBLEM.x, PROBLEM.y, x_noise=noise, progress=False)
