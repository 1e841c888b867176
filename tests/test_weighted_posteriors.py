"""Weights of rows, by every method of inference: a row of weight 2 counts as two."""

import pytest
import torch
from conjugate import conjugate_model, conjugate_rows, exact_posterior
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from test_ensemble import HELD, PROBLEM, assert_same_but_narrower, make_model, run, seeds_of

import pyralloy as pa
from pyralloy import priors
from pyralloy.inference.potential import Potential

X, Y = conjugate_rows(60)
COUNTS = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(0))
REPEATED = X.repeat_interleave(COUNTS, 0), Y.repeat_interleave(COUNTS)
TOTAL = int(COUNTS.sum())


def test_laplace_of_weighted_rows_is_that_of_repeated_ones():
    model = conjugate_model()
    fit = pa.fit(
        model,
        X,
        Y,
        guide=AutoLaplaceApproximation,
        weights=COUNTS,
        size=TOTAL,
        validation=None,
        max_steps=60,
        progress=False,
    )
    mean, covariance, _ = exact_posterior(model, *REPEATED)
    spread = covariance.diagonal().sqrt()
    assert float(((fit.posterior.loc - mean) / spread).abs().max()) < 0.02
    apart = (fit.posterior.covariance - covariance) / spread / spread[:, None]
    assert float(apart.abs().max()) < 0.02


def test_without_a_size_weights_count_as_many_rows_as_there_are():
    """By the potential, at whose minimum the most probable weights lie."""
    model = conjugate_model()
    weights = torch.rand(60, generator=torch.Generator().manual_seed(1)) + 0.1
    options = {"weights": weights, "validation": None, "max_steps": 60, "progress": False}
    fit = pa.fit(model, X, Y, guide=AutoLaplaceApproximation, **options)
    z, t = model.x_scaling(X, torch.float32), model.y_scaling(Y, torch.float32)
    potential = Potential(model, z, t, counts=weights / weights.mean())
    gap = potential.minimise(potential.start) - fit.posterior.loc
    spread = fit.posterior.covariance.diagonal().sqrt()
    assert float((gap / spread).abs().max()) < 0.01


@pytest.mark.slow
def test_chains_of_weighted_rows_follow_the_posterior_of_repeated_ones():
    model = conjugate_model()
    options = {"warmup": 200, "draws": 600, "chains": 2, "seed": 1, "progress": False}
    fit = pa.nuts(model, X, Y, weights=COUNTS, size=TOTAL, **options)
    mean, covariance, _ = exact_posterior(model, *REPEATED)
    spread = covariance.diagonal().sqrt()
    drawn = torch.cat([v.flatten(2) for v in fit.posterior.chains.values()], -1).double()
    error = 1 / float(fit.chains.ess.min()) ** 0.5
    drawn = drawn.flatten(0, 1)
    assert float(((drawn.mean(0) - mean) / spread).abs().max()) < 4 * error
    apart = (torch.cov(drawn.T) - covariance) / spread / spread[:, None]
    assert float(apart.abs().max()) < 4 * 2**0.5 * error


@pytest.mark.slow
def test_a_mean_field_of_weighted_rows_narrows_as_their_number_grows():
    """Deviations of independent weights go as one over the root of the number of rows."""
    deviations = []
    for size in (60, 6000):
        fit = pa.fit(
            conjugate_model(),
            X,
            Y,
            guide=AutoNormal,
            weights=torch.ones(60),
            size=size,
            validation=None,
            batch_size=60,
            learning_rate=0.005,
            max_steps=4000,
            progress=False,
        )
        deviations.append(fit.weights(4000)["head.outputs.weight"].std(0).amin())
    assert float(deviations[1] / deviations[0]) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("options", [{}, {"patience": 3, "learning_rate": 0.2}])
def test_a_weighted_member_has_the_weights_it_would_have_alone(options):
    weights = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {
        "weights": weights,
        "validation": (HELD.x, HELD.y, HELD.y.abs() + 0.1),
        "max_steps": 100,
        "batch_size": 32,
        **options,
    }
    together = run(lambda seed: make_model(seed, dtype=torch.float64), **options)
    drawn = together.weights()
    ends = []
    for number, seed in enumerate(seeds_of(3)):
        model = make_model(seed, dtype=torch.float64)
        alone = pa.fit(model, PROBLEM.x, PROBLEM.y, seed=seed, progress=False, **options)
        ends.append(alone.history.step[-1])
        own = {name: values[number] for name, values in drawn.items()}
        assert_same_but_narrower(own, alone.model.weights(), within=1e-7)
    assert together.history.step[-1] == max(ends)
    assert max(ends) == 100 or "patience" in options


def test_members_with_unlike_numbers_of_rows_take_batches_of_all_they_share():
    """Copies are held out together, so that members differ in how many rows they keep."""
    repeated = REPEATED[0][:40, :1], REPEATED[1][:40]
    fit = pa.ensemble(
        make_model, *repeated, members=3, batch_size=40, max_steps=3, progress=False, validation=0.3
    )
    assert bool(fit.density(HELD.x).mean.isfinite().all())


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
def test_members_of_a_guide_take_weights(guide):
    weights = torch.rand(400, generator=torch.Generator().manual_seed(0))

    def fitted(**options):
        options = {"max_steps": 20, "members": 2} | options
        make = lambda seed: make_model(seed, prior=priors.FanIn())  # noqa: E731
        return run(make, guide=guide, **options).density(HELD.x, draws=4).mean

    weighted = fitted(weights=weights)
    assert not torch.allclose(weighted, fitted())
    assert not torch.allclose(weighted, fitted(weights=weights, size=4.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 400}, "size=400 goes with batches in place of x and y, or with weights"),
        ({"size": 0, "weights": torch.ones(400)}, "size=0"),
        ({"patience": 3, "validation": None}, "patience=3 needs held-out rows"),
        ({"weights": torch.ones(3)}, "weights has shape"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
