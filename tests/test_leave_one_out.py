"""Leave-one-out from one posterior agrees with refits, and says where it does not."""

import exact_linear
import numpy as np
import pytest
import torch
from scipy.special import ndtri

from pyralloy.calibration import loo_pit

pytest.importorskip("arviz_stats")


def matrices(x, y, weights):
    density = exact_linear.densities(weights, x)(slice(None))
    value = torch.from_numpy(y)
    shape = (*weights.shape[:2], len(y))
    return (v.numpy().reshape(shape) for v in (density.log_prob(value), density.cdf(value)))


def test_it_agrees_with_sixty_refits():
    x, y = exact_linear.problem(60)
    log_p, cdf = matrices(x, y, exact_linear.draw(x, y))
    found = loo_pit(log_p, cdf)
    pit, log_density = exact_linear.left_out(x, y)
    assert len(found.unreliable) == 0
    # 4,000 draws; the largest difference over the rows is 0.0041 here.
    assert np.abs(found.pit - pit).max() < 0.008
    assert np.abs(found.elpd - log_density).max() < 0.05
    naive = cdf.mean((0, 1))
    assert np.abs(found.pit - pit).max() < np.abs(naive - pit).max() / 2
    assert "every row is reliable" in str(found)


def test_a_row_that_rules_its_own_posterior_is_shown():
    x, y = exact_linear.problem(60)
    x[7], y[7] = [1.0, 30.0, 0.0], 60.0  # far out, and off the line
    log_p, cdf = matrices(x, y, exact_linear.draw(x, y))
    found = loo_pit(log_p, cdf)
    assert 7 in found.unreliable
    assert found.k_hat[7] == found.k_hat.max() > 0.7
    assert "refit without rows 7" in str(found)
    assert "refit without row" in str(found)
    others = np.arange(60) != 7
    pit, _ = exact_linear.left_out(x, y)
    assert np.abs(found.pit - pit)[others].max() < 0.02


def test_weights_agree_with_arviz():
    import arviz_stats as az

    x, y = exact_linear.problem(40)
    log_p, cdf = matrices(x, y, exact_linear.draw(x, y, draws=500))
    from arviz_base import from_dict

    weights = exact_linear.draw(x, y, draws=500)
    tree = from_dict({"posterior": {"b": weights}, "log_likelihood": {"y": log_p}})
    theirs = az.loo(tree, pointwise=True, reff=1.0)
    ours = loo_pit(log_p, cdf)
    np.testing.assert_allclose(ours.elpd, theirs.elpd_i.values, rtol=1e-6)
    np.testing.assert_allclose(ours.k_hat, theirs.pareto_k.values, rtol=1e-6)


def test_the_pit_is_off_zero_and_one():
    log_p = np.random.default_rng(0).standard_normal((200, 3))
    cdf = np.tile([0.0, 0.5, 1.0], (200, 1))
    found = loo_pit(log_p, cdf).pit
    assert 0 < found[0] < 1e-6
    assert 1 - 1e-6 < found[2] < 1
    assert np.isfinite(ndtri(found)).all()


@pytest.mark.parametrize(
    ("log_p", "cdf", "message"),
    [
        (np.zeros((200, 3)), np.zeros((200, 4)), r"cdf \(200, 4\)"),
        (np.zeros((50, 3)), np.zeros((50, 3)), "at least 100"),
        (np.zeros((200, 3)), np.full((200, 3), 1.5), "give probabilities"),
        (np.full((200, 3), -np.inf), np.zeros((200, 3)), "not finite at 3 rows"),
        (np.zeros(200), np.zeros(200), r"give \(S, N\)"),
    ],
)
def test_errors_name_the_argument_and_the_rule(log_p, cdf, message):
    with pytest.raises(ValueError, match=message):
        loo_pit(log_p, cdf)
