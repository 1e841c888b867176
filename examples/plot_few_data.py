r"""
Few data: one set of weights, or many?
======================================

A hundred rows do not settle the weights of a network. Maximum likelihood takes the one set that
fits them best; Bayes averages over all that fit about as well. Does the average predict better?
"""

import warnings

import numpy as np
import torch
from matplotlib import pyplot as plt

import pyralloy as pa

# %%
# The density of the inverse sinusoid is known, and so is the least loss that can be. The same
# small network is fitted to 100 rows, three times anew, and judged on 20,000 others.

fresh = pa.datasets.inverse_sinusoid(20_000, seed=99)


def network(prior):
    trunk = pa.networks.MLP(1, hidden=(8,))
    return pa.MDN(trunk, pa.MixtureHead(8, components=4), prior=prior)


def fits(seed):
    problem = pa.datasets.inverse_sinusoid(100, seed=seed)
    single = pa.fit(network(None), problem.x, problem.y, seed=seed, progress=False)
    length = {"warmup": 50, "draws": 50, "chains": 1, "depth": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one short chain says little of itself
        many = pa.nuts(
            network(pa.priors.FanIn()), problem.x, problem.y, seed=seed, progress=False, **length
        )
    return problem, {"maximum likelihood": single, "Bayes (NUTS)": many}


runs = [fits(seed) for seed in range(3)]
losses = {
    name: [float(-run[name].density(fresh.x).log_prob(fresh.y).mean()) for _, run in runs]
    for name in runs[0][1]
}
for name, values in losses.items():
    print(f"{name:20s}", "  ".join(f"{v:.3f}" for v in values), "nats")
gain = np.subtract(*losses.values())
print(f"gain of Bayes: {gain.mean():.3f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.3f} nats a row")
print(f"the limit of any model: {fresh.entropy:.3f}")

# %%
# The two densities of the first run, and the losses of all three.

x, y = torch.linspace(-14.0, 14.0, 281), torch.linspace(-14.0, 14.0, 281)
problem, first = runs[0]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", width_ratios=(1, 1, 0.7))
for ax, (name, fit) in zip(axes, first.items(), strict=False):
    pa.plot.density(x, y, fit.density(x), ax=ax, vmax=1.0, colorbar=False)
    pa.plot.data(problem.x, problem.y, ax=ax, size=10, color="#d55e00", alpha=0.9)
    ax.set_title(name)
axes[2].plot([0, 1], np.array(list(losses.values())), "o-", color="0.5")
axes[2].axhline(fresh.entropy, color="C0", ls="--", label="limit of any model")
axes[2].set(xticks=[0, 1], xlim=(-0.4, 1.4), ylabel="loss on fresh rows (nats)")
axes[2].set_xticklabels(["maximum\nlikelihood", "Bayes"])
axes[2].legend(frameon=False, loc=(0.03, 0.1))
axes[1].set_ylabel("")

# %%
# It does, in each of the three runs: the average does not trust the few rows to the last nat.
