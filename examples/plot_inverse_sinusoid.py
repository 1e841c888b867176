r"""
One x, several answers
======================

A cause c determines its effect up to noise, 7 sin(0.75 c) + 0.5 c + ε. To predict the effect from
the cause is ordinary regression, and least squares does it. What of the cause, given the effect? As
many as five causes explain one effect.

The kind of problem is that of Bishop (1994). Its law is known here, so the network is held against
the exact conditional density and its entropy, the limit of any model's log score.
"""

import os
from pathlib import Path

import torch
from matplotlib import pyplot as plt

import pyralloy as pa

# %%
# 2,500 points, the same with the axes exchanged, and fresh ones to judge by.

forward, problem = pa.datasets.sinusoid(2500, seed=0), pa.datasets.inverse_sinusoid(2500, seed=0)
fresh = pa.datasets.inverse_sinusoid(100_000, seed=1)


def least_squares(rows):
    """Fit one Normal whose scale does not depend on x: its mean is that of least squares."""
    trunk = pa.networks.MLP(1, hidden=(64, 64))
    head = pa.MixtureHead(trunk.out_features, components=1, constant_scale=True)
    return pa.fit(pa.MDN(trunk, head), rows.x, rows.y, progress=False)


# %%
# The mixture density network has one hidden layer of 100 ReLU and 20 components, whose means,
# scales and weights all depend on x.

trunk = pa.networks.MLP(1, hidden=(100,), activation=torch.nn.ReLU)
fit = pa.fit(
    pa.MDN(trunk, pa.MixtureHead(100, components=20)), problem.x, problem.y, progress=False
)
nll = -fit.density(fresh.x).log_prob(fresh.y)
print("negative log density on 100,000 fresh points, nats")
print(f"  a density that ignores x   {fit.marginal:.3f}")
print(f"  this fit                   {nll.mean():.3f} ± {nll.std() / 1e5**0.5:.3f}")
print(f"  the exact density          {problem.entropy:.3f}, the limit of any model")

# %%
# Above, least squares both ways with 95 % intervals, and draws from the network. Below, its
# components (their means, as opaque as their weights are large), its density and the exact one.

x, y = torch.linspace(-15.0, 15.0, 601), torch.linspace(-12.0, 12.0, 721)
figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
for ax, rows, name in zip(axes[0], (forward, problem), ("effect", "cause"), strict=False):
    found, grid = least_squares(rows), torch.linspace(float(rows.x.min()), float(rows.x.max()), 400)
    pa.plot.data(rows.x, rows.y, ax=ax)
    ax.fill_between(grid, *found.density(grid).interval(0.95), color="C0", alpha=0.2, lw=0)
    ax.plot(grid, found.density(grid).mean, color="C0", lw=2)
    ax.set_title(f"the {name} by least squares")
density = fit.density(x)
draws = density.sample((4,), generator=torch.Generator().manual_seed(0))  # (4, 601)
pa.plot.samples(x, draws, ax=axes[0, 2]).set_title("the cause: draws from the network")
pa.plot.components(x, density, ax=axes[1, 0]).set_title("its components")
axes[1, 0].legend(frameon=False, loc="lower right", fontsize="small")
pa.plot.density(x, y, density, ax=axes[1, 1], vmax=1.5, colorbar=False).set_title("its density")
exact = problem.log_density(x, y[:, None]).exp()  # (721, 601)
pa.plot.density(x, y, exact, ax=axes[1, 2], vmax=1.5).set_title("the exact density")

if "PYRALLOY_FIGURES" in os.environ:  # where `make demo` saves it
    path = Path(os.environ["PYRALLOY_FIGURES"]) / "inverse_sinusoid.png"
    figure.savefig(path, dpi=150)
    print(path)

# %%
# Least squares returns the average of the causes, which is none of them; the network returns all of
# them, each with its probability, within a few hundredths of a nat of the exact density.
