r"""
How far is a galaxy of these colours?
=====================================

A galaxy's distance is read from its redshift, and the redshift, where there is no spectrum, from
its brightness in a few broad bands. The same colours may be those of a near red galaxy or of a far
blue one. Are the densities right, and where may the redshift be, with nine chances in ten?
"""

import torch
from matplotlib import pyplot as plt

import pyralloy as pa
from pyralloy import calibration, conformal

# %%
# Simulated galaxies: a spectrum that rises to the red, a break at 400 nm whose depth goes with the
# galaxy's age, seen in five bands with noise.

BANDS = torch.tensor([355.0, 470.0, 620.0, 750.0, 890.0])  # nm


def draw(rows, seed):
    g = torch.Generator().manual_seed(seed)
    z = 1.6 * torch.rand(rows, 2, generator=g).amin(1)
    age = torch.rand(rows, 1, generator=g)
    rest = BANDS / (1.0 + z[:, None])  # wavelength at which the light was sent, nm
    slope = (0.3 + 1.4 * age) * torch.log(rest / 400.0)
    flux = slope + 1.8 * age * torch.sigmoid((rest - 400.0) / 12.0)
    flux = flux - 0.8 * torch.sigmoid((215.0 - rest) / 8.0)
    magnitude = 20.0 + 2.5 * z[:, None].log1p() - 1.086 * flux
    magnitude = magnitude + torch.randn(rows, 1, generator=g)  # some are brighter than others
    noise = 0.05 + 0.05 * age
    return magnitude + noise * torch.randn(rows, 5, generator=g), z


def inputs(magnitude):
    """Give four colours and a brightness."""
    return torch.cat([-magnitude.diff(dim=1), magnitude[:, 2:3]], 1)


(m, z), (m_held, z_held), (m_new, z_new) = draw(4000, 0), draw(1500, 1), draw(1500, 2)
trunk = pa.networks.MLP(5, hidden=(64, 64))
head = pa.MixtureHead(trunk.out_features, components=6)
fit = pa.fit(pa.MDN(trunk, head), inputs(m), z, max_steps=2500, progress=False)

# %%
# On galaxies that were not fitted: is the density right?

density = fit.density(inputs(m_new))
report = calibration.report(density, z_new, inputs(m_new), names=["u-g", "g-r", "r-i", "i-z", "r"])
print(report.verdict)

# %%
# Conformal regions, whose level is adjusted on 1,500 others, hold what they say even if it is not.

regions = conformal.calibrate(fit.density(inputs(m_held)), z_held, level=0.9)
region = regions.region(density)
several = region.intervals[:, 1:, 0].isfinite().any(1)
print(
    f"regions hold {region.contains(z_new).double().mean():.1%} of {len(z_new)} redshifts,", end=""
)
print(f" and are in pieces for {several.double().mean():.0%}; ", end="")
print(f"mean length {region.volume().mean():.2f}")

# %%
# Left: the PIT. Right: forty regions beside the true redshifts.

figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
pa.plot.calibration(report, ax=axes[0]).set_ylim(-0.09, 0.05)
axes[0].legend(frameon=False, loc="lower right")
some = torch.argsort(z_new)[:: len(z_new) // 40]
pa.plot.regions(z_new[some], regions.region(density[some]), ax=axes[1])
axes[1].plot([0, 1.6], [0, 1.6], color="0.3", lw=1, label="true redshift")
axes[1].set(xlabel="true redshift", ylabel="redshift, 90 % conformal region")
axes[1].legend(frameon=False, loc="upper left")

# %%
# The densities are a little wide, if anything, and the regions hold about nine redshifts in ten, in
# two pieces where two distances explain the colours.
