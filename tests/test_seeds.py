"""What is random inside goes by seeds of our own, and leaves torch's generators as they were."""

import itertools

import pytest
import torch
from pyro import distributions as dist
from pyro.infer.autoguide import AutoNormal

import pyralloy as pa
from pyralloy.seeds import seeded, sow

PROBLEM = pa.datasets.inverse_sinusoid(60, seed=0)


def make_model(prior=None):
    return pa.MDN(pa.networks.MLP(1, (4,)), pa.MixtureHead(4, 2), prior=prior)


def fit(guide=None):
    model = make_model(None if guide is None else dist.Normal(0.0, 1.0))
    found = pa.fit(model, PROBLEM.x, PROBLEM.y, guide=guide, max_steps=3, progress=False)
    found.density(PROBLEM.x[:2], draws=2)


CALLS = {
    "fit": fit,
    "guide": lambda: fit(AutoNormal),
    "nuts": lambda: pa.nuts(
        make_model(dist.Normal(0.0, 1.0)),
        PROBLEM.x,
        PROBLEM.y,
        warmup=2,
        draws=4,
        chains=1,
        depth=1,
        start=2,
        progress=False,
    ),
    "ensemble": lambda: pa.ensemble(
        lambda _: make_model(), PROBLEM.x, PROBLEM.y, members=2, max_steps=3, progress=False
    ),
    "regressor": lambda: pa.MDNRegressor(max_steps=3, random_state=0).fit(
        PROBLEM.x.numpy(), PROBLEM.y.numpy()
    ),
    "prior": lambda: make_model(dist.Normal(0.0, 1.0)).prior_densities(PROBLEM.x, draws=2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_work_on_the_cpu_seeds_no_other_device(call, monkeypatch):
    def touched(*_args):
        raise AssertionError("a generator of a GPU was seeded")

    for place, name in itertools.product((torch.cuda, torch.cuda.random), ("", "_all")):
        monkeypatch.setattr(place, f"manual_seed{name}", touched)
    monkeypatch.setattr(torch, "manual_seed", touched)  # of all devices
    CALLS[call]()


def test_a_seed_is_that_of_torch_and_the_state_comes_back():
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        expected, state = torch.rand(3), torch.get_rng_state()
        with seeded(5):
            assert torch.equal(torch.rand(3), expected)
        assert torch.equal(torch.get_rng_state(), state)
        sow(5)
        assert torch.equal(torch.rand(3), expected)
