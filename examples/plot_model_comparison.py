r"""
How many components?
====================

One, two or five? On the rows that were fitted, more components always look better. ArviZ's ``loo``
estimates the log density of rows left out (elpd), from one posterior and no refit, and its k-hat
says row by row where that estimate is not to be trusted.
"""

import warnings

import torch
from matplotlib import pyplot as plt

import pyralloy as pa

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ's, about its own next version
    import arviz_stats as az

# %%
# Two branches that cross: y is x or -x, up to noise.

g = torch.Generator().manual_seed(0)
x = 4.0 * torch.rand(150, generator=g) - 2.0
sign = 2.0 * torch.randint(0, 2, (150,), generator=g) - 1.0
y = sign * x + 0.3 * torch.randn(150, generator=g)


def sample(components):
    trunk = pa.networks.MLP(1, hidden=(4,))
    model = pa.MDN(trunk, pa.MixtureHead(4, components=components), prior=pa.priors.FanIn())
    return pa.nuts(model, x, y, warmup=80, draws=150, chains=1, depth=4, progress=False)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # short chains
    fits = {k: sample(k) for k in (1, 2, 5)}
    trees = {f"K = {k}": fit.to_arviz(x, y, draws=150) for k, fit in fits.items()}
    loos = {name: az.loo(tree, pointwise=True) for name, tree in trees.items()}
    table = az.compare(trees)
print(table.iloc[:, :3])
gap = loos["K = 5"].elpd_i - loos["K = 2"].elpd_i
print(f"K = 5 above K = 2 by {float(gap.sum()):.1f} ± {float(gap.std()) * 150**0.5:.1f} nats")

# %%
# The estimates with their standard errors, and the k-hat of every row.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for place, (name, loo) in enumerate(loos.items()):
    axes[0].errorbar(float(loo.elpd), place, xerr=float(loo.se), fmt="o", color="C0", capsize=4)
    axes[1].plot(loo.pareto_k.values, "ox+"[place], ms=4, label=name, color=f"C{place}")
axes[0].set(yticks=range(3), xlabel="elpd: log density left out (nats, all rows; larger is better)")
axes[0].set_yticklabels(list(loos))
axes[0].set_ylim(-0.5, 2.5)
axes[1].axhline(0.7, color="0.3", ls="--", lw=1)
axes[1].set(xlabel="row", ylabel="k-hat (above 0.7: do not trust)")
axes[1].legend(frameon=False, ncols=3)

# %%
# Two at the least: one cannot follow both branches, and what five gain on two is within twice its
# standard error and rests on rows that k-hat does not trust.
