r"""
Noise on the inputs: how smooth in x?
=====================================

From 300 rows a network learns the density and their accidents alike. Where their inputs move a
little at every step of training (``x_noise``), only what is smooth in x can be learnt. How much is
enough?
"""

import numpy as np
import torch
from matplotlib import pyplot as plt

import pyralloy as pa

# %%
# The density of the inverse sinusoid is known, and so is the least loss that can be. Ensembles of
# five are trained on 300 rows, for three draws of them, and judged on 20,000 others. The noise is
# in standard deviations of x.

fresh = pa.datasets.inverse_sinusoid(20_000, seed=99)
levels = [0.0, 0.05, 0.1, 0.2, 0.3]
problems = [pa.datasets.inverse_sinusoid(300, seed=seed) for seed in range(3)]


def make_model(_seed):
    trunk = pa.networks.MLP(1, hidden=(64, 64))
    return pa.MDN(trunk, pa.MixtureHead(64, components=10))


def fit(problem, level, seed):
    options = {"members": 5, "seed": seed, "progress": False}
    return pa.ensemble(make_model, problem.x, problem.y, x_noise=level, **options)


fits = [[fit(problem, level, s) for level in levels] for s, problem in enumerate(problems)]
losses = np.array(
    [[-float(one.density(fresh.x).log_prob(fresh.y).mean()) for one in run] for run in fits]
)
for level, values in zip(levels, losses.T, strict=True):
    print(f"noise {level:4.2f}: ", "  ".join(f"{v:.3f}" for v in values), "nats")
print(f"the limit of any model: {fresh.entropy:.3f}")

# %%
# The exact density, two of those found from the same 300 rows, and the losses of all.

x, y = torch.linspace(-14.0, 14.0, 281), torch.linspace(-14.0, 14.0, 281)
problem, chosen = problems[0], levels.index(0.1)
panels = {
    "exact": problem.log_density(x, y[:, None]).exp(),
    "without noise": fits[0][0].density(x),
    "with noise of 0.1": fits[0][chosen].density(x),
}
figure, axes = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
for ax, (name, density) in zip(axes, panels.items(), strict=False):
    pa.plot.density(x, y, density, ax=ax, vmax=0.8, colorbar=False)
    ax.set_title(name)
pa.plot.data(problem.x, problem.y, ax=axes[1], size=6, color="#0072b2", alpha=0.9)
pa.plot.data(problem.x, problem.y, ax=axes[2], size=6, color="#0072b2", alpha=0.9)
for ax in axes[1:3]:
    ax.set_ylabel("")
last = axes[3]
last.plot(range(len(levels)), losses.T, "o-", color="0.6", lw=1)
last.plot(range(len(levels)), losses.mean(0), "o-", color="C0", label="mean of three")
last.axhline(fresh.entropy, color="C0", ls="--", label="limit of any model")
last.set(xticks=range(len(levels)), xlabel="noise (standard deviations of x)")
last.set_xticklabels([f"{level:g}" for level in levels])
last.set(ylabel="loss on fresh rows (nats)", ylim=(fresh.entropy - 0.05, None))
last.legend(frameon=False)

# %%
# About a tenth is best on the mean of three, and too much blurs what is there: cross-validate it.
