"""Figures: each function draws on the axes it is given, or on new ones, and returns them.

Nothing is shown, no setting of Matplotlib is changed, and every figure keeps its meaning in grey:
what a colour says, a line style, an opacity or a lightness says too. Axes are called x and y unless
they have labels already; ``ax.set(xlabel="redshift", ylabel="distance (Mpc)")`` names them.
"""

from pyralloy.plot.conditional import components, density, prior_predictive, regions, ridges
from pyralloy.plot.joint import corner
from pyralloy.plot.points import data, samples
from pyralloy.plot.progress import training
from pyralloy.plot.trust import calibration, calibration_along, coverage, reliability, uncertainty

__all__ = [
    "calibration",
    "calibration_along",
    "components",
    "corner",
    "coverage",
    "data",
    "density",
    "prior_predictive",
    "regions",
    "reliability",
    "ridges",
    "samples",
    "training",
    "uncertainty",
]
