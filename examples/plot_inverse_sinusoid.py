r"""
One x, several answers
======================

A cause determines its effect up to noise: :math:`7 \sin(0.75\,c) + 0.5\,c + \varepsilon`. To
predict the effect from the cause is ordinary regression, and least squares does it. To predict the
cause from the effect is not: as many as five causes explain one effect, and least squares returns
their average, which is none of them. A mixture density network returns all of them, each with its
probability.

The kind of problem is that of Bishop (1994). Its law is known here, so the network is held against
the exact conditional density and its entropy, the limit of any model's log score.
"""

import os
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt

import pyralloy as pa

FOLDER = os.environ.get("PYRALLOY_FIGURES")  # where to save the figures; unset: only draw them
PANEL = {"figsize": (5.2, 3.6), "layout": "constrained"}
if FOLDER:
    plt.switch_backend("Agg")


def keep(figure, name):
    """Save a figure where figures are asked for."""
    if FOLDER:
        path = Path(FOLDER) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        print(path)


# %%
# From cause to effect
# --------------------
# Least squares *is* a mixture density network: one Normal component, whose scale does not depend on
# x. Its likelihood is highest where the squared error is lowest. The noise has variance 1, so that
# is the least error there can be.


def least_squares(problem, fresh):
    """Fit one Normal of constant scale; draw its mean; give the squared error on fresh points."""
    trunk = pa.networks.MLP(1, hidden=(64, 64))
    head = pa.MixtureHead(trunk.out_features, components=1, constant_scale=True)
    fit = pa.fit(pa.MDN(trunk, head), problem.x, problem.y, progress=False)
    figure, ax = plt.subplots(**PANEL)
    pa.plot.data(problem.x, problem.y, ax=ax)
    grid = torch.linspace(float(problem.x.min()), float(problem.x.max()), 400)
    density = fit.density(grid)
    band = density.interval(0.95)
    ax.fill_between(grid, *band, color="C0", alpha=0.2, lw=0, label="95 % interval")
    ax.plot(grid, density.mean, color="C0", lw=2, label="least squares")
    ax.legend(frameon=False, loc="upper left", markerscale=3)
    keep(figure, f"least_squares_{problem.name.replace(' ', '_')}")
    return float((fit.density(fresh.x).mean - fresh.y).square().mean())


forward = pa.datasets.sinusoid(2500, seed=0)
forward_error = least_squares(forward, pa.datasets.sinusoid(100_000, seed=1))

# %%
# From effect to cause
# --------------------
# The same 2,500 points with the axes exchanged. Over most of the range several y lie above one x.

problem = pa.datasets.inverse_sinusoid(2500, seed=0)
fresh = pa.datasets.inverse_sinusoid(100_000, seed=1)
figure, ax = plt.subplots(**PANEL)
pa.plot.data(problem.x, problem.y, ax=ax)
keep(figure, "data")

# %%
# Least squares answers with the average of the branches, where hardly any data lie, in a band that
# covers them all. The error of about 22 is no fault of training: the exact conditional mean does
# hardly better.

inverse_error = least_squares(problem, fresh)

x_grid, y_grid = torch.linspace(-16.0, 16.0, 641), torch.linspace(-12.0, 12.0, 961)
exact = problem.log_density(x_grid, y_grid[:, None]).exp()  # (961, 641)
exact_mean = (exact * y_grid[:, None]).sum(0) / exact.sum(0)
least_error = np.square(np.interp(fresh.x[:, 0], x_grid, exact_mean) - fresh.y.numpy()).mean()

# %%
# A mixture density network
# -------------------------
# One hidden layer of 100 ReLU and 20 components, whose means, scales and weights all depend on x.

trunk = pa.networks.MLP(1, hidden=(100,), activation=torch.nn.ReLU)
model = pa.MDN(trunk, pa.MixtureHead(trunk.out_features, components=20))
fit = pa.fit(model, problem.x, problem.y, progress=False)

# %%
# Ten samples at each of 2,500 inputs, in one call.

x_new = torch.linspace(-15.0, 15.0, 2500)
draws = fit.density(x_new).sample((10,), generator=torch.Generator().manual_seed(0))  # (10, 2500)

figure, ax = plt.subplots(**PANEL)
pa.plot.samples(x_new, draws, ax=ax)
pa.plot.data(problem.x, problem.y, ax=ax)
ax.legend(frameon=False, loc="upper left", markerscale=3)
keep(figure, "samples")

# %%
# Which component speaks where? Each line is the mean of one, as opaque as its weight is large.

figure, ax = plt.subplots(**PANEL)
pa.plot.data(problem.x, problem.y, ax=ax, color="0.85", label=None)
pa.plot.components(x_new, fit.density(x_new), ax=ax)
figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=3)
keep(figure, "components")

# %%
# Beside the truth
# ----------------
# The whole density, and the exact one in the same shades.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
pa.plot.density(x_grid, y_grid, fit.density(x_grid), ax=axes[0], vmax=1.5, colorbar=False)
pa.plot.density(x_grid, y_grid, exact, ax=axes[1], vmax=1.5, colorbar=False)
axes[0].set_title("mixture density network")
axes[1].set(title="exact", ylabel="")
mesh = axes[1].collections[-1]
figure.colorbar(mesh, ax=axes, label="density of y given x (per unit of y)", extend="max")
keep(figure, "density")

# %%
# Where will y be, with probability 0.9? The interval with 5 % on each side spans the gaps between
# the branches, where y never falls; the smallest such region follows them.

density = fit.density(x_grid)
lower, upper = density.interval(0.9)
region = density.highest_density_region(0.9)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
axes[0].fill_between(x_grid, lower, upper, color="#aecde3", lw=0, zorder=0)
axes[0].set_title(f"equal tails: mean width {(upper - lower).mean():.1f}")
for ends in region.intervals.unbind(1):
    axes[1].vlines(x_grid, *ends.T, color="#aecde3", lw=1, zorder=0)
axes[1].set_title(f"highest density: mean width {region.volume().mean():.1f}")
for ax in axes:
    pa.plot.data(problem.x, problem.y, ax=ax)
axes[1].set_ylabel("")
keep(figure, "regions")

# %%
# How near is it? The scale runs from a density that ignores x to the exact one. Only 250 rows were
# held out to choose the best step, so the validation curve has a standard error of about 0.06; the
# figure to believe is that on fresh points, below.

figure, ax = plt.subplots(**PANEL)
pa.plot.training(fit, limit=problem.entropy, ax=ax)
keep(figure, "training")

# %%
# The plain recipe for this network, raw data, scales by ``exp`` and 20,000 full-batch steps of Adam
# at 1e-5, ends at 2.009.

nll = -fit.density(fresh.x).log_prob(fresh.y)
print("mean squared error on 100,000 fresh points")
print(f"  cause to effect   {forward_error:6.3f}   the noise   1.000")
print(f"  effect to cause   {inverse_error:6.3f}   exact mean {least_error:6.3f}")
print("held-out negative log-likelihood, nats")
print("  plain recipe                     2.009")
print(f"  this fit, 100,000 fresh points   {nll.mean():.3f} ± {nll.std() / 1e5**0.5:.3f}")
print(f"  exact conditional density        {problem.entropy:.3f}")
