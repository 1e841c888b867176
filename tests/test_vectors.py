"""The laws of vector densities: margins, conditionals, draws, algebra and regions."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from random_mixtures import BATCHES, DTYPES, F32, F64, SEEDS, assert_close, random_mixture
from random_vectors import CORRELATED, KINDS, random_vectors, scipy_log_density

import pyralloy as pa
from pyralloy.families import JOINT, SCALE_FLOOR, kind_of
from pyralloy.inference.diagnostics import FitWarning
from pyralloy.mixture import Mixture

every = pytest.mark.parametrize("kind", KINDS)
correlated = pytest.mark.parametrize("kind", CORRELATED)
some = settings(max_examples=8)


def draws_of(m, count, seed=0):
    return m.sample((count,), generator=torch.Generator().manual_seed(seed))


# -- the density ----------------------------------------------------------------------------------


@correlated
@some
@given(seed=SEEDS, dims=st.integers(1, 4))
def test_log_density_is_that_of_scipy(kind, seed, dims):
    m = random_vectors(kind, seed, 3, (), dims)
    y = draws_of(m, 20)
    assert_close(m.log_prob(y), scipy_log_density(kind, m, y), 1e-8)


@every
@some
@given(seed=SEEDS)
def test_a_margin_is_the_integral_of_the_joint_density(kind, seed):
    """Integrated over the dimension left out, in a coordinate that reaches the tails."""
    m = random_vectors(kind, seed, 3, (), 2)
    at = draws_of(m, 5, seed)[:, 0]
    other = m.marginal(1)
    nodes, rule = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(30))
    cuts = 10.0 ** torch.arange(-12, 0, dtype=F64)
    levels = torch.cat([cuts, torch.linspace(0.15, 0.85, 15, dtype=F64), 1 - cuts.flip(0)])
    # Quantiles of each component of the margin: the joint density is smooth between them.
    family = kind_of(other.components)
    edges = family.icdf(other.components, levels[:, None].expand(-1, 3)).flatten().sort().values
    given_first = [
        m.condition({0: float(v)}).components.mean.flatten() for v in at
    ]  # and where it is narrow
    edges = torch.cat([edges, *given_first]).sort().values
    half, middle = edges.diff() / 2, (edges[1:] + edges[:-1]) / 2
    y = (middle[:, None] + half[:, None] * nodes).flatten()
    weights = (half[:, None] * rule).flatten()
    joint = torch.stack([at[:, None].expand(-1, len(y)), y.expand(len(at), -1)], -1)
    total = (m.log_prob(joint).exp() * weights).sum(-1)
    slack = 1e-4 if kind.endswith(" t") else 1e-6  # the tails beyond the last edge are a power's
    assert_close(m.marginal(0).log_prob(at).exp() / total, 1.0, slack)


@every
@some
@given(seed=SEEDS, batch=BATCHES, dtype=DTYPES)
def test_joint_is_margin_times_conditional(kind, seed, batch, dtype):
    m = random_vectors(kind, seed, 4, batch, 3, dtype)
    y = draws_of(m, 1, seed)[0]
    joint = m.log_prob(y)
    slack = (1e-11 if dtype == F64 else 2e-3) * (1 + joint.abs())
    for given_dims in ([0], [2], [2, 0], [1, 2]):
        rest = [d for d in range(3) if d not in given_dims]
        left = m.condition({d: y[..., d] for d in given_dims})
        known = m.marginal(given_dims).log_prob(y[..., given_dims])
        assert left.batch_shape == m.batch_shape and left.dtype == dtype
        found = left.log_prob(y[..., rest[0]] if len(rest) == 1 else y[..., rest])
        assert_close(found + known, joint, slack)


@correlated
def test_conditions_may_be_taken_one_after_another(kind):
    m = random_vectors(kind, 5, 4, (3,), 3)
    y = draws_of(m, 1)[0]
    at_once = m.condition({0: y[:, 0], 2: y[:, 2]})
    first_two = m.condition({2: y[:, 2]}).condition({0: y[:, 0]})
    assert_close(at_once.log_prob(y[:, 1]), first_two.log_prob(y[:, 1]), 1e-10)
    levels = [0.05, 0.5, 0.95]
    assert_close(at_once.quantile(levels), first_two.quantile(levels), 1e-9 * at_once.stddev)


@every
def test_values_given_may_widen_the_batch(kind):
    m = random_vectors(kind, 1, 3, (4,), 2)
    grid = draws_of(m, 5)[..., 0]  # (5, 4)
    left = m.condition({0: grid})
    assert left.batch_shape == (5, 4)
    for i in range(5):
        assert_close(left[i].mean, m.condition({0: grid[i]}).mean, 1e-12 * (1 + left.mean[i].abs()))


@every
def test_margins_may_be_reordered_and_nested(kind):
    m = random_vectors(kind, 2, 3, (2,), 4)
    y = draws_of(m, 1)[0]
    twice = m.marginal([3, 1, 0]).marginal([1, 0])
    assert_close(twice.log_prob(y[:, [1, 3]]), m.marginal([1, 3]).log_prob(y[:, [1, 3]]), 1e-10)
    assert_close(m.marginal(1).cdf(y[:, 1]), m.marginal([1]).marginal(0).cdf(y[:, 1]), 1e-12)


# -- draws and moments ----------------------------------------------------------------------------


@every
def test_draws_are_of_the_density(kind):
    """Rosenblatt's transform of draws is uniform on the cube: margins and dependence together."""
    m = random_vectors(kind, 3, 3, (), 3)
    y = draws_of(m, 4000)
    u = [m.marginal(0).cdf(y[:, 0])]
    u.append(m.condition({0: y[:, 0]}).marginal(0).cdf(y[:, 1]))
    u.append(m.condition({0: y[:, 0], 1: y[:, 1]}).cdf(y[:, 2]))
    u = torch.stack(u, -1)
    for d in range(3):
        assert scipy.stats.kstest(u[:, d].numpy(), "uniform").pvalue > 1e-4
    rank = torch.corrcoef(u.T) - torch.eye(3, dtype=F64)
    assert float(rank.abs().max()) < 4.5 / math.sqrt(4000)


@every
def test_covariance_is_that_of_draws(kind):
    m = random_vectors(kind, 4, 3, (2,), 3)
    if kind.endswith(" t"):  # fourth moments, for the error of the estimate
        c = m.components.base_dist if kind.startswith("diagonal") else m.components
        heavy = torch.full_like(c.df, 9.0)
        c = kind_of(m.components).build([heavy, *kind_of(m.components).values(m.components)[1:]])
        m = Mixture(m.mixture_distribution, c)
    count = 100_000
    y = draws_of(m, count)
    gap = (y - m.mean) / m.stddev
    products = gap[..., :, None] * gap[..., None, :]
    expected = m.covariance_matrix / (m.stddev[..., :, None] * m.stddev[..., None, :])
    assert_close(products.mean(0), expected, 5 * products.std(0) / math.sqrt(count))
    assert_close(expected.diagonal(dim1=-2, dim2=-1), 1.0, 1e-12)


@correlated
def test_the_distribution_draws_as_the_mixture_does(kind):
    c = random_vectors(kind, 8, 1, (), 2).components
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, theirs = (
            draws_of(Mixture(dist.Categorical(torch.ones(1)), c), 4000),
            c.sample((4000,)),
        )
    along = torch.tensor([1.0, 1.0], dtype=F64) / c.variance[0].sqrt()
    test = scipy.stats.ks_2samp((ours @ along).numpy(), (theirs[:, 0] @ along).numpy())
    assert test.pvalue > 1e-4
    assert theirs.shape == (4000, 1, 2) and c.expand((5, 1)).sample().shape == (5, 1, 2)


# -- algebra --------------------------------------------------------------------------------------


@every
@some
@given(seed=SEEDS, batch=BATCHES)
def test_affine_maps_change_density_by_the_jacobian_and_undo(kind, seed, batch):
    m = random_vectors(kind, seed, 3, batch, 2)
    shift, scale = torch.tensor([3.0, -7.0], dtype=F64), torch.tensor([-0.2, 40.0], dtype=F64)
    if kind == "gammas":
        shift, scale = 0.0 * shift, scale.abs()
    y = draws_of(m, 6, seed)
    moved = m.affine(shift, scale)
    assert_close(moved.log_prob(shift + scale * y), m.log_prob(y) - scale.abs().log().sum(), 1e-8)
    back = moved.affine(-shift / scale, 1 / scale)
    assert_close(back.log_prob(y), m.log_prob(y), 1e-7)


@every
def test_pools_average_and_rows_are_their_own(kind):
    a, b = (random_vectors(kind, s, 3, (4,), 2) for s in (1, 1001))
    y = draws_of(a, 1)[0]
    parts = torch.stack([a.log_prob(y), b.log_prob(y)])
    expected = torch.logsumexp(parts + torch.tensor([0.25, 0.75], dtype=F64).log()[:, None], 0)
    assert_close(Mixture.pool([a, b], [1.0, 3.0]).log_prob(y), expected, 1e-12)
    assert_close(a[1:3].log_prob(y[1:3]), a.log_prob(y)[1:3], 1e-14)
    along = Mixture.pool(a, dim=0)
    assert_close(
        along.log_prob(y[0]), (a.log_prob(y[:1].expand(4, 2))).logsumexp(0) - math.log(4), 1e-12
    )
    assert torch.equal(Mixture.pool([a]).log_prob(y), a.log_prob(y))
    shaped = a.reshape(2, 2).log_prob(y.reshape(2, 2, 2)).flatten()
    assert_close(shaped, a.log_prob(y), 1e-14)
    assert a.to(F32).sample((2,)).dtype == F32


def test_pools_of_different_kinds_or_ranks_are_refused():
    full, low = (random_vectors(k, 1, 3, (4,), 3) for k in ("full normal", "low-rank normal"))
    with pytest.raises(ValueError, match=r"'normal, full covariance'.*'normal, low_rank"):
        Mixture.pool([full, low])
    c = low.components
    other = dist.LowRankMultivariateNormal(c.loc, c.cov_factor[..., :1], c.cov_diag)
    with pytest.raises(ValueError, match=r"cov_factor.*one rank"):
        Mixture.pool([low, Mixture(low.mixture_distribution, other)])


@pytest.mark.parametrize("kind", ["full normal", "low-rank normal", "diagonal normal"])
@some
@given(seed=SEEDS)
def test_reduction_keeps_moments_within_its_bound(kind, seed):
    m = random_vectors(kind, seed, 6, (2,), 2)
    fewer, bound = m.reduction(2)
    assert fewer.num_components == 2
    assert_close(fewer.mean, m.mean, 1e-9 * m.stddev)
    unit = m.stddev[..., :, None] * m.stddev[..., None, :]
    gap = (fewer.covariance_matrix - m.covariance_matrix) / unit
    kept = gap if kind != "diagonal normal" else gap.diagonal(dim1=-2, dim2=-1)
    assert_close(kept, 0.0, 1e-9)
    kl = m.kl_to(fewer, 2000, generator=torch.Generator().manual_seed(seed))
    assert bool((kl.value <= bound + 5 * kl.error + 1e-9).all())
    same, none = m.reduction(6)
    y = draws_of(m, 5)
    assert_close(same.log_prob(y), m.log_prob(y), 1e-9)
    assert torch.equal(none, torch.zeros_like(none))


def test_tempered_vectors_shrink_about_their_centres():
    m = random_vectors("full t", 0, 1, (), 2)
    y = draws_of(m, 4)
    half = m.tempered(scale=0.5)
    centre = m.components.loc[0]
    assert_close(half.log_prob(centre + (y - centre) / 2), m.log_prob(y) + 2 * math.log(2), 1e-10)


# -- gradients ------------------------------------------------------------------------------------


@correlated
def test_gradients_are_right(kind):
    m = random_vectors(kind, 6, 2, (), 2)
    values = [v.clone().requires_grad_() for v in kind_of(m.components).values(m.components)]
    y = draws_of(m, 1)[0].requires_grad_()
    logits = m.logits.clone().requires_grad_()

    def made(values):
        values = [v.tril() if v.shape[-2:] == (2, 2) and "full" in kind else v for v in values]
        return Mixture(
            dist.Categorical(logits=logits, validate_args=False),
            kind_of(m.components).build(values), validate_args=False,
        )  # fmt: skip

    assert torch.autograd.gradcheck(lambda y, w, *v: made(v).log_prob(y), (y, logits, *values))
    assert torch.autograd.gradcheck(
        lambda y, w, *v: made(v).condition({1: y[1]}).crps(y[0]), (y, logits, *values), atol=1e-4
    )


# -- regions --------------------------------------------------------------------------------------


def test_the_level_set_of_a_normal_is_its_ellipsoid():
    tril = torch.tensor([[[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.3, 1.0]]], dtype=F64)
    m = Mixture(
        dist.Categorical(torch.ones(1, dtype=F64)),
        dist.MultivariateNormal(torch.zeros(1, 3, dtype=F64), scale_tril=tril),
    )
    found = m.level_set(0.9, draws=200_000, generator=torch.Generator().manual_seed(0))
    radius2 = scipy.stats.chi2(3).ppf(0.9)
    exact = float(m.log_prob(torch.zeros(3, dtype=F64))) - radius2 / 2
    # The mass errs by mass_error; the log density by half the slope of chi-squared's quantile.
    slope = 0.5 / scipy.stats.chi2(3).pdf(radius2)
    assert abs(float(found.log_density) - exact) < 4 * found.mass_error * slope
    volume = 4 / 3 * math.pi * radius2**1.5 * float(tril[0].det())
    share = 1.5 / radius2 * 2 * slope * found.mass_error  # of the volume, from the level's error
    assert abs(float(found.volume()) / volume - 1) < 4 * (share + float(found.size.error) / volume)
    assert 0 < float(found.size.error) < 0.02 * volume


@every
def test_a_level_set_holds_its_level_of_fresh_draws(kind):
    m = random_vectors(kind, 9, 3, (2, 2), 2)
    found = m.level_set(0.8, draws=20_000, generator=torch.Generator().manual_seed(0))
    held = found.contains(draws_of(m, 20_000, seed=1)).to(F64).mean(0)
    assert_close(held, 0.8, 4.5 * math.sqrt(2) * found.mass_error)
    assert found.batch_shape == found.volume().shape == (2, 2)
    assert "LevelSet(level=0.8" in repr(found)
    y = draws_of(m, 3)
    assert torch.equal(found.contains(y), m.log_prob(y) >= found.log_density)
    assert torch.equal(found.contains(y.numpy()), found.contains(y))


# -- from a network to a fit ----------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "low_rank"])
@pytest.mark.parametrize("family", ["normal", "student_t"])
@given(power=st.integers(0, 4), seed=st.integers(0, 99))
@some
def test_no_output_of_a_network_makes_a_density_infinite(family, covariance, power, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = pa.MixtureHead(8, 5, 3, family=family, covariance=covariance)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(10.0**power)
    h = torch.randn(50, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    density = head(h)
    log_prob = density.log_prob(torch.zeros(50, 3))
    (gradient,) = torch.autograd.grad(log_prob.sum(), h)
    assert bool(log_prob.isfinite().all()) and bool(gradient.isfinite().all())
    assert float(density.components.variance.detach().min()) >= 0.999 * SCALE_FLOOR**2


@pytest.mark.parametrize("covariance", ["full", "low_rank"])
@pytest.mark.parametrize("family", ["normal", "student_t"])
def test_a_head_starts_its_components_where_they_are_put(family, covariance):
    head = pa.MixtureHead(4, 3, 2, family=family, covariance=covariance)
    loc, scale = torch.tensor([[0.0, 1.0], [-1.0, 2.0], [3.0, 3.0]]), torch.full((3, 2), 0.5)
    head.place(loc, scale)
    components = head(torch.zeros(1, 4)).detach().components
    assert torch.allclose(components.mean[0], loc, atol=1e-4)
    ratio = (components.variance[0].sqrt() / scale).log()
    assert float(ratio.abs().max()) < (1e-3 if covariance == "full" else 0.1)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_a_fit_finds_the_correlation_that_depends_on_x(covariance):
    source = torch.Generator().manual_seed(0)
    x = torch.rand(3000, 1, generator=source, dtype=F64) * 2 - 1
    noise = torch.randn(3000, 2, generator=source, dtype=F64)
    rho = 0.9 * x[:, 0]
    second = rho * noise[:, 0] + (1 - rho.square()).sqrt() * noise[:, 1]
    y = torch.stack([100.0 * noise[:, 0], 0.01 * second], -1)
    model = pa.MDN(pa.networks.MLP(1, (32,)), pa.MixtureHead(32, 1, 2, covariance=covariance))
    with warnings.catch_warnings():
        if covariance == "diagonal":  # to which x says nothing
            warnings.simplefilter("ignore", FitWarning)
        fit = pa.fit(model, x, y, max_steps=600, seed=0, progress=False)
    density = fit.density(torch.tensor([[-0.9], [0.0], [0.9]]))
    found = density.covariance_matrix[:, 0, 1] / density.stddev.prod(-1)
    exact = torch.tensor([-0.81, 0.0, 0.81], dtype=F64)
    if covariance == "diagonal":
        assert torch.equal(found, torch.zeros_like(found))
    else:
        assert_close(found, exact, 0.12)
        # Knowing the first dimension tells of the second, in its own units.
        known = fit.density(torch.tensor([[0.9]])).condition({0: 100.0})
        assert_close(known.mean, 0.0081, 0.0012)


def test_the_regressor_passes_covariance_on():
    x = np.linspace(-1, 1, 200)[:, None]
    y = np.stack([x[:, 0], 2 * x[:, 0]], -1) + np.random.default_rng(0).normal(size=(200, 2)) / 10
    mdn = pa.MDNRegressor(2, (8,), covariance="full", max_steps=20, random_state=0).fit(x, y)
    density = mdn.predict_density(x[:3])
    assert kind_of(density.components) is JOINT["normal", "full"]
    assert density.covariance_matrix.shape == (3, 2, 2)


# -- errors ---------------------------------------------------------------------------------------

VECTOR, SCALAR = random_vectors("full normal", 0, 3, (4,), 2), random_mixture(0, 3, (4,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SCALAR.condition({0: 1.0}), "condition needs a density of a vector"),
        (lambda: SCALAR.covariance_matrix, "covariance_matrix needs a density of a vector"),
        (lambda: SCALAR.level_set(0.9), "highest_density_region"),
        (lambda: VECTOR.highest_density_region(0.9), "level_set"),
        (lambda: VECTOR.level_set(1.0), "level=1.0"),
        (lambda: VECTOR.level_set(0.9, draws=10), "draws=10"),
        (lambda: VECTOR.condition({}), "dims=\\[\\]"),
        (lambda: VECTOR.condition({2: 0.0}), "dims=\\[2\\].*0 to 1"),
        (lambda: VECTOR.condition({0: 0.0, -2: 0.0}), "none twice"),
        (lambda: VECTOR.condition({0: 0.0, 1: 0.0}), "leave one"),
        (lambda: VECTOR.condition({0: math.nan}), "given\\[0\\]=nan.*finite"),
        (lambda: VECTOR.condition({0: torch.zeros(3)}), "given\\[0\\] has shape \\(3,\\)"),
        (lambda: VECTOR.marginal([0, 0]), "none twice"),
        (lambda: pa.MixtureHead(4, 2, 2, covariance="spherical"), "covariance='spherical'.*choose"),
        (lambda: pa.MixtureHead(4, 2, covariance="full"), "needs a vector y: give targets"),
        (
            lambda: pa.MixtureHead(4, 2, 2, family="gamma", covariance="full"),
            "covariance='diagonal'",
        ),
        (lambda: pa.MixtureHead(4, 2, 2, covariance="full", rank=2), "rank=2 is for"),
        (lambda: pa.MixtureHead(4, 2, 2, covariance="low_rank", rank=0), "rank=0"),
        (lambda: pa.MixtureHead(4, 2, 2, covariance="full", constant_scale=True), "constant_scale"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
