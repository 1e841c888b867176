"""What is saved is what is loaded, to the bit; what was damaged or made up is refused by name."""

import json
import struct
import threading
import warnings
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from pyro.nn import PyroModule, PyroParam
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import pyralloy as pa
from pyralloy import archive
from pyralloy.archive import Unreadable
from pyralloy.families import BetaFamily, TruncatedNormalFamily
from pyralloy.inference.diagnostics import FitWarning
from pyralloy.persistence import describe, rebuild

PROBLEM = pa.datasets.inverse_sinusoid(200, seed=0)


def fitted(trunk=None, head=None, y=PROBLEM.y, **options):
    trunk = trunk or pa.networks.MLP(1, hidden=(8, 6))
    model = pa.MDN(trunk, head or pa.MixtureHead(6, 3))
    return pa.fit(model, PROBLEM.x, y, max_steps=20, progress=False, **options)


def state(fit):
    return fit.model.state_dict()


def same(one, two):
    assert one.keys() == two.keys()
    return all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


def reseal(path, change):
    """Rewrite a file after a change, with a digest that fits: what a forger would do."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, notes = load_file(path), json.loads(metadata["notes"])
    notes = change(tensors, notes) or notes
    metadata["notes"] = notes if isinstance(notes, str) else json.dumps(notes)
    metadata["sha256"] = archive.digest(
        tensors, metadata["kind"], metadata["version"], metadata["notes"]
    )
    save_file(tensors, path, metadata)


@pytest.fixture
def saved(tmp_path):
    fit, path = fitted(), tmp_path / "fit.safetensors"
    fit.save(path)
    return fit, path


# -- what is loaded is what was saved -------------------------------------------------------------

POSITIVE, UNIT = PROBLEM.y.abs() + 0.1, 0.01 + 0.98 * PROBLEM.y.sigmoid()
PAIR = torch.stack([PROBLEM.y, PROBLEM.y.flip(0)], 1)

HEADS = {
    "normal": (lambda: pa.MixtureHead(6, 3), PROBLEM.y),
    "least squares": (lambda: pa.MixtureHead(6, 1, constant_scale=True), PROBLEM.y),
    "gamma": (lambda: pa.MixtureHead(6, 3, family="gamma"), POSITIVE),
    "an object": (lambda: pa.MixtureHead(6, 3, family=BetaFamily(-1.0, 3.0)), UNIT),
    "truncated": (lambda: pa.MixtureHead(6, 3, family=TruncatedNormalFamily(0.0, 2.0)), UNIT),
    "vector": (lambda: pa.MixtureHead(6, 3, 2), PAIR),
    "vector of t": (lambda: pa.MixtureHead(6, 3, 2, family="student_t"), PAIR),
    "full": (lambda: pa.MixtureHead(6, 3, 2, covariance="full"), PAIR),
    "low rank": (lambda: pa.MixtureHead(6, 3, 2, covariance="low_rank", rank=2), PAIR),
    "spread": (lambda: pa.MixtureHead(6, 3, spread=2.5), PROBLEM.y),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_loaded_fit_answers_as_the_one_that_was_saved(kind, tmp_path):
    make, y = HEADS[kind]
    fit = fitted(head=make(), y=y)
    fit.save(tmp_path / "a.safetensors")
    again = pa.load(tmp_path / "a.safetensors")
    assert same(state(again), state(fit))
    one, two = again.density(PROBLEM.x), fit.density(PROBLEM.x)
    assert torch.equal(one.log_prob(y), two.log_prob(y)) and torch.equal(one.mean, two.mean)
    assert np.array_equal(again.history, fit.history) and again.history.dtype == fit.history.dtype
    assert (again.marginal, again.best_step) == (fit.marginal, fit.best_step)
    assert repr(again) == repr(fit) and not again.model.training


@pytest.mark.parametrize("activation", pa.networks.ACTIVATIONS.values())
@pytest.mark.parametrize("hidden", [(), (4,), (8, 6)])
def test_a_trunk_is_made_anew_in_its_own_shape(activation, hidden, tmp_path):
    trunk = pa.networks.MLP(1, hidden, activation)
    fit = fitted(trunk, pa.MixtureHead(trunk.out_features, 2))
    fit.save(tmp_path / "a.safetensors")
    assert repr(pa.load(tmp_path / "a.safetensors").model) == repr(fit.model)


def test_doubles_stay_doubles(tmp_path):
    model = pa.MDN(pa.networks.MLP(1, hidden=(6,)), pa.MixtureHead(6, 3)).double()
    fit = pa.fit(model, PROBLEM.x, PROBLEM.y, max_steps=5, progress=False)
    fit.save(tmp_path / "a.safetensors")
    assert same(state(pa.load(tmp_path / "a.safetensors")), state(fit))


def test_a_loaded_model_trains_on_and_torchs_generator_stays(saved):
    _, path = saved
    before = torch.get_rng_state()
    model = pa.load(path).model
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad and p.is_leaf and not p.is_meta for p in model.parameters())
    options = {"max_steps": 5, "progress": False, "initialise": False}
    first = pa.fit(model, PROBLEM.x, PROBLEM.y, **options)
    second = pa.fit(pa.load(path).model, PROBLEM.x, PROBLEM.y, **options)
    assert same(state(first), state(second))


def test_a_regressor_is_saved_through_its_fit(tmp_path):
    X, y = PROBLEM.x.numpy(), PROBLEM.y.numpy()
    mdn = pa.MDNRegressor(components=3, hidden=(6,), max_steps=20, random_state=0).fit(X, y)
    mdn.fit_.save(tmp_path / "a.safetensors")
    loaded = pa.load(tmp_path / "a.safetensors")
    loaded.model.double()  # as a regressor predicts
    assert np.array_equal(loaded.density(X).mean.numpy(), mdn.predict(X))


def test_the_file_that_was_there_is_replaced_and_nothing_is_left_beside_it(saved):
    _, path = saved
    other = fitted(seed=5)
    other.save(path)
    assert same(state(pa.load(path)), state(other))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_saves_to_one_path_in_threads_leave_a_whole_file(tmp_path):
    fits, path = [fitted(seed=s) for s in range(4)], tmp_path / "a.safetensors"
    threads = [threading.Thread(target=f.save, args=(path,)) for f in fits for _ in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    again = pa.load(path)
    assert any(same(state(again), state(f)) for f in fits)


# -- posteriors -----------------------------------------------------------------------------------


def bayesian(guide, prior=None, **options):
    prior = prior or pa.priors.FanIn()
    model = pa.MDN(pa.networks.MLP(1, hidden=(6,)), pa.MixtureHead(6, 3), prior=prior)
    options = {"max_steps": 20, "progress": False} | options
    return pa.fit(model, PROBLEM.x, PROBLEM.y, guide=guide, **options)


def pooled(guide, prior=None, **options):
    prior = prior or pa.priors.FanIn()

    def make(_):
        return pa.MDN(pa.networks.MLP(1, hidden=(6,)), pa.MixtureHead(6, 3), prior=prior)

    options = {"members": 3, "max_steps": 20, "progress": False} | options
    return pa.ensemble(make, PROBLEM.x, PROBLEM.y, guide=guide, **options)


def sampled(prior):
    model = pa.MDN(pa.networks.MLP(1, hidden=(4,)), pa.MixtureHead(4, 2), prior=prior)
    with warnings.catch_warnings():  # a dozen draws say little, and the fit says so
        warnings.simplefilter("ignore")
        options = {"warmup": 8, "draws": 12, "depth": 3, "start": 20, "progress": False}
        return pa.nuts(model, PROBLEM.x[:40], PROBLEM.y[:40], **options)


FITS = {
    "ml": fitted,
    "map": lambda: bayesian(AutoDelta),
    "mean field": lambda: bayesian(AutoNormal, temperature=0.5),
    "diagonal": lambda: bayesian(AutoDiagonalNormal),
    "low rank": lambda: bayesian(AutoLowRankMultivariateNormal),
    "full": lambda: bayesian(AutoMultivariateNormal),
    "laplace": lambda: bayesian(AutoLaplaceApproximation, pa.priors.LastLayer()),
    "scales": lambda: bayesian(AutoNormal, pa.priors.Hierarchical()),
    "modes": lambda: pooled(AutoDelta),
    "mean fields": lambda: pooled(AutoNormal, temperature=0.1),
    "mean fields of scales": lambda: pooled(AutoNormal, pa.priors.Hierarchical()),
    "laplace of several": lambda: pooled(AutoLaplaceApproximation, pa.priors.LastLayer()),
    "nuts": lambda: sampled(pa.priors.FanIn()),
    "nuts of scales": lambda: sampled(pa.priors.Hierarchical()),
}


@pytest.mark.parametrize("kind", FITS)
def test_a_loaded_posterior_answers_as_the_one_that_was_saved(kind, tmp_path):
    fit, path = FITS[kind](), tmp_path / "a.safetensors"
    fit.save(path)
    again = pa.load(path)
    assert type(again.posterior) is type(fit.posterior) and again.guide is None
    one, two = again.weights(9, seed=2), fit.weights(9, seed=2)
    assert same(one, two)
    assert (not one) == (kind in {"ml", "map"})
    assert list(one) == list(two)  # the order in which noise is dealt out
    mine, theirs = again.density(PROBLEM.x, 7), fit.density(PROBLEM.x, 7)
    assert torch.equal(mine.log_prob(PROBLEM.y), theirs.log_prob(PROBLEM.y))
    levels = [0.05, 0.5, 0.95]
    assert torch.equal(mine.quantile(levels), theirs.quantile(levels))
    assert torch.equal(again.predictive(PROBLEM.x, 5), fit.predictive(PROBLEM.x, 5))
    assert (again.temperature, again.diagnostics) == (fit.temperature, fit.diagnostics)
    assert repr(again) == repr(fit) and repr(again.model.prior) == repr(fit.model.prior)
    assert same(state(again), state(fit)) and np.array_equal(
        again.history.train, fit.history.train, equal_nan=True
    )
    if fit.chains is not None:
        for name, value in fit.chains._asdict().items():
            found = getattr(again.chains, name)
            assert torch.equal(found, value) if torch.is_tensor(value) else found == value
    again.save(path)  # and what was loaded can be saved
    assert same(pa.load(path).weights(9, seed=2), two)


def test_what_looked_wrong_is_kept(tmp_path):
    with pytest.warns(FitWarning, match="of the rows have y = -7"):
        fit = fitted(y=PROBLEM.y.round())
    fit.save(tmp_path / "a.safetensors")
    assert pa.load(tmp_path / "a.safetensors").diagnostics == fit.diagnostics != ()


PRIORS = {
    "none": None,
    "each": dist.Normal(0.0, 1.5),
    "of doubles": dist.Normal(torch.zeros((), dtype=torch.float64), 0.1),
    "heavy": dist.StudentT(3.0, 0.1, 2.0),
    "wide": dist.Cauchy(0.0, 1.0),
    "fan-in": pa.priors.FanIn(0.7),
    "fan-in of t": pa.priors.FanIn(0.7, partial(dist.StudentT, 3.0)),
    "hierarchical": pa.priors.Hierarchical(2.0, dist.Laplace),
    "last layer": pa.priors.LastLayer(dist.Laplace(0.0, 0.3)),
    "by name": pa.priors.ByName(
        {"*.bias": None, "head.*": pa.priors.Hierarchical(), "*": dist.Normal(0, 1)}
    ),
}


@pytest.mark.parametrize("kind", PRIORS)
def test_a_prior_is_made_anew(kind):
    model = pa.MDN(pa.networks.MLP(1, hidden=(6,)), pa.MixtureHead(6, 3), prior=PRIORS[kind])
    blueprint = json.loads(json.dumps(describe(model)))
    again = rebuild(blueprint, model.state_dict())
    assert describe(again) == blueprint and again.uncertain() == model.uncertain()
    if model.prior is not None:
        one, two = (m.prior_densities(PROBLEM.x, 3, seed=1) for m in (model, again))
        assert torch.equal(one.log_prob(PROBLEM.y), two.log_prob(PROBLEM.y))


class Wide(pa.priors.Prior):
    def distributions(self, weights, scales):
        return {
            n: dist.Normal(0.0, 10.0).expand(w.shape).to_event(w.ndim) for n, w in weights.items()
        }


@pytest.mark.parametrize(
    ("prior", "what"),
    [
        (Wide(), "prior is a Wide"),
        (pa.priors.FanIn(kind=lambda m, s: dist.Normal(m, s)), "the prior's kind is <function"),
        (pa.priors.ByName({"head.*": Wide()}), "prior is a Wide"),
        (dist.MaskedDistribution(dist.Normal(0.0, 1.0), True), "prior is a Masked"),
    ],
)
def test_a_prior_of_ones_own_has_no_blueprint(prior, what):
    model = pa.MDN(pa.networks.MLP(1, hidden=(6,)), pa.MixtureHead(6, 3), prior=prior)
    assert describe(model).startswith(what)


def test_a_posterior_under_a_prior_of_ones_own_is_read_into_a_model(tmp_path):
    fit, path = bayesian(AutoNormal, Wide()), tmp_path / "a.safetensors"
    with pytest.warns(UserWarning, match=r"prior is a Wide.*model=model"):
        fit.save(path)
    mine = pa.MDN(pa.networks.MLP(1, hidden=(6,)), pa.MixtureHead(6, 3), prior=Wide())
    assert same(pa.load(path, model=mine).weights(5), fit.weights(5))


class Shifted(PyroModule):
    """A guide of one's own: Normal weights about values that it learns."""

    def __init__(self, model):
        super().__init__()
        self.start = {n: w.detach().clone() for n, w in model.weights().items()}
        for name, value in self.start.items():
            setattr(self, name.replace(".", "_"), PyroParam(value))

    def forward(self, x, y=None, weights=None, *, size=None, standard=False):
        for name, value in self.start.items():
            loc = getattr(self, name.replace(".", "_"))
            pyro.sample(name, dist.Normal(loc, 0.01).to_event(value.ndim))


@pytest.mark.parametrize(
    "guide",
    [
        Shifted,
        partial(AutoNormalizingFlow, init_transform_fn=partial(iterated, 1, affine_autoregressive)),
    ],
)
def test_a_posterior_that_is_no_numbers_is_kept_as_draws_and_that_is_said(guide, tmp_path):
    fit, path = bayesian(guide), tmp_path / "a.safetensors"
    with pytest.warns(UserWarning, match="drawn by a guide.* holds 50 draws"):
        fit.save(path, draws=50)
    again = pa.load(path)
    kept = again.posterior.chains
    assert same({n: v[0] for n, v in kept.items()}, fit.weights(50))
    # All fifty are pooled, in another order: the same density up to rounding.
    one, two = again.density(PROBLEM.x, 50), fit.density(PROBLEM.x, 50)
    assert torch.allclose(one.log_prob(PROBLEM.y), two.log_prob(PROBLEM.y), rtol=1e-10, atol=1e-12)
    again.save(path)
    with pytest.raises((TypeError, ValueError), match="draws=0"):
        again.save(path, draws=0)


@pytest.mark.parametrize("kind", ["mean field", "mean fields", "full", "scales", "nuts"])
def test_a_posterior_that_makes_no_sense_is_refused(kind, tmp_path):
    path = tmp_path / "a.safetensors"
    FITS[kind]().save(path)
    original, refused = path.read_bytes(), 0

    def site(notes, place, value):
        own = notes["posterior"]
        if "members" in own:
            own = own["members"][1]["posterior"]
        if "sites" in own:
            own["sites"][0][place] = value
        else:
            notes["posterior"] = {"form": "none"}

    def cut(tensors, name):
        first = next(n for n in tensors if n.startswith("posterior." + name))
        tensors[first] = tensors[first][..., :-1].contiguous()

    def widen(tensors, name):
        first = next(n for n in tensors if n.startswith("posterior." + name))
        tensors[first] = tensors[first].double()

    name = {"nuts": "", "mean fields": "1.posterior.loc"}.get(kind, "loc")
    for change in (
        lambda t, n: n["posterior"].update(form="gauss"),
        lambda t, n: n["posterior"].update(form=["gaussian"]),
        lambda t, n: n.update(posterior=3),
        lambda t, n: n.update(chains={"r_hat": 1}),
        lambda t, n: site(n, 0, "none"),
        lambda t, n: site(n, 1, [-1, -18]),
        lambda t, n: site(n, 1, [10**12]),
        lambda t, n: site(n, 1, "ab"),
        lambda t, n: site(n, 2, ["imaginary", 0]),
        lambda t, n: site(n, 2, ["real", 99]),
        lambda t, n: cut(t, name),
        lambda t, n: widen(t, name),
        lambda t, n: n["model"].update(prior={"rule": "none"}),
        lambda t, n: n["model"].update(prior={"rule": "by_name", "priors": [["no.such", None]]}),
        lambda t, n: n["model"].update(
            prior={"rule": "fan_in", "scale": -1, "kind": "normal", "more": []}
        ),
    ):
        reseal(path, change)
        with pytest.raises(Unreadable):
            pa.load(path)
        refused += 1
        path.write_bytes(original)
    assert refused == 15


# -- parts of one's own ---------------------------------------------------------------------------


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(1, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.layer(x))


def test_a_trunk_of_ones_own_is_filled_and_both_ends_say_so(tmp_path):
    fit, path = fitted(Trunk()), tmp_path / "a.safetensors"
    with pytest.warns(UserWarning, match=r"trunk is a Trunk.*pa.load\(.*model=model\)"):
        fit.save(path)
    with pytest.raises(Unreadable, match=r"trunk is a Trunk.*model=model"):
        pa.load(path)
    mine = pa.MDN(Trunk(), pa.MixtureHead(6, 3))
    again = pa.load(path, model=mine)
    assert again.model is mine and same(state(again), state(fit))
    assert torch.equal(again.density(PROBLEM.x).mean, fit.density(PROBLEM.x).mean)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: pa.MDN(nn.Linear(1, 6), pa.MixtureHead(6, 3)), r"'trunk\.\w+.*' is only in the"),
        (lambda: pa.MDN(pa.networks.MLP(1, (8, 6)), pa.MixtureHead(6, 4)), r"head.* is \(9, 6"),
        (lambda: pa.MDN(pa.networks.MLP(2, (8, 6)), pa.MixtureHead(6, 3)), r"trunk.* is \(8, 1\)"),
    ],
)
def test_a_model_of_other_parts_is_refused_and_left_alone(saved, model, message):
    _, path = saved
    mine = model()
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    with pytest.raises(Unreadable, match=message):
        pa.load(path, model=mine)
    assert same(mine.state_dict(), before)


def test_parts_that_look_alike_but_are_not_have_no_blueprint():
    class Mine(pa.networks.MLP):
        pass

    head = pa.MixtureHead(6, 3)
    gelu = pa.networks.MLP(1, (6,), lambda: nn.GELU(approximate="tanh"))
    assert "Mine" in describe(pa.MDN(Mine(1, (6,)), head))
    assert "GELU" in describe(pa.MDN(gelu, head))
    assert isinstance(describe(pa.MDN(pa.networks.MLP(1, (6,)), head)), dict)


# -- what is refused ------------------------------------------------------------------------------


def test_a_file_that_is_not_there_or_no_folder_to_write_to(saved, tmp_path):
    fit, _ = saved
    with pytest.raises(FileNotFoundError, match="no such file"):
        pa.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="no folder"):
        fit.save(tmp_path / "none" / "a.safetensors")
    with pytest.raises(TypeError, match="model="):
        pa.load(saved[1], model=nn.Linear(1, 1))


@pytest.mark.parametrize("kind", ["ml", "low rank", "nuts"])
def test_every_flipped_bit_is_noticed(kind, tmp_path):
    """Safetensors alone loads most of them in silence."""
    path = tmp_path / "fit.safetensors"
    FITS[kind]().save(path)
    whole, bad = path.read_bytes(), tmp_path / "bad.safetensors"
    generator = np.random.default_rng(0)
    places = generator.choice(8 * len(whole), 1000, replace=False)
    for place in places.tolist():
        data = bytearray(whole)
        data[place // 8] ^= 1 << (place % 8)
        bad.write_bytes(data)
        with pytest.raises(Unreadable):
            pa.load(bad)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 3000, -1])
def test_a_file_cut_short_is_refused(saved, length):
    _, path = saved
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Unreadable):
        pa.load(path)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(Unreadable, match="not written by pyralloy"):
        pa.load(path)
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(Unreadable, match="no safetensors file"):
        pa.load(path)
    archive.write(path, "checkpoint", {"x": torch.ones(2)}, {})
    with pytest.raises(Unreadable, match="is a checkpoint, and a fit is needed"):
        pa.load(path)
    archive.write(path, "fit", {"x": torch.ones(2)}, {})
    with pytest.raises(Unreadable, match="lacks what a fit holds"):
        pa.load(path)


def test_a_file_of_a_later_version_is_refused(saved, monkeypatch):
    fit, path = saved
    monkeypatch.setattr(archive, "VERSION", 2)
    fit.save(path)
    monkeypatch.undo()
    with pytest.raises(Unreadable, match="version 2 and this pyralloy reads 1"):
        pa.load(path)


def test_notes_without_end_are_refused(saved):
    _, path = saved
    reseal(path, lambda *_: "[" * 100_000 + "]" * 100_000)
    with pytest.raises(Unreadable, match="notes that cannot be read"):
        pa.load(path)


def test_a_header_without_end_is_refused(tmp_path):
    path, header = tmp_path / "a.safetensors", b'{"__metadata__":' + b'{"a":' * 100_000
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(Unreadable):
        pa.load(path)
    path.write_bytes(struct.pack("<Q", 2**62) + header)
    with pytest.raises(Unreadable):
        pa.load(path)


HUGE = 1_000_000


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("trunk", "hidden", [HUGE, HUGE]),  # a layer of 4 TB
        ("trunk", "hidden", [10**12, 10**12]),
        ("trunk", "hidden", [10**30]),
        ("trunk", "hidden", [1] * 10_000),
        ("trunk", "hidden", 3),
        ("trunk", "hidden", "abc"),
        ("trunk", "hidden", [-1]),
        ("trunk", "in_features", 10**12),
        ("trunk", "activation", "__import__"),
        ("trunk", "activation", ["silu"]),
        ("trunk", "surprise", 1),
        ("head", "components", 10**12),
        ("head", "targets", 10**12),
        ("head", "family", {"name": "none"}),
        ("head", "family", {"name": "normal", "interval": [0, 1]}),
        ("head", "family", {"name": "beta", "interval": [1, 0]}),
        ("head", "family", "normal"),
        ("head", "covariance", "full"),
        ("head", "spread", "1"),
        ("head", "spread", -1.0),
        ("head", "surprise", 1),
    ],
)
def test_a_blueprint_that_asks_for_nonsense_is_refused(saved, part, name, value):
    _, path = saved
    reseal(path, lambda _, notes: notes["model"][part].update({name: value}))
    with pytest.raises(Unreadable):
        pa.load(path)


@pytest.mark.parametrize("blueprint", [None, 3, [], {}, {"trunk": {}, "head": {}}, {"trunk": []}])
def test_a_blueprint_of_another_form_is_refused(blueprint):
    with pytest.raises(Unreadable, match="makes no sense"):
        rebuild(blueprint, {})


def test_numbers_of_another_kind_are_refused(saved):
    _, path = saved
    name = "model.trunk.layers.0.weight"
    original = path.read_bytes()
    for change in (
        lambda t, _: t.update({name: t[name].to(torch.int64)}),
        lambda t, _: t.update({name: t[name].to(torch.float64)}),
        lambda t, _: t.update({name: t[name].T.contiguous()}),
        lambda t, _: t.__delitem__(name),
        lambda t, _: t.update({"model.more": torch.ones(1)}),
    ):
        reseal(path, change)
        with pytest.raises(Unreadable):
            pa.load(path)
        path.write_bytes(original)
