"""A GPU gives the answers of the CPU, and trains to the bit again; skipped where there is none."""

import copy
import math

import pytest
import torch
from pyro import distributions as dist
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from random_components import CONTINUOUS, COUNTS, RAW, random_component
from random_mixtures import F32, F64, random_mixture
from random_vectors import KINDS as VECTORS
from random_vectors import random_vectors

import pyralloy as pa
from pyralloy import scores
from pyralloy.inference import program

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GUIDES = [
    AutoDelta,
    AutoNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoLaplaceApproximation,
]
TRAIN, HELD = (pa.datasets.inverse_sinusoid(1000, seed=seed) for seed in (0, 1))
TOLERANCE = {F32: 1e-4, F64: 1e-9}


def close(here, there, tolerance):
    """Compare an answer of the CPU with the GPU's, which must still be there."""
    assert there.device.type == GPU.type
    assert torch.allclose(here, there.cpu(), rtol=tolerance, atol=tolerance, equal_nan=True)


def both(name, dtype):
    """Give mixtures of a family on the CPU and the same on the GPU."""
    component = random_component(name, 3, (200, 5), dtype)
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    here = pa.Mixture(dist.Categorical(logits=logits), component)
    return here, here.to(GPU)


# -- exact answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", RAW)
def test_answers_are_those_of_the_cpu(name, dtype):
    here, there = both(name, dtype)
    tolerance, unit = TOLERANCE[dtype], float(here.stddev.nan_to_num(1.0, 1.0).median())
    y = here.sample(generator=torch.Generator().manual_seed(1))
    on = y.to(GPU)
    close(here.log_prob(y), there.log_prob(on), 10 * tolerance)
    close(here.cdf(y), there.cdf(on), tolerance)
    close(here.mean, there.mean, tolerance)
    if name in CONTINUOUS:
        levels = [0.05, 0.5, 0.9]
        close(here.quantile(levels) / unit, there.quantile(levels) / unit, 10 * tolerance)
        close(here.crps(y) / unit, there.crps(on) / unit, 10 * tolerance)
    assert there.sample((2,), generator=torch.Generator(GPU).manual_seed(0)).shape == (2, 200)


@pytest.mark.parametrize("name", RAW)
def test_regions_and_modes_are_those_of_the_cpu(name):
    here, there = both(name, F64)
    one, other = here.highest_density_region(0.9), there.highest_density_region(0.9)
    close(one.log_density, other.log_density, 1e-6)
    close(one.volume(), other.volume(), 1e-6)
    if name not in COUNTS:
        modes, others = here.modes(), there.modes()
        close(modes.log_densities, others.log_densities, 1e-6)
    assert other.contains(there.sample(generator=torch.Generator(GPU))).device.type == GPU.type


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_are_those_of_the_cpu(kind):
    here = random_vectors(kind, 0, 3, (50,), 3)
    there, y = here.to(GPU), here.sample(generator=torch.Generator().manual_seed(0))
    close(here.log_prob(y), there.log_prob(y.to(GPU)), 1e-9)
    close(here.marginal(0).cdf(y[:, 0]), there.marginal(0).cdf(y[:, 0].to(GPU)), 1e-9)
    if "normal" in kind or kind.endswith(" t"):
        given, on = (m.condition({0: v}) for m, v in ((here, y[:, 0]), (there, y[:, 0].to(GPU))))
        close(given.log_prob(y[:, 1:]), on.log_prob(y[:, 1:].to(GPU)), 1e-8)
    source = torch.Generator(GPU).manual_seed(0)
    assert there.level_set(0.9, draws=500, generator=source).contains(y.to(GPU)).is_cuda


def test_pools_reductions_and_scores_stay_on_the_gpu():
    parts = [random_mixture(seed, 4, (30,)) for seed in (0, 1, 2)]
    here, there = pa.Mixture.pool(parts), pa.Mixture.pool([part.to(GPU) for part in parts])
    y = here.sample(generator=torch.Generator().manual_seed(0))
    close(here.log_prob(y), there.log_prob(y.to(GPU)), 1e-9)
    close(here.reduce(3).mean, there.reduce(3).mean, 1e-9)
    close(here.truncate(low=0.0).mean, there.truncate(low=0.0).mean, 1e-7)
    for score in (scores.log_score, scores.crps, scores.pit, scores.hdr_pit):
        close(score(here, y), score(there, y.to(GPU)), 1e-6)


# -- training -------------------------------------------------------------------------------------


def make_model(prior=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk, head = pa.networks.MLP(1, hidden=(16, 16)), pa.MixtureHead(16, 4)
    return pa.MDN(trunk, head) if prior is None else pa.MDN(trunk, head, prior=prior)


def fit(model, **options):
    options = {"max_steps": 400, "batch_size": 128, "progress": False, "device": GPU, **options}
    return pa.fit(model, TRAIN.x, TRAIN.y, **options)


def vectors(model):
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def nll(fitted, draws=None):
    density = fitted.density(HELD.x) if draws is None else fitted.density(HELD.x, draws=draws)
    return -float(density.log_prob(HELD.y.to(density.logits.device)).mean())


@pytest.mark.parametrize("batch", [32, 1000, 20_000])
def test_a_fit_is_the_same_to_the_bit_captured_and_not(batch, eager_costs_nothing, monkeypatch):
    problem = pa.datasets.inverse_sinusoid(25_000, seed=0)

    def run():
        model, options = make_model(), {"max_steps": 30, "batch_size": batch, "device": GPU}
        pa.fit(model, problem.x, problem.y, progress=False, **options)
        return vectors(model)

    captured = run()
    assert torch.equal(captured, run())
    monkeypatch.setattr(program, "CAPTURE", math.inf)
    assert torch.equal(captured, run())


@pytest.mark.parametrize("compiling", [False, True, "auto"])
def test_a_fit_is_as_good_as_the_cpus(compiling):
    before = torch.cuda.get_rng_state()
    there = fit(make_model(), compile=compiling)
    assert torch.equal(before, torch.cuda.get_rng_state())
    here = fit(make_model(), device="cpu")
    assert there.density(HELD.x).logits.device.type == GPU.type
    assert nll(there) == pytest.approx(nll(here), abs=0.1)


@pytest.mark.parametrize("guide", GUIDES)
def test_guides_are_trained_and_pooled(guide, eager_costs_nothing):
    def run():
        return fit(make_model(dist.Normal(0.0, 1.0)), guide=guide, max_steps=200)

    fitted, again = run(), run()
    assert nll(fitted, 8) < 2.4
    one, other = fitted.weights(3), again.weights(3)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_ensemble_is_trained_side_by_side_and_pooled():
    def make(seed):
        return make_model(seed=seed)

    options = {"members": 4, "max_steps": 300, "batch_size": 128, "progress": False}
    fitted = pa.ensemble(make, TRAIN.x, TRAIN.y, device=GPU, **options)
    again = pa.ensemble(make, TRAIN.x, TRAIN.y, device=GPU, **options)
    here = pa.ensemble(make, TRAIN.x, TRAIN.y, **options)
    assert fitted.density(HELD.x).logits.device.type == GPU.type
    assert torch.equal(fitted.density(HELD.x).logits, again.density(HELD.x).logits)
    assert nll(fitted) == pytest.approx(nll(here), abs=0.1)


def test_nuts_runs_on_a_gpu():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk, head = pa.networks.MLP(1, hidden=(4,)), pa.MixtureHead(4, 1)
    model = pa.MDN(trunk, head, prior=dist.Normal(0.0, 1.0))
    options = {"warmup": 20, "draws": 20, "chains": 1, "progress": False, "device": GPU}
    fitted = pa.nuts(model, TRAIN.x[:100], TRAIN.y[:100], **options)
    assert fitted.density(HELD.x, draws=10).logits.device.type == GPU.type


@pytest.mark.parametrize("guide", [None, AutoNormal])
def test_a_resumed_fit_ends_where_the_whole_one_does(guide, tmp_path, eager_costs_nothing):
    path, prior = tmp_path / "a.safetensors", None if guide is None else dist.Normal(0.0, 1.0)
    options = {"max_steps": 60, "guide": guide, "seed": 3}

    def stop(step, _metrics):
        return step >= 20

    whole = fit(make_model(prior), **options)
    fit(make_model(prior), **options, callback=stop, checkpoint=path, checkpoint_every=1)
    resumed = fit(make_model(prior), **options, resume=path)
    expected, found = whole.density(HELD.x).logits, resumed.density(HELD.x).logits
    assert torch.equal(expected, found)


def test_a_fit_goes_from_the_gpu_to_the_disk_and_back_to_the_cpu(tmp_path):
    fitted = fit(make_model(), max_steps=50)
    fitted.save(tmp_path / "a.safetensors")
    loaded = pa.load(tmp_path / "a.safetensors")
    assert loaded.density(HELD.x).logits.device.type == "cpu"
    close(loaded.density(HELD.x).logits, fitted.density(HELD.x).logits, 1e-4)


@pytest.mark.parametrize("options", [{}, {"members": 3}, {"inference": "vi"}])
def test_the_estimator_works_on_a_gpu_and_answers_in_numpy(options):
    x, y = TRAIN.x.numpy(), TRAIN.y.numpy()
    kind = pa.MDNRegressor(device="cuda", max_steps=100, progress=False, **options)
    fitted = kind.fit(x, y)
    assert fitted.predict(x).shape == (1000,)
    assert fitted.predict_quantile(x, [0.1, 0.9]).shape == (2, 1000)
    assert fitted.predict_region(x[:50]).shape[0] == 50
    assert math.isfinite(fitted.log_score(x, y)) and math.isfinite(fitted.score(x, y))
    assert copy.deepcopy(fitted).predict(x).shape == (1000,)
