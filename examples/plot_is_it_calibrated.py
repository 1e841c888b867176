r"""
Right on average, wrong at every x
==================================

A density says how sure it is. Is it right to be? On rows that were not fitted,
:func:`pyralloy.calibration.report` counts how often y falls where the density said, everywhere and
along each feature, and says what to do.

Here y is x or -x, each half of the time, with a little noise, and x is half normal: together y is
standard normal. Least squares finds no slope and a spread of one, and looks perfect, until one asks
*where* it is right.
"""

import torch
from matplotlib import pyplot as plt

import pyralloy as pa
from pyralloy import calibration, conformal


def draw(rows, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, generator=g).abs()
    sign = 2.0 * torch.randint(0, 2, (rows,), generator=g) - 1.0
    return x, sign * x[:, 0] + 0.1 * torch.randn(rows, generator=g)


x, y = draw(2000, seed=0)  # to fit
x_held, y_held = draw(1000, seed=1)  # to recalibrate
x_new, y_new = draw(1000, seed=2)  # to judge


def fit(components, hidden, **head):
    trunk = pa.networks.MLP(1, hidden)
    model = pa.MDN(trunk, pa.MixtureHead(trunk.out_features, components=components, **head))
    return pa.fit(model, x, y, progress=False, seed=0)


# %%
# Least squares is one Normal component of constant spread on a line. Nine in ten rows lie in its
# 90 % intervals, and its PIT is uniform. But along x they are too wide at first and then too
# narrow: the errors cancel on average.

least_squares = fit(components=1, hidden=(), constant_scale=True)
judged = calibration.report(least_squares.density(x_new), y_new, x_new)
print(judged)

# %%
# Recalibration maps every density by one and the same curve, so it mends what is wrong at every x
# alike, a spread that is everywhere too small, for instance. This it cannot mend.

mended = conformal.recalibrate(least_squares.density(x_held), y_held)
print(calibration.report(mended.apply(least_squares.density(x_new)), y_new, x_new).verdict)

# %%
# What helps is a density that can be right: a mixture, whose weights, places and spreads follow x.

mixture = fit(components=6, hidden=(64, 64))
better = calibration.report(mixture.density(x_new), y_new, x_new)
print(better.verdict)

# %%
# Above, what each claims to hold 90 %; below, whether it does, along x.

grid = torch.linspace(0.0, 3.0, 300)
figure, axes = plt.subplots(2, 2, figsize=(8.5, 6.4), layout="constrained", sharex=True)
for column, (name, found, model) in zip(
    axes.T, (("least squares", judged, least_squares), ("mixture", better, mixture)), strict=True
):
    region = model.density(grid).highest_density_region(0.9)
    pa.plot.regions(grid, region, ax=column[0], label="90 % region")
    pa.plot.data(x_new, y_new, ax=column[0])
    pa.plot.calibration_along(x_new, found, ax=column[1])
    column[0].set(title=f"{name}: {found.sharpness['log score']:.2f} nats a row", xlim=(0.0, 3.0))
axes[0, 0].legend(loc="upper left", markerscale=2)

# %%
# A density that is right on average may be wrong at every x: look along x before trusting it.
