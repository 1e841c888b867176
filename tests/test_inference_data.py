"""Trees: what is in them is what the density says, and ArviZ works on them."""

import warnings

import exact_linear
import numpy as np
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import autoguide

import pyralloy as pa
from pyralloy.calibration import loo_pit
from pyralloy.inference_data import density_to_arviz, posterior_to_arviz, to_arviz

pytest.importorskip("arviz_base")
F64 = torch.float64


def mixtures(rows=30, seed=0, batch=()):
    g = torch.Generator().manual_seed(seed)
    loc = torch.randn(*batch, rows, 3, generator=g, dtype=F64)
    logits = torch.randn(*batch, rows, 3, generator=g, dtype=F64)
    return pa.Mixture(dist.Categorical(logits=logits), dist.Normal(loc, 0.5))


@pytest.fixture
def tree():
    m = mixtures()
    y = m.sample(generator=torch.Generator().manual_seed(1))
    return to_arviz(m, torch.arange(30.0), y, draws=200), m, y


@pytest.fixture(scope="module")
def bayes():
    x, y = exact_linear.problem(60)
    weights = exact_linear.draw(x, y, draws=500)
    stats = {
        "diverging": np.zeros((2, 500), bool),
        "energy": np.random.default_rng(0).random((2, 500)),
    }
    return (
        posterior_to_arviz(
            {"slope": weights},
            exact_linear.densities(weights, x),
            x,
            y,
            sample_stats=stats,
            dims={"slope": ["feature"]},
        ),
        x,
        y,
        weights,
    )


def test_what_a_density_says_is_in_its_tree(tree):
    tree, m, y = tree
    np.testing.assert_allclose(tree["mixture"]["weight"], m.weights)
    np.testing.assert_allclose(tree["mixture"]["loc"], m.components.mean)
    assert tree["mixture"]["scale"].dims == ("obs", "component")
    np.testing.assert_allclose(tree["pit"]["y"][0], m.cdf(y))
    np.testing.assert_allclose(tree["pointwise"]["log_score"], -m.log_prob(y))
    np.testing.assert_allclose(tree["pointwise"]["crps"], m.crps(y))
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)
    drawn = tree["posterior_predictive"]["y"]
    assert drawn.dims == ("chain", "draw", "obs")
    assert drawn.shape == (1, 200, 30)
    error = 5 * m.stddev.numpy() / 200**0.5
    assert (np.abs(drawn.mean(("chain", "draw")) - m.mean.numpy()) < error).all()
    assert "posterior" not in tree.children
    assert "log_likelihood" not in tree.children


def test_loo_of_a_density_is_refused_with_what_to_use_instead(tree):
    az = pytest.importorskip("arviz_stats")
    for function in (az.loo, az.loo_pit, lambda t: az.loo(t.copy())):
        with pytest.raises(TypeError, match="held-out log scores"):
            function(tree[0])
    with pytest.raises(TypeError) as caught:
        az.compare({"a": tree[0], "b": tree[0]})
    assert "held-out log scores" in str(caught.value.__cause__)


def test_names_of_a_data_frame_are_kept():
    pandas = pytest.importorskip("pandas")
    m = mixtures(3)
    x = pandas.DataFrame({"dose": [1.0, 2.0, 3.0], "age": 4.0}, index=["ann", "bob", "cyd"])
    found = to_arviz(m, x, pandas.Series([0.0, 1.0, 2.0], index=x.index), draws=10)
    assert found["constant_data"]["x"].sel(obs="bob", feature="dose") == 2.0
    assert found["pit"]["y"].sel(obs="cyd").shape == (1,)
    by_y = to_arviz(m, x.to_numpy(), pandas.Series([0.0, 1.0, 2.0], index=[7, 8, 9]), draws=10)
    assert by_y["observed_data"]["y"].obs.values.tolist() == [7, 8, 9]
    assert by_y["constant_data"]["x"].feature.values.tolist() == ["x0", "x1"]


def test_members_are_kept_apart_and_pooled():
    m = mixtures(20, batch=(4,))
    y = torch.zeros(20, dtype=F64)
    found = to_arviz(m, torch.arange(20.0), y, draws=10)
    pool = pa.Mixture.pool(m)
    np.testing.assert_allclose(found["pointwise"]["log_score"], -pool.log_prob(y))
    np.testing.assert_allclose(found["pointwise"]["member_log_score"], -m.log_prob(y))
    assert found["mixture"]["loc"].dims == ("member", "obs", "component")
    assert found["posterior_predictive"]["y"].sizes["chain"] == 1


def test_a_vector_has_targets():
    joint = pa.Mixture(
        dist.Categorical(torch.ones(5, 2)),
        dist.MultivariateNormal(torch.zeros(5, 2, 3), scale_tril=torch.eye(3).expand(5, 2, 3, 3)),
    )
    found = to_arviz(joint, torch.arange(5.0), torch.zeros(5, 3), draws=7)
    assert found["posterior_predictive"]["y"].dims == ("chain", "draw", "obs", "target")
    assert found["mixture"]["scale_tril"].dims[2:] == ("target", "target_bis")
    assert "pit" not in found.children


def test_a_fit_is_converted_in_pieces_that_change_nothing(monkeypatch):
    problem = pa.datasets.sinusoid(40, seed=0)
    model = pa.MDN(pa.networks.MLP(1, hidden=(8,)), pa.MixtureHead(8, components=2))
    fit = pa.fit(model, problem.x, problem.y, max_steps=20, progress=False)
    found = to_arviz(fit, problem.x, problem.y, draws=5)
    score = -fit.density(problem.x).log_prob(problem.y)
    np.testing.assert_allclose(found["pointwise"]["log_score"], score, rtol=1e-5)
    monkeypatch.setattr("pyralloy.inference_data.CHUNK", 8)
    small = density_to_arviz(
        lambda rows: fit.density(problem.x[rows]), problem.x, problem.y, draws=5
    )
    np.testing.assert_allclose(small["pit"]["y"], found["pit"]["y"], rtol=1e-6)


def test_a_posterior_tree_has_exact_cdfs(bayes):
    tree, x, y, weights = bayes
    density = exact_linear.densities(weights, x)(slice(None))
    at = torch.from_numpy(y)
    np.testing.assert_allclose(
        tree["predictive_cdf"]["y"].values.reshape(1000, 60), density.cdf(at), rtol=1e-12
    )
    np.testing.assert_allclose(
        tree["log_likelihood"]["y"].values.reshape(1000, 60), density.log_prob(at), rtol=1e-12
    )
    pool = pa.Mixture.pool(density)
    np.testing.assert_allclose(tree["pointwise"]["log_score"], -pool.log_prob(at), rtol=1e-10)
    np.testing.assert_allclose(tree["pit"]["y"][0], pool.cdf(at), rtol=1e-10)
    assert tree["posterior"]["slope"].dims == ("chain", "draw", "feature")
    assert "diverging" in tree["sample_stats"]


def test_leave_one_out_of_a_tree_agrees_with_refits(bayes):
    tree, x, y, _ = bayes
    found = loo_pit(tree["log_likelihood"]["y"].values, tree["predictive_cdf"]["y"].values)
    pit, _ = exact_linear.left_out(x, y)
    assert np.abs(found.pit - pit).max() < 0.02


def test_arviz_works_on_a_posterior_tree(bayes):
    az = pytest.importorskip("arviz_stats")
    tree, x, y, _ = bayes
    table = az.summary(tree)
    assert len(table) == 3
    loo = az.loo(tree, pointwise=True)
    _, log_density = exact_linear.left_out(x, y)
    assert float(loo.elpd) == pytest.approx(log_density.sum(), abs=0.5)
    pit, _ = exact_linear.left_out(x, y)
    theirs = az.loo_pit(tree)["y"].values
    assert np.abs(theirs - pit).max() < 0.1  # of draws; ours, of cdfs, is within 0.02
    narrow = exact_linear.densities(0.5 * tree["posterior"]["slope"].values, x)
    other = posterior_to_arviz({"slope": 0.5 * tree["posterior"]["slope"].values}, narrow, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ calls what pandas 3.1 deprecates
        ranked = az.compare({"right": tree, "halved": other})
    assert list(ranked.index) == ["right", "halved"]


def small_fit(how):
    problem = pa.datasets.sinusoid(40, seed=0)
    prior = None if how == "ml" else pa.priors.FanIn()
    model = pa.MDN(pa.networks.MLP(1, hidden=(4,)), pa.MixtureHead(4, components=2), prior=prior)
    if how == "nuts":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few draws say little
            fit = pa.nuts(model, problem.x, problem.y, warmup=20, draws=60, depth=4, progress=False)
        return fit, problem
    options = {"max_steps": 60, "validation": None, "progress": False}
    options |= {} if how == "ml" else {"guide": GUIDES[how]}
    return pa.fit(model, problem.x, problem.y, **options), problem


GUIDES = {
    "map": autoguide.AutoDelta,
    "mean field": autoguide.AutoNormal,
    "low rank": autoguide.AutoLowRankMultivariateNormal,
    "laplace": autoguide.AutoLaplaceApproximation,
}


@pytest.mark.parametrize("how", ["ml", "map"])
def test_a_fit_of_one_value_of_the_weights_is_a_density(how):
    fit, problem = small_fit(how)
    found = fit.to_arviz(problem.x, problem.y, draws=7)
    density = fit.density(problem.x)
    np.testing.assert_allclose(found["pit"]["y"][0], density.cdf(problem.y.double()), rtol=1e-6)
    assert found["posterior_predictive"]["y"].sizes["draw"] == 7
    assert "posterior" not in found.children


@pytest.mark.parametrize(
    ("how", "chains", "draws"),
    [("mean field", 1, 50), ("low rank", 1, 50), ("laplace", 1, 50), ("nuts", 2, 25)],
)
def test_a_fit_s_posterior_is_its_tree(how, chains, draws):
    fit, problem = small_fit(how)
    found = fit.to_arviz(problem.x, problem.y, draws=50)
    cdf = found["predictive_cdf"]["y"]
    # 60 draws a chain, of which each second is kept where 50 of 120 are asked for.
    kept = 20 if how == "nuts" else draws
    assert cdf.shape == (chains, kept, 40)
    weights = {n: torch.from_numpy(v.values).flatten(0, 1) for n, v in found.posterior.items()}
    assert set(weights) == set(fit.model.weights())
    each = fit.model.densities(problem.x, weights)
    y = problem.y.double()
    np.testing.assert_allclose(cdf.values.reshape(-1, 40), each.cdf(y), rtol=1e-5, atol=1e-7)
    score = found["log_likelihood"]["y"].values.reshape(-1, 40)
    np.testing.assert_allclose(score, each.log_prob(y), rtol=1e-5, atol=1e-5)
    assert found.posterior["head.outputs.weight"].dims[2:] == (
        "head.outputs.out",
        "head.outputs.in",
    )
    assert found.posterior["head.outputs.bias"].dims[2:] == ("head.outputs.out",)
    again = to_arviz(fit, problem.x, problem.y, draws=50)
    np.testing.assert_array_equal(again["posterior_predictive"]["y"], found.posterior_predictive.y)


def test_chains_tell_what_the_sampler_did():
    fit, problem = small_fit("nuts")
    stats = fit.to_arviz(problem.x, problem.y)["sample_stats"]
    assert stats["diverging"].shape == (2, 60)
    assert stats["diverging"].sum("draw").values.tolist() == list(fit.chains.divergences)
    mean = stats["acceptance_rate"].mean("draw").values
    np.testing.assert_allclose(mean, fit.chains.acceptance, atol=6e-4)  # Pyro's are of 3 digits
    steps, depth = stats["n_steps"].values, stats["tree_depth"].values
    assert ((steps >= 2 ** (depth - 1)) & (steps < 2**depth)).all()
    assert depth.max() <= 4
    assert np.ptp(stats["step_size"].values, axis=1).max() == 0


def test_the_pit_of_counts_is_uniform_and_that_of_vectors_absent():
    rate = torch.full((4000, 1), 1.5)
    m = pa.Mixture(dist.Categorical(torch.ones(4000, 1)), dist.Poisson(rate))
    y = m.sample(generator=torch.Generator().manual_seed(0))
    pit = to_arviz(m, torch.arange(4000.0), y, draws=2)["pit"]["y"].values[0]
    assert stats_of_uniform(pit) > 0.01
    loc = torch.zeros(6, 5, 2, 3)
    joint = pa.Mixture(dist.Categorical(torch.ones(6, 5, 2)), dist.Normal(loc, 1.0).to_event(1))
    tree = posterior_to_arviz(
        {"w": np.zeros((2, 3))}, lambda r: joint[:, r], torch.arange(5.0), torch.zeros(5, 3)
    )
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "obs", "target")
    np.testing.assert_allclose(tree["log_likelihood"]["y"], -1.5 * np.log(2 * np.pi), rtol=1e-6)
    assert "predictive_cdf" not in tree.children


def stats_of_uniform(values):
    from scipy.stats import kstest

    return kstest(values, "uniform").pvalue


def test_arviz_works_on_the_tree_of_a_fit():
    az = pytest.importorskip("arviz_stats")
    fit, problem = small_fit("mean field")
    tree = fit.to_arviz(problem.x, problem.y, draws=200)
    assert len(az.summary(tree)) == sum(w.numel() for w in fit.model.weights().values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few draws, and of rows that few others resemble
        loo = az.loo(tree, pointwise=True)
        assert np.isfinite(float(loo.elpd))
        assert az.loo_pit(tree)["y"].sizes["obs"] == 40


def test_arviz_draws_the_trees(bayes, tree):
    az, plots = pytest.importorskip("arviz_stats"), pytest.importorskip("arviz_plots")
    from matplotlib import pyplot as plt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries, about one another
        for each in (bayes[0], tree[0]):
            plots.plot_ppc_pit(each, backend="matplotlib")
            plots.plot_ecdf_pit(each, group="pit", sample_dims=["obs"], backend="matplotlib")
            plots.plot_ppc_dist(each, backend="matplotlib")
        plots.plot_khat(az.loo(bayes[0], pointwise=True), backend="matplotlib")
    plt.close("all")


def test_a_file_and_back(bayes, tree, tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    pytest.importorskip("h5py")
    for each in (bayes[0], tree[0]):
        each.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
        again = xarray.open_datatree(tmp_path / "tree.nc", engine="h5netcdf")
        assert set(again.children) == set(each.children)
        for group in each.children:
            xarray.testing.assert_allclose(again[group].to_dataset(), each[group].to_dataset())
        again.close()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x, y: to_arviz(m, x, y[:5]), ValueError, "x has 30 rows and y has 5"),
        (lambda m, x, y: to_arviz("fit", x, y), TypeError, "give a Fit, or a Mixture"),
        (lambda m, x, y: to_arviz(m, x, y, draws=0), ValueError, "draws=0"),
        (
            lambda m, x, y: posterior_to_arviz({"w": np.ones(3)}, lambda r: m[r], x, y),
            ValueError,
            r"give \(chain, draw, ...\)",
        ),
        (
            lambda m, x, y: posterior_to_arviz(
                {"w": np.ones((2, 3))}, lambda r: m[r].expand((5, r.stop - r.start)), x, y
            ),
            ValueError,
            "gives 5 draws",
        ),
        (lambda m, x, y: density_to_arviz(lambda r: m, x, y), ValueError, "one density a row"),
    ],
)
def test_errors_name_the_argument_and_the_rule(call, error, message):
    m = mixtures()
    with pytest.raises(error, match=message):
        call(m, torch.arange(30.0), torch.zeros(30))
