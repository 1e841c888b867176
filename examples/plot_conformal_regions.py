r"""
Regions that hold what they say
===============================

How large must a region be to hold y with probability 0.9, and how do we know that it does? A
density answers if it is right. *Conformal* regions hold what they say even if it is wrong: their
level is adjusted on rows that were not fitted, and no assumption is made but that rows are
exchangeable.

They come in two shapes. Conformalised quantile regression (CQR) moves the ends of an interval.
Where y has several branches it covers the gaps between them too; an adjusted highest-density
region (HPD-split) follows the branches.
"""

import torch
from matplotlib import pyplot as plt

import pyralloy as pa
from pyralloy import conformal

# %%
# A cause has one effect and an effect several causes. The network is trained for too short a time,
# and its density is then made too narrow, as an overfitted one is.

train, held, fresh = (
    pa.datasets.inverse_sinusoid(rows, seed=seed) for seed, rows in enumerate((2500, 500, 4000))
)
trunk = pa.networks.MLP(1, hidden=(64, 64))
model = pa.MDN(trunk, pa.MixtureHead(trunk.out_features, components=20))
fit = pa.fit(model, train.x, train.y, max_steps=600, progress=False, seed=0)


def density(x):
    return fit.density(x).tempered(weight=1.0, scale=0.6)


# %%
# Its own 90 % regions hold far fewer rows than they say. On 500 held-out rows both kinds of
# conformal region are calibrated.

regions = conformal.calibrate(density(held.x), held.y, level=0.9)
intervals = conformal.calibrate_intervals(density(held.x), held.y, level=0.9)
print(regions)
print(intervals)

own = density(fresh.x).highest_density_region(0.9)
region = regions.region(density(fresh.x))
lower, upper = intervals.interval(density(fresh.x))
inside = (fresh.y >= lower) & (fresh.y <= upper)

rows = {
    "the density's own region": (own.contains(fresh.y), own.volume()),
    "conformal interval (CQR)": (inside, upper - lower),
    "conformal region (HPD-split)": (region.contains(fresh.y), region.volume()),
}
for name, (holds, length) in rows.items():
    print(f"{name:30s} holds {holds.double().mean():6.1%}   mean length {length.mean():5.2f}")

# %%
# Side by side, with fresh rows.

grid = torch.linspace(-14.0, 14.0, 500)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
axes[0].fill_between(grid, *intervals.interval(density(grid)), color="#0072b2", alpha=0.3, lw=0)
pa.plot.regions(grid, regions.region(density(grid)), ax=axes[1])
names = list(rows)[1:]
for ax, name in zip(axes, names, strict=True):
    pa.plot.data(fresh.x[:800], fresh.y[:800], ax=ax, size=4)
    holds, length = rows[name]
    ax.set_title(f"{name}\nholds {holds.double().mean():.1%}, mean length {length.mean():.1f}")
axes[1].set_ylabel("")

# %%
# Both hold nine rows in ten; the regions have less than a third of the length, for they leave out
# where y never is.
