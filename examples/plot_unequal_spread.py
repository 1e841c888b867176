r"""
A spread that grows
===================

Engel (1857) asked how much of an income goes to food. 235 Belgian households answer: more where
there is more, and the richer they are, the more they differ. Least squares has one spread for all.
Can a density tell how sure it is of each household?
"""

import torch
from matplotlib import pyplot as plt
from statsmodels.datasets import engel

import pyralloy as pa
from pyralloy import calibration

# %%
# A third of the households is kept to judge.

table = engel.load_pandas().data.sample(frac=1.0, random_state=0)
train, test = table.iloc[len(table) // 3 :], table.iloc[: len(table) // 3]


def fit(constant_scale, hidden):
    """Fit one Normal component, whose spread follows income or not."""
    trunk = pa.networks.MLP(1, hidden)
    head = pa.MixtureHead(trunk.out_features, components=1, constant_scale=constant_scale)
    model = pa.MDN(trunk, head)
    x, y = train[["income"]], train["foodexp"]
    return pa.fit(model, x, y, validation=None, max_steps=800, progress=False)


fits = {
    "least squares": fit(constant_scale=True, hidden=()),
    "spread follows income": fit(constant_scale=False, hidden=(8,)),
}

# %%
# On average neither is far from nine test households in ten in its 90 % intervals. But where?

x, y = test[["income"]], test["foodexp"]
poor = (x["income"] < table["income"].median()).to_numpy()
rows = []
for name, found in fits.items():
    density = found.density(x)
    lower, upper = density.interval(0.9)
    at = torch.tensor(y.to_numpy())
    inside = ((at >= lower) & (at <= upper)).numpy()
    score = float(-density.log_prob(at).mean())
    rows.append((name, inside[poor].mean(), inside[~poor].mean(), score))
    print(f"{name}: {score:.2f} nats; {calibration.report(density, y, x).verdict}")

# %%
# The two bands, with the households that were kept.

grid = torch.linspace(float(table["income"].min()), 3000.0, 300)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
for ax, (name, low, high, score) in zip(axes, rows, strict=True):
    density = fits[name].density(grid)
    ax.fill_between(grid, *density.interval(0.9), color="#0072b2", alpha=0.25, lw=0)
    ax.plot(grid, density.quantile(0.5), color="#0072b2", label="median and 90 % interval")
    pa.plot.data(x, y, ax=ax, size=14, label="test households")
    ax.set(
        title=f"{name}: {score:.2f} nats\nholds {low:.0%} of the poorer, {high:.0%} of the richer"
    )
    ax.set(xlabel="income (Belgian francs a year)", xlim=(300, 3000), ylim=(0, 2400))
axes[1].set_ylabel("")
axes[0].set_ylabel("food expenditure (Belgian francs a year)")
axes[0].legend(loc="upper left", frameon=False)

# %%
# A density whose spread follows x says how sure it is of each household; one spread for all is too
# wide for the poorer and too narrow for the richer.
